"""Pictures: reading, bringing to size and to [0, 1], colouring, writing.

The only file that knows of (H, W, 3) layout, bit depths, EXIF and colour maps. Everybody else sees
(B, 3, H, W) float32 RGB in [0, 1]. The same functions run in training, scoring and serving, which
is what makes their scores equal; they need NumPy, Pillow and OpenCV, but not torch.
"""

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from blemish.errors import ConfigError, ImageError, ShapeError
from blemish.types import Failure

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Picture: TypeAlias = NDArray[Any]
"""(H, W, 3) RGB in the file's own depth: uint8, uint16 or float32."""

cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # what it would print about damaged files, our own errors say

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True, slots=True)
class Intensity:
    """The one linear rule that brings pictures of more than 8 bit to [0, 1]."""

    low: float
    """The value that becomes 0."""
    high: float
    """The value that becomes 1."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(
                f"--intensity is {self.low:g}:{self.high:g}; expected LOW:HIGH with LOW < HIGH, for example 0:4095."
            )


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Everything done to a picture before a detector sees it; stored with the detector."""

    image_size: tuple[int, int] = (256, 256)
    """(height, width) that pictures are brought to; the aspect ratio is not kept."""
    intensity: Intensity | None = None
    """Rule for pictures of more than 8 bit; None when training saw only 8-bit pictures."""

    def __post_init__(self) -> None:
        if min(self.image_size) < 32 or max(self.image_size) > 8192:
            height, width = self.image_size
            raise ConfigError(f"--image-size is {height}x{width}; expected 32 to 8192 pixels a side, for example 256.")


def is_picture(path: Path) -> bool:
    """Whether the file's name is that of a picture (any case; hidden files are not)."""
    return _is_picture(path.name)


