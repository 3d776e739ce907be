"""drift ARTIFACT: whether the line has changed since calibration."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.command import ArtifactFile, say
from blemish.errors import DatasetError, RecordError, bad_option

if TYPE_CHECKING:
    from blemish.server.record import Inspection

CHANGED = 1
"""Exit status when something has changed, as diff has it."""


@dataclass(frozen=True)
class Drift:
    """Compare recent inspections with the pictures that calibrated the detector; the status is 1 if they differ."""

    artifact: ArtifactFile
    """The one that was served."""
    record: str = "inspections.sqlite"
    """Database that blemish serve wrote: a file or a URL."""
    last: int = 500
    """How many inspections count as recent."""
    category: str = ""
    """One category; all that occur if not given."""
    json: Path | None = None
    """File for the figures."""
    plot: Path | None = None
    """File (.png, .svg, .pdf) for histograms of both sides."""

    def __call__(self) -> int:
        """Compares, writes, prints."""
        import json

        from blemish import drift
        from blemish.artifact import deciding
        from blemish.files import check_writable, digest, write_text
        from blemish.report import check_drawing

        predictor = deciding(self.artifact)
        for file in filter(None, (self.json, self.plot)):
            check_writable(file)
        if self.plot is not None:
            check_drawing(self.plot)
        rows = self._rows(digest(self.artifact))
        found = drift.compare(predictor, rows)
        say(f"{len(rows)} inspections, {rows[-1].time:%Y-%m-%d %H:%M} to {rows[0].time:%Y-%m-%d %H:%M} UTC")
        say(drift.table(found))
        if self.json is not None:
            write_text(self.json, json.dumps([one.plain() for one in found], indent=2, allow_nan=False) + "\n")
        if self.plot is not None:
            drift.draw(found, self.plot)
        for file in filter(None, (self.json, self.plot)):
            say(f"Written: {file}")
        moved = [one.quantity for one in found if one.state in ("shifted", "changed")]
        few = any(one.state == "too few" for one in found)
        if few:
            say(f"Where it says too few, there are not {drift.LEAST} values on both sides.")
        if moved:
            say(f"Not as at calibration: {', '.join(dict.fromkeys(moved))}. Look at light, lens and lot, or fit again.")
        elif not few:
            say("As at calibration.")
        return CHANGED if moved else 0

    def _rows(self, digest: str) -> "list[Inspection]":
        from blemish.server import Query, Record

        if self.last < 1:
            raise bad_option("last", self.last, "a number of inspections, 1 or more")
        if "://" not in self.record and not Path(self.record).is_file():
            raise RecordError(f"{self.record}: no such file; expected the --record of blemish serve.")
        record = Record(self.record)
        rows = record.rows(Query(model_hash=digest, category=self.category, limit=self.last))
        record.close()
        if not rows:
            of = f" of {self.category}" if self.category else ""
            raise DatasetError(
                f"{record.name} has no inspections{of} by {self.artifact}; expected some that blemish serve wrote with "
                "this very file."
            )
        return rows


COMMAND = Drift
