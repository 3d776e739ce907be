"""prepare coco-ad COCO_DIR OUT: the benchmark COCO-AD, from COCO's own annotations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from blemish import registry
from blemish.command import say


@dataclass(frozen=True)
class PrepareCocoAd:
    """Build the four splits of COCO-AD: lists of pictures, and masks of what is abnormal in each."""

    coco: Annotated[Positional[Path], arg(metavar="COCO_DIR")]
    """COCO 2017 as unpacked: annotations, train2017, val2017."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The folder to build."""
    copy: bool = False
    """Copy the pictures, so that OUT can do without COCO_DIR (20 GB)."""

    def __call__(self) -> int:
        """Builds, and says what is in it."""
        prepare = registry.load("datasets", "coco_ad").prepare
        say("\n".join(prepare(self.coco, self.out, copy=self.copy)))
        say(f"Written: {self.out}")
        say(f"Next: blemish fit patchcore {self.out} --category split_0 --out split_0.blemish")
        return 0


COMMAND = PrepareCocoAd
