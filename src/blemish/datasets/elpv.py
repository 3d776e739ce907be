"""ELPV: solar cells of the package elpv-dataset, labelled by how probably they are defective.

    elpv_dataset/data/                              elpv_dataset/ can be opened too
    ├─ labels.csv                                   path, probability, type (mono or poly)
    └─ images/cell0001.png …

Probability 0 is good, 1 is defective, anything between is left out. Every third good picture, by
name, goes to test. There are no masks.

Source: github.com/zae-bayern/elpv-dataset (CC BY-NC-SA 4.0).
"""

import re
from pathlib import Path

from blemish import images
from blemish.errors import DatasetError
from blemish.types import Sample

TITLE = "ELPV solar cells"
LEARNS_FROM = ""

_ROW = re.compile(r"images/(\S+)\s+(\d+(?:\.\d+)?)\s+(mono|poly)")
_LABELS = {1.0: True, 0.0: False}


def categories(root: Path) -> list[str]:
    """Kinds of cells, where there are images and a labels.csv that begins as expected."""
    table = _folder(root) / "labels.csv"
    if not table.is_file() or not (table.parent / "images").is_dir():
        return []
    with table.open(encoding="utf-8", errors="replace") as file:
        return ["mono", "poly"] if _ROW.fullmatch(file.readline().strip()) else []


def read(root: Path, category: str) -> list[Sample]:
    """The cells of one kind that are surely good or surely defective."""
    table = _folder(root) / "labels.csv"
    cells = {path.name: path for path in images.list_pictures(table.parent / "images")}
    labels: dict[Path, bool] = {}
    for number, line in enumerate(table.read_text("utf-8", errors="replace").splitlines(), start=1):
        row = _ROW.fullmatch(line.strip())
        if line.strip() and (row is None or row[1] not in cells):
            raise DatasetError(
                f'{table}, row {number}: "{line}" is not a picture of the folder images, a probability and mono or '
                "poly; install elpv-dataset again."
            )
        if row and row[3] == category and float(row[2]) in _LABELS:
            labels[cells[row[1]]] = _LABELS[float(row[2])]
    good = sorted(path for path, is_anomalous in labels.items() if not is_anomalous)
    tested = set(good[2::3])
    return [
        Sample(
            path=path,
            category=category,
            split="test" if is_anomalous or path in tested else "train",
            is_anomalous=is_anomalous,
            defect="defect" if is_anomalous else "",
        )
        for path, is_anomalous in labels.items()
    ]


def _folder(root: Path) -> Path:
    return root / "data" if (root / "data" / "labels.csv").is_file() else root
