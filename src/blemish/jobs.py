"""Jobs: large work in numbered blocks, whose results are parts in a folder; a killed job goes on from them.

    DIR/job.json                what the job is: artifact, options, pictures
    DIR/000012.parquet          a row for each picture of block 12: scores, or the reason why there are none
    DIR/000012.safetensors      its metric state, where metrics are measured; states add up

A block is done when its Parquet file is there, which comes last and whole.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.errors import OutputError
from blemish.files import write_bytes, write_text
from blemish.progress import note

_ABOUT = "job.json"
ROWS, STATE = "rows", "state"
_COLUMNS = {
    "path": "string",
    "category": "string",
    "image_score": "float64",
    "calibrated_score": "float64",
    "decision": "string",
    "line": "string",
    "reason": "string",
    "learned": "bool_",
}
"""Of a part; `line` is the JSON object that `blemish predict` writes, `reason` is for what could not be used."""


@dataclass(frozen=True)
class Job:
    """The folder of a job."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, about: Mapping[str, str]) -> "Job":
        """The job in that folder, which is made or gone on with.

        Raises:
            OutputError: the folder holds parts of another job, or can't be written to.
        """
        written = folder / _ABOUT
        if written.exists():
            _check_same(folder, _read_about(written), about)
        else:
            write_text(written, json.dumps(about, indent=2) + "\n")
        return cls(folder)

    def has(self, number: int) -> bool:
        """Whether a block is done; a damaged part is taken out, to be done anew."""
        if not self._rows(number).exists():
            return False
        try:
            self.rows(number)
        except OutputError as error:
            note(f"{error} It is done anew.")
            self.drop(number)
            return False
        return True

    def write(self, number: int, contents: Mapping[str, bytes]) -> None:
        """Keeps what a block came to."""
        if STATE in contents:
            write_bytes(self.state(number), contents[STATE])
        write_bytes(self._rows(number), contents[ROWS])

    def drop(self, number: int) -> None:
        """Takes a damaged part out."""
        self._rows(number).unlink(missing_ok=True)
        self.state(number).unlink(missing_ok=True)

    def state(self, number: int) -> Path:
        """The metric state of a block."""
        return self.folder / f"{number:06}.safetensors"

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The rows of a block.

        Raises:
            OutputError: the part is damaged.
        """
        from pyarrow import ArrowException, parquet

        file = self._rows(number)
        try:
            table = parquet.read_table(file, page_checksum_verification=True)
            return list(table.select(list(_COLUMNS)).to_pylist())
        except (OSError, ArrowException, KeyError) as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"{file} is damaged ({reason}); expected a part of a job, as it was written.") from error

    def all_rows(self, count: int) -> Iterator[dict[str, Any]]:
        """The rows of so many blocks, in their order; one block is in memory at a time."""
        for number in range(count):
            yield from self.rows(number)

    def _rows(self, number: int) -> Path:
        return self.folder / f"{number:06}.parquet"


def pack(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as the content of a Parquet file; what a row does not say is null."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _COLUMNS.items()])
    written = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), schema), written, write_page_checksum=True)
    return written.getvalue()


def fingerprint(texts: Iterable[str]) -> str:
    """A short hash of texts in their order."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return found.hexdigest()[:24]


def _read_about(file: Path) -> dict[str, str]:
    try:
        return {str(name): str(value) for name, value in json.loads(file.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError(
            f"{file} is damaged ({error}), so that nobody knows whose parts those are; delete {file.parent}, or name "
            "another folder with --parts."
        ) from error


def _check_same(folder: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    differing = [
        f"{name} {there.get(name, 'unknown')} there, {here.get(name, 'unknown')} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise OutputError(
            f"{folder} holds parts of another job ({'; '.join(differing)}), and results of both must not be mixed; "
            "name another folder with --parts, or delete that one."
        )
