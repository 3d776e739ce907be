"""InvAD's own parts: equalised and style-modulated convolutions, the fuser, the decoder.

The decoder starts from a learned constant and sees the picture only through style maps, which scale
and shift, pixel by pixel, what goes into its convolutions. So all pictures share one set of weights
and the convolutions are ordinary ones. What equalised convolutions, activations and sums have to be
multiplied with is folded into the weights of the modulation, which are few.

Source: Zhang et al., arXiv 2404.10760; equalised convolutions: arXiv 1710.10196, section 4.1; the
modulation is that of StyleMapGAN, arXiv 2104.14754.
"""

import math
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.nn.norm import BatchNorm2d
from blemish.nn.residual import bottleneck

GAIN = math.sqrt(2)
"""Of an activation: it keeps the variance about the same."""
SLOPE = 0.2
"""Of an activation below 0."""


class Prepared(nn.Module):
    """A module that computes once, while nothing is trained, what depends on its weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[Tensor, ...] | None = None
        self.register_load_state_dict_post_hook(Prepared._forget)  # type: ignore[no-untyped-call]

    def prepare(self) -> tuple[Tensor, ...]:
        """What depends on the weights alone."""
        raise NotImplementedError

    def prepared(self) -> tuple[Tensor, ...]:
        """The same; kept from the last time where no gradients are wanted."""
        if self.training or torch.is_grad_enabled():
            return self.prepare()
        if self._kept is None:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._kept = self.prepare()
        return self._kept

    def train(self, mode: bool = True) -> Self:
        """Switches the mode; what was kept is computed anew."""
        self._forget()
        return super().train(mode)

    def _forget(self, *_: object) -> None:
        self._kept = None

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class EqualConv(Prepared):
    """A convolution whose weights, about 1 in size, are scaled when they are used: Adam moves all alike."""

    def __init__(self, channels: int, width: int, side: int = 3, bias: float | None = 0.0, gain: float = GAIN) -> None:
        """Draws the weights.

        Args:
            channels: Of the input.
            width: Channels of the output.
            side: Of the kernel, 1 or 3.
            bias: What the biases start at; None for no biases.
            gain: Factor on the output.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, channels, side, side))
        self.bias = None if bias is None else nn.Parameter(torch.full((width,), bias))
        self.gain = gain
        self.scale = gain / math.sqrt(channels * side**2)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, width, h, w) of (B, channels, h, w)."""
        weight, bias = self.prepared()
        return F.conv2d(feature, weight, bias, padding="same")

    def prepare(self) -> tuple[Tensor, ...]:
        """Scaled weights and biases."""
        return self.weight * self.scale, self.scaled_bias()

    def scaled_bias(self) -> Tensor:
        """(width,) zeros where there are no biases."""
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias * self.gain


class UpConv(EqualConv):
    """The same with twice the size: a transposed convolution of stride 2, and a blur.

    Kernel and blur can be merged into one transposed convolution with a larger kernel. On a CPU that
    is up to 3 times as fast in bfloat16, but 2 to 4 times slower in float32 and in training, so
    it is done for inference in less than float32 only.
    """

    def slowed(self, rate: float) -> Self:
        """The same layer with a learning rate `rate` times that of others.

        The weights are made larger and used smaller, so the function stays and Adam's steps count less.
        """
        with torch.no_grad():
            self.weight.div_(rate)
        self.scale *= rate
        return self

    def forward(self, feature: Tensor) -> Tensor:
        """(B, width, 2h, 2w) of (B, channels, h, w)."""
        if self.training or feature.dtype == torch.float32 or self.weight.shape[-1] == 1:
            weight, bias = super().prepare()
            return upsample(feature, weight, bias)
        merged, bias = self.prepared()
        return F.conv_transpose2d(feature, merged, bias, stride=2, padding=2)

    def prepare(self) -> tuple[Tensor, ...]:
        """Kernel and blur as one transposed kernel, and biases."""
        weight, bias = super().prepare()
        return merge(weight), bias


def upsample(feature: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, width, 2h, 2w): transposed convolution with a kernel (width, channels, 3 or 1, ...), blur, biases."""
    if weight.shape[-1] == 1:  # commutes with the blur, and is cheaper before it
        return double(F.conv2d(feature, weight, bias))
    wide = F.conv_transpose2d(feature, weight.transpose(0, 1), stride=2)
    # Biases are added apart, because their gradient is slow to come by in a grouped convolution.
    blurred = F.conv2d(wide, _fir(wide).expand(len(weight), 1, 4, 4), padding=1, groups=len(weight))
    return blurred + bias.to(blurred.dtype).view(-1, 1, 1)


