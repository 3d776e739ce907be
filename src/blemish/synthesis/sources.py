"""Sources: the foreign content that is blended into good pictures.

| name | what it is | needs |
|---|---|---|
| `texture:DIR` | pictures of any textures, changed in three random ways | a folder, such as DTD |
| `sdas:DIR` | pictures that a diffusion model made almost like the good ones, as they are | a folder |
| `sdas_masked:DIR` | the same, pasted only where their strength changed them | a folder with masks |
| `self` | another good picture, turned, shifted and changed in three random ways | nothing |
| `cutpaste` | another place of the same picture, a little changed | nothing |
| `stain` | the same place, changed in two random ways | nothing |
| `procedural` | made patterns: noise, stripes, speckles, plain colours | nothing |

Each may be followed by a weight: `self=2,procedural=1`.

Source: RealNet, arXiv 2403.05897 (sdas); DRAEM, arXiv 2108.07610 (texture); CutPaste, arXiv
2104.04015 (cutpaste).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from blemish import images
from blemish.dataset import MASK_FOLDERS
from blemish.errors import ConfigError, DatasetError, ImageError, count_of, not_among
from blemish.images import Bools, Picture

OFFLINE = "procedural,self,cutpaste,stain"
"""Sources that need nothing but the good pictures."""
Draw = np.random.Generator
_LOG = logging.getLogger(__name__)


class Foreign(NamedTuple):
    """What is blended in."""

    picture: Picture
    """(H, W, 3) uint8."""
    changed: Bools | None = None
    """Where it is abnormal at all (H, W); None where nobody has said."""


Give = Callable[[Picture, int, Draw], Foreign]
"""Gives the foreign content for picture `index` of pictures (N, H, W, 3) uint8."""


@dataclass(frozen=True)
class Source:
    """One source, ready to draw from."""

    name: str
    give: Give
    opacity: tuple[float, float] = (0.2, 1.0)
    """Between what values the opacity is drawn."""
    weight: float = 1.0
    """How often it is chosen, compared with the others."""


def parse(text: str, category: str = "") -> tuple[Source, ...]:
    """The sources in `text`, separated by commas.

    Args:
        text: For example "self=2,texture:/data/dtd".
        category: Its subfolder is taken where the folder of a source has one of that name.

    Raises:
        ConfigError: no such source, or a weight that is no positive number.
        DatasetError: a folder without pictures.

    >>> [(source.name, source.weight) for source in parse("self=2,procedural")]
    [('self', 2.0), ('procedural', 1.0)]
    """
    return tuple(_source(word.strip(), category) for word in text.split(","))


def _source(word: str, category: str) -> Source:
    body, _, number = word.rpartition("=") if "=" in word else (word, "", "1")
    name, _, place = body.partition(":")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise ConfigError(f'source "{word}" has the weight {number}; expected a positive number, such as self=2.')
    if name in FOLDERS:
        if not place:
            raise ConfigError(f'source "{word}" needs a folder of pictures, such as {name}:/data/{name}.')
        make, opacity = FOLDERS[name]
        return Source(name, make(_files(Path(place), category)), opacity, weight)
    if name not in MADE or place:
        raise ConfigError(not_among("source", body, (*MADE, *(f"{folder}:DIR" for folder in FOLDERS))))
    always, opacity = MADE[name]
    return Source(name, _everywhere(always), opacity, weight)


def _files(folder: Path, category: str) -> tuple[Path, ...]:
    own = folder / category
    place = own if category and own.is_dir() else folder
    if not place.is_dir():
        raise DatasetError(f"source folder {place} does not exist; expected a folder of pictures.")
    files = tuple(
        sorted(path for path in place.rglob("*") if images.is_picture(path) and not _is_mask(path.relative_to(place)))
    )
    if not files:
        raise DatasetError(f"source folder {place} has no pictures; expected some, directly in it or below.")
    return files


def _is_mask(path: Path) -> bool:
    """Whether it lies among the masks of a set, or what goes with them."""
    return not {*MASK_FOLDERS, "confidence"}.isdisjoint(path.parts[:-1])


def _everywhere(make: Callable[[Picture, int, Draw], Picture]) -> Give:
    return lambda pictures, index, draw: Foreign(make(pictures, index, draw))


@lru_cache(maxsize=2048)
def _read(path: Path, size: tuple[int, int]) -> Picture:
    picture = images.read(path)
    if picture.dtype != np.uint8:
        raise ImageError(f"{path} has {picture.dtype} pixels; expected a source picture of 8 bit.")
    return images.resize(picture, size)


@lru_cache(maxsize=2048)
def _read_mask(path: Path, size: tuple[int, int]) -> Bools:
    return images.read_mask((path,), images.read_size(path), size)


def _one_of(files: tuple[Path, ...], draw: Draw, read: Callable[[Path], Foreign]) -> Foreign:
    """What is read of a file that is drawn or, where that can't be read, of the next one that can."""
    first = int(draw.integers(len(files)))
    for number in range(len(files)):
        try:
            return read(files[(first + number) % len(files)])
        except ImageError as error:
            _warn(str(error))
    count = count_of(len(files), "picture")
    raise DatasetError(f"none of {count} in {files[0].parent} can be read; expected a source.")


