"""A table of pictures: manifest.csv or manifest.jsonl, or any .csv or .jsonl file.

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

import csv
import functools
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from blemish.dataset import BAD_WORDS, GOOD_WORDS, split_good, word
from blemish.errors import DatasetError, not_among
from blemish.types import Sample, Split

TITLE = "Manifest"
LEARNS_FROM = ""

Row: TypeAlias = dict[str, str]
Place: TypeAlias = str
"""A manifest and a row of it, in words."""

_NAMES = ("manifest.csv", "manifest.jsonl")
_COLUMNS = ("path", "split", "label", "defect", "mask", "category", "part", "view")
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
    candidates = [root] if root.suffix.lower() in {".csv", ".jsonl"} else [root / name for name in _NAMES]
    return next(filter(Path.is_file, candidates), None)


def _version(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=1)  # every category asks for its own, and there may be 100,000 rows
def _parsed(file: Path, _version: tuple[int, ...]) -> dict[str, list[Sample]]:
    find = _Finder(file.parent)
    found: dict[str, list[Sample]] = {}
    says_split = set()
    places: dict[Path, Place] = {}
    for place, row in _rows(file):
        sample = _sample(row, find, place)
        if sample.path in places:
            raise DatasetError(f"{place}: {sample.path} is in {places[sample.path]} already; keep one of them.")
        places[sample.path] = place
        found.setdefault(sample.category, []).append(sample)
        if row.get("split"):
            says_split.add(sample.category)
    if not found:
        raise DatasetError(f'{file} lists no pictures; expected a column "path" and a row for each picture.')
    return {name: own if name in says_split else split_good(own) for name, own in found.items()}


def _sample(row: Row, find: "_Finder", place: Place) -> Sample:
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


class _Finder:
    """Finds the files that a manifest names, and none outside its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder.absolute()
        self._real_root = Path(os.path.realpath(folder))
        self._real: dict[Path, Path] = {}

    def __call__(self, name: str, place: Place) -> Path:
        # Dots are taken out first, so that what is checked is what will be opened.
        path = Path(os.path.normpath(self.root / name.replace("\0", "\N{REPLACEMENT CHARACTER}")))
        if not path.is_relative_to(self.root) or not self._resolve(path).is_relative_to(self._real_root):
            raise DatasetError(
                f'{place}: "{name}" leads out of {self.folder}; expected a path inside it, where the manifest lies.'
            )
        if not path.is_file():
            raise DatasetError(
                f'{place}: there is no file "{name}" in {self.folder}; expected the path of a picture from there.'
            )
        return self.folder / path.relative_to(self.root)

    def _resolve(self, path: Path) -> Path:
        """Where the path really is; each folder is looked at once only."""
        if path.is_symlink():
            return Path(os.path.realpath(path))
        if path.parent not in self._real:
            self._real[path.parent] = Path(os.path.realpath(path.parent))
        return self._real[path.parent] / path.name


def _rows(file: Path) -> Iterator[tuple[Place, Row]]:
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} can't be read ({error}); expected a text file in UTF-8.") from error
    return (_csv_rows if file.suffix.lower() == ".csv" else _json_rows)(text, file)


def _csv_rows(text: str, file: Path) -> Iterator[tuple[Place, Row]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    while True:
        place = f"{file}, row {reader.line_num + 1}"
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise DatasetError(f"{place}: {error}; expected cells with commas between them.") from error
        if not any(cells):
            continue
        if not columns:
            columns = [word(cell) for cell in cells]
            _check_columns(columns, place)
        elif len(cells) != len(columns):
            raise DatasetError(f"{place}: has {len(cells)} cells; expected {len(columns)} like the first row.")
        else:
            yield place, dict(zip(columns, cells, strict=True))


def _json_rows(text: str, file: Path) -> Iterator[tuple[Place, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{file}, row {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{place}: {error}; expected one JSON object a line.") from error
        if not isinstance(row, dict):
            raise DatasetError(f'{place}: expected a JSON object like {{"path": "good/1.png", "label": "good"}}.')
        _check_columns(list(row), place)
        yield place, {column: _text(value, column, place) for column, value in row.items()}


def _check_columns(columns: list[str], place: Place) -> None:
    for column in columns:
        if column not in _COLUMNS:
            raise DatasetError(f"{place}: {not_among('column', column, _COLUMNS)}")
    if "path" not in columns or len(set(columns)) < len(columns):
        raise DatasetError(f'{place}: the columns are {", ".join(columns)}; expected "path" among them, and each once.')


def _text(value: object, column: str, place: Place) -> str:
    if isinstance(value, list) and column == "mask":
        return ";".join(_text(item, column, place) for item in value)
    if value is None:
        return ""
    if isinstance(value, str | int):
        return str(value).strip()
    raise DatasetError(f"{place}: {column} is {json.dumps(value)}; expected text.")
