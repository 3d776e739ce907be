"""Smoothing of anomaly maps."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

Border = Literal["repeat", "mirror"]


def gaussian_blur(image: Tensor, sigma: float, border: Border = "repeat") -> Tensor:
    """Images (B, 1, H, W) smoothed by a Gaussian cut off at 4 standard deviations.

    Args:
        image: The images.
        sigma: Standard deviation in pixels; 0 for none.
        border: What lies outside: the outermost pixels again and again, or the picture mirrored at
            its edge, outermost pixels twice (SciPy calls these "nearest" and "reflect").
    """
    if sigma == 0:
        return image
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    image = F.conv2d(_padded(image, radius, 3, border), kernel.view(1, 1, 1, -1))
    return F.conv2d(_padded(image, radius, 2, border), kernel.view(1, 1, -1, 1))


def _padded(image: Tensor, radius: int, dim: int, border: Border) -> Tensor:
    size = image.shape[dim]
    place = torch.arange(-radius, size + radius, device=image.device)
    if border == "mirror":  # again and again, where the radius is larger than the picture
        place = place % (2 * size)
        place = torch.minimum(place, 2 * size - 1 - place)
    return image.index_select(dim, place.clamp(0, size - 1))
