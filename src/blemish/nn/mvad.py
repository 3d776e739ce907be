"""MVAD's own parts: each view looks at the most similar windows of the other views of its part.

Feature maps of all pictures lie in one batch, whatever parts they show. `others` says for each
picture which pictures of the batch are the other views of its part, so parts may have any number
of views, and differ in it.

Source: He et al., "Learning Multi-view Anomaly Detection", arXiv 2407.11935.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.nn.norm import BatchNorm2d
from blemish.nn.residual import bottleneck, growing


@dataclass(frozen=True, kw_only=True)
class Selecting:
    """How a view chooses what it looks at, and looks."""

    top: int = 4
    """Windows of the other views that each window looks at."""
    heads: int = 8
    """Groups of channels that look apart."""
    views: int = 5
    """Views of a part that the number of windows is made for."""
    mask_padding: bool = True
    """Whether what is added to fill the last windows is looked past."""
    per_head_scale: bool = True
    """Whether products are divided by the root of a head's width, and not of all channels."""
    own: float = 1.0
    """Weight of a view itself beside what it sees in the others, which has weight 1."""

    def windows(self, size: Sequence[int]) -> int:
        """Windows on a side of a map of that (height, width): so many that choosing and looking cost least.

        Source: the minimum of the cost of section 3 (arXiv 2407.11935v2) over the number of windows.

        >>> [Selecting().windows((side, side)) for side in (64, 32, 16)]
        [14, 9, 6]
        """
        area = size[0] * size[1]
        best = math.pow(self.top * area**2 / (2 * max(1, self.views - 1)), 1 / 6)
        return max(1, min(*size, round(best)))


def others_of(parts: Sequence[Hashable]) -> Tensor:
    """For each picture the places (B, V - 1) of the other views of its part; -1 where it has fewer.

    >>> others_of(["a", "b", "a", "a"])
    tensor([[ 2,  3],
            [-1, -1],
            [ 0,  3],
            [ 0,  2]])
    """
    places: dict[Hashable, list[int]] = {}
    for place, part in enumerate(parts):
        places.setdefault(part, []).append(place)
    most = max(map(len, places.values()), default=1) - 1
    rows = [[other for other in places[part] if other != place] for place, part in enumerate(parts)]
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.long).view(len(parts), most)


class Windows(NamedTuple):
    """A batch of feature maps, cut into a grid of windows."""

    tokens: Tensor
    """(B, K, T, C): K windows, row by row, of T tokens."""
    means: Tensor
    """(B, K, C): of the tokens of each window."""
    is_real: Tensor | None
    """(K, T): which tokens are not padding; None where padding counts as any other token."""


