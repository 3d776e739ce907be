"""A contact sheet of made defects: what a detector is going to be taught, for a person to look at."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from blemish import images
from blemish.dataset import Dataset
from blemish.errors import ConfigError
from blemish.files import check_writable, write_bytes
from blemish.images import Picture
from blemish.synthesis.foreground import Rule
from blemish.synthesis.perlin import Item, Recipe
from blemish.synthesis.pictures import TRAIN, Group, Pictures, read_groups
from blemish.synthesis.sources import parse
from blemish.types import Failure, Preprocessing

GAP = 4
"""White pixels between pictures."""
OUTLINE, BACKGROUND = (255, 40, 40), 0.45
"""Colour around what was damaged, and how dark that is drawn where no damage may lie."""


def write(
    path: Path, data: Dataset, sources: str, rule: Rule, image_size: tuple[int, int], count: int
) -> list[Failure]:
    """Writes the sheet of a dataset's training pictures; those that could not be read are given back.

    Raises:
        DatasetError: there are no good pictures, or no source.
        OutputError: the file can't be written.
    """
    check_writable(path)
    data.require_train()
    failures: list[Failure] = []
    intensity, _ = images.measure_intensity(sample.path for sample in data.train if images.is_deep(sample.path))
    groups = read_groups(data.train, Preprocessing(image_size, intensity), rule, failures)
    write_bytes(path, images.encode(sheet(groups, sources, count=count)))
    return failures


def sheet(groups: Sequence[Group], sources: str, seed: int = 0, count: int = 24) -> Picture:
    """One picture (H, W, 3) uint8 of `count` damaged ones, each above its twin with the damage outlined.

    They are the first that a training with the same seed sees, less those that it leaves undamaged.

    Args:
        groups: Good pictures by category.
        sources: As `sources.parse` reads them.
        seed: Everything drawn follows from it.
        count: How many.
    """
    if count < 1:
        raise ConfigError(f"--count is {count}; expected 1 or more.")
    recipes = [
        Recipe(sources=parse(sources, group.category), seed=seed, clean_share=0.0, least_change=8) for group in groups
    ]
    pictures = Pictures(groups, recipes, seed)
    drawn = [_pair(*pictures.item(position, TRAIN)) for position in range(count)]
    columns = min(count, 8)
    drawn += [np.full_like(drawn[0], 255)] * (-count % columns)
    rows = [np.concatenate(drawn[first : first + columns], axis=1) for first in range(0, len(drawn), columns)]
    return np.concatenate(rows)


def _pair(item: Item, group: Group, index: int) -> Picture:
    """A damaged picture above itself with outlines, foreign ground darkened, with a gap on all sides."""
    outlined = item.damaged.copy()
    outlined[~group.foregrounds[index]] = (outlined[~group.foregrounds[index]] * BACKGROUND).astype(np.uint8)
    contours, _ = cv2.findContours(item.mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(outlined, contours, -1, OUTLINE, 1)
    gap = ((GAP // 2, GAP // 2), (GAP // 2, GAP // 2), (0, 0))
    return np.concatenate([np.pad(half, gap, constant_values=255) for half in (item.damaged, outlined)])
