"""The networks of a diffusion model: the class-conditional U-Net that tells noise, and a classifier of noisy images.

Tensors have the names of guided-diffusion, so that its weights can be read.

Source: Dhariwal and Nichol, arXiv 2105.05233, sections 3 and 4 and appendix; used by RealNet,
arXiv 2403.05897, section 3.1.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.nn.unet import GROUPS, HEAD_WIDTH, Attention, GroupNorm, Resample, Stage, down_stages, up_stages, zeroed

SLOWEST = 10_000
"""Time features turn once in 2π to 2π times this many steps."""
IMAGE_CHANNELS = 3


class Residual(nn.Module):
    """Two convolutions beside a skip, told the time by a scale and a shift; perhaps at half or twice the size.

    Its last convolution starts at zero, so that a new block passes its input on.
    """

    def __init__(self, channels: int, width: int, embedding: int, resample: Resample = "") -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, width, 3, padding=1))
        self.resample = _RESAMPLERS[resample]()
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * width))
        self.out_layers = nn.Sequential(
            GroupNorm(GROUPS, width), nn.SiLU(), nn.Dropout(0.0), zeroed(nn.Conv2d(width, width, 3, padding=1))
        )
        self.skip_connection = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, feature: Tensor, embedding: Tensor) -> Tensor:
        """(B, width, h, w), or half or twice h and w."""
        norm, activation, convolution = self.in_layers
        main = convolution(self.resample(activation(norm(feature))))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        norm, activation, _, convolution = self.out_layers
        # One product and one sum in one pass over the feature map.
        main = convolution(activation(torch.addcmul(shift, norm(main), 1 + scale)))
        whole: Tensor = self.skip_connection(self.resample(feature)) + main
        return whole


class Steps(nn.ModuleList):
    """Layers one after the other; residual blocks are told the time."""

    def forward(self, feature: Tensor, embedding: Tensor) -> Tensor:
        """What the last layer gives."""
        for layer in self:
            feature = layer(feature, embedding) if isinstance(layer, Residual) else layer(feature)
        return feature


class NoiseUNet(nn.Module):
    """The noise in a noisy image, and how sure that is, at a time and for a class.

    H and W must be divisible by patch * 2 ** (len(multipliers) - 1). A new one gives exactly 0.
    """

    def __init__(
        self,
        width: int,
        multipliers: Sequence[int],
        attention: Sequence[int],
        classes: int | None = None,
        patch: int = 1,
    ) -> None:
        """Builds the network.

        Args:
            width: Channels at full size, a multiple of 32.
            multipliers: Width at each level, in multiples of `width`; each level halves the size.
            attention: The levels with attention, by the factor that they are smaller than the image;
                their widths, and that of the last level, must be multiples of 64.
            classes: How many there are; None if the network is not told a class.
            patch: Side of the squares whose pixels are taken as channels of one position.
        """
        super().__init__()
        self.width, embedding = width, 4 * width
        self.patch, patches = patch, patch**2
        self.time_embed = _time_embedding(width)
        self.label_emb = None if classes is None else nn.Embedding(classes, embedding)
        self.input_blocks, self.middle_block = _encoder(IMAGE_CHANNELS * patches, width, multipliers, attention)
        self.output_blocks = nn.ModuleList(
            _steps(stage, embedding) for stage in up_stages(width, multipliers, attention)
        )
        last = width * multipliers[0]
        self.out = nn.Sequential(
            GroupNorm(GROUPS, last), nn.SiLU(), zeroed(nn.Conv2d(last, 2 * IMAGE_CHANNELS * patches, 3, padding=1))
        )

    def forward(self, image: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, 6, H, W): the noise, and where in [-1, 1] its log variance lies between the least and the most.

        Args:
            image: (B, 3, H, W) in about [-1, 1], with noise.
            time: (B,) how noisy: 0 to 999; or (1,), the same for all.
            label: (B,) int64 class of each, or (1,); needed if the network was built with classes.
        """
        embedding = self.time_embed(time_features(time, self.width))
        if self.label_emb is not None:
            embedding = embedding + self.label_emb(cast(Tensor, label))
        feature, skips = F.pixel_unshuffle(image, self.patch), []
        for block in self.input_blocks:
            feature = block(feature, embedding)
            skips.append(feature)
        feature = self.middle_block(feature, embedding)
        for block in self.output_blocks:
            feature = block(torch.cat([feature, skips.pop()], dim=1), embedding)
        return F.pixel_shuffle(self.out(feature), self.patch)


class NoisyClassifier(nn.Module):
    """The class of a noisy image: the way down of the U-Net, and a pooling by attention.

    It is built for one image size: `side` is that of its last level, in positions.
    """

    def __init__(
        self, width: int, multipliers: Sequence[int], attention: Sequence[int], classes: int, side: tuple[int, int]
    ) -> None:
        super().__init__()
        self.width = width
        self.time_embed = _time_embedding(width)
        self.input_blocks, self.middle_block = _encoder(IMAGE_CHANNELS, width, multipliers, attention)
        last = width * multipliers[-1]
        self.out = nn.Sequential(GroupNorm(GROUPS, last), nn.SiLU(), AttentionPooling(last, side[0] * side[1], classes))

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) at times (B,), or (1,)."""
        embedding = self.time_embed(time_features(time, self.width))
        feature = image
        for block in (*self.input_blocks, self.middle_block):
            feature = block(feature, embedding)
        return cast(Tensor, self.out(feature))


class AttentionPooling(nn.Module):
    """What the mean position finds when it attends to all positions (B, C, h, w), as (B, outputs)."""

    def __init__(self, channels: int, positions: int, outputs: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(channels, positions + 1) / math.sqrt(channels))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, outputs)."""
        flat = feature.flatten(2)
        tokens = torch.cat([flat.mean(dim=2, keepdim=True), flat], dim=2) + self.positional_embedding
        # Query, key and value first, then heads: not as in the attention blocks.
        query, key, value = self.qkv_proj(tokens).unflatten(1, (3, -1, HEAD_WIDTH)).transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(query[:, :, :1].contiguous(), key.contiguous(), value.contiguous())
        pooled: Tensor = self.c_proj(mixed.transpose(2, 3).flatten(1, 2))
        return pooled.squeeze(2)


def time_features(time: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of times (B,) at width / 2 frequencies: (B, width) float32."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=time.device) * (-math.log(SLOWEST) / half))
    angles = time.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


_RESAMPLERS: dict[Resample, Callable[[], nn.Module]] = {
    "down": lambda: nn.AvgPool2d(2),
    "up": lambda: nn.Upsample(scale_factor=2, mode="nearest"),
    "": nn.Identity,
}


def _time_embedding(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))


def _encoder(
    channels: int, width: int, multipliers: Sequence[int], attention: Sequence[int]
) -> tuple[nn.ModuleList, Steps]:
    """The way down, of images of so many channels, and the middle."""
    stages = down_stages(width, multipliers, attention)
    first = Steps([nn.Conv2d(channels, width, 3, padding=1)])
    blocks = nn.ModuleList([first, *(_steps(stage, 4 * width) for stage in stages)])
    last = stages[-1].width
    return blocks, Steps([Residual(last, last, 4 * width), Attention(last), Residual(last, last, 4 * width)])


def _steps(stage: Stage, embedding: int) -> Steps:
    down: Resample = "down" if stage.resample == "down" else ""
    attends = [Attention(stage.width)] if stage.attends else []
    doubled = [Residual(stage.width, stage.width, embedding, "up")] if stage.resample == "up" else []
    return Steps([Residual(stage.channels, stage.width, embedding, down), *attends, *doubled])
