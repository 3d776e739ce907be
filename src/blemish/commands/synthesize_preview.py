"""synthesize preview DATA: made defects to look at, or what a diffusion model draws."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blemish.command import DataOptions, report_failures, say
from blemish.synthesis.sources import OFFLINE


@dataclass(frozen=True)
class Preview:
    """Look at the made defects that a detector is going to be taught.

    The contact sheet shows below each picture its damage, outlined, and darker where none may lie.
    Of a diffusion model (.diffusion in place of DATA), it shows what is drawn: a column for each number, from top
    to bottom with strength 0, 0.05, 0.1, 0.2 and 0.4.
    """

    data: DataOptions
    generator: Literal["perlin", "cutpaste", "seamless"] = "perlin"
    """What makes the defects: content of the sources where noise says so, or patches of good pictures."""
    out: Path = Path("preview.png")
    """The sheet, a PNG file."""
    sources: str = OFFLINE
    """texture:DIR, sdas:DIR, sdas_masked:DIR, self, cutpaste, stain, procedural; perhaps with weights:
    self=2,procedural."""
    foreground: Literal["auto", "paper", "whole"] = "auto"
    """Where damage may lie."""
    image_size: tuple[int, int] = (256, 256)
    """Height and width that pictures are brought to."""
    count: int = 24
    """How many."""
    device: str = "auto"
    """auto, cpu, cuda, ...; for a diffusion model."""

    def __call__(self) -> int:
        """Makes the sheet."""
        from blemish.synthesis import preview
        from blemish.synthesis.pictures import DamageConfig

        if self.data.data.suffix == ".diffusion":
            preview.write_ladder(self.out, self.data.data, self.data.category, self.count, self.device)
            say(f"Written: {self.out}")
            return 0
        damage = DamageConfig(generator=self.generator, sources=self.sources, foreground=self.foreground)
        failures = preview.write(self.out, self.data.open(), damage, self.image_size, self.count)
        say(f"Written: {self.out}")
        return report_failures(failures)


COMMAND = Preview
