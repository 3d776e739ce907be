"""components DATA: what the components of pictures are, on a contact sheet."""

from dataclasses import dataclass
from pathlib import Path

from blemish.command import DataOptions, report_failures, say


@dataclass(frozen=True)
class ComponentsSheet:
    """Look at the components that SegAD would tell apart, before anything is learned.

    The sheet shows below each good picture its components, each in the same colour on all of them.
    """

    data: DataOptions
    components: str = "cluster:4"
    """none, foreground, cluster:K, static:FILE or folder:DIR, as for blemish fit."""
    out: Path = Path("components.png")
    """The sheet, a PNG file."""
    image_size: tuple[int, int] = (256, 256)
    """Height and width that pictures are brought to."""
    seed: int = 0
    """As for blemish fit."""
    count: int = 24
    """How many pictures."""
    backbone_weights: str = "default"
    """default (embedded, or downloaded for other backbones), random, or a file; for clusters."""

    def __call__(self) -> int:
        """Makes the sheet."""
        from blemish import components
        from blemish.nn.backbone import DEFAULT

        found = components.write_sheet(
            self.out,
            self.data.open(seed=self.seed),
            components.Components(self.components, DEFAULT, self.backbone_weights),
            self.image_size,
            self.seed,
            self.count,
        )
        for number, share in enumerate(found.shares):
            say(f"component {number}: {100 * share:.1f} % of the pixels")
        say(f"Written: {self.out}")
        return report_failures(found.failures)


COMMAND = ComponentsSheet
