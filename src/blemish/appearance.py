"""Appearance: a few numbers of what a picture looks like, whatever a model makes of it.

They are kept of the good pictures that calibrate a detector and of every inspected one, so that a
lamp that has aged or a lens that was touched shows as such, and not just as rising scores.
"""

import cv2

from blemish.images import Floats

NAMES = ("brightness", "contrast", "sharpness", "warmth")


def appearance(image: Floats) -> dict[str, float]:
    """Brightness, contrast, sharpness and warmth of an image (3, H, W) float32 RGB in [0, 1].

    Brightness is the mean of the grey image and contrast its standard deviation; sharpness the
    standard deviation of its Laplacian; warmth the mean of red less blue.
    """
    grey = image.mean(axis=0)
    laplacian = cv2.Laplacian(grey, cv2.CV_32F)
    values = (grey.mean(), grey.std(), laplacian.std(), (image[0] - image[2]).mean())
    return {name: float(value) for name, value in zip(NAMES, values, strict=True)}