def list_pictures(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, sorted by name."""
    return [folder / name for name in sorted(_picture_names(folder))]


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture directly in `folder`."""
    return any(True for _ in _picture_names(folder))


def read(path: str | os.PathLike[str]) -> Picture:
    """The picture in a JPEG, PNG, BMP or TIFF file.

    Grey, palette and RGBA pictures become RGB (transparency is dropped), EXIF rotation is applied,
    the depth is kept: uint8 for 8 bit and less, uint16 up to 16 bit, float32 for floating point.

    Raises:
        ImageError: the file is missing, empty, truncated, not a picture, or has a pixel that is NaN
            or infinite.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: can't be opened ({error.strerror}).") from error
    return decode(content, str(path))


def decode(content: bytes, name: str) -> Picture:
    """Like `read`, from the bytes of a file; `name` is only for the messages."""
    if not content:
        raise ImageError(f"{name}: the file is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata oddities that do not touch the pixels
            with Image.open(io.BytesIO(content)) as opened:
                if not _is_deep(opened):
                    return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
                grey_or_colour = np.asarray(ImageOps.exif_transpose(opened))
                if grey_or_colour.ndim == 2:
                    return _checked(grey_or_colour, name)
    except UnidentifiedImageError:
        pass  # 16-bit colour and float TIFFs, which Pillow does not know
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}; cut it into tiles first.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{name}: can't be read as a picture ({error}).") from error
    return _decode_deep(content, name)


def to_chw(picture: Picture, preprocessing: Preprocessing, name: str = "image") -> Floats:
    """A picture as the detector wants it: (3, H, W) float32 RGB in [0, 1], resized.

    Args:
        picture: (H, W, 3) or (H, W), uint8, uint16 or floating point, of any size.
        preprocessing: The detector's own.
        name: What to call the picture in messages.

    Raises:
        ShapeError: not one picture of a known type.
        ImageError: the picture has more than 8 bit and there is no rule for that.
    """
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ShapeError(f"{name} has shape {picture.shape}; expected (H, W, 3) or (H, W), one picture.")
    resized = resize(picture, preprocessing.image_size)
    if picture.dtype == np.uint8:
        scaled = resized.astype(np.float32) / np.float32(255)
    elif preprocessing.intensity is None:
        raise ImageError(
            f"{name} has {picture.dtype} pixels, but the detector learned from 8-bit pictures: "
            "convert it to 8 bit the way those were, or fit again with --intensity LOW:HIGH."
        )
    else:
        low, high = preprocessing.intensity.low, preprocessing.intensity.high
        scaled = np.clip((resized.astype(np.float32) - low) / np.float32(high - low), 0, 1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32)


def to_batch(images: Picture | Sequence[Picture], preprocessing: Preprocessing | None = None) -> Floats:
    """Pictures in memory as (B, 3, H, W) float32 in [0, 1].

    Args:
        images: One picture (H, W, 3) or (H, W), or several in a list or an array (B, H, W, 3).
        preprocessing: A predictor's `preprocessing`; without it the pictures keep their size.

    >>> to_batch(np.zeros((48, 64, 3), np.uint8)).shape
    (1, 3, 48, 64)
    """
    pictures = [images] if isinstance(images, np.ndarray) and images.ndim < 4 else list(images)
    if not pictures:
        raise ShapeError("images is empty; expected at least one picture.")
    size = preprocessing or Preprocessing(pictures[0].shape[:2])
    return np.stack([to_chw(picture, size) for picture in pictures])


def resize(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture at `size` (height, width), in its own type.

    Sides that shrink are averaged over areas (so that nothing thin is skipped), sides that grow are
    interpolated linearly.
    """
    height, width = size
    shrunk = (min(picture.shape[0], height), min(picture.shape[1], width))
    for wanted, method in ((shrunk, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if picture.shape[:2] != wanted:
            picture = cv2.resize(picture, wanted[::-1], interpolation=method)
    return picture


def measure_intensity(paths: Iterable[Path]) -> tuple[Intensity | None, list[Failure]]:
    """The intensity rule for pictures like these, and those that could not be read.

    Whole-number pictures of more than 8 bit run from 0 to the full scale of the fewest bits that
    hold the largest value seen (a 12-bit camera in a 16-bit file: 4095). Floating-point pictures
    keep [0, 1] if all lie in it, else they run from the smallest to the largest value seen, with a
    tenth of that range in reserve on both sides. None if no picture has more than 8 bit.
    """
    low, high, is_float = np.inf, -np.inf, False
    failures = []
    for path in paths:
        try:
            picture = read(path)
        except ImageError as error:
            failures.append(Failure(path, str(error)))
            continue
        if picture.dtype != np.uint8:
            low, high = min(low, float(picture.min())), max(high, float(picture.max()))
            is_float |= picture.dtype == np.float32
    if not np.isfinite(high):
        return None, failures
    if not is_float:
        return Intensity(0, 2 ** max(9, int(high).bit_length()) - 1), failures
    if low >= 0 and high <= 1:
        return Intensity(0, 1), failures
    reserve = 0.1 * (high - low) or 1.0
    return Intensity(low - reserve, high + reserve), failures


def is_deep(path: Path) -> bool:
    """Whether the file says that it has more than 8 bit a channel; only its header is read."""
    try:
        with Image.open(path) as opened:
            return _is_deep(opened)
    except UnidentifiedImageError:
        return path.suffix.lower() in {".tif", ".tiff"}
    except (OSError, SyntaxError, ValueError):
        return False


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of the picture in a file, as `read` gives it; from its header where possible.

    Raises:
        ImageError: it can't be read.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            turned = opened.getexif().get(0x0112, 1) >= 5  # orientations that swap the sides
            return (width, height) if turned else (height, width)
    except UnidentifiedImageError:
        height, width = read(path).shape[:2]
        return height, width
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: can't be read as a picture ({error}).") from error


def read_mask(paths: Sequence[Path], image_size: tuple[int, int], size: tuple[int, int]) -> Bools:
    """The union of the masks in `paths`: True where a pixel is defective, (H, W) at `size`.

    Any value above zero counts, before resizing; resizing takes the nearest pixel.

    Args:
        paths: Mask pictures; none for a good picture, whose mask is empty.
        image_size: (height, width) of the picture that they belong to.
        size: (height, width) wanted.

    Raises:
        ImageError: a mask is unreadable or of another size than its picture.
    """
    union = np.zeros(image_size, np.uint8)
    for path in paths:
        mask = read(path).max(axis=2) > 0
        if mask.shape != image_size:
            raise ImageError(
                f"{path}: the mask has {mask.shape[0]}x{mask.shape[1]} pixels and its picture "
                f"{image_size[0]}x{image_size[1]}; expected the same size."
            )
        union |= mask
    return cv2.resize(union, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


def heatmap(anomaly_map: Floats, low: float, high: float) -> NDArray[np.uint8]:
    """An anomaly map (H, W) as a coloured picture (H, W, 3): blue at `low`, red at `high`."""
    span = high - low if high > low else 1.0
    grey = np.clip((anomaly_map - low) / span * 255, 0, 255).astype(np.uint8)
    coloured = cv2.applyColorMap(grey, cv2.COLORMAP_TURBO)
    return np.ascontiguousarray(coloured[:, :, ::-1])


def overlay(
    image: Floats, anomaly_map: Floats, low: float, high: float, outline: Bools | None = None
) -> NDArray[np.uint8]:
    """A picture (3, H, W) in [0, 1] with its heatmap laid over it, as (H, W, 3) uint8.

    `outline` (H, W), if given, is drawn as a white contour: the mask or the predicted mask.
    """
    picture = np.clip(image.transpose(1, 2, 0) * 255, 0, 255).astype(np.uint8)
    drawn = cv2.addWeighted(picture, 0.55, heatmap(anomaly_map, low, high), 0.45, 0)
    if outline is not None:
        contours, _ = cv2.findContours(outline.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, (255, 255, 255), 1)
    return np.asarray(drawn, np.uint8)


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG file of an RGB picture (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _picture_names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:  # tells files from folders without asking for each
        yield from (entry.name for entry in entries if _is_picture(entry.name) and not entry.is_dir())


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")  # noqa: PTH122 (speed)


def _is_deep(opened: Image.Image) -> bool:
    """Whether the opened file has more than 8 bit a channel, also where Pillow would drop them."""
    if opened.mode.startswith(("I", "F")):
        return True
    return any(";16" in str(tile) for tile in getattr(opened, "tile", ()))


def _decode_deep(content: bytes, name: str) -> Picture:
    """Deep colour, of which Pillow keeps 8 bit at most."""
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ImageError(f"{name}: can't be read as a picture (unknown, damaged or truncated file).")
    if picture.ndim == 3:
        picture = picture[:, :, 2::-1] if picture.shape[2] >= 3 else picture[:, :, 0]
    return _checked(picture, name)


def _checked(picture: Picture, name: str) -> Picture:
    """The picture as (H, W, 3) of uint8, uint16 or float32, all finite."""
    if picture.dtype not in (np.uint8, np.uint16):
        bad = int(np.count_nonzero(~np.isfinite(picture)))
        if bad:
            raise ImageError(f"{name}: {bad} pixel values are NaN or infinite; expected finite numbers.")
        is_16_bit = picture.dtype.kind in "iu" and picture.min() >= 0 and picture.max() < 2**16
        picture = picture.astype(np.uint16 if is_16_bit else np.float32)
    if picture.ndim == 2:
        return np.repeat(picture[:, :, None], 3, axis=2)
    return np.ascontiguousarray(picture)
