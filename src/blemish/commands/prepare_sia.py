"""prepare sia SRC DST --name MVTec-AD: lay drawn pictures out like the published SIA."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from blemish.command import say
from blemish.errors import count_of


@dataclass(frozen=True)
class PrepareSia:
    """Lay a set of drawn pictures out as the code of RealNet expects it: DST/NAME/sdas/CATEGORY/rank0_I.png."""

    source: Annotated[Positional[Path], arg(metavar="SRC")]
    """Folder written by blemish synthesize sample."""
    target: Annotated[Positional[Path], arg(metavar="DST")]
    """The `data` folder of that code."""
    name: str = "MVTec-AD"
    """Of the data set in it: MVTec-AD, MPDD, BTAD, VisA, or your own."""
    jpeg: bool = False
    """Write JPEG files like the published ones, in place of lossless PNG. Their traces give pasted regions away."""
    quality: int = 75
    """Of JPEG files."""

    def __call__(self) -> int:
        """Copies and counts."""
        from blemish.synthesis import sample_set

        counts = sample_set.lay_out(self.source, self.target, self.name, self.quality if self.jpeg else None)
        for category, count in counts.items():
            say(f"{self.target / self.name / 'sdas' / category}: {count_of(count, 'picture')}")
        return 0


COMMAND = PrepareSia
