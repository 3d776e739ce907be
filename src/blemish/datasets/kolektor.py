"""KolektorSDD and KolektorSDD2: a mask beside every picture; a picture is defective if its mask is not black.

    KolektorSDD/                        KolektorSDD2/
    ├─ kos01/Part0.jpg                  ├─ train/10000.png
    ├─ kos01/Part0_label.bmp            ├─ train/10000_GT.png
    └─ …                                └─ test/…

KolektorSDD has no split: its defective pictures are for testing, and a fifth of the good ones,
chosen by a hash of their names. Defective training pictures of KolektorSDD2 are kept and labelled.
"""

import re
from pathlib import Path

from blemish import images
from blemish.dataset import category_folder, category_names, masks_beside, subfolders
from blemish.errors import ImageError
from blemish.types import Sample, Split

TITLE = "Kolektor layout"
LEARNS_FROM = ""
SPLITS_GOOD = True

_PART = re.compile(r"kos\d+", re.IGNORECASE)
_SPLITS: dict[str, Split] = {"train": "train", "test": "test"}


def categories(root: Path) -> list[str]:
    """The folders that hold parts kos01, kos02, … or a train or test folder of pictures and their _GT."""
    return category_names(root, _is_category)


def read(root: Path, category: str) -> list[Sample]:
    """All pictures of one category; every mask is looked at."""
    samples = []
    for folder in filter(_is_place, subfolders(category_folder(root, category, _is_category))):
        split = _SPLITS.get(folder.name.lower())
        for path, masks in masks_beside(images.list_pictures(folder)).items():
            is_anomalous = _is_marked(masks)
            samples.append(
                Sample(
                    path=path,
                    category=category,
                    split=split or ("train" if is_anomalous is False else "test"),
                    is_anomalous=is_anomalous,
                    defect="defect" if is_anomalous else "",
                    masks=() if is_anomalous is False else masks,
                )
            )
    return samples


def _is_category(folder: Path) -> bool:
    return any(map(_is_place, subfolders(folder)))


def _is_place(folder: Path) -> bool:
    """Whether it is a folder of pictures with their masks beside them."""
    if not _PART.fullmatch(folder.name) and folder.name.lower() not in _SPLITS:
        return False
    return any(masks_beside(images.list_pictures(folder)).values())


def _is_marked(masks: tuple[Path, ...]) -> bool | None:
    """Whether a mask has a pixel that is not zero; None when there is no mask or it can't be read."""
    try:
        return any(bool(images.read(mask).any()) for mask in masks) if masks else None
    except ImageError:
        return None
