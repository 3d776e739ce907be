"""export part.blemish part.onnx|part.xml: run it without torch; proves that nothing changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from blemish.command import ArtifactFile, DataOptions, say
from blemish.parity import AskedPrecision

if TYPE_CHECKING:
    from blemish.artifact import Predictor
    from blemish.dataset import Dataset

METRICS = ("image_auroc", "pixel_ap")
"""What is compared on a labelled test set."""


@dataclass(frozen=True)
class ExportCommand:
    """Export a trained detector to ONNX or OpenVINO, and prove that it still gives the same."""

    artifact: ArtifactFile
    """Made by blemish fit."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The file to write: .onnx, or .xml (with a .bin beside it)."""
    precision: AskedPrecision = "fp32"
    """What it computes in; less than fp32 needs .xml; auto takes the fastest here that is near enough."""
    pictures: tuple[Path, ...] = ()
    """Pictures, or folders of them, that prove it beside the made ones, good parts at best; else those held out of
    --data; less than fp32 needs some."""
    calibration: tuple[Path, ...] = ()
    """Pictures of good parts, or folders of them, that show int8 which values occur; else those of --data."""
    data: Path | None = None
    """Folder or manifest with a labelled test set, on which detector and export are scored."""
    dataset: str = "auto"
    """Name of the layout of --data, if it should not be recognised."""
    category: str = ""
    """Categories of --data; those that the artifact knows if not given."""

    def __call__(self) -> int:
        """Exports, proves, says what was proven."""
        from blemish import artifact, predictions
        from blemish.exporting import SHOWN, drawn
        from blemish.files import check_writable

        check_writable(self.out)
        pictures, calibration = (
            tuple(predictions.find_pictures(places)) if places else () for places in (self.pictures, self.calibration)
        )
        measure = None
        if self.data is not None:
            known = sorted(artifact.read_header(self.artifact).fitted.calibrations)
            data = DataOptions(self.data, self.dataset, self.category).open(known=known)
            calibration = calibration or tuple(sample.path for sample in data.train)
            pictures = pictures or tuple(drawn([sample.path for sample in data.validation], SHOWN))
            measure = _measuring(data)
        how = artifact.Export(self.precision, pictures, calibration, measure)
        header = artifact.export(self.artifact, self.out, how)
        if header.parity is not None:
            say(header.parity.sentence())
        size = sum(file.stat().st_size for file in {self.out, self.out.with_suffix(".bin")} if file.exists())
        say(f"Written: {self.out} ({size / 1e6:.1f} MB)")
        say(f"Next: blemish predict {self.out} NEW_PICTURES --out-dir found")
        return 0


def _measuring(data: "Dataset") -> "Callable[[Predictor], Mapping[str, float]] | None":
    """What measures a predictor on the labelled test pictures; None where there are none."""
    from blemish import scoring

    if not any(sample.is_anomalous for sample in data.test):
        say("There are no labelled defects to score detector and export on.")
        return None

    def measure(predictor: "Predictor") -> dict[str, float]:
        mean = scoring.score(predictor, data).results.mean
        return {name: mean[name] for name in METRICS if name in mean}

    return measure


COMMAND = ExportCommand
