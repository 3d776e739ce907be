"""A table of pictures: manifest.csv, .jsonl or .parquet, or any file that ends so.

    <root>/
    ├─ manifest.csv                                 one row a picture; .jsonl: one object a line
    └─ …                                            pictures and masks, anywhere below

Columns, of which only `path` has to be there:

    path        the picture, from the folder of the manifest; it must not lead out of it
    split       train, validation (val) or test; by default train for good pictures, test for others
    label       a word for good or bad of `dataset.py`, 0 or 1; by default good in train and
                validation, unknown in test
    defect      the kind of defect; by default the label
    mask        the mask's path; several with `;` between them
    category    by default the name of the manifest's folder
    part        what joins the views of one part
    view        which view this is

Where no row of a category says a split, a fifth of the good pictures goes to test if there are
defective ones.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blemish.dataset import BAD_WORDS, GOOD_WORDS, split_good
from blemish.errors import DatasetError, not_among
from blemish.packed import packed_samples
from blemish.rows import LISTS, PICTURE, Finder, Place, Row, read_rows, word
from blemish.types import Sample, Split

TITLE = "Manifest"
LEARNS_FROM = ""

_NAMES = ("manifest.csv", "manifest.jsonl", "manifest.parquet")
_SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_LABELS: dict[str, bool | None] = {
    **dict.fromkeys(GOOD_WORDS | {"0"}, False),
    **dict.fromkeys(BAD_WORDS | {"1"}, True),
    **dict.fromkeys(("unknown", "unlabelled", "unlabeled"), None),
}


def categories(root: Path) -> list[str]:
    """The categories that the manifest names."""
    file = _file(root)
    return sorted(_parsed(file, _version(file))) if file else []


def read(root: Path, category: str) -> list[Sample]:
    """All pictures of one category."""
    file = _file(root)
    return list(_parsed(file, _version(file))[category]) if file else []


def _file(root: Path) -> Path | None:
    candidates = [root] if root.suffix.lower() in LISTS else [root / name for name in _NAMES]
    return next(filter(Path.is_file, candidates), None)


def _version(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=1)  # every category asks for its own, and there may be 100,000 rows
def _parsed(file: Path, _version: tuple[int, ...]) -> dict[str, Sequence[Sample]]:
    find = Finder(file.parent)
    found: dict[str, list[Sample]] = {}
    says_split = set()
    places: dict[Path, Place] = {}
    for place, row in read_rows(file, PICTURE):
        sample = _sample(row, find, place)
        if sample.path in places:
            raise DatasetError(f"{place}: {sample.path} is in {places[sample.path]} already; keep one of them.")
        places[sample.path] = place
        found.setdefault(sample.category, []).append(sample)
        if row.get("split"):
            says_split.add(sample.category)
    if not found:
        raise DatasetError(f'{file} lists no pictures; expected a column "path" and a row for each picture.')
    # Packed, because it is kept as long as the process runs.
    return {name: packed_samples(own if name in says_split else split_good(own)) for name, own in found.items()}


def _sample(row: Row, find: Finder, place: Place) -> Sample:
    label, defect = row.get("label", ""), row.get("defect", "")
    split = _SPLITS[_known("split", row["split"], _SPLITS, place)] if row.get("split") else None
    if label:
        is_anomalous = _LABELS[_known("label", label, _LABELS, place)]
    elif defect:
        is_anomalous = True
    else:
        is_anomalous = None if split == "test" else False
    masks = [] if is_anomalous is False else row.get("mask", "").split(";")
    return Sample(
        path=find(row.get("path", ""), place),
        category=row.get("category") or find.folder.name or find.root.name,
        split=split or ("train" if is_anomalous is False else "test"),
        is_anomalous=is_anomalous,
        defect=(defect or label) if is_anomalous else "",
        masks=tuple(find(mask.strip(), place) for mask in masks if mask.strip()),
        part=row.get("part", ""),
        view=row.get("view", ""),
    )


def _known(what: str, name: str, known: dict[str, Any], place: Place) -> str:
    if word(name) not in known:
        raise DatasetError(f"{place}: {not_among(what, name, known)}")
    return word(name)