@cache
def _warn(reason: str) -> None:
    _LOG.warning("Not blended in: %s", reason)


def _textures(files: tuple[Path, ...]) -> Give:
    def give(pictures: Picture, _: int, draw: Draw) -> Foreign:
        found = _one_of(files, draw, lambda path: Foreign(_read(path, pictures.shape[1:3])))
        return Foreign(change(found.picture, 3, draw))

    return give


def _as_they_are(files: tuple[Path, ...]) -> Give:
    def give(pictures: Picture, _: int, draw: Draw) -> Foreign:
        return _one_of(files, draw, lambda path: Foreign(_read(path, pictures.shape[1:3])))

    return give


def _where_changed(files: tuple[Path, ...]) -> Give:
    """With the masks that lie as `sample_set` writes them: DIR/CATEGORY/X.png and DIR/masks/CATEGORY/X.png."""
    masks = {path: path.parents[1] / "masks" / path.parent.name / f"{path.stem}.png" for path in files}
    missing = [path for path, mask in masks.items() if not mask.is_file()]
    if missing:
        raise DatasetError(
            f"{missing[0]} has no mask (there is no {masks[missing[0]]}; {len(missing)} of "
            f"{count_of(len(files), 'picture')} without theirs); expected a folder written by blemish synthesize "
            "sample, or the source sdas:DIR, which needs none."
        )

    def give(pictures: Picture, _: int, draw: Draw) -> Foreign:
        size = pictures.shape[1:3]
        return _one_of(files, draw, lambda path: Foreign(_read(path, size), _read_mask(masks[path], size)))

    return give


def _another(pictures: Picture, index: int, draw: Draw) -> Picture:
    """Another good picture, turned, shifted and changed."""
    other = (index + draw.integers(1, max(2, len(pictures)))) % len(pictures)
    return change(_moved(pictures[other], draw), 3, draw)


def _elsewhere(pictures: Picture, index: int, draw: Draw) -> Picture:
    """Another place of the same picture, perhaps turned, a little brighter or darker."""
    moved = _moved(pictures[index], draw)
    gain, offset = draw.uniform(0.7, 1.3), draw.uniform(-25, 25)
    return np.asarray(np.clip(moved * np.float32(gain) + np.float32(offset), 0, 255).astype(np.uint8))


def _recoloured(pictures: Picture, index: int, draw: Draw) -> Picture:
    """The same picture with other values: stains, shadows, faded places."""
    return change(pictures[index], 2, draw, STILL)


def _moved(picture: Picture, draw: Draw) -> Picture:
    """The picture mirrored, shifted (what leaves on one side comes in on the other) and turned."""
    height, width = picture.shape[:2]
    picture = picture[:: draw.choice([-1, 1]), :: draw.choice([-1, 1])]
    shift = (int(draw.integers(height // 8, height)), int(draw.integers(width // 8, width)))
    picture = np.roll(picture, shift, (0, 1))
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), draw.uniform(-180, 180), 1)
    return np.asarray(cv2.warpAffine(np.ascontiguousarray(picture), turn, (width, height), borderMode=cv2.BORDER_WRAP))


def _made(pictures: Picture, index: int, draw: Draw) -> Picture:
    """One of the made patterns between two colours; one time in two a colour is taken from the picture."""
    size = pictures.shape[1:3]
    colours = draw.uniform(0, 255, (2, 3))
    if draw.random() < 0.5:
        colours[0] = pictures[index, draw.integers(size[0]), draw.integers(size[1])]
    if draw.random() < 0.5:
        colours = np.repeat(colours.mean(1, keepdims=True), 3, axis=1)
    share = PATTERNS[draw.integers(len(PATTERNS))](size, draw)[:, :, None]
    return np.asarray((colours[0] * (1 - share) + colours[1] * share).astype(np.uint8))


def _plain(size: tuple[int, int], _: Draw) -> images.Floats:
    return np.zeros(size, np.float32)


def _clouds(size: tuple[int, int], draw: Draw) -> images.Floats:
    """Smooth noise of several scales."""
    total = np.zeros(size, np.float32)
    for octave in range(1, 6):
        coarse = draw.random((2**octave, 2**octave), np.float32)
        total += cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC) / octave
    return np.asarray((total - total.min()) / max(float(np.ptp(total)), 1e-6), np.float32)


