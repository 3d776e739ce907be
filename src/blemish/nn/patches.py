"""Patch features: the feature maps of several strides, averaged over a neighbourhood, on one grid.

Source: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", arXiv 2106.08265, equations 1 to 3.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name


def patch_features(features: Mapping[int, Tensor], strides: Sequence[int], spacing: int, side: int) -> Tensor:
    """Locally aware patch features (B, D, h, w), finest stride first.

    The average counts the zeros outside of the picture, as PatchCore's reference does: it damps patches
    at the border, where the backbone's own padding makes good pictures differ most.

    Args:
        features: {stride: (B, C, h, w)} of a backbone.
        strides: Those used.
        spacing: Distance of neighbouring patches in pixels, one of the strides: finer maps are averaged down to it,
            coarser ones interpolated.
        side: Of the square of features that is averaged, odd.
    """
    averaged = {stride: F.avg_pool2d(features[stride], side, stride=1, padding=side // 2) for stride in sorted(strides)}
    size = averaged[spacing].shape[-2:]
    return torch.cat([_on_grid(feature, spacing / stride, size) for stride, feature in averaged.items()], dim=1)


def _on_grid(feature: Tensor, ratio: float, size: Sequence[int]) -> Tensor:
    """A feature map with `size` positions: averaged when it has `ratio` > 1 times as many a side, else interpolated."""
    if ratio > 1:
        return F.avg_pool2d(feature, int(ratio), ceil_mode=True, count_include_pad=False)
    return feature if ratio == 1 else F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
