"""Residual blocks: layers beside a shortcut, summed and rectified."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.nn.norm import BatchNorm2d


class Residual(nn.Module):
    """The ReLU of the sum of what `layers` and `shortcut` make of a feature map."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module | None = None) -> None:
        """Joins them; without a shortcut the input itself is added."""
        super().__init__()
        self.layers = layers
        self.shortcut = shortcut or nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        """(B, width, h, w) of (B, channels, h, w); the size is that of the shortcut."""
        return F.relu(self.shortcut(feature) + self.layers(feature))


def bottleneck(channels: int, inner: int, width: int, stride: int = 1) -> Residual:
    """1x1, 3x3 (with the stride) and 1x1 convolutions with batch normalisation, and their shortcut.

    Source: arXiv 1512.03385, figure 5; the stride is where torch's ResNets have it.
    """
    layers = _three(channels, inner, width, lambda: nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False))
    if stride == 1 and channels == width:
        return Residual(layers)
    shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), BatchNorm2d(width))
    return Residual(layers, shortcut)


def growing(channels: int, width: int, depth: int, *, deep: bool = False) -> nn.Sequential:
    """`depth` blocks of two convolutions; the first doubles the size, as a ResNet's stage turned round.

    Args:
        channels: That come in.
        width: That go out.
        depth: How many blocks.
        deep: Blocks of three convolutions instead, half as wide inside, as a Wide ResNet-50-2 has them.

    Source: arXiv 2201.10703, section 3.1 (the decoder of reverse distillation).
    """
    if deep:
        beside = nn.Sequential(_doubled(channels, width), BatchNorm2d(width))
        inner = width // 2
        first = Residual(_three(channels, inner, width, lambda: _doubled(inner, inner)), beside)
        return nn.Sequential(first, *(bottleneck(width, inner, width) for _ in range(depth - 1)))
    doubling = Residual(
        _two(_doubled(channels, width), width), nn.Sequential(_doubled(channels, width), BatchNorm2d(width))
    )
    return nn.Sequential(doubling, *(Residual(_two(_conv3(width), width)) for _ in range(depth - 1)))


def _two(first: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(first, BatchNorm2d(width), nn.ReLU(), _conv3(width), BatchNorm2d(width))


def _three(channels: int, inner: int, width: int, middle: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, inner, 1, bias=False), BatchNorm2d(inner), nn.ReLU()),
        *(middle(), BatchNorm2d(inner), nn.ReLU()),
        *(nn.Conv2d(inner, width, 1, bias=False), BatchNorm2d(width)),
    )


def _doubled(channels: int, width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, width, 2, 2, bias=False)


def _conv3(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1, bias=False)
