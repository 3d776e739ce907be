"""U-Nets of residual and attention blocks: RealNet's reconstruction, and the parts of its diffusion model.

Tensors have the names of guided-diffusion, so that weights of others can be read.

Source: RealNet, arXiv 2403.05897, section 3.3; Dhariwal and Nichol, arXiv 2105.05233, appendix.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

GROUPS = 32
"""Of each group normalisation; widths must be multiples of it."""
HEAD_WIDTH = 64
"""Channels of an attention head; widths with attention must be multiples of it."""
Resample = Literal["down", "up", ""]


class Stage(NamedTuple):
    """One step of a U-Net: residual block, perhaps attention, perhaps another size."""

    channels: int
    """That come in."""
    width: int
    """Channels that go out."""
    attends: bool = False
    """Whether attention follows the residual block."""
    resample: Resample = ""
    """down: the residual block itself halves the size; up: another one follows that doubles it."""


def down_stages(width: int, multipliers: Sequence[int], attention: Sequence[int]) -> list[Stage]:
    """The way down after the first convolution: two stages at each level, and one that halves the size.

    Args:
        width: Channels at full size.
        multipliers: Width at each level, in multiples of `width`.
        attention: The levels with attention, by the factor that they are smaller than the input.
    """
    stages, now = [], width
    for level, wide in enumerate(width * multiplier for multiplier in multipliers):
        stages += [Stage(now, wide, 2**level in attention), Stage(wide, wide, 2**level in attention)]
        if level < len(multipliers) - 1:
            stages.append(Stage(wide, wide, resample="down"))
        now = wide
    return stages


def up_stages(width: int, multipliers: Sequence[int], attention: Sequence[int]) -> list[Stage]:
    """The way up: three stages at each level, each of which also takes what a step of the way down gave.

    The first convolution is such a step, too.
    """
    skips = [width, *(stage.width for stage in down_stages(width, multipliers, attention))]
    stages, now = [], skips[-1]
    for level in reversed(range(len(multipliers))):
        wide = width * multipliers[level]
        for last in (False, False, True):
            resample: Resample = "up" if last and level > 0 else ""
            stages.append(Stage(now + skips.pop(), wide, 2**level in attention, resample))
            now = wide
    return stages


class GroupNorm(nn.GroupNorm):
    """The same values as torch's, several times quicker on a CPU.

    Torch's kernel is slow for channels-last maps, above all in bfloat16; going to the other memory
    layout and back, values and gradients alike, costs less.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """The same shape and memory layout."""
        if input.device.type != "cpu" or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        normed: Tensor = super().forward(_Relaid.apply(input, torch.contiguous_format))
        relaid: Tensor = _Relaid.apply(normed, torch.channels_last)
        return relaid


class _Relaid(torch.autograd.Function):
    """A copy in another memory layout; the gradient takes the way back, which autograd would not do."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, layout: torch.memory_format) -> Tensor:
        back = torch.channels_last if layout == torch.contiguous_format else torch.contiguous_format
        ctx.back = back
        return value.contiguous(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].contiguous(memory_format=ctx.back), None


class Attention(nn.Module):
    """Self-attention over the positions of a feature map (B, C, h, w), added to it.

    Its output projection starts at zero, so that a new block passes its input on.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_WIDTH
        self.norm = GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, feature: Tensor) -> Tensor:
        """The same shape."""
        flat = self.norm(feature).flatten(2)
        # Heads first, then query, key and value within each: (B, heads, 3, width, positions).
        # The copy lets the fused kernel run, which takes no other memory layout.
        qkv = self.qkv(flat).unflatten(1, (self.heads, 3, HEAD_WIDTH)).transpose(3, 4).contiguous()
        query, key, value = qkv.unbind(2)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).flatten(1, 2)
        added: Tensor = self.proj_out(mixed).view_as(feature)
        return feature + added


class Residual(nn.Module):
    """One convolution after normalisation and SiLU, beside a skip; perhaps at half or twice the size."""

    def __init__(self, channels: int, width: int, resample: Resample = "") -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, width, 3, padding=1))
        self.h_upd = _resampler(channels, resample)
        self.x_upd = _resampler(channels, resample)
        self.skip_connection = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, width, h, w), or half or twice h and w."""
        norm, activation, convolution = self.in_layers
        main = convolution(self.h_upd(activation(norm(feature))))
        whole: Tensor = self.skip_connection(self.x_upd(feature)) + main
        return whole


class UNet(nn.Module):
    """Maps features (B, C, h, w) to features of the same shape; a new one gives exactly 0.

    h and w must be divisible by 2 ** (len(multipliers) - 1).
    """

    def __init__(
        self, channels: int, width: int, multipliers: Sequence[int] = (1, 2, 4), attention: Sequence[int] = (2, 4)
    ) -> None:
        """Builds the network.

        Args:
            channels: C.
            width: Channels at full size, a multiple of 32.
            multipliers: Width at each level, in multiples of `width`; each level halves the size.
            attention: The levels with attention, by the factor that they are smaller than the input;
                their widths must be multiples of 64.
        """
        super().__init__()
        down = down_stages(width, multipliers, attention)
        self.input_blocks = nn.ModuleList([nn.Conv2d(channels, width, 3, padding=1), *map(_stage, down)])
        now = down[-1].width
        self.middle_block = nn.Sequential(Residual(now, now), Attention(now), Residual(now, now))
        self.output_blocks = nn.ModuleList(map(_stage, up_stages(width, multipliers, attention)))
        now = width * multipliers[0]
        self.out = nn.Sequential(GroupNorm(GROUPS, now), nn.SiLU(), zeroed(nn.Conv2d(now, channels, 3, padding=1)))

    def forward(self, feature: Tensor) -> Tensor:
        """The same shape."""
        skips: list[Tensor] = []
        for block in self.input_blocks:
            feature = block(feature)
            skips.append(feature)
        feature = self.middle_block(feature)
        for block in self.output_blocks:
            feature = block(torch.cat([feature, skips.pop()], dim=1))
        return cast(Tensor, self.out(feature))


def zeroed(layer: nn.Conv1d | nn.Conv2d) -> nn.Conv1d | nn.Conv2d:
    """The same layer with all weights 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _stage(stage: Stage) -> nn.Module:
    if stage.resample == "down":
        return Residual(stage.channels, stage.width, "down")
    attends = [Attention(stage.width)] if stage.attends else []
    doubled = [Residual(stage.width, stage.width, "up")] if stage.resample else []
    return nn.Sequential(Residual(stage.channels, stage.width), *attends, *doubled)


def _resampler(channels: int, resample: str) -> nn.Module:
    if resample == "up":
        return nn.Sequential(OrderedDict(conv=nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)))
    return nn.AvgPool2d(2) if resample == "down" else nn.Identity()
