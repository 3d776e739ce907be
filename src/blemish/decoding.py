"""Decoding: the bytes of a JPEG, PNG, BMP or TIFF file as an array, at its full depth."""

import contextlib
import io
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

Pixels: TypeAlias = NDArray[Any]

# What OpenCV would print about damaged files, our own errors say.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
ORIENTATION = 0x0112  # the tag of EXIF and TIFF
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: picture[::-1].swapaxes(0, 1),
    7: lambda picture: picture[::-1, ::-1].swapaxes(0, 1),
    8: lambda picture: picture[:, ::-1].swapaxes(0, 1),
}


class _Quiet:
    """Inside, in any thread, warnings of Pillow are not shown: metadata oddities that do not touch the pixels.

    `warnings.catch_warnings` restores the filters it found, whatever other threads did meanwhile;
    this takes away just the filter that it added, when the last thread leaves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filter: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._filter = warnings.filters[0]
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                with contextlib.suppress(ValueError):
                    cast(list[Any], warnings.filters).remove(self._filter)


quiet = _Quiet()


def is_deep(opened: Image.Image) -> bool:
    """Whether the opened file has more than 8 bit a channel, also where Pillow would drop them."""
    if isinstance(opened, TiffImageFile):
        return bool(max(opened.tag_v2.get(258, (1,))) > 8)  # bits a sample
    # A 16-bit BMP has 16 bit for all channels together.
    return opened.mode.startswith("I") or (opened.format == "PNG" and ";16" in str(getattr(opened, "tile", "")))


def decode(content: bytes) -> Pixels:
    """The picture, (H, W, 3) uint8, or (H, W) or (H, W, 3) of any deeper type."""
    orientation = 1
    try:
        with quiet, Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if not is_deep(opened):
                if opened.format == "JPEG" and (picture := _decode_plain_jpeg(opened, content)) is not None:
                    return picture
                ImageOps.exif_transpose(opened, in_place=True)  # a copy takes as long as a third of decoding
                return np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB"))
            if opened.format != "TIFF":  # of which the deep decoders turn it themselves
                orientation = opened.getexif().get(ORIENTATION, 1)
            picture = np.asarray(ImageOps.exif_transpose(opened))  # reads all, so it notices what is damaged
            if picture.ndim == 2:
                return picture
    except UnidentifiedImageError:
        if not content.startswith((b"II", b"MM")):
            raise
    return _turned(_decode_deep(content), orientation)


def _decode_plain_jpeg(opened: Image.Image, content: bytes) -> Pixels | None:
    """The same pixels as by Pillow in two thirds of the time; None for what OpenCV would read otherwise.

    It would fill up a truncated file, so only one with its end marker goes to it.
    """
    is_plain = opened.mode == "RGB" and content.endswith(b"\xff\xd9") and opened.getexif().get(ORIENTATION, 1) == 1
    if not is_plain:
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    picture: Pixels | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    return picture


def _decode_deep(content: bytes) -> Pixels:
    """Deep colour, of which Pillow keeps 8 bit at most, and TIFFs that it does not know."""
    picture = _decode_plain_tiff(content) if content.startswith((b"II", b"MM")) else None
    if picture is None:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if picture is None:
            raise UnidentifiedImageError
        if picture.ndim == 3:
            picture = picture[:, :, 2::-1]
    if picture.ndim == 3 and picture.shape[2] < 3:
        picture = picture[:, :, 0]
    return picture


def _decode_plain_tiff(content: bytes) -> Pixels | None:
    """A TIFF that OpenCV gets wrong: half precision, channels apart, grey with alpha; None for any other.

    Raises:
        ValueError: it is one of these, but compressed or tiled.
    """
    tags = _tags(content)
    channels, bits, kind = tags.get(277, 1), tags.get(258, (1,))[0], tags.get(339, (1,))[0]
    is_half, is_planar = kind == 3 and bits == 16, tags.get(284, 1) == 2 and channels > 1
    if not (is_half or is_planar or channels == 2):
        return None
    if tags.get(259, 1) != 1 or 273 not in tags or kind not in (1, 2, 3) or bits % 8:
        raise ValueError(
            "a compressed or tiled TIFF of half precision, with channels apart or with alpha: save it "
            "without compression, or with channels together, no alpha and 16 or 32 bit"
        )
    data = b"".join(content[start : start + size] for start, size in zip(tags[273], tags[279], strict=True))
    values = np.frombuffer(data, f"{'<' if content.startswith(b'II') else '>'}{' uif'[kind]}{bits // 8}")
    height, width = tags[257], tags[256]
    if is_planar:
        picture = values.reshape(channels, height, width).transpose(1, 2, 0)
    else:
        picture = values.reshape(height, width, channels)
    return _turned(picture[:, :, :3], tags.get(ORIENTATION, 1))


def size_of(content: bytes) -> tuple[int, int]:
    """(width, height) of the picture, of which only the header is read."""
    try:
        with quiet, Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return opened.size
    except UnidentifiedImageError:
        tags = _tags(content)
        return tags[256], tags[257]


def _tags(content: bytes) -> ImageFileDirectory_v2:  # a SyntaxError where it is no TIFF
    file = io.BytesIO(content)
    with quiet:
        tags = ImageFileDirectory_v2(file.read(16 if content[2:4] in (b"+\0", b"\0+") else 8))
        file.seek(tags.next)
        tags.load(file)
    return tags


def _turned(picture: Pixels, orientation: int) -> Pixels:
    return _UPRIGHT[orientation](picture) if orientation in _UPRIGHT else picture
