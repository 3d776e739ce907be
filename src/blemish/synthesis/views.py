"""Views: the same good picture twice, a little different, as a camera might see it. Nothing is hidden or cut away.

A change as large as a defect would teach that defects don't matter: there is neither cropping nor erasing.
"""

import cv2
import numpy as np

from blemish.images import Picture

SHIFT, TURN, ZOOM = 0.04, 5.0, 0.04
"""Share of the picture, degrees, and share of the size, by which a view may be moved."""
COLOUR, HUE = 0.2, 0.02
"""Shares by which brightness, contrast and saturation may differ; and of the circle of hues."""
BLUR = (0.1, 1.0)
"""Standard deviations of the blur of every other view, in pixels of a picture of 256."""


def view(picture: Picture, strength: float, mirror: bool, draw: np.random.Generator) -> Picture:
    """The picture (H, W, 3) uint8 moved, recoloured and perhaps blurred and mirrored.

    Args:
        picture: A good one.
        strength: Factor on all that changes; 0 for nothing but mirroring.
        mirror: Whether a mirrored part is as good.
        draw: What is drawn.
    """
    height, width = picture.shape[:2]
    if mirror:
        picture = np.ascontiguousarray(picture[:: draw.choice([-1, 1]), :: draw.choice([-1, 1])])
    turn, zoom, down, across = strength * draw.uniform(-1, 1, 4)
    move = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), TURN * turn, 1 + ZOOM * zoom)
    move[:, 2] += SHIFT * width * across, SHIFT * height * down
    moved = np.asarray(cv2.warpAffine(picture, move, (width, height), borderMode=cv2.BORDER_REFLECT))
    moved = recoloured(moved, strength * COLOUR, strength * HUE, draw)
    sigma = strength * draw.uniform(*BLUR) * min(height, width) / 256
    if draw.random() < 0.5 and sigma > 0:
        moved = np.asarray(cv2.GaussianBlur(moved, (0, 0), sigma))
    return moved


def recoloured(picture: Picture, amount: float, hue: float, draw: np.random.Generator) -> Picture:
    """The picture (H, W, 3) uint8 in other brightness, contrast, saturation and hue; grey ones stay grey.

    Args:
        picture: Any.
        amount: Shares by which the first three may differ, up or down.
        hue: Share of the circle of hues.
        draw: What is drawn.
    """
    brightness, contrast, saturation = 1 + amount * draw.uniform(-1, 1, 3)
    turned = round(255 * hue * draw.uniform(-1, 1))
    if turned and not (picture == picture[:, :, :1]).all():
        hsv = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2HSV_FULL)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int16) + turned) % 256
        picture = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))
    value = picture.astype(np.float32)
    grey = value.mean(2, keepdims=True)
    value = grey + np.float32(saturation) * (value - grey)
    middle = value.mean()
    value = np.float32(brightness) * (middle + np.float32(contrast) * (value - middle))
    return np.asarray(np.clip(np.rint(value), 0, 255).astype(np.uint8))
