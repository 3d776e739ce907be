"""What the maps of detectors say of a picture, in a few figures for each of its components.

Source: Baitieva et al., arXiv 2405.04953, section 3.2.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from blemish.errors import ShapeError
from blemish.images import Floats

Labels = NDArray[np.uint8]
"""(H, W) the component of each pixel."""
STATISTICS = ("q995", "skewness", "kurtosis", "mean")


def names(count: int, bases: Sequence[str]) -> list[str]:
    """What each of the `features` is, in words, for so many components and the maps of these bases."""
    found = [f"{name} of {base} in component {part}" for part in range(count) for base in bases for name in STATISTICS]
    return found + [f"maximum of {base}" for base in bases]


def features(
    maps: Sequence[Floats], labels: Labels, count: int, *, global_max: bool = True, supervised: float | None = None
) -> Floats:
    """The features (D,) of a picture.

    By component, then by base: 0.995 quantile, skewness, excess kurtosis and mean of the map inside
    the component; then the maximum of each map. A component without pixels gives zeros, one whose values
    are all the same NaN for skewness and kurtosis.

    Args:
        maps: Of each base, (h, w); they may differ in size.
        labels: (H, W) component of each pixel, brought to the size of each map by the nearest pixel.
        count: The number of components.
        global_max: Whether to append the maxima.
        supervised: The score of a supervised classifier, to append.

    Raises:
        ShapeError: a component that there is not.

    Source: arXiv 2405.04953, section 3.2.
    """
    if labels.max() >= count:
        raise ShapeError(f"a label map has the component {labels.max()}; expected 0 to {count - 1}.")
    fitted = [to_size(labels, each.shape) for each in maps]
    found = [
        statistic
        for part in range(count)
        for each, own in zip(maps, fitted, strict=True)
        for statistic in statistics(each[own == part] if count > 1 else each.ravel())
    ]
    found += [float(each.max()) for each in maps] if global_max else []
    return np.array(found + ([] if supervised is None else [supervised]), np.float32)


def to_size(labels: Labels, size: Sequence[int]) -> Labels:
    """Labels brought to a size (height, width) by the nearest pixel."""
    if labels.shape == tuple(size):
        return labels
    return np.asarray(cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def statistics(values: Floats) -> tuple[float, float, float, float]:
    """0.995 quantile, skewness, excess kurtosis and mean of values (N,), in their own precision."""
    if not len(values):
        return 0.0, 0.0, 0.0, 0.0
    mean = values.mean()
    around = values - mean
    square = around * around
    variance = square.mean()
    # Rounding leaves a trace of variance in values that are all the same.
    constant = variance <= (np.finfo(values.dtype).resolution * mean) ** 2
    skewness = math.nan if constant else float((square * around).mean() / variance**1.5)
    kurtosis = math.nan if constant else float((square * square).mean() / variance**2 - 3)
    return float(np.quantile(values, 0.995)), skewness, kurtosis, float(mean)
