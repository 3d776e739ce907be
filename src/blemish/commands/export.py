"""export part.blemish part.onnx|part.xml: run it without torch; proves that nothing changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from blemish.command import ArtifactFile, say
from blemish.types import RunPrecision


@dataclass(frozen=True)
class ExportCommand:
    """Export a trained detector to ONNX or OpenVINO, and prove that it still gives the same."""

    artifact: ArtifactFile
    """Made by blemish fit."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The file to write: .onnx, or .xml (with a .bin beside it)."""
    precision: RunPrecision = "fp32"
    """What it computes in; less than fp32 needs .xml."""
    pictures: tuple[Path, ...] = ()
    """Pictures, or folders of them, that prove it beside the made ones; good parts are best."""

    def __call__(self) -> int:
        """Exports, proves, says what was proven."""
        from blemish import artifact, predictions
        from blemish.files import check_writable

        check_writable(self.out)
        pictures = tuple(predictions.find_pictures(self.pictures)) if self.pictures else ()
        header = artifact.export(self.artifact, self.out, artifact.Export(self.precision, pictures))
        if header.parity is not None:
            say(header.parity.sentence())
        size = sum(file.stat().st_size for file in {self.out, self.out.with_suffix(".bin")} if file.exists())
        say(f"Written: {self.out} ({size / 1e6:.1f} MB)")
        say(f"Next: blemish predict {self.out} NEW_PICTURES --out-dir found")
        return 0


COMMAND = ExportCommand
