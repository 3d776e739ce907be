"""Peaks: what the map of a detector points at, compared with what it points at in a few labelled defects.

A map says how far a place is from what is normal, not in which direction. Ten pictures are too few to learn a
ranking from (a forest on statistics of the map ranks worse than the map's own maximum), but each of them shows one
direction that matters. So the detector's own score stays, and a vote for each stride of the backbone is added:
how much the places where the map is highest look like those of labelled defects. Each labelled picture is one
matched filter against the patches of good pictures. What votes count at most is fixed beforehand: labels choose
directions, and a stride in which they are no more like each other than good pictures are does not count.

Source: the matched filter is exemplar LDA (Hariharan et al., ECCV 2012; Malisiewicz et al., ICCV 2011).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from blemish.images import Bools, Floats
from blemish.nn.backbone import Backbone
from blemish.nn.map_features import Labels, to_size
from blemish.nn.patches import patch_features
from blemish.types import Prediction

STRIDES = (4, 8, 16)
"""Of the feature maps that vote."""
SPACING = 8
"""Pixels between neighbouring patches."""
SEEN = 64
"""Patches of a picture that are looked at: those where the map is highest; and as many spread evenly."""
SHOWN = 3
"""Highest patches of a labelled picture whose mean is what it shows."""
ALIKE = 5
"""Patches of a picture that are the most like a labelled one; their mean counts."""
NEAREST = 3
"""Labelled pictures that are the most like a picture; their mean counts."""
VOTE = 0.5
"""What the vote of a stride counts at most, where the detectors' own scores count 1 together."""
RIDGE = 1.0
"""Added to the covariance of good patches, in units of their mean variance."""
FOLDS = 5
"""Parts that good pictures are cut into, to learn what votes are worth on pictures not learned from."""