class Selector(nn.Module):
    """Multi-view adaptive selection: attention to the most similar windows of the other views. Learns nothing.

    Source: arXiv 2407.11935, section 3.2.
    """

    def __init__(self, how: Selecting) -> None:
        super().__init__()
        self.how = how

    def cut(self, feature: Tensor) -> Windows:
        """The windows of feature maps (B, h, w, C), which are padded with zeros below and on the right."""
        side = self.how.windows(feature.shape[1:3])
        tokens = _cut(feature, side)
        if not self.how.mask_padding:
            return Windows(tokens, tokens.mean(2), None)
        is_real = _cut(feature.new_ones(1, *feature.shape[1:3], 1), side)[0, :, :, 0]
        count = is_real.sum(1).clamp(min=1)
        return Windows(tokens, tokens.sum(2) / count[:, None], is_real.bool())

    def forward(self, query: Tensor, source: Windows, others: Tensor) -> Tensor:
        """What each view sees in the others, (B, h, w, C).

        Args:
            query: The views (B, h, w, C), with their positions added.
            source: The windows of what is looked at in the views.
            others: From `others_of`. A view that is alone sees 0.
        """
        if not others.shape[1]:
            return torch.zeros_like(query)
        asking = self.cut(query)
        chosen, is_there = self.choose(asking.means, source, others)
        keys = source.tokens.flatten(0, 1)[chosen].flatten(2, 3)  # (B, K, top * T, C)
        mask: Tensor | None = None
        if source.is_real is not None or not bool(is_there.all()):
            _, count, length, _ = source.tokens.shape
            real = torch.ones(count, length, dtype=torch.bool, device=query.device)
            real = real if source.is_real is None else source.is_real
            mask = (real[chosen % len(real)] & is_there.unsqueeze(3)).flatten(2)
        return _joined(self._look(asking.tokens, keys, mask), query.shape[1:3])

    def choose(self, asking: Tensor, source: Windows, others: Tensor) -> tuple[Tensor, Tensor]:
        """The windows that each window looks at, as places in all windows of the batch; and which of them exist.

        Args:
            asking: (B, K, C): means of the windows that look.
            source: What is looked at.
            others: From `others_of`.

        Returns:
            Two times (B, K, top): places, most similar first; and whether there is such a window.
        """
        with torch.no_grad(), torch.autocast(asking.device.type, enabled=False):
            count, places = source.means.shape[1], others.clamp(min=0)
            candidates = source.means.float()[places].flatten(1, 2)  # (B, (V - 1) * K, C)
            similarity = asking.float() @ candidates.transpose(1, 2) / math.sqrt(asking.shape[2])
            exists = (others >= 0).unsqueeze(2).expand(-1, -1, count)
            if source.is_real is not None:
                exists = exists & source.is_real.any(1)
            similarity.masked_fill_(~exists.flatten(1).unsqueeze(1), -math.inf)
            best = similarity.topk(min(self.how.top, similarity.shape[2]), dim=2)
            view = places.gather(1, (best.indices // count).flatten(1)).view_as(best.indices)
        return view * count + best.indices % count, best.values > -math.inf

    def _look(self, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Attention (B, K, T, C) of tokens (B, K, T, C) to (B, K, S, C), which are keys and values in one."""
        heads, channels = self.how.heads, query.shape[3]
        split = [side.flatten(0, 1).unflatten(2, (heads, -1)).transpose(1, 2) for side in (query, keys)]
        width = channels // heads if self.how.per_head_scale else channels
        if mask is None:
            seen = F.scaled_dot_product_attention(split[0], split[1], split[1], scale=width**-0.5)
        else:
            allowed = mask.flatten(0, 1)[:, None, None]  # (B * K, 1, 1, S)
            some = allowed.any(3, keepdim=True)
            # Who has nothing to look at looks at all, so that there is no division by 0, and sees 0.
            seen = F.scaled_dot_product_attention(
                split[0], split[1], split[1], attn_mask=allowed | ~some, scale=width**-0.5
            )
            seen = seen * some
        made: Tensor = seen.transpose(1, 2).flatten(2).unflatten(0, query.shape[:2])
        return made


class Dropout(nn.Module):
    """Drops a share of the values of views in training, and scales the others.

    It draws for the whole batch, also where this process has only some views of it, so that what is
    dropped does not depend on how many processes share the batch.
    """

    def __init__(self, dropped: float) -> None:
        super().__init__()
        self.dropped = dropped
        self.among: tuple[int, Tensor] | None = None
        """Views in the whole batch, and which of them are here; None if all are."""

    def forward(self, views: Tensor) -> Tensor:
        """The same shape (B, ...)."""
        if not self.training or not self.dropped:
            return views
        count, here = self.among or (len(views), slice(None))
        return views * self.draw(count, views)[here] / (1 - self.dropped)

    def draw(self, count: int, views: Tensor) -> Tensor:
        """What to keep of `count` views like these."""
        return torch.empty((count, *views.shape[1:]), dtype=views.dtype, device=views.device).bernoulli_(
            1 - self.dropped
        )


class DropPath(Dropout):
    """Drops a share of whole views."""

    def draw(self, count: int, views: Tensor) -> Tensor:
        """What to keep of `count` views like these."""
        return torch.rand(count, *(1 for _ in views.shape[1:]), device=views.device) >= self.dropped


class Block(nn.Module):
    """A transformer's block with normalisation after each part, and a selector for attention.

    Source: arXiv 2407.11935, section 3.2; dropping whole branches: arXiv 1603.09382.
    """

    def __init__(self, channels: int, how: Selecting, dropout: float, drop_path: float) -> None:
        """Draws the weights.

        Args:
            channels: Of the feature maps.
            how: How views look at one another.
            dropout: Share of the values of the two layers that is dropped in training.
            drop_path: Share of the views whose attention is dropped in training.
        """
        super().__init__()
        self.selector, self.drop = Selector(how), DropPath(drop_path)
        self.norm_seen = nn.LayerNorm(channels, eps=1e-6)
        self.layers = nn.Sequential(
            *(nn.Linear(channels, 4 * channels), nn.ReLU(), Dropout(dropout)),
            *(nn.Linear(4 * channels, channels), Dropout(dropout)),
        )
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, feature: Tensor, position: Tensor, source: Windows, others: Tensor) -> Tensor:
        """(B, h, w, C) of feature maps of that shape; what is looked at is `source`."""
        seen: Tensor = self.drop(self.selector(feature + position, source, others))
        # A view that is alone sees 0, and is the same after normalisation whatever its weight.
        feature = self.norm_seen(self.selector.how.own * feature + seen)
        return cast(Tensor, self.norm(feature + self.layers(feature)))


class Bottleneck(nn.Module):
    """Makes one small code for each view, out of its feature maps and what it sees in the other views."""

    def __init__(
        self, channels: Sequence[int], depths: Sequence[int], how: Selecting, drop: tuple[float, float]
    ) -> None:
        """Draws the weights.

        Args:
            channels: Of the feature maps, finest first; each map is half the size of the one before.
            depths: Blocks for each scale.
            how: How views look at one another.
            drop: Dropout, and share of attention that is dropped.
        """
        super().__init__()
        last = channels[-1]
        self.code = nn.Sequential(
            bottleneck(last, last // 2, 2 * last, 2), *(bottleneck(2 * last, last // 2, 2 * last) for _ in range(2))
        )
        self.down = nn.ModuleList(
            _activated(nn.Conv2d(fine, coarse, 3, 2, padding=1, bias=False)) for fine, coarse in pairwise(channels)
        )
        self.side = nn.ModuleList(_activated(nn.Conv2d(wide, wide, 1)) for wide in channels[1:])
        self.join = _activated(nn.Conv2d(last, last, 1))
        self.scales = nn.ModuleList(
            nn.ModuleList(Block(wide, how, *drop) for _ in range(depth))
            for wide, depth in zip(channels, depths, strict=True)
        )
        _draw(self)

    def forward(self, features: Sequence[Tensor], others: Tensor) -> Tensor:
        """Codes (B, 2C, h/2, w/2), C, h and w those of the coarsest of the feature maps (B, C, h, w), finest first."""
        return self.fuse(self.exchange(features, others))

    def exchange(self, features: Sequence[Tensor], others: Tensor) -> list[Tensor]:
        """The feature maps after all blocks: the views have looked at one another."""
        made = []
        for feature, blocks in zip(features, self.scales, strict=True):
            enhanced = raw = feature.permute(0, 2, 3, 1)
            position = position_embedding(raw.shape[1:3], raw.shape[3]).to(raw)
            chain = cast(nn.ModuleList, blocks)
            source = cast(Block, chain[0]).selector.cut(raw) if len(chain) else None
            for block in chain:
                enhanced = block(enhanced, position, source, others)
            made.append(enhanced.permute(0, 3, 1, 2))
        return made

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """The codes of feature maps (B, C, h, w), finest first."""
        fused = features[0]
        for down, side, feature in zip(self.down, self.side, features[1:], strict=True):
            fused = down(fused) + side(feature)
        return cast(Tensor, self.code(self.join(fused)))


class Student(nn.Module):
    """Restores the feature maps from the codes; a ResNet turned round."""

    def __init__(self, channels: Sequence[int], depths: Sequence[int], *, signed: bool) -> None:
        """Draws the weights.

        Args:
            channels: Of the feature maps, finest first.
            depths: Blocks for each scale, finest first.
            signed: Whether features may be below 0, as those of a ResNet are not; a 1x1 convolution
                then makes them.
        """
        super().__init__()
        widths = [2 * channels[-1], *reversed(channels)]
        self.stages = nn.ModuleList(
            growing(before, after, depth)
            for (before, after), depth in zip(pairwise(widths), reversed(depths), strict=True)
        )
        self.heads = nn.ModuleList(nn.Conv2d(wide, wide, 1) if signed else nn.Identity() for wide in widths[1:])
        _draw(self)

    def forward(self, code: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w), finest first, of codes (B, 2C, h/2, w/2)."""
        made: list[Tensor] = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            code = stage(code)
            made.append(head(code))
        return made[::-1]


def position_embedding(size: Sequence[int], channels: int) -> Tensor:
    """Where each place of a map is, (h, w, C) float32: sines and cosines of y, then of x.

    Source: arXiv 2005.12872, appendix A.4, with coordinates that go up to 2 pi.
    """
    numbers = torch.arange(channels // 2)
    periods = 10000 ** (2 * (numbers // 2) / (channels // 2))
    axes = []
    for side in size:
        angles = torch.arange(1, side + 1)[:, None] / (side + 1e-6) * (2 * math.pi) / periods
        axes.append(torch.where(numbers % 2 == 0, angles.sin(), angles.cos()))
    down, across = axes
    shape = (*size, channels // 2)
    return torch.cat([down[:, None].expand(shape), across.expand(shape)], dim=2)


def _activated(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, BatchNorm2d(convolution.out_channels), nn.ReLU())


def _draw(module: nn.Module) -> None:
    """Draws the weights of ordinary convolutions as the reference does; all others are torch's own."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")


def _cut(feature: Tensor, side: int) -> Tensor:
    """Windows (B, side * side, T, C) of maps (B, h, w, C), padded with zeros below and on the right."""
    height, width = feature.shape[1:3]
    padded = F.pad(feature, (0, 0, 0, -width % side, 0, -height % side))
    grid: Tensor = padded.unflatten(2, (side, -1)).unflatten(1, (side, -1))  # (B, side, high, side, wide, C)
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _joined(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """The maps (B, h, w, C) that were cut into these windows."""
    side = math.isqrt(tokens.shape[1])
    high, wide = (-(-length // side) for length in size)
    grid: Tensor = tokens.unflatten(2, (high, wide)).unflatten(1, (side, side)).transpose(2, 3)
    return grid.flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]]
