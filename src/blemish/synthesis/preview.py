"""Pictures for a person to look at: sheets of made defects, ladders of strengths, grids of a model that learns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from blemish import images
from blemish.dataset import Dataset
from blemish.errors import bad_option
from blemish.files import check_writable, write_bytes
from blemish.images import Picture
from blemish.synthesis.perlin import Item
from blemish.synthesis.pictures import TRAIN, DamageConfig, Group, read_groups
from blemish.types import Failure, Preprocessing

if TYPE_CHECKING:
    from blemish.synthesis.sdas import DiffusionModel

OUTLINE, BACKGROUND = (255, 40, 40), 0.45
"""Colour around what was damaged, and how dark that is drawn where no damage may lie."""


def write(path: Path, data: Dataset, damage: DamageConfig, image_size: tuple[int, int], count: int) -> list[Failure]:
    """Writes the sheet of a dataset's training pictures; those that could not be read are given back.

    Raises:
        DatasetError: there are no good pictures, or no source.
        OutputError: the file can't be written.
    """
    check_writable(path, ".png")
    data.require_train()
    failures: list[Failure] = []
    intensity, _ = images.measure_intensity(sample.path for sample in data.train if images.is_deep(sample.path))
    groups = read_groups(data.train, Preprocessing(image_size, intensity), damage.foreground, failures)
    write_bytes(path, images.encode(sheet(groups, damage, count=count)))
    return failures


def write_ladder(path: Path, model_file: Path, category: str, count: int, device: str) -> None:
    """Writes what a diffusion model draws: a column for each number, a row for each strength of the ladder.

    Raises:
        ConfigError: the model does not know the category.
        OutputError: the file can't be written.
    """
    from blemish.synthesis import sampling, sdas

    check_writable(path, ".png")
    model = sdas.load(model_file, device)
    labels = [sampling.class_of(model, category)] if category else range(len(model.known.categories))
    write_bytes(path, images.encode(sampling.ladder(model, labels, _positive(count))))


@dataclass(frozen=True)
class Grids:
    """Writes grids of what a model draws while it learns."""

    folder: Path
    """Gets grid-000.png and so on; also a resumed training goes on counting."""
    count: int = 4
    """Columns; rows are the strengths of the paper's own checks, for at most four categories."""

    def __call__(self, model: "DiffusionModel") -> None:
        """Writes the next grid.

        Raises:
            OutputError: it can't be written.
        """
        from blemish.synthesis.sampling import Drawing, ladder

        labels = range(min(4, len(model.known.categories)))
        grid = ladder(model, labels, self.count, (0.0, 0.1, 0.2), Drawing(precision=model.known.config.precision))
        number = len(list(self.folder.glob("grid-*.png")))
        write_bytes(self.folder / f"grid-{number:03}.png", images.encode(grid))


def sheet(groups: Sequence[Group], damage: DamageConfig, seed: int = 0, count: int = 24) -> Picture:
    """One picture (H, W, 3) uint8 of `count` damaged ones, each above its twin with the damage outlined.

    Args:
        groups: Good pictures by category.
        damage: How they are damaged; here each of them is.
        seed: Everything drawn follows from it.
        count: How many.
    """
    pictures = replace(damage, clean_share=0.0, mirror=False).damaging(groups, seed)
    drawn = [_pair(*pictures.item(position, TRAIN)) for position in range(_positive(count))]
    return images.contact_sheet(drawn)


def _positive(count: int) -> int:
    if count < 1:
        raise bad_option("count", count, "1 or more")
    return count


def _pair(item: Item, group: Group, index: int) -> Picture:
    """A damaged picture above itself with outlines, foreign ground darkened, with a gap on all sides."""
    outlined = item.damaged.copy()
    outlined[~group.foregrounds[index]] = (outlined[~group.foregrounds[index]] * BACKGROUND).astype(np.uint8)
    contours, _ = cv2.findContours(item.mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(outlined, contours, -1, OUTLINE, 1)
    return images.pair(item.damaged, outlined)
