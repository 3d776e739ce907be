"""Foregrounds: where on a picture the part is, so that made defects lie on it.

Known categories have the recipe of the paper. For any other, the part is what differs from the
border of the picture, if a threshold tells the two apart well; if none does, or the answer can't
be right, the whole picture counts.

Source: RealNet, arXiv 2403.05897, appendix; Otsu 1979; Zack et al. 1977 (triangle).
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from blemish.errors import ConfigError
from blemish.images import Bools, Picture

Rule = Literal["auto", "paper", "whole"]
AREA = (0.03, 0.9)
"""Shares of the picture between which a part is believed to lie."""
BORDER = 0.1
"""Share of the picture's border that a part may cover."""
SEPARATION = 0.75
"""Share of the variance that the threshold must explain: the two sides are really two."""


@dataclass(frozen=True)
class Threshold:
    """How the part is told from what lies behind it."""

    method: Literal["otsu", "triangle"] = "otsu"
    channel: Literal["grey", "red", "green", "blue"] = "grey"
    bright: bool = True
    """Whether the part is brighter than what lies behind it."""
    close: int = 6
    """Side of the square that closes gaps, in pixels at 256x256; 0 for none."""
    open: int = 6
    """Side of the square that removes specks."""


_DARK, _BRIGHT = Threshold(bright=False), Threshold()
_TRIANGLE = Threshold("triangle")
_VISA, _PCB = Threshold(close=3, open=3), Threshold("triangle", "blue", close=8, open=3)
_MPDD = Threshold(channel="green", bright=False, open=0)
_PALE = Threshold(channel="blue", open=0)
RECIPES: dict[str, Threshold | None] = {
    **dict.fromkeys(("carpet", "leather", "tile", "wood", "cable", "transistor", "capsules", "02")),
    "pill": _BRIGHT,
    **dict.fromkeys(("hazelnut", "metal_nut", "toothbrush"), _TRIANGLE),
    **dict.fromkeys(("bottle", "capsule", "grid", "screw", "zipper"), _DARK),
    **dict.fromkeys(("pcb1", "pcb2", "pcb3", "pcb4"), _PCB),
    **dict.fromkeys(("candle", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pipe_fryum"), _VISA),
    **dict.fromkeys(("bracket_black", "bracket_brown", "connector"), _MPDD),
    "metal_plate": Threshold(bright=False, open=0),
    **dict.fromkeys(("bracket_white", "tubes"), _PALE),
    **dict.fromkeys(("01", "03"), Threshold(close=15, open=6)),
}
"""Category of MVTec AD, VisA, MPDD or BTAD → its recipe; None for the whole picture."""


def foreground(picture: Picture, category: str, rule: Rule = "auto") -> Bools:
    """Where the part is (H, W) on a picture (H, W, 3) uint8.

    Args:
        picture: Already brought to the detector's size.
        category: Its name, perhaps one of a known dataset.
        rule: "paper": the recipe of that name, whatever comes of it, and an error if there is none;
            "auto": the recipe if its answer can be right, else what differs from the border if that
            can, else everything; "whole": everything.

    Raises:
        ConfigError: `rule` is "paper", and the category has no recipe.
    """
    everything = np.ones(picture.shape[:2], bool)
    if rule == "whole":
        return everything
    known = category in RECIPES
    if rule == "paper" and not known:
        raise ConfigError(
            f'--foreground is "paper", which has no recipe for the category {category}; expected auto or whole.'
        )
    if known:
        recipe = RECIPES[category]
        found = everything if recipe is None else apply(recipe, picture)
        if rule == "paper" or recipe is None or _is_plausible(found):
            return found
    return _differs_from_border(picture)


def apply(recipe: Threshold, picture: Picture) -> Bools:
    """Where the recipe sees the part (H, W) on a picture (H, W, 3) uint8."""
    method = cv2.THRESH_OTSU if recipe.method == "otsu" else cv2.THRESH_TRIANGLE
    bright = cv2.threshold(_channel(picture, recipe.channel), 0, 1, cv2.THRESH_BINARY | method)[1]
    part = bright if recipe.bright else 1 - bright
    scale = min(picture.shape[:2]) / 256
    for first, then, length in ((cv2.dilate, cv2.erode, recipe.close), (cv2.erode, cv2.dilate, recipe.open)):
        if (side := round(length * scale)) > 1:
            square, centre = np.ones((side, side), np.uint8), (side - 1) // 2
            part = first(part, square, anchor=(centre, centre), borderType=cv2.BORDER_REFLECT)
            centre = side - 1 - centre  # mirrored, so that a square of an even side moves nothing
            part = then(part, square, anchor=(centre, centre), borderType=cv2.BORDER_REFLECT)
    return part.astype(bool)


def _differs_from_border(picture: Picture) -> Bools:
    """The part, by Otsu's threshold and the side of it that the border is not on; everything if that can't be right."""
    grey = _channel(picture, "grey")
    threshold, bright = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    is_bright = _on_border(bright.astype(bool)).mean() < 0.5
    above = grey > threshold
    share = above.mean()
    between = share * (1 - share) * (grey[above].mean() - grey[~above].mean()) ** 2 if 0 < share < 1 else 0.0
    found = apply(Threshold(bright=bool(is_bright)), picture)
    is_right = between >= SEPARATION * max(grey.var(), 1e-6) and _is_plausible(found)
    return found if is_right else np.ones_like(found)


def _is_plausible(part: Bools) -> bool:
    return bool(AREA[0] <= part.mean() <= AREA[1] and _on_border(part).mean() <= BORDER)


def _on_border(part: Bools) -> Bools:
    return np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])


def _channel(picture: Picture, channel: str) -> Picture:
    if channel == "grey":
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    return np.ascontiguousarray(picture[:, :, ("red", "green", "blue").index(channel)])
