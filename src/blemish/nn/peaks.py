"""Peaks: what the map of a detector points at, compared with what it points at in a few labelled defects.

A map says how far a place is from what is normal, not in which direction. Ten pictures are too few to learn a
ranking from (a forest on statistics of the map ranks worse than the map's own maximum), but each of them shows
directions that matter. So the detector's own score stays, and votes are added, of what the places where the map is
highest look like:

- likeness, for each stride of the backbone: each labelled picture is one matched filter against good patches;
- the probe, where labelled pictures have masks: the direction that tells patches in a mask from all others.

A mask also says which patches the filters are made of; without one they are the highest of the map. What votes count
at most is fixed beforehand: labels choose directions, and a vote that does not tell labelled pictures that it has not
learned from does not count.

Source: the matched filter is exemplar LDA (Hariharan et al., ECCV 2012; Malisiewicz et al., ICCV 2011).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.images import Bools, Floats
from blemish.nn.backbone import frozen
from blemish.nn.logistic import logistic
from blemish.nn.map_features import Labels, to_size
from blemish.nn.patches import patch_features
from blemish.types import Prediction

STRIDES = (4, 8, 16)
"""Of the feature maps that are looked at."""
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
COVERED = 0.3
"""Share of a patch that a mask covers if the patch shows the defect; less where it covers none so far."""
VOTE = 0.5
"""What likeness in each stride counts at most, where the detectors' own scores count 1 together."""
PROBE = 1.0
"""What the probe counts at most, where all labelled pictures have masks."""
RIDGE = 1.0
"""Added to the covariance of good patches, in units of their mean variance."""
DECAY = 1e-3
"""What the squared length of the probe costs."""
GOOD_PATCHES = 6000
"""Of good pictures that the probe learns from, at most: more take longer and teach it no more."""
FOLDS = 3
"""Parts that pictures are cut into, to learn what votes are worth on pictures not learned from."""


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
    """Of the backbone, by stride; a patch has three figures of each."""

    @property
    def depth(self) -> int:
        """Figures of a patch."""
        return 3 * sum(self.channels)

    @property
    def votes(self) -> int:
        """Of the bases, of each stride, and of the probe."""
        return self.bases + len(self.channels) + 1

    @property
    def means(self) -> list[slice]:
        """Where the means of each stride are in a patch."""
        ends = np.cumsum([0, *self.channels]).tolist()
        return [slice(begin, end) for begin, end in itertools.pairwise(ends)]

    @property
    def width(self) -> int:
        """Figures in a row."""
        return self.bases * self.components + 2 * self.patches * (1 + self.depth)

    def cut(self, rows: Tensor) -> "Cut":
        """What is in rows (B, width)."""
        levels = self.bases * self.components
        depth = self.patches * self.depth
        sizes = [levels, self.patches, self.patches, depth, depth]
        first, covered, pieces, peaks, others = rows.split(sizes, dim=1)
        shape = (self.patches, self.depth)
        return Cut(
            first.unflatten(1, (self.bases, self.components)),
            peaks.unflatten(1, shape),
            pieces,
            others.unflatten(1, shape),
            covered,
        )

    def unmarked(self, rows: Floats) -> Floats:
        """The same rows (B, width) of pictures whose masks are not known."""
        found, begin = rows.copy(), self.bases * self.components
        found[:, begin : begin + self.patches] = -1
        return found


class Cut(NamedTuple):
    """What is in the rows of pictures."""

    levels: Tensor
    """(B, bases, components) how abnormal each component is to each detector."""
    peaks: Tensor
    """(B, K, D) patches where the map is highest, the highest first."""
    pieces: Tensor
    """(B, K) components of these."""
    others: Tensor
    """(B, K, D) patches spread evenly; of a picture with a mask those that it marks, repeated if they are fewer."""
    covered: Tensor
    """(B, K) share of each peak that the mask covers; -1 where there was none."""


