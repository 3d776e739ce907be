"""Training pictures: good ones kept in memory, and batches of them that are damaged on the way out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from blemish.distributed import share
from blemish.errors import DatasetError, bad_option
from blemish.images import Bools, Floats, Picture
from blemish.progress import bar
from blemish.reading import read_batches
from blemish.synthesis.foreground import Rule, foreground
from blemish.synthesis.perlin import Generator, Item, Recipe
from blemish.synthesis.sources import OFFLINE, parse
from blemish.types import Failure, Preprocessing, Sample

READ_AT_ONCE = 16
TRAIN, CHOOSE, VALIDATE, TUNE = range(4)
"""What pictures are damaged for: each purpose has its own order and its own anomalies."""


class Damaged(NamedTuple):
    """A batch of pictures, some of them damaged, beside what they were before."""

    damaged: Tensor
    """(B, H, W, 3) uint8."""
    clean: Tensor
    """(B, H, W, 3) uint8."""
    mask: Tensor
    """(B, 1, H, W) bool, True where damaged."""
    number: Tensor
    """(B,) which pictures they are, counted over all groups."""

    @classmethod
    def of(cls, items: Sequence[Item], numbers: Sequence[int]) -> "Damaged":
        """The batch of these items."""
        damaged, clean, mask = (torch.from_numpy(np.stack(part)) for part in list(zip(*items, strict=True))[:3])
        return cls(damaged, clean, mask.unsqueeze(1), torch.tensor(numbers))


@dataclass(frozen=True)
class Group:
    """The good pictures of one category."""

    category: str
    pictures: Picture
    """(N, H, W, 3) uint8: what is learned from has 8 bit, whatever the files have."""
    foregrounds: Bools
    """(N, H, W)."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Good pictures of one or more categories, and how they are damaged."""

    groups: Sequence[Group]
    recipes: Sequence[Recipe]
    """One for each group; none are needed where nothing is damaged."""
    seed: int = 0
    balance: bool = False
    """Whether each category comes equally often, however many pictures it has."""

    def __post_init__(self) -> None:
        if not self.groups:
            raise DatasetError("none of the good pictures can be read; expected at least one to learn from.")

    def __len__(self) -> int:
        return sum(len(group.pictures) for group in self.groups)

    def batch(self, number: int, size: int, purpose: int = TRAIN, clean_share: float | None = None) -> Damaged:
        """Batch `number` of an endless sequence of shuffled epochs; always full, also with few pictures.

        Args:
            number: Which batch.
            size: Its pictures.
            purpose: Tells sequences apart: each has its own shuffling and its own anomalies.
            clean_share: Another share of undamaged pictures than the recipe's.
        """
        return self._at(range(number * size, (number + 1) * size), purpose, clean_share)

    def shared(self, number: int, size: int, purpose: int = TRAIN) -> Damaged:
        """The part that this process takes of such a batch to learn from."""
        return self._at(share(range(number * size, (number + 1) * size)), purpose, None)

    def _at(self, positions: Sequence[int], purpose: int, clean_share: float | None) -> Damaged:
        found = [self.item(position, purpose, clean_share) for position in positions]
        starts = np.cumsum([0, *(len(group.pictures) for group in self.groups)])
        start_of = {group.category: int(start) for group, start in zip(self.groups, starts, strict=False)}
        return Damaged.of(
            [item for item, _, _ in found], [start_of[group.category] + index for _, group, index in found]
        )

    def item(self, position: int, purpose: int, clean_share: float | None = None) -> tuple[Item, Group, int]:
        """What stands at one position of the endless sequence, with the group and number of the good picture."""
        epoch, which, index = self.place(position, purpose)
        group = self.groups[which]
        key = (purpose, epoch, which)
        return self.recipes[which].item(group.pictures, group.foregrounds, index, key, clean_share), group, index

    def place(self, position: int, purpose: int) -> tuple[int, int, int]:
        """Epoch, group and number of the picture at one position of the endless sequence."""
        epoch, place = divmod(position, len(self))
        return epoch, *self._order(purpose, epoch)[place]

    def clean(self, size: int) -> Iterator[Tensor]:
        """All pictures as they are, in the order of their numbers, (B, H, W, 3) uint8 with at most `size` at a time."""
        for group in self.groups:
            for first in range(0, len(group.pictures), size):
                yield torch.from_numpy(group.pictures[first : first + size])

    def some(self, count: int) -> Tensor:
        """At most `count` pictures as they are, evenly spread over all groups (B, H, W, 3) uint8."""
        every = [picture for group in self.groups for picture in group.pictures]
        numbers = np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)
        return torch.from_numpy(np.stack([every[number] for number in numbers]))

    @lru_cache(maxsize=8)  # noqa: B019 - goes with the pictures
    def _order(self, purpose: int, epoch: int) -> list[tuple[int, int]]:
        """(group, index) of each place of an epoch."""
        draw = np.random.default_rng([self.seed, purpose, epoch])
        whole = [(which, index) for which, group in enumerate(self.groups) for index in range(len(group.pictures))]
        if self.balance:
            share = -(-len(self) // len(self.groups))
            own = [np.resize(draw.permutation(len(group.pictures)), share).tolist() for group in self.groups]
            whole = [(which, index) for which, indices in enumerate(own) for index in indices]
        return [whole[place] for place in draw.permutation(len(whole))[: len(self)]]


@dataclass(frozen=True, kw_only=True)
class DamageConfig:
    """How good pictures are damaged, for every model that learns from made defects."""

    generator: Generator = "perlin"
    """What makes defects: perlin, content of the sources below, blended in where noise says so; cutpaste, a rectangle
    or a scar cut from another place of the picture; or seamless, patches of other pictures, blended in without an
    edge. All below but the sources and `few` is as well of the last two; `soft` of cutpaste alone."""
    sources: str = OFFLINE
    """Where foreign content comes from, with weights: texture:DIR, sdas[_masked]:DIR, self, cutpaste, stain,
    procedural=2."""
    clean_share: float = Recipe.clean_share
    """Share of training pictures that are not damaged."""
    foreground: Rule = "auto"
    """Where damage may lie: on the part (auto, or the paper's recipe for that category), or anywhere (whole)."""
    redraw_empty: bool = Recipe.redraw_empty
    """Draw masks anew when they are empty."""
    few: float = Recipe.few
    """Share of masks with a few pieces down to single pixels, beside the paper's Perlin masks."""
    soft: float = Recipe.soft
    """Share of made defects whose edges are soft."""
    mirror: bool = True
    """Learn from the pictures' mirror images too; turn off where a mirrored part would be a defect."""
    least_change: int = Recipe.least_change
    """Grey levels by which a pixel must change to count as damaged."""
    balance: bool = False
    """Take each category equally often."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise bad_option("sources", repr(self.sources), "more than nothing")

    def recipe(self, category: str, seed: int) -> Recipe:
        """How pictures of that category are damaged."""
        return Recipe(
            generator=self.generator,
            sources=parse(self.sources, category),
            seed=seed,
            clean_share=self.clean_share,
            redraw_empty=self.redraw_empty,
            few=self.few,
            soft=self.soft,
            least_change=self.least_change,
        )

    def damaging(self, groups: Sequence[Group], seed: int) -> Pictures:
        """The pictures of these groups, to be damaged so; with their mirror images, if those are good, too."""
        own = [mirrored(group) for group in groups] if self.mirror else groups
        return Pictures(own, [self.recipe(group.category, seed) for group in own], seed, self.balance)


def read_groups(
    samples: Sequence[Sample], preprocessing: Preprocessing, rule: Rule, failures: list[Failure]
) -> list[Group]:
    """The pictures of `samples` by category, at the detector's size, with their foregrounds.

    Args:
        samples: Good pictures.
        preprocessing: Applied to each.
        rule: How foregrounds are found.
        failures: Grows by the pictures that could not be read.
    """
    kept: dict[str, list[Picture]] = {}
    with bar("Read", len(samples)) as drawn:
        for batch in read_batches(samples, preprocessing, READ_AT_ONCE, failures):
            for sample, image in zip(batch.samples, batch.images, strict=True):
                kept.setdefault(sample.category, []).append(to_bytes(image))
            drawn.advance(len(batch.samples))
    groups = []
    for category, pictures in kept.items():
        foregrounds = np.stack([foreground(picture, category, rule) for picture in pictures])
        groups.append(Group(category, np.stack(pictures), foregrounds))
    return groups


def mirrored(group: Group) -> Group:
    """The pictures of a group, then their mirror images: left to right, top to bottom, both."""
    ways: list[tuple[int, ...]] = [(), (2,), (1,), (1, 2)]
    return Group(
        group.category,
        np.concatenate([np.flip(group.pictures, axes) for axes in ways]),
        np.concatenate([np.flip(group.foregrounds, axes) for axes in ways]),
    )


def to_bytes(image: Floats) -> Picture:
    """An image (3, H, W) in [0, 1] as (H, W, 3) uint8, rounded: exact for pictures of 8 bit."""
    return np.ascontiguousarray(np.rint(image.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8))
