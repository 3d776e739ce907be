"""Pictures: reading, bringing to size and to [0, 1], colouring, writing.

The only file that knows of (H, W, 3) layout, bit depths, EXIF and colour maps. Everybody else sees
(B, 3, H, W) float32 RGB in [0, 1]. The same functions run in training, scoring and serving, which
is what makes their scores equal; they need NumPy, Pillow and OpenCV, but not torch.
"""

import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from blemish import decoding
from blemish.errors import ImageError, ShapeError
from blemish.types import Failure, Intensity, Preprocessing

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Picture: TypeAlias = NDArray[Any]
"""(H, W, 3) RGB in the file's own depth: uint8, uint16 or float32."""

GAP = 4
"""White pixels between the pictures of a sheet."""
CLIPPED = 0.001
"""Share of a picture's values that may lie outside the intensity rule."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})


def is_picture(path: Path) -> bool:
    """Whether the file's name is that of a picture (any case; hidden files are not)."""
    return _is_picture(path.name)


def list_pictures(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, sorted by name.

    Raises:
        ImageError: it can't be opened.
    """
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
    return decode(read_content(Path(path)), str(path))


def read_content(path: Path) -> bytes:
    """The bytes of a picture's file.

    Raises:
        ImageError: it can't be opened, or is no regular file.
    """
    try:
        _check_regular(path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: can't be opened ({getattr(error, 'strerror', error)}).") from error


def decode(content: bytes, name: str) -> Picture:
    """Like `read`, from the bytes of a file; `name` is only for the messages."""
    if not content:
        raise ImageError(f"{name}: the file is empty (0 bytes).")
    try:
        return _checked(decoding.decode(content), name)
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever they like about damaged files
        raise _unreadable(name, error) from error


def check_pixels(content: bytes, limit: int, name: str) -> None:
    """Nothing, if the picture in the bytes of a file has at most `limit` pixels; only its header is read.

    Raises:
        ImageError: it has more, or is not a picture.
    """
    try:
        width, height = decoding.size_of(content)
    except Exception as error:  # decoders raise whatever they like about damaged files
        raise _unreadable(name, error) from error
    if width * height > limit:
        raise ImageError(f"{name}: has {height}x{width} pixels; at most {limit:,} are taken: cut it into tiles first.")


def to_chw(picture: Picture, preprocessing: Preprocessing, name: str = "image", place: Floats | None = None) -> Floats:
    """A picture as the detector wants it: (3, H, W) float32 RGB in [0, 1], resized.

    Args:
        picture: (H, W, 3) or (H, W), uint8, uint16 or floating point, of any size.
        preprocessing: The detector's own.
        name: What to call the picture in messages.
        place: Memory (3, H, W) for the result; new one if not given.

    Raises:
        ShapeError: not one picture of a known type.
        ImageError: the picture has more than 8 bit and there is no rule for that, or a pixel that is
            NaN or infinite.
    """
    if picture.dtype.kind == "f":
        picture = _checked(picture, name)
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ShapeError(f"{name} has shape {picture.shape}; expected (H, W, 3) or (H, W), one picture.")
    if picture.dtype not in (np.uint8, np.uint16, np.float32):
        raise ShapeError(f"{name} has {picture.dtype} pixels; expected uint8, uint16 or floating point.")
    resized = resize(picture, preprocessing.image_size)
    if place is None:
        place = np.empty((3, *preprocessing.image_size), np.float32)
    if picture.dtype == np.uint8:
        return np.divide(resized.transpose(2, 0, 1), np.float32(255), out=place, dtype=np.float32)
    if preprocessing.intensity is None:
        raise ImageError(
            f"{name} has {picture.dtype} pixels, and the only rule there is, that of the training pictures, is for 8 "
            "bit: convert it to 8 bit the way those were, or fit again with --intensity LOW:HIGH."
        )
    place[:] = _scaled(resized, preprocessing.intensity, name).transpose(2, 0, 1)
    return place


def _scaled(picture: Picture, rule: Intensity, name: str) -> Floats:
    """The picture with `rule` applied, in [0, 1].

    Raises:
        ImageError: more than a thousandth of it would be clipped; a bright defect must not be lost.
    """
    scaled = (picture.astype(np.float32) - rule.low) / np.float32(rule.high - rule.low)
    outside = float(np.mean((scaled < 0) | (scaled > 1)))
    if outside > CLIPPED:
        raise ImageError(
            f"{name} has values from {picture.min():g} to {picture.max():g}, {outside:.1%} of them outside the rule "
            f"{rule.low:g}:{rule.high:g} that the detector learned with: fit again with --intensity LOW:HIGH."
        )
    return np.asarray(np.clip(scaled, 0, 1), np.float32)


def to_batch(images: Picture | Sequence[Picture], preprocessing: Preprocessing | None = None) -> Floats:
    """Pictures in memory as (B, 3, H, W) float32 in [0, 1].

    Args:
        images: One picture (H, W, 3) or (H, W), or several in a list or an array (B, H, W, 3).
        preprocessing: A predictor's `preprocessing`; without it the pictures keep their size.

    >>> to_batch(np.zeros((48, 64, 3), np.uint8)).shape
    (1, 3, 48, 64)
    """
    is_many = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
    pictures: list[Any] = list(images) if is_many else [images]
    if not pictures:
        raise ShapeError("images is empty; expected at least one picture.")
    for picture in pictures:
        if not isinstance(picture, np.ndarray):
            raise ShapeError(
                f"a picture is of type {type(picture).__name__}; expected a NumPy array (H, W, 3) or (H, W). "
                "Files are read by blemish.images.read(path), or by predictor.predict([path]) itself."
            )
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

    Whole-number pictures of more than 8 bit run from 0 to the full scale of a camera of 10, 12, 14
    or 16 bit, the least that holds the largest value seen. Floating-point pictures
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
        return Intensity(0, next(2**bits - 1 for bits in (10, 12, 14, 16) if high < 2**bits)), failures
    if low >= 0 and high <= 1:
        return Intensity(0, 1), failures
    reserve = 0.1 * (high - low) or 1.0
    return Intensity(low - reserve, high + reserve), failures


def is_deep(path: Path) -> bool:
    """Whether the file says that it has more than 8 bit a channel; only its header is read."""
    try:
        _check_regular(path)
        with decoding.quiet, Image.open(path, formats=decoding.FORMATS) as opened:
            return decoding.is_deep(opened)
    except UnidentifiedImageError:
        return path.suffix.lower() in {".tif", ".tiff"}  # of more kinds than Pillow knows
    except Exception:  # what is wrong with it is said when it is read
        return False


def check_batch(images: Any, size: tuple[int, int]) -> Floats:
    """The images, as NumPy array (B, 3, H, W) float32 with `size` (height, width).

    Args:
        images: NumPy array or torch tensor (B, 3, H, W), floating point RGB in [0, 1], of any size.
        size: Where they are brought to if they have another size.

    Raises:
        ShapeError: another shape, type or range.
    """
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images  # NumPy does not know all that torch does
    array = np.asarray(images)
    is_batch = array.ndim == 4 and array.shape[1] == 3 and array.size > 0 and array.dtype.kind == "f"
    if not is_batch:
        raise ShapeError(
            f"images has shape {array.shape} {array.dtype}; expected (B, 3, H, W) float32 in [0, 1]. "
            "Convert pictures with blemish.images.to_batch(pictures, predictor.preprocessing)."
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise ShapeError(f"images has values from {low:g} to {high:g}; expected [0, 1]: divide 8-bit values by 255.")
    array = np.ascontiguousarray(array, np.float32)  # as BGR turned round is not, and torch wants it
    if array.shape[2:] == size:
        return array
    return np.stack([resize(image.transpose(1, 2, 0), size).transpose(2, 0, 1) for image in array])


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file; neither objects, which would be code, nor archives of several.

    Raises:
        ImageError: it can't be read.
    """
    try:
        with path.open("rb") as opened:
            array: NDArray[Any] = np.lib.format.read_array(opened, allow_pickle=False)
            return array
    except Exception as error:  # whatever a damaged file leads to
        raise ImageError(f"{path}: can't be read as an array ({error}).") from error


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of the picture in a file, as `read` gives it; from its header where possible.

    Raises:
        ImageError: it can't be read.
    """
    try:
        _check_regular(path)
        with decoding.quiet, Image.open(path, formats=decoding.FORMATS) as opened:
            width, height = opened.size
            # Orientations from 5 on swap the sides; of a TIFF, Pillow has done it.
            turned = opened.format != "TIFF" and opened.getexif().get(decoding.ORIENTATION, 1) >= 5
            return (width, height) if turned else (height, width)
    except UnidentifiedImageError:
        return read(path).shape[:2]
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever they like about damaged files
        raise _unreadable(str(path), error) from error


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
    image: Floats,
    anomaly_map: Floats,
    span: tuple[float, float],
    outlines: Sequence[tuple[Bools, tuple[int, int, int]]] = (),
) -> NDArray[np.uint8]:
    """A picture with its heatmap laid over it, as (H, W, 3) uint8.

    Args:
        image: (3, H, W) in [0, 1].
        anomaly_map: (H, W); NaN is drawn like the lowest value.
        span: Map values that are drawn blue and red.
        outlines: Areas (H, W) whose contours are drawn, each with its RGB colour.
    """
    values = np.nan_to_num(anomaly_map, nan=span[0])
    drawn = cv2.addWeighted(to_picture(image), 0.55, heatmap(values, *span), 0.45, 0)
    for area, colour in outlines:
        contours, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, colour, max(1, round(min(values.shape) / 128)))
    return np.asarray(drawn, np.uint8)


def in_shape_of(size: Sequence[int], seen: Sequence[int]) -> tuple[int, int]:
    """The least (height, width) in the proportions of `size` that loses nothing of `seen`, but is no larger than both.

    >>> in_shape_of((480, 640), (256, 256)), in_shape_of((1000, 10), (256, 256))
    ((256, 341), (1000, 256))
    """
    scale = max(one / other for one, other in zip(seen, size, strict=False))
    height, width = (min(round(side * scale), max(side, own)) for side, own in zip(size, seen, strict=False))
    return height, width


def contact_sheet(pictures: Sequence[Picture], columns: int = 8) -> Picture:
    """One picture (H, W, 3) uint8 of several of one size, in rows; white where the last row ends early."""
    columns = min(len(pictures), columns)
    drawn = [*pictures, *[np.full_like(pictures[0], 255)] * (-len(pictures) % columns)]
    rows = [np.concatenate(drawn[first : first + columns], axis=1) for first in range(0, len(drawn), columns)]
    return np.concatenate(rows)


def pair(above: Picture, below: Picture) -> Picture:
    """Two pictures (H, W, 3) uint8 of one size above each other, with white around each."""
    gap = ((GAP // 2, GAP // 2), (GAP // 2, GAP // 2), (0, 0))
    return np.concatenate([np.pad(half, gap, constant_values=255) for half in (above, below)])


def to_picture(image: Floats) -> NDArray[np.uint8]:
    """An image (3, H, W) in [0, 1] as a picture (H, W, 3) uint8."""
    return np.clip(image.transpose(1, 2, 0) * 255, 0, 255).astype(np.uint8)


def encode(picture: NDArray[np.uint8], kind: str = "PNG", quality: int = 90) -> bytes:
    """The bytes of a PNG or JPEG file of an RGB picture (H, W, 3); `quality` is for JPEG."""
    buffer = io.BytesIO()
    options = {"quality": quality, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(picture).save(buffer, format=kind, **options)
    return buffer.getvalue()


def _check_regular(path: Path) -> None:
    """Nothing, unless opening it could wait without end, or never reach one."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # what is wrong with a folder, opening it says
        raise ImageError(f"{path}: a pipe, socket or device, not a regular file; expected a picture.")


def _picture_names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:  # tells files from folders without asking for each
            yield from (entry.name for entry in entries if _is_picture(entry.name) and not entry.is_dir())
    except OSError as error:
        raise ImageError(f"{folder} can't be opened ({error.strerror}); expected a folder of pictures.") from error


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")  # noqa: PTH122 (speed)


def _unreadable(name: str, error: Exception) -> ImageError:
    if isinstance(error, UnidentifiedImageError | SyntaxError):
        return ImageError(f"{name}: not a picture, or a damaged one; expected JPEG, PNG, BMP or TIFF.")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(
            f"{name}: has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; cut it into tiles first."
        )
    return ImageError(f"{name}: can't be read as a picture ({error}).")


def _checked(picture: Picture, name: str) -> Picture:
    """The picture as (H, W, 3) of uint8, uint16 or float32, all finite."""
    if picture.dtype not in (np.uint8, np.uint16):
        is_16_bit = picture.dtype.kind in "iu" and picture.min() >= 0 and picture.max() < 2**16
        with np.errstate(over="ignore"):
            picture = picture.astype(np.uint16 if is_16_bit else np.float32)
        bad = picture.size - int(np.count_nonzero(np.isfinite(picture)))
        if bad:
            raise ImageError(f"{name}: {bad} pixel values are NaN or infinite; expected finite numbers.")
    if picture.ndim == 2:
        return np.repeat(picture[:, :, None], 3, axis=2)
    return np.ascontiguousarray(picture)