def layout(channels: Sequence[int], bases: int, components: int, size: tuple[int, int]) -> Layout:
    """That of the rows of pictures of a size (height, width), seen by a backbone with these channels by stride."""
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
        self.backbone = frozen(backbone, STRIDES, weights)

    def forward(self, image: Tensor) -> Tensor:
        """Patch features (B, D, h, w) of images (B, 3, H, W) in [0, 1]."""
        return self.patches(dict(zip(self.backbone.strides, self.backbone(image), strict=True)))

    def patches(self, maps: Mapping[int, Tensor]) -> Tensor:
        """The same (B, D, h, w) of the backbone's feature maps (B, C, h, w) by stride.

        Of what is around a patch in each channel: the mean, as PatchCore has it, and the highest and lowest value,
        which a thin crack changes more than a mean.
        """
        means = patch_features(maps, STRIDES, SPACING, 3)
        extremes = []
        for sign in (1, -1):
            fine, middle, coarse = (
                F.max_pool2d(sign * maps[stride], 3, stride=step, padding=1)
                for stride, step in zip(STRIDES, (2, 1, 1), strict=True)
            )
            coarse = F.interpolate(coarse, size=means.shape[2:], mode="bilinear", align_corners=False)
            extremes += [fine, middle, coarse]
        return torch.cat([means, *extremes], 1)


def rows(levels: Floats, patches: Floats, heat: Floats, labels: Sequence[Labels], masks: Sequence[Bools]) -> Floats:
    """The rows (B, width) of pictures.

    Args:
        levels: (B, bases, components) as `levels_of` gives them. Each component gets its share of the peaks, so that
            one loud one does not take all.
        patches: (B, D, h, w) features.
        heat: (B, H, W) maps.
        labels: Of each picture, (H, W) component of each pixel.
        masks: Of each picture, where it is labelled defective, in any size; nowhere where that is not known.
    """
    size = (patches.shape[2], patches.shape[3])
    maps = F.interpolate(torch.from_numpy(heat[:, None]), size=size, mode="bilinear", align_corners=False)
    flat = patches.reshape(*patches.shape[:2], -1).transpose(0, 2, 1)
    found = []
    for level, own, values, each, mask in zip(levels, flat, maps.flatten(1).numpy(), labels, masks, strict=True):
        pieces = to_size(each, size).ravel()
        chosen = _highest(values, pieces, levels.shape[2])
        covered = _covered(mask, size)
        marked = np.flatnonzero(covered > min(COVERED, 0.6 * covered.max()))
        others = marked if len(marked) else np.arange(len(values))
        spread = others[np.linspace(0, len(others) - 1, len(chosen)).round().astype(int)]
        head = [level.ravel(), covered[chosen], pieces[chosen]]
        found.append(np.concatenate([*head, own[chosen].ravel(), own[spread].ravel()]))
    return np.stack(found).astype(np.float32)