def _stripes(size: tuple[int, int], draw: Draw) -> images.Floats:
    angle, period = draw.uniform(0, np.pi), draw.uniform(4, 40)
    down, across = np.ogrid[: size[0], : size[1]]
    wave = np.sin((down * np.sin(angle) + across * np.cos(angle)) * (2 * np.pi / period))
    return np.asarray(np.clip(0.5 + wave * draw.uniform(0.5, 3), 0, 1), np.float32)


def _speckles(size: tuple[int, int], draw: Draw) -> images.Floats:
    grain = int(draw.integers(1, 5))
    coarse = draw.random((-(-size[0] // grain), -(-size[1] // grain)), np.float32)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST))


PATTERNS = (_plain, _clouds, _stripes, _speckles)


Way = Callable[[Picture, Draw], Picture]


def change(picture: Picture, count: int, draw: Draw, ways: Sequence[Way] = ()) -> Picture:
    """The picture (H, W, 3) uint8 changed in `count` different random ways, of all if none are named."""
    ways = ways or WAYS
    for way in draw.choice(len(ways), count, replace=False):
        picture = ways[way](picture, draw)
    return picture


def _through(picture: Picture, curve: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]") -> Picture:
    """Every value v replaced by curve[v] (256,), or curve[v, channel] (256, 3)."""
    table = np.clip(curve, 0, 255).astype(np.uint8)
    table = np.broadcast_to(table.reshape(256, -1), (256, 3)).reshape(1, 256, 3)
    return np.asarray(cv2.LUT(np.ascontiguousarray(picture), np.ascontiguousarray(table)))


_RAMP = np.arange(256, dtype=np.float32)


def _gamma(picture: Picture, draw: Draw) -> Picture:
    return _through(picture, 255 * (_RAMP[:, None] / 255) ** draw.uniform(0.5, 2, 3))


def _brightness(picture: Picture, draw: Draw) -> Picture:
    return _through(picture, _RAMP * draw.uniform(0.8, 1.2) + draw.uniform(-30, 30))


def _sharpen(picture: Picture, draw: Draw) -> Picture:
    strength = draw.uniform(0.2, 2)
    return np.asarray(cv2.addWeighted(picture, 1 + strength, cv2.GaussianBlur(picture, (0, 0), 1.5), -strength, 0))


def _hue(picture: Picture, draw: Draw) -> Picture:
    hsv = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2HSV_FULL).astype(np.int16)
    hsv[:, :, 0] = (hsv[:, :, 0] + draw.integers(-50, 51)) % 256
    hsv[:, :, 1] = np.clip(hsv[:, :, 1] + draw.integers(-50, 51), 0, 255)
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB_FULL))


def _solarise(picture: Picture, draw: Draw) -> Picture:
    if draw.random() < 0.5:
        return picture
    return _through(picture, np.where(draw.uniform(32, 128) <= _RAMP, 255 - _RAMP, _RAMP))


def _posterise(picture: Picture, draw: Draw) -> Picture:
    step = 2 ** int(draw.integers(3, 8))
    return _through(picture, _RAMP // step * step)


def _invert(picture: Picture, _: Draw) -> Picture:
    return 255 - picture


def _stretch(picture: Picture, _: Draw) -> Picture:
    low, high = picture.min((0, 1)).astype(np.float32), picture.max((0, 1)).astype(np.float32)
    return _through(picture, (_RAMP[:, None] - low) * (255 / np.maximum(high - low, 1)))


def _equalise(picture: Picture, _: Draw) -> Picture:
    return np.stack([cv2.equalizeHist(np.ascontiguousarray(picture[:, :, channel])) for channel in range(3)], axis=2)


def _turn(picture: Picture, draw: Draw) -> Picture:
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), draw.uniform(-45, 45), 1)
    return np.asarray(cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REFLECT))


STILL = (_gamma, _brightness, _sharpen, _hue, _solarise, _posterise, _invert, _stretch, _equalise)
"""Ways that leave everything in its place."""
WAYS = (*STILL, _turn)
"""The ten ways in which a texture may be changed."""

FOLDERS: dict[str, tuple[Callable[[tuple[Path, ...]], Give], tuple[float, float]]] = {
    "texture": (_textures, (0.2, 1.0)),
    "sdas": (_as_they_are, (0.5, 1.0)),
    "sdas_masked": (_where_changed, (0.5, 1.0)),
}
"""Name → what makes the source of its files, and the opacity."""
MADE: dict[str, tuple[Callable[[Picture, int, Draw], Picture], tuple[float, float]]] = {
    "self": (_another, (0.3, 1.0)),
    "cutpaste": (_elsewhere, (0.7, 1.0)),
    "stain": (_recoloured, (0.2, 1.0)),
    "procedural": (_made, (0.2, 1.0)),
}
"""Name → the source, and the opacity."""
