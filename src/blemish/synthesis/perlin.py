"""Local anomalies: good pictures with something foreign blended in where a Perlin mask says so.

A = (1 - M) I + M (b P + (1 - b) I): the good picture I, the mask M, a source picture P and the
opacity b. Everything that is drawn for an item depends on its key alone (seed, purpose, epoch,
position), so neither workers nor batch size nor a restart change it.

Source: RealNet, arXiv 2403.05897, section 3.1 (SDAS); the masks are those of DRAEM, arXiv 2108.07610.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from blemish.errors import bad_option
from blemish.images import Bools, Floats, Picture
from blemish.synthesis.patches import clone, cut_paste, seamless
from blemish.synthesis.sources import Source

THRESHOLD = 0.5
"""Noise above it is masked: about 5 % of the pixels."""
SMALLEST_CELL = 8
"""Pixels between two nodes of the finest noise; 256 pixels then have grids of 1, 2, 4, ... 32 cells."""
FINE_CELL = 4
"""The same for masks of a few pieces."""
PIECES = 8
"""Connected pieces that those masks have, at most."""
SOFTNESS = (0.7, 8.0)
"""Standard deviations of the blur that softens edges, in pixels of a picture of 256."""
VISIBLE = 0.3
"""Share of the greatest change from which a pixel counts as damaged."""
REDRAWS = 20
"""How often an empty mask is drawn anew, where it is."""

Generator = Literal["perlin", "cutpaste", "seamless"]
"""What makes a defect; the last two know neither noise nor sources (`patches`)."""
Shares = np.ndarray[tuple[int, ...], np.dtype[np.floating]]


class Item(NamedTuple):
    """One picture of a training set, damaged."""

    damaged: Picture
    """(H, W, 3) uint8."""
    clean: Picture
    """(H, W, 3) uint8; outside of the mask there is at most a faint difference."""
    mask: Bools
    """(H, W), True where something was blended in."""
    source: str
    """The name of the source, or of a generator without one; empty when the picture was left as it is."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How anomalies are made."""

    generator: Generator = "perlin"
    """What makes them."""
    sources: Sequence[Source]
    """Where the foreign content comes from; chosen by their weights."""
    seed: int = 0
    """Everything drawn follows from it and the item's key."""
    clean_share: float = 0.5
    """Share of pictures that are left as they are."""
    redraw_empty: bool = True
    """Draw a mask anew when it is empty; the reference lets about one in twenty-three pass as damaged."""
    few: float = 0.5
    """Share of masks that are finer and keep a few of their pieces only: real defects are often one small
    scratch or speck, and such masks are rare among the reference's, which has none of these."""
    soft: float = 0.5
    """Share of anomalies that fade in over their edges: stains, knots and shadows do, and a detector that has only
    seen sharp ones, as the reference makes, takes them for good."""
    least_change: int = 8
    """Grey levels by which a pixel must change to count as damaged, beside `VISIBLE`: where the foreign content
    happens to look like the good picture, there is nothing to find. 0, as in the reference: the whole mask counts."""

    def __post_init__(self) -> None:
        for name, most in (("clean_share", 1), ("few", 1), ("soft", 1), ("least_change", 255)):
            if not 0 <= getattr(self, name) <= most:
                raise bad_option(name, getattr(self, name), f"0 to {most}")

    def item(
        self, pictures: Picture, foregrounds: Bools, index: int, key: Sequence[int], clean_share: float | None = None
    ) -> Item:
        """Picture number `index`, damaged or left as it is.

        Args:
            pictures: (N, H, W, 3) uint8, the good ones.
            foregrounds: (N, H, W), where a defect may lie.
            index: Which picture.
            key: What else the draw depends on, such as purpose and epoch.
            clean_share: Another share of pictures left as they are than the recipe's.
        """
        draw = np.random.default_rng([self.seed, *key, index])
        clean = pictures[index]
        if draw.random() < (self.clean_share if clean_share is None else clean_share):
            return Item(clean, clean, np.zeros(clean.shape[:2], bool), "")
        for _ in range(REDRAWS if self.redraw_empty else 1):
            damaged, mask, name = self._damage(pictures, foregrounds, index, draw)
            if mask.any():
                break
        return Item(damaged, clean, mask, name)

    def _damage(
        self, pictures: Picture, foregrounds: Bools, index: int, draw: np.random.Generator
    ) -> tuple[Picture, Bools, str]:
        """Picture number `index` damaged, where, and by which source or generator."""
        clean, allowed = pictures[index], foregrounds[index]
        if self.generator == "perlin":
            weights = np.array([source.weight for source in self.sources])
            source = self.sources[draw.choice(len(weights), p=weights / weights.sum())]
            few = self.few > 0 and draw.random() < self.few
            mask = (few_pieces if few else perlin_mask)(clean.shape[:2], draw)
            foreign, changed = source.give(pictures, index, draw)
            allowed = allowed if changed is None else allowed & changed
            name, opacity = source.name, source.opacity
        else:
            make = cut_paste if self.generator == "cutpaste" else seamless
            foreign, mask = make(pictures, index, allowed, draw)
            name, opacity = self.generator, (1.0, 1.0)
        if (clean == clean[:, :, :1]).all():  # colour on a grey picture would give every defect away
            foreign = np.repeat(cv2.cvtColor(foreign, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
        if self.generator == "seamless":
            damaged = clone(clean, foreign, mask, draw)
        else:
            mask &= allowed
            share = soften(mask, draw) * allowed if self.soft > 0 and draw.random() < self.soft else mask
            damaged = blend(clean, foreign, share * draw.uniform(*opacity))
        if self.least_change:
            change = cv2.absdiff(damaged, clean).max(axis=2)
            mask = change >= max(self.least_change, VISIBLE * float(change.max()))
        return damaged, mask, name


def perlin_noise(size: tuple[int, int], angles: Floats) -> Floats:
    """Gradient noise (H, W), zero at each node, nearly always within ±1.

    Args:
        size: (H, W); sides that are no multiple of the cells are cut off at the end.
        angles: (rows + 1, columns + 1) directions of the gradients at the nodes, in radians.
    """
    rows, columns = (nodes - 1 for nodes in angles.shape)
    height, width = -(-size[0] // rows), -(-size[1] // columns)
    # Cells of a grid (rows, height, columns, width): nothing needs to be repeated to all pixels.
    y = (np.arange(height, dtype=np.float32) / height)[:, None, None]
    x = np.arange(width, dtype=np.float32) / width
    down, across = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def corner(below: int, right: int) -> Floats:
        window = (slice(below, below + rows), None, slice(right, right + columns), None)
        value: Floats = (y - below) * down[window] + (x - right) * across[window]
        return value

    fade_y, fade_x = _fade(y), _fade(x)
    left = corner(0, 0) + fade_y * (corner(1, 0) - corner(0, 0))
    right = corner(0, 1) + fade_y * (corner(1, 1) - corner(0, 1))
    noise = np.float32(math.sqrt(2)) * (left + fade_x * (right - left))
    return noise.reshape(rows * height, columns * width)[: size[0], : size[1]]


def few_pieces(size: tuple[int, int], draw: np.random.Generator) -> Bools:
    """One to a few connected shapes (H, W) of any scale down to single pixels; sometimes none."""
    mask = perlin_mask(size, draw, FINE_CELL)
    count, pieces = cv2.connectedComponents(mask.astype(np.uint8))
    return np.isin(pieces, 1 + draw.permutation(count - 1)[: draw.integers(1, PIECES + 1)])


def perlin_mask(size: tuple[int, int], draw: np.random.Generator, smallest_cell: int = SMALLEST_CELL) -> Bools:
    """Random connected shapes (H, W) of any scale, covering about 5 %; sometimes none."""
    grid = [2 ** int(draw.integers(0, max(1, int(math.log2(side / smallest_cell)) + 1))) for side in size]
    angles = draw.uniform(0, 2 * np.pi, (grid[0] + 1, grid[1] + 1)).astype(np.float32)
    return rotate(perlin_noise(size, angles), draw.uniform(-90, 90)) > THRESHOLD


def rotate(noise: Floats, degrees: float) -> Floats:
    """The noise turned about its centre; what comes from outside is 0."""
    height, width = noise.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return np.asarray(cv2.warpAffine(noise, turn, (width, height), flags=cv2.INTER_LINEAR), np.float32)


def soften(mask: Bools, draw: np.random.Generator) -> Floats:
    """The mask (H, W) with edges blurred by a random amount, scaled so that its highest value is 1."""
    low, high = np.log(SOFTNESS)
    sigma = float(np.exp(draw.uniform(low, high))) * min(mask.shape) / 256
    share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(sigma, 0.3))
    return np.asarray(share / max(float(share.max()), 1e-3), np.float32)


def blend(clean: Picture, foreign: Picture, share: Shares) -> Picture:
    """The clean picture (H, W, 3) uint8 with so much of the foreign one (H, W) over it; fractions are cut off."""
    damaged = clean.copy()
    inside = share > 0
    part = share[inside].astype(np.float64)[:, None]
    damaged[inside] = (part * foreign[inside] + (1 - part) * clean[inside]).astype(np.uint8)
    return damaged


def _fade(t: Floats) -> Floats:
    faded: Floats = t * t * t * (t * (t * 6 - 15) + 10)
    return faded