def _covered(mask: Bools, size: tuple[int, int]) -> Floats:
    """The share of each patch of a grid (height, width) that a mask covers, (h·w,); -1 if it covers none."""
    area = torch.from_numpy(mask[None, None].astype(np.float32))
    covered = F.interpolate(area, size=size, mode="area").flatten().numpy()
    return covered if covered.any() else np.full_like(covered, -1)


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
    """The detectors' own scores, likeness to labelled defects, and a probe, added up."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        means, strides = sum(layout.channels), len(layout.channels)
        self.level_span: Tensor
        """(2, bases, components) mean and deviation of good levels."""
        self.patch_span: Tensor
        """(2, D) mean and deviation of patches of good pictures."""
        self.filters: Tensor
        """(J, means) what patches like those of each labelled picture correlate with, each stride by itself."""
        self.filter_span: Tensor
        """(2, strides, J) mean and deviation of what the filters give on good pictures."""
        self.probe: Tensor
        """(D,) what tells patches in masks of labelled defects from good ones."""
        self.vote_span: Tensor
        """(2, votes) mean and deviation of each vote on good pictures that were not learned from."""
        self.weight: Tensor
        """(votes,) what a deviation of each vote counts."""
        self.gain: Tensor
        """(votes,) share of each vote in what sets labelled pictures apart from good ones; 1 in all, or 0."""
        self.register_buffer("level_span", torch.zeros(2, layout.bases, layout.components))
        self.register_buffer("patch_span", torch.zeros(2, layout.depth))
        self.register_buffer("filters", torch.zeros(0, means))
        self.register_buffer("filter_span", torch.zeros(2, strides, 0))
        self.register_buffer("probe", torch.zeros(layout.depth))
        self.register_buffer("vote_span", torch.zeros(2, layout.votes))
        self.register_buffer("weight", torch.zeros(layout.votes))
        self.register_buffer("gain", torch.zeros(layout.votes))

    @classmethod
    def learned(cls, table: Floats, is_defective: Bools, layout: Layout, seed: int) -> Self:
        """What tells good rows from labelled ones.

        Args:
            table: Rows (N, width), at least 2 good ones and a defective one.
            is_defective: (N,).
            layout: Of the rows.
            seed: Of the parts that rows are cut into.
        """
        rows = torch.from_numpy(np.asarray(table, np.float32))
        bad, good = rows[torch.from_numpy(is_defective)], rows[torch.from_numpy(~is_defective)]
        draw = np.random.default_rng(seed)
        new_good, new_bad = (torch.zeros(len(each), layout.votes) for each in (good, bad))
        fold_good, fold_bad = (
            torch.from_numpy(draw.permutation(len(each)) % min(FOLDS, len(good))) for each in (good, bad)
        )
        for number in range(int(fold_good.max()) + 1):
            known = bad[fold_bad != number]
            fold = cls(layout).match(good[fold_good != number], known if len(known) else bad)
            new_good[fold_good == number] = fold.votes(good[fold_good == number])
            new_bad[fold_bad == number] = fold.votes(bad[fold_bad == number])
        found = cls(layout).match(good, bad)
        found.vote_span = torch.stack([new_good.mean(0), _deviation(new_good, 0)])
        apart = ((new_bad - found.vote_span[0]) / found.vote_span[1]).mean(0)
        # What does not tell labelled pictures that it has not learned from is noise.
        # One alone has nothing to be compared with: the detectors' own scores decide.
        most = torch.full((layout.votes,), VOTE)
        most[-1] = PROBE * (layout.cut(bad).covered[:, 0] >= 0).float().mean()
        found.weight = most * apart.clamp(0, 1) * (len(bad) > 1)
        found.weight[: layout.bases] = 1 / layout.bases
        parts = (found.weight * apart).clamp(min=0)
        found.gain = parts / parts.sum().clamp(min=1e-9)
        return found

    def check(self, layout: Layout) -> None:
        """Takes rows of a layout from now on.

        Raises:
            ValueError: what was learned is of other rows.
        """
        self.layout = layout
        labelled, strides, votes = len(self.filters), len(layout.channels), layout.votes
        shapes = {
            "level_span": (2, layout.bases, layout.components),
            "patch_span": (2, layout.depth),
            "filters": (labelled, sum(layout.channels)),
            "filter_span": (2, strides, labelled),
            "probe": (layout.depth,),
            "vote_span": (2, votes),
            "weight": (votes,),
            "gain": (votes,),
        }
        for name, shape in shapes.items():
            if tuple(self.get_buffer(name).shape) != shape:
                raise ValueError(f"{name} has shape {tuple(self.get_buffer(name).shape)}; expected {shape}")

    def forward(self, rows: Tensor) -> Tensor:
        """How abnormal pictures are, (B,), of rows (B, width): 0 is like the mean of good ones."""
        return self.contributions(rows).sum(1)

    def contributions(self, rows: Tensor) -> Tensor:
        """What each vote adds, (B, votes)."""
        return self.weight * (self.votes(rows) - self.vote_span[0]) / self.vote_span[1]

    def match(self, good: Tensor, bad: Tensor) -> Self:
        """Itself, after learning what good patches and labelled defects look like; not yet what votes are worth."""
        cut = self.layout.cut(good)
        self.level_span = _level_span(cut.levels)
        patches = cut.others.flatten(0, 1)
        self.patch_span = torch.stack([patches.mean(0), _deviation(patches, 0)])
        patches = self._scaled(patches)
        shown = self._shown(bad)
        means = torch.stack([each.mean(0) for each in shown]).double()
        filters = []
        for own in self.layout.means:
            covariance = (patches[:, own].T @ patches[:, own] / len(patches)).double()
            ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
            found = torch.linalg.solve(covariance + ridge, means[:, own].T).T
            filters.append(found / (found * means[:, own]).sum(1, keepdim=True).clamp(min=1e-9).sqrt())
        self.filters = torch.cat(filters, 1).float()
        peaks = self._scaled(cut.peaks)
        alike = self._alike(peaks)
        self.filter_span = torch.stack([alike.mean(0), _deviation(alike, 0)])
        marks = self.layout.cut(bad)
        marked = marks.others[marks.covered[:, 0] >= 0].flatten(0, 1)
        if len(marked):
            good_patches = torch.cat([patches, peaks.flatten(0, 1)])
            drawn = torch.randperm(len(good_patches), generator=torch.Generator().manual_seed(0))[:GOOD_PATCHES]
            # What a mask leaves out is as good, and taken on the same day as the defects.
            beside = self._scaled(marks.peaks[marks.covered == 0])
            self.probe = logistic(self._scaled(marked), torch.cat([good_patches[drawn], beside]), DECAY)
        return self

    def votes(self, rows: Tensor) -> Tensor:
        """Votes (B, bases + strides + 1) of rows."""
        cut = self.layout.cut(rows)
        own = self._levels(cut.levels).nan_to_num(-torch.inf).amax(2).clamp(min=-10)
        peaks = self._scaled(cut.peaks)
        alike = (self._alike(peaks) - self.filter_span[0]) / self.filter_span[1]
        nearest = alike.topk(min(NEAREST, alike.shape[2]), dim=2).values.mean(2)
        return torch.cat([own, nearest, _highest_mean(peaks @ self.probe)[:, None]], 1)

    def _alike(self, peaks: Tensor) -> Tensor:
        """How much peaks (B, K, D) are like those of each labelled picture, (B, strides, J)."""
        answers = [peaks[..., own] @ self.filters[:, own].T for own in self.layout.means]
        return torch.stack([_highest_mean(each) for each in answers], 1)

    def _shown(self, bad: Tensor) -> list[Tensor]:
        """Patches (n, D) that show the defect of each labelled picture: those in its mask, else the highest peaks.

        Without a mask, they are those in the component that is the most abnormal.
        """
        cut = self.layout.cut(bad)
        worst = self._levels(cut.levels).nan_to_num(-torch.inf).mean(1).argmax(1)
        found = []
        for place, part in enumerate(worst):
            if cut.covered[place, 0] >= 0:
                found.append(self._scaled(cut.others[place]))
                continue
            peaks, inside = self._scaled(cut.peaks[place]), cut.pieces[place] == part
            found.append((peaks[inside] if inside.any() else peaks)[:SHOWN])
        return found

    def _levels(self, levels: Tensor) -> Tensor:
        """Levels (B, bases, components) in deviations of good ones, far ones like their logarithm."""
        return ((levels - self.level_span[0]) / self.level_span[1]).asinh()

    def _scaled(self, patches: Tensor) -> Tensor:
        return (patches - self.patch_span[0]) / self.patch_span[1]


def names(bases: Sequence[str], components: int) -> list[str]:
    """What each vote is, in words, in their order."""
    own = "score of" if components == 1 else "most abnormal component of"
    likeness = [f"likeness to labelled defects, stride {each}" for each in STRIDES]
    return [f"{own} {base}" for base in bases] + likeness + ["what marked defects share"]


def _level_span(levels: Tensor) -> Tensor:
    """Mean and deviation (2, bases, components) of good levels (N, bases, components), NaN left out."""
    mean = levels.nanmean(0).nan_to_num(0)
    deviation = (levels - mean).square().nanmean(0).sqrt().nan_to_num(1)
    return torch.stack([mean, deviation.clamp(min=1e-6)])


def _highest_mean(answers: Tensor) -> Tensor:
    """The mean of the highest answers of patches (B, K, ...), (B, ...)."""
    return answers.topk(min(ALIKE, answers.shape[1]), dim=1).values.mean(1)


def _deviation(values: Tensor, dim: int) -> Tensor:
    return values.std(dim, correction=0).clamp(min=1e-6)
