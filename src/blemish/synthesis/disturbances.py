"""Disturbances: defects that need no defect, for learning from good pictures alone.

Source: Baitieva et al., arXiv 2405.04953, section 4 (one-class): a Gaussian blur, or a thin rectangle of random
grey, inside randomly chosen components. Sizes are not published.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from blemish.images import Floats

BLUR = (0.01, 0.03)
"""Standard deviation of the blur, as shares of the shorter side."""
LENGTH = (0.1, 0.5)
"""Of a rectangle, as shares of the shorter side."""
THICKNESS = (0.01, 0.04)
"""Of a rectangle, as shares of the shorter side."""


def disturb(image: Floats, labels: NDArray[np.uint8], draw: np.random.Generator) -> Floats:
    """An image (3, H, W) in [0, 1], blurred or with a bar of grey inside some of its components.

    Args:
        image: A good picture.
        labels: (H, W) component of each pixel.
        draw: Decides all.
    """
    there = np.unique(labels)
    chosen = draw.choice(there, draw.integers(1, len(there) + 1), replace=False)
    picture = np.ascontiguousarray(image.transpose(1, 2, 0))
    side = min(labels.shape)
    if draw.random() < 0.5:
        changed, where = cv2.GaussianBlur(picture, (0, 0), side * draw.uniform(*BLUR)), np.ones(labels.shape, bool)
    else:
        inside = np.argwhere(np.isin(labels, chosen))
        y, x = inside[draw.integers(len(inside))]
        size = side * draw.uniform(*LENGTH), max(1.0, side * draw.uniform(*THICKNESS))
        corners = cv2.boxPoints(((float(x), float(y)), size, float(draw.uniform(0, 180))))
        drawn = np.zeros(labels.shape, np.uint8)
        cv2.fillPoly(drawn, [corners.round().astype(np.int32)], 1)
        drawn[y, x] = 1  # a bar thinner than a pixel still shows
        changed, where = np.full_like(picture, draw.random()), drawn > 0
    where &= np.isin(labels, chosen)
    return np.asarray(np.where(where, changed.transpose(2, 0, 1), image), np.float32)