def double(feature: Tensor) -> Tensor:
    """(B, C, 2h, 2w): zeros between the pixels, blurred with [1, 3, 3, 1] and its transpose."""
    return F.interpolate(F.pad(feature, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)[
        :, :, 2:-2, 2:-2
    ]


def merge(weight: Tensor) -> Tensor:
    """The transposed kernel (channels, width, 6, 6) that convolves with `weight` (width, channels, 3, 3) and blurs."""
    full = F.conv2d(weight.flatten(0, 1).unsqueeze(1), _fir(weight), padding=3)
    return full.view(*weight.shape[:2], 6, 6).transpose(0, 1).contiguous()


def _fir(like: Tensor) -> Tensor:
    """The blur (1, 1, 4, 4); its sum is 4, because three in four pixels that it sees are zeros."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=like.dtype, device=like.device) / 4
    return (taps[:, None] * taps)[None, None]


def normalise(feature: Tensor) -> Tensor:
    """Each picture's map with mean 0 and variance 1 over channels and pixels."""
    return F.group_norm(feature, 1)


def activate(feature: Tensor) -> Tensor:
    """Leaky ReLU; its gain and bias are those of the convolution before it."""
    return F.leaky_relu(feature, SLOPE)


class Activated(nn.Sequential):
    """Equalised convolutions, each followed by its activation."""

    def forward(self, feature: Tensor) -> Tensor:
        """What comes out of the last."""
        for convolution in self:
            feature = activate(convolution(feature))
        return feature


class StyledConv(nn.Module):
    """A 3x3 convolution of a normalised map that a style map scales and shifts, and its activation.

    Source: arXiv 2404.10760, spatial style modulation.
    """

    def __init__(self, channels: int, width: int, style_width: int, gain: float = GAIN) -> None:
        """Draws the weights.

        Args:
            channels: Of the input.
            width: Channels of the output.
            style_width: Channels of the style map.
            gain: Factor on the output.
        """
        super().__init__()
        self.convolution = EqualConv(channels, width, gain=gain)
        # The scale of the convolution is theirs, so that its own weights are used as they are.
        self.factor = EqualConv(style_width, channels, bias=1.0, gain=self.convolution.scale)
        self.shift = EqualConv(style_width, channels, bias=0.0, gain=self.convolution.scale)

    def forward(self, normal: Tensor, style: Tensor) -> Tensor:
        """(B, width, h, w) of a normalised map (B or 1, channels, h, w) and a style map (B, style_width, h, w)."""
        modulated = torch.addcmul(self.shift(style), normal, self.factor(style))
        raw = self.convolution
        return activate(F.conv2d(modulated, raw.weight, raw.scaled_bias(), padding=1))


class StyledBlock(nn.Module):
    """Two convolutions beside a 1x1 skip; one that doubles the size has no style in its first convolution."""

    def __init__(self, channels: int, width: int, style_width: int, *, up: bool = False) -> None:
        super().__init__()
        self.first = Activated(UpConv(channels, width)) if up else StyledConv(channels, width, style_width)
        # The gain of its activation, and the division of the sum by as much, leave 1.
        self.second = StyledConv(width, width, style_width, gain=1.0)
        self.skip = (UpConv if up else EqualConv)(channels, width, 1, bias=None, gain=1 / GAIN)

    def forward(self, feature: Tensor, style: Tensor) -> Tensor:
        """(B, width, h, w), or twice h and w, of (B, channels, h, w) and a style map of the output's size."""
        return self.finish(*self.start(feature), style)

    def start(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """What does not depend on the style: the normalised input, and the skip."""
        return normalise(feature), self.skip(feature)

    def finish(self, normal: Tensor, skip: Tensor, style: Tensor) -> Tensor:
        """The output, from what `start` gave."""
        inner: Tensor = self.first(normal, style) if isinstance(self.first, StyledConv) else self.first(normal)
        styled: Tensor = self.second(normalise(inner), style)
        return styled + skip


class Stage(nn.Module):
    """The blocks of one scale."""

    def __init__(self, channels: int, width: int, style_width: int, depth: int, *, up: bool) -> None:
        """Draws the weights; the first of `depth` blocks goes from `channels` to `width` and may double the size."""
        super().__init__()
        self.first = StyledBlock(channels, width, style_width, up=up)
        self.others = nn.ModuleList(StyledBlock(width, width, style_width) for _ in range(depth - 1))

    def forward(self, started: tuple[Tensor, ...], style: Tensor) -> Tensor:
        """The feature map, from what the first block's `start` gave."""
        normal, skip = started
        feature = self.first.finish(normal, skip, style)
        for block in self.others:
            feature = block(feature, style)
        return feature


class Fuser(nn.Module):
    """Makes the codes, one for each scale, of all feature maps together."""

    def __init__(self, channels: Sequence[int], code_widths: Sequence[int] | None = None, up_rate: float = 1.0) -> None:
        """Draws the weights.

        Args:
            channels: Of the feature maps, finest first; each map is half the size of the one before.
            code_widths: Channels of each code, finest first; 64 each if not given.
            up_rate: Learning rate of the convolutions that double the size, as a share of the others'.
        """
        super().__init__()
        widths = list(reversed(code_widths or [64] * len(channels)))
        coarsest = widths[0]
        last = len(channels) - 1
        sides = [2 ** (last - number) for number in range(len(channels))]
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, wide, side, stride=side), BatchNorm2d(wide, eps=1e-6))
            for wide, side in zip(channels, sides, strict=True)
        )
        self.join = nn.Sequential(
            nn.Conv2d(sum(channels), coarsest, 1, bias=False), BatchNorm2d(coarsest, eps=1e-6), nn.ReLU()
        )
        self.bottleneck = bottleneck(coarsest, coarsest // 4, coarsest)
        self.codes = nn.ModuleList(
            Activated(UpConv(before, wide).slowed(up_rate) if number else EqualConv(wide, wide), EqualConv(wide, wide))
            for number, (before, wide) in enumerate(zip([coarsest, *widths], widths, strict=False))
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Codes (B, C, h, w), coarsest first, of the sizes of the features (finest first)."""
        small = [down(feature) for down, feature in zip(self.down, features, strict=True)]
        code = self.bottleneck(self.join(torch.cat(small, dim=1)))
        codes: list[Tensor] = []
        for make in self.codes:
            code = make(code)
            codes.append(code)
        return codes


class Decoder(Prepared):
    """Restores the feature maps from a learned constant, styled by the codes."""

    def __init__(
        self, channels: Sequence[int], size: tuple[int, int], depth: int, code_widths: Sequence[int], style_width: int
    ) -> None:
        """Draws the weights.

        Args:
            channels: Of the feature maps, finest first.
            size: (height, width) of the coarsest.
            depth: Blocks for each scale.
            code_widths: Channels of each code, finest first.
            style_width: Channels of the style maps.
        """
        super().__init__()
        coarsest = channels[-1]
        self.constant = nn.Parameter(torch.randn(1, coarsest, *size))
        self.first = Activated(EqualConv(coarsest, coarsest))
        self.styles = nn.ModuleList(
            Activated(EqualConv(wide, wide), EqualConv(wide, style_width)) for wide in reversed(code_widths)
        )
        widths = list(reversed(channels))
        self.stages = nn.ModuleList(
            Stage(before, wide, style_width, depth, up=number > 0)
            for number, (before, wide) in enumerate(zip([coarsest, *widths], widths, strict=False))
        )

    def forward(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """The feature maps, finest first, of the codes, coarsest first."""
        made: list[Tensor] = []
        for module, style, code in zip(self.stages, self.styles, codes, strict=True):
            stage = cast(Stage, module)
            made.append(stage(stage.first.start(made[-1]) if made else self.prepared(), style(code)))
        return made[::-1]

    def prepare(self) -> tuple[Tensor, ...]:
        """All that does not depend on the picture: what the first block makes of the constant before any style."""
        return cast(Stage, self.stages[0]).first.start(self.first(self.constant))


class Expectation(nn.Module):
    """How far restored features usually are from those seen, at each place and scale, as they themselves let expect.

    What is rich in detail is never restored well; only what goes beyond the usual says something of a picture.
    Distances are taken as log-normal. Restored features show what belongs there, and little of what is damaged.
    Ours, not the paper's.
    """

    def __init__(self, channels: int, scales: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            BatchNorm2d(channels, affine=False),
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, 2 * scales, 1),
        )

    def forward(self, restored: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
        """What goes beyond the usual, in its deviations, and the log of its variance: both (B, scales, h, w).

        Args:
            restored: Feature maps of several scales (B, channels, h, w), of length 1 in each.
            distances: 1 - cosine (B, scales, h, w) between features and restored features.
        """
        usual, variance = self.layers(restored).float().chunk(2, dim=1)
        variance = variance.clamp(-4.0, 3.0)  # no place is so sure, or so unsure, that others stop to count
        return (logarithm(distances) - usual) * torch.exp(-variance / 2), variance

    def loss(self, restored: Tensor, distances: Tensor) -> Tensor:
        """The negative log-likelihood of these distances, less what is constant."""
        beyond, variance = self(restored, distances)
        found: Tensor = (beyond.square() + variance).mean() / 2
        return found

    def begin(self, usual: Tensor) -> None:
        """Sets what is expected everywhere to these logarithms (scales,)."""
        last = cast(nn.Conv2d, self.layers[-1])
        with torch.no_grad():
            cast(Tensor, last.bias)[: len(usual)] = usual


def logarithm(distances: Tensor) -> Tensor:
    """Of distances; below a thousandth they are noise."""
    return distances.clamp(min=1e-3).log()
