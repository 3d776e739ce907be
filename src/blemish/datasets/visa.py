"""VisA as downloaded: pictures by category, the split in split_csv/1cls.csv.

    <root>/
    ├─ split_csv/1cls.csv                           object, split, label, image, mask
    └─ <category>/Data/                             <root>/<category> can be opened too
       ├─ Images/Normal/*.JPG
       ├─ Images/Anomaly/*.JPG
       └─ Masks/Anomaly/<stem>.png                  values number the defects; all are defective

Once prepared (train/good, test/bad, …) VisA has the MVTec layout.
"""

import csv
from pathlib import Path

from blemish import images
from blemish.dataset import category_folder, category_names, masks_in
from blemish.errors import DatasetError
from blemish.types import Sample, Split

TITLE = "VisA layout"
LEARNS_FROM = ""

_SPLIT_FILE = Path("split_csv", "1cls.csv")
_SPLITS: dict[str, Split] = {"train": "train", "test": "test"}
_LABELS = {"normal": ("Normal", False), "anomaly": ("Anomaly", True)}


def categories(root: Path) -> list[str]:
    """The folders that hold Data/Images, where there is a split file."""
    return category_names(root, _is_category)


def read(root: Path, category: str) -> list[Sample]:
    """The pictures of one category that the split file lists."""
    folder = category_folder(root, category, _is_category)
    table = folder.parent / _SPLIT_FILE
    pictures = {
        label: {path.name: path for path in images.list_pictures(place)}
        for label, (name, _) in _LABELS.items()
        if (place := folder / "Data" / "Images" / name).is_dir()
    }
    masks = masks_in(folder / "Data" / "Masks" / "Anomaly")
    samples = []
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            where = f"{table}, row {number}"
            try:
                if row["object"] != category:
                    continue
                split, is_anomalous = _SPLITS[row["split"]], _LABELS[row["label"]][1]
                listed = row["image"]
            except KeyError as error:
                raise DatasetError(
                    f"{where}: {error} is unknown; expected the columns object, split, label, image, mask, "
                    "the splits train and test, the labels normal and anomaly."
                ) from error
            path = pictures.get(row["label"], {}).get(Path(listed).name)
            if path is None:
                raise DatasetError(f'{where}: there is no picture "{listed}"; unpack the whole archive again.')
            samples.append(
                Sample(
                    path=path,
                    category=category,
                    split=split,
                    is_anomalous=is_anomalous,
                    defect="anomaly" if is_anomalous else "",
                    masks=masks.get(path.stem, ()) if is_anomalous else (),
                )
            )
    return samples


def _is_category(folder: Path) -> bool:
    return (folder / "Data" / "Images").is_dir() and (folder.parent / _SPLIT_FILE).is_file()
