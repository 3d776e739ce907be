"""metrics MAPS MASKS: evaluate anybody's anomaly maps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from blemish.command import MetricOptions, say


@dataclass(frozen=True)
class Metrics:
    """Evaluate anybody's anomaly maps: .npy, .tiff or .png, with masks of the same names."""

    metrics: MetricOptions
    maps: Annotated[Positional[Path], arg(metavar="MAPS")]
    """Folder of maps (higher = more abnormal), or a manifest (.csv, .jsonl) of maps and masks."""
    masks: Annotated[Positional[Path | None], arg(metavar="MASKS")] = None
    """Folder of masks; not needed with a manifest."""
    json: Path | None = None
    """File for all values."""

    def __call__(self) -> int:
        """Evaluates, writes, prints."""
        import json
        from dataclasses import asdict

        from blemish import map_files, report
        from blemish.files import check_writable, write_text

        if self.json is not None:
            check_writable(self.json)
        results = map_files.evaluate_files(self.maps, self.masks, mode=self.metrics.mode, options=self.metrics.how())
        say(report.full_table(results))
        say("\n".join(report.caveats(results)))
        if self.json is not None:
            write_text(self.json, json.dumps(asdict(results), indent=2, allow_nan=False) + "\n")
            say(f"Written: {self.json}")
        return 0


COMMAND = Metrics