@dataclass(frozen=True)
class Layout:
    """Where in the row of a picture what is."""

    bases: int
    """Detectors."""
    components: int
    """Components of a picture."""
    patches: int
    """Patches that are looked at, as many again are spread evenly."""
    channels: tuple[int, ...]
    """Channels of a patch, by stride."""

    @property
    def width(self) -> int:
        """Figures in a row."""
        return self.bases * self.components + self.patches * (1 + 2 * sum(self.channels))

    def cut(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of rows (B, width): levels (B, bases, components), peaks (B, K, D), their components, others (B, K, D)."""
        levels = self.bases * self.components
        depth = self.patches * sum(self.channels)
        first, piece, peaks, others = rows.split([levels, self.patches, depth, depth], dim=1)
        shape = (self.patches, sum(self.channels))
        return (
            first.unflatten(1, (self.bases, self.components)),
            peaks.unflatten(1, shape),
            piece,
            others.unflatten(1, shape),
        )


def layout(channels: Sequence[int], bases: int, components: int, size: tuple[int, int]) -> Layout:
    """That of the rows of pictures of a size (height, width), of patches with these channels by stride."""
    grid = -(-size[0] // SPACING) * -(-size[1] // SPACING)
    return Layout(bases, components, min(SEEN, grid), tuple(channels))


class Eye(nn.Module):
    """The backbone, and how the row of a picture is made of its features and maps."""

    def __init__(self, backbone: str, weights: str) -> None:
        """Builds the network.

        Args:
            backbone: timm's name.
            weights: As of `Backbone`.
        """
        super().__init__()
        network = Backbone(backbone, STRIDES, weights).requires_grad_(False)
        self.backbone = network.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Patch features (B, D, h, w) of images (B, 3, H, W) in [0, 1]."""
        return self.patches(dict(zip(self.backbone.strides, self.backbone(image), strict=True)))

    def patches(self, maps: Mapping[int, Tensor]) -> Tensor:
        """The same (B, D, h, w) of the backbone's feature maps (B, C, h, w) by stride."""
        return patch_features(maps, STRIDES, SPACING, 3)


def rows(levels: Floats, patches: Floats, heat: Floats, labels: Sequence[Labels], components: int) -> Floats:
    """The rows (B, width) of pictures.

    Args:
        levels: (B, bases, components) as `levels_of` gives them.
        patches: (B, D, h, w) features.
        heat: (B, H, W) maps.
        labels: Of each picture, (H, W) component of each pixel.
        components: How many there are: each gets its share of the peaks, so that one loud one does not take all.
    """
    size = (patches.shape[2], patches.shape[3])
    maps = functional.interpolate(torch.from_numpy(heat[:, None]), size=size, mode="bilinear", align_corners=False)
    flat = patches.reshape(*patches.shape[:2], -1).transpose(0, 2, 1)
    found = []
    for level, own, values, each in zip(levels, flat, maps.flatten(1).numpy(), labels, strict=True):
        pieces = to_size(each, size).ravel()
        chosen = _highest(values, pieces, components)
        others = own[np.linspace(0, len(values) - 1, len(chosen)).astype(int)]
        found.append(np.concatenate([level.ravel(), pieces[chosen], own[chosen].ravel(), others.ravel()]))
    return np.stack(found).astype(np.float32)


def levels_of(found: Sequence[Prediction[Floats]], labels: Sequence[Labels], components: int) -> Floats:
    """How abnormal each component of pictures is to each detector, (B, bases, components).

    Of one component it is the detector's own score, else the highest value of its map there; NaN where a picture
    has nothing of a component.
    """
    if components == 1:
        return np.stack([each.image_score for each in found], 1)[:, :, None]
    levels = np.full((len(labels), len(found), components), np.nan, np.float32)
    for base, each in enumerate(found):
        for number, (values, own) in enumerate(zip(each.anomaly_map, labels, strict=True)):
            there = to_size(own, values.shape)
            for part in np.unique(there):
                levels[number, base, part] = values[there == part].max()
    return levels


def _highest(values: Floats, pieces: Labels, components: int) -> NDArray[np.intp]:
    """Which patches are the highest of a picture, the highest first; each component has its share."""
    count = min(SEEN, len(values))
    order = np.argsort(-values, kind="stable")
    share = np.concatenate([order[pieces[order] == part][: count // components] for part in range(components)])
    chosen = np.concatenate([share, order[~np.isin(order, share)]])[:count]
    return chosen[np.argsort(-values[chosen], kind="stable")]


class Peaks(nn.Module):
    """The detectors' own scores and the votes of the strides, added up."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        depth, votes = sum(layout.channels), layout.bases + len(layout.channels)
        self.level_span: Tensor
        """(2, bases, components) mean and deviation of good levels."""
        self.patch_span: Tensor
        """(2, D) mean and deviation of patches of good pictures."""
        self.filters: Tensor
        """(J, D) what patches like those of each labelled picture correlate with, each stride by itself."""
        self.filter_span: Tensor
        """(2, strides, J) mean and deviation of what the filters give on good pictures."""
        self.vote_span: Tensor
        """(2, votes) mean and deviation of each vote on good pictures that were not learned from."""
        self.weight: Tensor
        """(votes,) what a deviation of each vote counts."""
        self.gain: Tensor
        """(votes,) share of each vote in what sets labelled pictures apart from good ones; 1 in all, or 0."""
        self.register_buffer("level_span", torch.zeros(2, layout.bases, layout.components))
        self.register_buffer("patch_span", torch.zeros(2, depth))
        self.register_buffer("filters", torch.zeros(0, depth))
        self.register_buffer("filter_span", torch.zeros(2, len(layout.channels), 0))
        self.register_buffer("vote_span", torch.zeros(2, votes))
        self.register_buffer("weight", torch.zeros(votes))
        self.register_buffer("gain", torch.zeros(votes))

    @classmethod
    def learned(cls, table: Floats, is_defective: Bools, layout: Layout, seed: int) -> Self:
        """What tells good rows from labelled ones.

        Args:
            table: Rows (N, width), at least 2 good ones and a defective one.
            is_defective: (N,).
            layout: Of the rows.
            seed: Of the parts that good rows are cut into.
        """
        rows = torch.from_numpy(np.asarray(table, np.float32))
        bad, good = rows[torch.from_numpy(is_defective)], rows[torch.from_numpy(~is_defective)]
        held_out = torch.zeros(len(good), layout.bases + len(layout.channels))
        fold = torch.from_numpy(np.random.default_rng(seed).permutation(len(good)) % min(FOLDS, len(good)))
        for number in range(int(fold.max()) + 1):
            held_out[fold == number] = cls(layout).match(good[fold != number], bad).votes(good[fold == number])
        found = cls(layout).match(good, bad)
        found.vote_span = torch.stack([held_out.mean(0), _deviation(held_out, 0)])
        # A labelled picture is compared with the others: with itself it would be perfect.
        # One alone has nothing to be compared with: the detectors' own scores decide.
        apart = found.scaled_votes(bad, leave_out=True).mean(0).nan_to_num(0)
        # A stride in which the labelled ones are hardly more alike than good ones are to them is noise.
        found.weight[: layout.bases] = 1 / layout.bases
        found.weight[layout.bases :] = VOTE * apart[layout.bases :].clamp(0, 1)
        parts = (found.weight * apart).clamp(min=0)
        found.gain = parts / parts.sum().clamp(min=1e-9)
        return found

    def check(self, layout: Layout) -> None:
        """Takes rows of a layout from now on.

        Raises:
            ValueError: what was learned is of other rows.
        """
        self.layout = layout
        strides, labelled, depth = len(layout.channels), len(self.filters), sum(layout.channels)
        shapes = {
            "level_span": (2, layout.bases, layout.components),
            "patch_span": (2, depth),
            "filters": (labelled, depth),
            "filter_span": (2, strides, labelled),
            "vote_span": (2, layout.bases + strides),
            "weight": (layout.bases + strides,),
            "gain": (layout.bases + strides,),
        }
        for name, shape in shapes.items():
            if tuple(self.get_buffer(name).shape) != shape:
                raise ValueError(f"{name} has shape {tuple(self.get_buffer(name).shape)}; expected {shape}")

    def forward(self, rows: Tensor) -> Tensor:
        """How abnormal pictures are, (B,), of rows (B, width): 0 is like the mean of good ones."""
        return self.contributions(rows).sum(1)

    def contributions(self, rows: Tensor) -> Tensor:
        """What each detector and stride adds, (B, votes)."""
        return self.weight * self.scaled_votes(rows)

    def scaled_votes(self, rows: Tensor, *, leave_out: bool = False) -> Tensor:
        """Votes in deviations of those of good pictures; `leave_out` as of `votes`."""
        return (self.votes(rows, leave_out=leave_out) - self.vote_span[0]) / self.vote_span[1]

    def match(self, good: Tensor, bad: Tensor) -> Self:
        """Itself, after learning what good patches and labelled defects look like; not yet what votes are worth."""
        levels, peaks, _, others = self.layout.cut(good)
        self.level_span = _level_span(levels)
        patches = others.flatten(0, 1)
        self.patch_span = torch.stack([patches.mean(0), _deviation(patches, 0)])
        patches = self._scaled(patches)
        shown = self._shown(bad)
        filters = []
        for own in self._strides():
            covariance = (patches[:, own].T @ patches[:, own] / len(patches)).double()
            ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
            means = shown[:, own].double()
            found = torch.linalg.solve(covariance + ridge, means.T).T
            filters.append(found / (found * means).sum(1, keepdim=True).clamp(min=1e-9).sqrt())
        self.filters = torch.cat(filters, 1).float()
        alike = self._alike(peaks)
        self.filter_span = torch.stack([alike.mean(0), _deviation(alike, 0)])
        return self

    def votes(self, rows: Tensor, *, leave_out: bool = False) -> Tensor:
        """Votes (B, bases + strides) of rows; with `leave_out`, row b is not compared with labelled picture b."""
        levels, peaks, _, _ = self.layout.cut(rows)
        own = self._levels(levels).nan_to_num(-torch.inf).amax(2).clamp(min=-10)
        alike = (self._alike(peaks) - self.filter_span[0]) / self.filter_span[1]
        if leave_out:
            alike = alike.masked_fill(torch.eye(len(rows), dtype=torch.bool)[:, None], -torch.inf)
        nearest = alike.topk(min(NEAREST, alike.shape[2] - int(leave_out)), dim=2).values.mean(2)
        return torch.cat([own, nearest], 1)

    def _alike(self, peaks: Tensor) -> Tensor:
        """How much peaks (B, K, D) are like those of each labelled picture, (B, strides, J)."""
        scaled = self._scaled(peaks)
        answers = [scaled[..., own] @ self.filters[:, own].T for own in self._strides()]
        return torch.stack([each.topk(min(ALIKE, each.shape[1]), dim=1).values.mean(1) for each in answers], 1)

    def _shown(self, bad: Tensor) -> Tensor:
        """What labelled pictures show, (J, D): the highest peaks in the component that is the most abnormal."""
        levels, peaks, piece, _ = self.layout.cut(bad)
        worst = self._levels(levels).nan_to_num(-torch.inf).mean(1).argmax(1)
        found = []
        for scaled, own, part in zip(self._scaled(peaks), piece, worst, strict=True):
            inside = scaled[own == part]
            found.append((inside if len(inside) else scaled)[:SHOWN].mean(0))
        return torch.stack(found)

    def _levels(self, levels: Tensor) -> Tensor:
        """Levels (B, bases, components) in deviations of good ones, far ones like their logarithm."""
        return ((levels - self.level_span[0]) / self.level_span[1]).asinh()

    def _scaled(self, patches: Tensor) -> Tensor:
        return (patches - self.patch_span[0]) / self.patch_span[1]

    def _strides(self) -> Sequence[slice]:
        ends = np.cumsum([0, *self.layout.channels]).tolist()
        return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


def names(bases: Sequence[str], components: int) -> list[str]:
    """What each vote is, in words, in their order."""
    own = "score of" if components == 1 else "most abnormal component of"
    return [f"{own} {base}" for base in bases] + [f"likeness to labelled defects, stride {each}" for each in STRIDES]


def _level_span(levels: Tensor) -> Tensor:
    """Mean and deviation (2, bases, components) of good levels (N, bases, components), NaN left out."""
    mean = levels.nanmean(0).nan_to_num(0)
    deviation = (levels - mean).square().nanmean(0).sqrt().nan_to_num(1)
    return torch.stack([mean, deviation.clamp(min=1e-6)])


def _deviation(values: Tensor, dim: int) -> Tensor:
    return values.std(dim, correction=0).clamp(min=1e-6)
