"""Manifests: rows of text, and the files that they name, none of them outside the manifest's folder."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from blemish.errors import DatasetError, not_among

LISTS = frozenset({".csv", ".jsonl", ".parquet"})
"""Endings of manifests."""
PICTURE = ("path", "split", "label", "defect", "mask", "category", "part", "view")
"""What a manifest of pictures may say of each; see `datasets/manifest.py`."""
Row: TypeAlias = dict[str, str]
Place: TypeAlias = str
"""A manifest and a row of it, in words."""


def word(name: str) -> str:
    """The name of a folder or label as the tables of words write it.

    >>> word("Not OK")
    'not_ok'
    """
    return name.strip().lower().replace("-", "_").replace(" ", "_")


class Finder:
    """Finds the files that a manifest names, and none outside its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder.absolute()
        self._real_root = Path(os.path.realpath(folder))
        self._real: dict[Path, Path] = {}

    def __call__(self, name: str, place: Place) -> Path:
        """The file called `name` in the row at `place`.

        Raises:
            DatasetError: it leads out of the folder, or is not there.
        """
        # Dots are taken out first, so that what is checked is what will be opened.
        path = Path(os.path.normpath(self.root / name.replace("\0", "\N{REPLACEMENT CHARACTER}")))
        if not path.is_relative_to(self.root) or not self._resolve(path).is_relative_to(self._real_root):
            raise DatasetError(f'{place}: "{name}" leads out of {self.folder}; expected a path inside it.')
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


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[Place, Row]]:
    """Each row of a manifest with the place where it stands.

    Args:
        file: CSV with a first row of column names, or (.jsonl) one JSON object a line; in UTF-8. Or (.parquet)
            a table.
        columns: The names that are known; the first must be there.

    Raises:
        DatasetError: the file can't be read, or a row does not fit.
    """
    if file.suffix.lower() == ".parquet":
        return _parquet_rows(file, columns)
    return _text_rows(file, columns)


def _text_rows(file: Path, known: Sequence[str]) -> Iterator[tuple[Place, Row]]:
    """The rows of a text file, which is read line by line."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            yield from (_csv_rows if file.suffix.lower() == ".csv" else _json_rows)(lines, file, known)
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} can't be read ({error}); expected a text file in UTF-8.") from error


def _csv_rows(lines: Iterable[str], file: Path, known: Sequence[str]) -> Iterator[tuple[Place, Row]]:
    reader = csv.reader(lines, strict=True)
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
            if len(columns) == 1 and (other := next((mark for mark in ";\t" if mark in cells[0]), "")):
                raise DatasetError(f"{place}: there is {other!r} between the cells; expected commas.")
            _check_columns(columns, known, place)
        elif len(cells) != len(columns):
            raise DatasetError(f"{place}: has {len(cells)} cells; expected {len(columns)} like the first row.")
        else:
            yield place, dict(zip(columns, cells, strict=True))


def _json_rows(lines: Iterable[str], file: Path, known: Sequence[str]) -> Iterator[tuple[Place, Row]]:
    for number, line in enumerate(lines, start=1):
        place = f"{file}, row {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip("\n"))
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{place}: {error}; expected one JSON object a line.") from error
        if not isinstance(row, dict):
            raise DatasetError(f'{place}: expected a JSON object like {{"path": "good/1.png", "label": "good"}}.')
        _check_columns(list(row), known, place)
        yield place, {column: _text(value, column, place) for column, value in row.items()}


def _parquet_rows(file: Path, known: Sequence[str]) -> Iterator[tuple[Place, Row]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file, page_checksum_verification=True) as table:
            _check_columns(table.schema_arrow.names, known, str(file))
            number = 0
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    place = f"{file}, row {number}"
                    yield place, {column: _text(value, column, place) for column, value in row.items()}
    except (OSError, ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{file} can't be read ({reason}); expected a table in Parquet that is whole.") from error


def _check_columns(columns: Sequence[str], known: Sequence[str], place: Place) -> None:
    for column in columns:
        if column not in known:
            raise DatasetError(f"{place}: {not_among('column', column, known)}")
    if known[0] not in columns or len(set(columns)) < len(columns):
        raise DatasetError(
            f'{place}: the columns are {", ".join(columns)}; expected "{known[0]}" among them, and each once.'
        )


def _text(value: object, column: str, place: Place) -> str:
    if isinstance(value, list) and column == "mask":
        return ";".join(_text(item, column, place) for item in value)
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise DatasetError(f"{place}: {column} is {json.dumps(value)}; expected text.")
