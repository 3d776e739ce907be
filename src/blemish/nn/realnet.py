"""RealNet's own parts: feature selection, Simple reconstruction, residual selection, discriminator, loss.

Source: Zhang et al., "RealNet", arXiv 2403.05897, sections 3.2 (AFS) to 3.4 (RRS).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish import distributed
from blemish.nn.norm import BatchNorm2d

MOST = 5.0
"""Standard deviations that a residual can stand out by, at most."""


class FeatureSelection(nn.Module):
    """AFS: the channels of each stage that show anomalies best, joined into blocks.

    What was measured stays beside what was chosen: `losses` lists it.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], planes: Sequence[int], blocks: Sequence[int]
    ) -> None:
        """Starts with the first channels of each stage.

        Args:
            channels: Of each stage.
            strides: Of each stage, finest first.
            planes: How many channels of each stage are kept.
            blocks: The stride of the block that each stage goes to; stages of another stride are resampled.
        """
        super().__init__()
        self.strides, self.planes, self.blocks = tuple(strides), tuple(planes), tuple(blocks)
        self.block_strides = tuple(dict.fromkeys(blocks))
        self.widths = [
            sum(kept for kept, block in zip(planes, blocks, strict=True) if block == stride)
            for stride in self.block_strides
        ]
        for number, (available, kept) in enumerate(zip(channels, planes, strict=True)):
            self.register_buffer(f"index_{number}", torch.arange(kept))
            self.register_buffer(f"loss_{number}", torch.zeros(available), persistent=False)
        for number, width in enumerate(self.widths):
            self.register_buffer(f"mean_{number}", torch.zeros(width, 1, 1))
            self.register_buffer(f"scale_{number}", torch.ones(width, 1, 1))

    def resample(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The stages' maps, each at the stride of its block: interpolated, or averaged where it is finer.

        No structure of the reference has a stage finer than its block.
        """
        pairs = zip(features, self.strides, self.blocks, strict=True)
        return [_resampled(feature, stride, block) for feature, stride, block in pairs]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One map (B, width, h, w) for each block: the chosen channels, standardised where that was asked for."""
        chosen = [
            feature.index_select(1, self.get_buffer(f"index_{number}"))
            for number, feature in enumerate(self.resample(features))
        ]
        joined = [
            torch.cat([part for part, block in zip(chosen, self.blocks, strict=True) if block == stride], dim=1)
            for stride in self.block_strides
        ]
        return [
            (feature - self.get_buffer(f"mean_{number}")) * self.get_buffer(f"scale_{number}")
            for number, feature in enumerate(joined)
        ]

    def choose(self, losses: Sequence[Tensor]) -> None:
        """Keeps the channels with the smallest losses (C,) of each stage; a loss that is NaN counts as the largest."""
        for number, (loss, kept) in enumerate(zip(losses, self.planes, strict=True)):
            known = loss[~loss.isnan()]
            complete = loss.nan_to_num(nan=float(known.max()) if len(known) else 0.0)
            self.get_buffer(f"loss_{number}").copy_(complete)
            order = complete.argsort(stable=True)
            self.get_buffer(f"index_{number}").copy_(order[:kept].sort().values)

    def standardise(self, moments: Sequence[Tensor]) -> None:
        """From now on, features are less their means and divided by their standard deviations.

        Args:
            moments: (2, C) of each stage: the means of its channels, and of their squares.
        """
        for number, (mean, square) in enumerate(self._joined(moments)):
            deviation = (square - mean.square()).clamp(min=0).sqrt()
            self.get_buffer(f"mean_{number}").copy_(mean[:, None, None])
            self.get_buffer(f"scale_{number}").copy_(1 / deviation.clamp(min=1e-3)[:, None, None])

    def _joined(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Values (…, C) of each stage's channels, for the chosen ones of each block (…, width)."""
        chosen = [value[..., self.get_buffer(f"index_{number}")] for number, value in enumerate(values)]
        stages = list(zip(chosen, self.blocks, strict=True))
        return [
            torch.cat([value for value, block in stages if block == stride], dim=-1) for stride in self.block_strides
        ]


def selection_losses(damaged: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
    """How badly each channel's squared difference (C,) matches the mask, once scaled to [0, 1] over the batch.

    The reference scales over the batch where the paper writes of each picture; this does as the
    reference. Multiplied out, so that the mask need not be copied for each channel.

    Args:
        damaged: (B, C, h, w) features.
        clean: (B, C, h, w) features of the same pictures before they were damaged.
        mask: (B, 1, H, W), 1 where damaged; its nearest pixels are taken.

    Source: arXiv 2403.05897, equation 4.
    """
    difference = (damaged - clean).float().square()
    label = F.interpolate(mask.float(), size=difference.shape[-2:], mode="nearest")
    low, high = (side.view(1, -1, 1, 1) for side in torch.aminmax(difference.transpose(0, 1).flatten(1), dim=1))
    scaled = (difference - low) / (high - low + 1e-4)
    match: Tensor = scaled.square().mean((0, 2, 3)) - 2 * (scaled * label).mean((0, 2, 3)) + label.mean()
    return match


class ResidualUnits(nn.Module):
    """`count` times x + conv1x1(ReLU(conv3x3(ReLU x))), without biases, then ReLU."""

    def __init__(self, channels: int, inner: int, count: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(channels, inner, 3, padding=1, bias=False),
                nn.ReLU(),
                nn.Conv2d(inner, channels, 1, bias=False),
            )
            for _ in range(count)
        )

    def forward(self, feature: Tensor) -> Tensor:
        """The same shape."""
        for unit in self.units:
            feature = feature + unit(feature)
        return F.relu(feature)


class Simple(nn.Module):
    """Reconstruction for one model of many categories: no skip passes the first halving, so less is copied."""

    def __init__(self, channels: int, units: int = 2) -> None:
        super().__init__()
        self.block1 = _normed(channels, channels, 2 * channels)
        self.block2 = _normed(2 * channels, 2 * channels, 4 * channels)
        self.units = ResidualUnits(4 * channels, 2 * channels, units)
        self.up1 = nn.ConvTranspose2d(8 * channels, 2 * channels, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(4 * channels, channels, 4, stride=2, padding=1)

    def forward(self, feature: Tensor) -> Tensor:
        """The same shape (B, C, h, w); h and w must be divisible by 4."""
        half = F.avg_pool2d(self.block1(feature), 2)
        quarter = F.avg_pool2d(self.block2(half), 2)
        up = F.relu(self.up1(torch.cat([self.units(quarter), quarter], dim=1)))
        whole: Tensor = self.up2(torch.cat([up, half], dim=1))
        return whole


class ResidualSelection(nn.Module):
    """RRS: of each picture's residual maps, those that stand out most, by their maximum and by their mean.

    To stand out is meant against what the channel is like on other pictures: batch statistics in
    training, running ones afterwards. Maximum and mean of a normalised map follow from those of the
    raw one, so no normalised copy is made.

    Source: arXiv 2403.05897, section 3.4.
    """

    def __init__(self, channels: int, maxima: int, means: int, momentum: float = 0.1) -> None:
        """Starts with mean 0 and variance 1.

        Args:
            channels: C.
            maxima: How many channels are picked by their maximum.
            means: How many by their mean; a channel may be picked twice.
            momentum: Weight of a new batch in the running statistics. The reference has 0.9, which
                leaves hardly more than the last batch in them.
        """
        super().__init__()
        self.maxima, self.means, self.momentum = maxima, means, momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, residual: Tensor) -> Tensor:
        """Raw residuals (B, maxima + means, h, w) in descending order of their scores, of (B, C, h, w)."""
        picked = self.pick(residual.detach())
        first = torch.arange(residual.shape[0], device=residual.device).unsqueeze(1) * residual.shape[1]
        rows = residual.flatten(0, 1).index_select(0, (picked + first).flatten())
        selected: Tensor = rows.unflatten(0, picked.shape)
        return selected

    def surprise(self, residual: Tensor) -> Tensor:
        """How far residuals (B, C, h, w) stand out on average over the channels, (B, 1, h, w).

        Each channel counts in its own standard deviations, and no more than `MOST` of them, so that
        no single one decides.
        """
        mean, variance = (self.get_buffer(name)[:, None, None] for name in ("mean", "variance"))
        return ((residual - mean) * (variance + 1e-5).rsqrt()).clamp(max=MOST).mean(1, keepdim=True)

    def pick(self, residual: Tensor) -> Tensor:
        """Channel numbers (B, maxima + means); in training, the running statistics move on."""
        wide = residual.float()
        highest, average = wide.amax((2, 3)), wide.mean((2, 3))
        mean, variance = self.get_buffer("mean"), self.get_buffer("variance")
        if self.training:
            # Of the whole batch, where several processes share it evenly.
            shares = distributed.world_size()
            count = wide.numel() // wide.shape[1] * shares
            batch_mean = distributed.total(average.mean(0)) / shares
            spread = distributed.total((wide - batch_mean[:, None, None]).square().mean((0, 2, 3))) / shares
            mean.lerp_(batch_mean, self.momentum)
            variance.lerp_(spread * count / max(count - 1, 1), self.momentum)
            mean, variance = batch_mean, spread
        scale = (variance + 1e-5).rsqrt()
        by_maximum = ((highest - mean) * scale).topk(self.maxima, dim=1).indices
        by_mean = ((average - mean) * scale).topk(self.means, dim=1).indices
        return torch.cat([by_maximum, by_mean], dim=1)


class Discriminator(nn.Module):
    """Logits (good, damaged) for each pixel, of the selected residuals."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int] = (128, 32, 8, 4), units: int = 2) -> None:
        """Builds the network.

        Args:
            channels: Of the residuals.
            widths: Between the layers; those of the reference end so narrow that little has to go
                wrong for nothing to get through.
            units: Residual units at the front.
        """
        super().__init__()
        one, two, three, four = widths
        self.units = ResidualUnits(channels, channels, units)
        self.first = nn.Sequential(nn.Conv2d(channels, one, 3, padding=1), BatchNorm2d(one), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(one, two, 3, padding=1), nn.ReLU(), nn.Conv2d(two, three, 3, padding=1), nn.ReLU()
        )
        self.third = nn.Sequential(nn.Conv2d(three, four, 3, padding=1), nn.ReLU(), nn.Conv2d(four, 2, 3, padding=1))

    def forward(self, selected: Tensor, size: Sequence[int]) -> Tensor:
        """(B, 2, *size) of residuals (B, channels, h, w).

        The reference doubles to a square of twice the width; here both sides are doubled, which is
        the same for squares.
        """
        feature = self.second(self.first(self.units(selected)))
        doubled = F.interpolate(feature, scale_factor=2, mode="bilinear", align_corners=True)
        return F.interpolate(self.third(doubled), size=list(size), mode="bilinear", align_corners=True)


class Network(nn.Module):
    """What is trained: reconstruction, selection of residuals, discriminators."""

    def __init__(
        self,
        reconstruction: Sequence[nn.Module],
        selection: ResidualSelection,
        discriminators: Mapping[str, Discriminator],
        detach: bool,
    ) -> None:
        """Joins the parts.

        Args:
            reconstruction: A network for each block.
            selection: RRS.
            discriminators: By what they see: "picked" by RRS, or "all" residuals.
            detach: Keep the segmentation loss from changing the reconstruction.
        """
        super().__init__()
        self.detach = detach
        self.reconstruction = nn.ModuleList(reconstruction)
        self.selection = selection
        self.discriminators = nn.ModuleDict(discriminators)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Logits (B, 2, *size) of each discriminator, the reconstruction of each block's features, all residuals."""
        restored = [restore(feature) for restore, feature in zip(self.reconstruction, features, strict=True)]
        residuals = [
            (feature - (made.detach() if self.detach else made)).square()
            for feature, made in zip(features, restored, strict=True)
        ]
        finest = residuals[0].shape[-2:]
        aligned = [
            residual
            if residual.shape[-2:] == finest
            else F.interpolate(residual, size=finest, mode="bilinear", align_corners=True)
            for residual in residuals
        ]
        every = torch.cat(aligned, dim=1)
        logits = [
            discriminator(self.selection(every) if way == "picked" else every, size)
            for way, discriminator in self.discriminators.items()
        ]
        return logits, restored, every


def segmentation_loss(logits: Tensor, mask: Tensor, focal: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits (B, 2, H, W) against a mask (B, H, W), perhaps focal (arXiv 1708.02002).

    The focal form follows the reference: probabilities of the labels smoothed by 1e-5.
    """
    if not focal:
        return F.cross_entropy(logits, mask.long())
    smooth = 1e-5
    share = logits.softmax(1).gather(1, mask.long().unsqueeze(1))
    share = (1 - smooth) * share + smooth * (1 - share) + smooth
    return (-((1 - share).clamp(min=0) ** focal) * share.log()).mean()


def _resampled(feature: Tensor, stride: int, wanted: int) -> Tensor:
    if stride < wanted:
        return F.avg_pool2d(feature, wanted // stride)
    if stride == wanted:
        return feature
    return F.interpolate(feature, scale_factor=stride / wanted, mode="bilinear", align_corners=True)


def _normed(channels: int, inner: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, inner, 3, padding=1),
        nn.InstanceNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, width, 3, padding=1),
        nn.InstanceNorm2d(width),
        nn.ReLU(),
    )
