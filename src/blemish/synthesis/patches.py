"""Patches: defects that are cut out of good pictures, without noise: CutPaste's, and seamless ones.

Source: CutPaste, arXiv 2104.04015, section 2.2 (rectangles and scars, with the sizes and colours of the
paper); NSA, arXiv 2109.15222 (patches of other pictures, Poisson-blended; shapes and sizes are ours).
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from blemish.images import Bools, Picture
from blemish.synthesis.views import recoloured

AREA, ASPECT = (0.02, 0.15), (0.3, 3.3)
"""Of CutPaste's rectangles: share of the picture, and height by width."""
SCAR_WIDTH, SCAR_LENGTH, SCAR_TURN = (2.0, 16.0), (10.0, 25.0), (-45.0, 45.0)
"""Of CutPaste's scars: pixels of a picture of 256, and degrees."""
JITTER = 0.1
"""By which colours of what is pasted may differ."""
SIDE, ZOOM = (0.04, 0.4), (0.7, 1.3)
"""Of seamless patches: sides, as shares of the picture's, and size against the picture that they are of."""
LEAST, MARGIN = 8, 2
"""Pixels that their sides have at least, and that lie between them and the border of the picture: Poisson blending
starts from there."""
Draw = np.random.Generator


class Patch(NamedTuple):
    """What is pasted, and where."""

    foreign: Picture
    """(H, W, 3) uint8."""
    mask: Bools
    """(H, W)."""


def cut_paste(pictures: Picture, index: int, allowed: Bools, draw: Draw) -> Patch:
    """A rectangle or a turned, thin scar cut from another place of picture `index` of (N, H, W, 3) uint8.

    Args:
        pictures: Good ones.
        index: Which is damaged.
        allowed: (H, W), where the patch may have its centre.
        draw: What is drawn.
    """
    picture = pictures[index]
    height, width = picture.shape[:2]
    if draw.random() < 0.5:
        unit = min(height, width) / 256
        sides = (draw.uniform(*SCAR_LENGTH) * unit, draw.uniform(*SCAR_WIDTH) * unit)
        turn = draw.uniform(*SCAR_TURN)
    else:
        area, aspect = draw.uniform(*AREA) * height * width, math.exp(draw.uniform(*np.log(ASPECT)))
        sides, turn = (math.sqrt(area * aspect), math.sqrt(area / aspect)), 0.0
    sides = (min(sides[0], height), min(sides[1], width))
    place = _place(allowed, draw)
    mask = _box(picture.shape[:2], place, sides, turn)
    cut = recoloured(_moved(picture, _inside(picture.shape[:2], sides, draw), place, 1.0), JITTER, JITTER, draw)
    return Patch(cut, mask)


def seamless(pictures: Picture, index: int, allowed: Bools, draw: Draw) -> Patch:
    """A rectangle of another of the pictures (N, H, W, 3) uint8, larger or smaller than it is there.

    It may reach over the edge of what is allowed: cut there, it would have a seam.

    Args:
        pictures: Good ones.
        index: Which is damaged.
        allowed: (H, W), where the patch may have its centre.
        draw: What is drawn.
    """
    size = pictures.shape[1:3]
    other = pictures[(index + draw.integers(1, max(2, len(pictures)))) % len(pictures)]
    sides = [max(LEAST, round(length * math.exp(draw.uniform(*np.log(SIDE))))) for length in size]
    place = _place(allowed, draw)
    top, left = (
        int(np.clip(centre - side / 2, MARGIN, length - MARGIN - side))
        for centre, side, length in zip(place, sides, size, strict=True)
    )
    mask = np.zeros(size, bool)
    mask[top : top + sides[0], left : left + sides[1]] = True
    centre = (top + sides[0] / 2, left + sides[1] / 2)
    return Patch(_moved(other, _inside(size, (sides[0], sides[1]), draw), centre, draw.uniform(*ZOOM)), mask)


def clone(clean: Picture, foreign: Picture, mask: Bools, draw: Draw) -> Picture:
    """The clean picture (H, W, 3) uint8 with the gradients of the foreign one inside the mask (H, W), a rectangle.

    One time in two, gradients of the clean picture stay where they are larger.
    """
    how = cv2.MIXED_CLONE if draw.random() < 0.5 else cv2.NORMAL_CLONE
    shown = mask.astype(np.uint8) * 255
    left, top, width, height = cv2.boundingRect(shown)
    centre = (left + width // 2, top + height // 2)
    return np.asarray(cv2.seamlessClone(np.ascontiguousarray(foreign), np.ascontiguousarray(clean), shown, centre, how))


def _place(allowed: Bools, draw: Draw) -> tuple[float, float]:
    """A place (down, across) where a patch may have its centre; anywhere if none is allowed."""
    places = np.flatnonzero(allowed)
    chosen = places[draw.integers(len(places))] if len(places) else draw.integers(allowed.size)
    down, across = divmod(int(chosen), allowed.shape[1])
    return float(down), float(across)


def _inside(size: tuple[int, ...], sides: tuple[float, float], draw: Draw) -> tuple[float, float]:
    """A place (down, across) around which a patch of these sides (height, width) fits into the picture."""
    down, across = (draw.uniform(side / 2, length - side / 2) for side, length in zip(sides, size, strict=True))
    return down, across


def _moved(picture: Picture, source: tuple[float, float], place: tuple[float, float], zoom: float) -> Picture:
    """The picture, larger by `zoom`, with what was at `source` at `place`; mirrored at its edges."""
    move = np.array([[zoom, 0, place[1] - zoom * source[1]], [0, zoom, place[0] - zoom * source[0]]])
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.warpAffine(np.ascontiguousarray(picture), move, size, borderMode=cv2.BORDER_REFLECT))


def _box(size: tuple[int, ...], place: tuple[float, float], sides: tuple[float, float], turn: float) -> Bools:
    canvas = np.zeros(size, np.uint8)
    corners = cv2.boxPoints(((place[1], place[0]), (sides[1], sides[0]), turn))
    return np.asarray(cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 1) > 0)
