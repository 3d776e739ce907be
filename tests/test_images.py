"""Reading every kind of picture that factories have, and refusing what is none."""

import io
import itertools
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from blemish import images
from blemish.errors import ConfigError, ImageError, ShapeError
from blemish.types import Intensity, Preprocessing

HEIGHT, WIDTH = 6, 9
RAMP = np.tile(np.arange(WIDTH, dtype=np.uint8) * 25, (HEIGHT, 1))
RAMP[0] = 7
COLOUR = np.stack([RAMP, RAMP // 2, 255 - RAMP], 2)
DEEP = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 60).astype(np.uint16)
DEEP_COLOUR = np.stack([DEEP, DEEP // 2, 4000 - DEEP], 2)
REAL = (DEEP / 7 - 100).astype(np.float32)
REAL_COLOUR = np.stack([REAL, REAL / 2, -REAL], 2)


def grey(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture[:, :, None], 3, axis=2)


def pil(picture: np.ndarray, kind: str, mode: str = "", **options: object) -> bytes:
    buffer = io.BytesIO()
    opened = Image.fromarray(picture)
    (opened.convert(mode) if mode else opened).save(buffer, kind, **options)
    return buffer.getvalue()


def opencv(picture: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, picture[:, :, ::-1] if picture.ndim == 3 else picture)[1].tobytes()


def tiff(picture: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    options.setdefault("photometric", "rgb" if 3 in picture.shape else "minisblack")
    tifffile.imwrite(buffer, picture, **options)
    return buffer.getvalue()


def planar(picture: np.ndarray, **options: object) -> bytes:
    return tiff(np.ascontiguousarray(picture.transpose(2, 0, 1)), planarconfig="separate", **options)


def deep_png(picture: np.ndarray, colour_type: int, *chunks: bytes) -> bytes:
    """A 16-bit PNG, of kinds that the libraries do not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", picture.shape[1], picture.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in picture)
    between = b"".join(chunk(extra[:4], extra[4:]) for extra in chunks)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + between
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


# name: content, expected pixels, largest difference
KINDS: dict[str, tuple[bytes, np.ndarray, float]] = {
    "grey.png": (pil(RAMP, "PNG"), grey(RAMP), 0),
    "grey.bmp": (pil(RAMP, "BMP"), grey(RAMP), 0),
    "grey.jpg": (pil(RAMP, "JPEG", quality=100), grey(RAMP), 3),
    "grey.tif": (pil(RAMP, "TIFF"), grey(RAMP), 0),
    "grey_lzw.TIFF": (pil(RAMP, "TIFF", compression="tiff_lzw"), grey(RAMP), 0),
    "one_bit.png": (pil(RAMP > 90, "PNG"), grey((RAMP > 90) * np.uint8(255)), 0),
    "one_bit.bmp": (pil(RAMP > 90, "BMP"), grey((RAMP > 90) * np.uint8(255)), 0),
    "one_bit_fax.tif": (pil(RAMP > 90, "TIFF", compression="group4"), grey((RAMP > 90) * np.uint8(255)), 0),
    "grey_alpha.png": (pil(np.dstack([RAMP, RAMP]), "PNG"), grey(RAMP), 0),
    "grey_transparent.png": (pil(RAMP, "PNG", transparency=25), grey(RAMP), 0),
    "colour.png": (pil(COLOUR, "PNG"), COLOUR, 0),
    "colour.bmp": (pil(COLOUR, "BMP"), COLOUR, 0),
    "colour.tif": (pil(COLOUR, "TIFF"), COLOUR, 0),
    "colour_planar.tif": (planar(COLOUR), COLOUR, 0),
    "colour.JPEG": (pil(COLOUR, "JPEG", quality=100, subsampling=0), COLOUR, 6),
    "colour_progressive.jpg": (pil(COLOUR, "JPEG", quality=100, subsampling=0, progressive=True), COLOUR, 6),
    "colour_transparent.png": (pil(COLOUR, "PNG", transparency=(0, 0, 255)), COLOUR, 0),
    "rgba.png": (pil(np.dstack([COLOUR, RAMP]), "PNG"), COLOUR, 0),
    "rgba.tif": (pil(np.dstack([COLOUR, RAMP]), "TIFF"), COLOUR, 0),
    "palette.png": (pil(RAMP, "PNG", "P"), grey(RAMP), 0),
    "palette.bmp": (pil(RAMP, "BMP", "P"), grey(RAMP), 0),
    "palette_transparent.png": (pil(RAMP, "PNG", "P", transparency=0), grey(RAMP), 0),
    "palette_half_transparent.png": (pil(RAMP, "PNG", "P", transparency=bytes([0, 128])), grey(RAMP), 0),
    "frames.png": (
        pil(COLOUR, "PNG", save_all=True, append_images=[Image.fromarray(255 - COLOUR)]),
        COLOUR,
        0,
    ),
    "two_in_one.jpg": (
        pil(COLOUR, "MPO", quality=100, subsampling=0, save_all=True, append_images=[Image.fromarray(255 - COLOUR)]),
        COLOUR,
        6,
    ),
    "cmyk.tif": (pil(COLOUR, "TIFF", "CMYK"), COLOUR, 0),
    "cmyk.jpg": (pil(COLOUR, "JPEG", "CMYK", quality=100, subsampling=0), COLOUR, 6),
    "ycbcr.tif": (pil(COLOUR, "TIFF", "YCbCr"), COLOUR, 3),
    "deep.png": (pil(DEEP, "PNG"), grey(DEEP), 0),
    "deep.tif": (pil(DEEP, "TIFF"), grey(DEEP), 0),
    "deep_lzw.tif": (opencv(DEEP, ".tif"), grey(DEEP), 0),
    "deep_big_endian.tif": (tiff(DEEP, byteorder=">"), grey(DEEP), 0),
    "deep_big.tif": (tiff(DEEP, bigtiff=True), grey(DEEP), 0),
    "deep_alpha.png": (deep_png(np.dstack([DEEP, DEEP]), 4), grey(DEEP), 0),
    "deep_alpha.tif": (
        tiff(np.dstack([DEEP, DEEP]), extrasamples=["unassalpha"], planarconfig="contig"),
        grey(DEEP),
        0,
    ),
    "deep_colour.png": (opencv(DEEP_COLOUR, ".png"), DEEP_COLOUR, 0),
    "deep_colour.tif": (tiff(DEEP_COLOUR), DEEP_COLOUR, 0),
    "deep_colour_lzw.tif": (opencv(DEEP_COLOUR, ".tif"), DEEP_COLOUR, 0),
    "deep_colour_big_endian.tif": (tiff(DEEP_COLOUR, byteorder=">"), DEEP_COLOUR, 0),
    "deep_colour_planar.tif": (planar(DEEP_COLOUR), DEEP_COLOUR, 0),
    "deep_rgba.png": (deep_png(np.dstack([DEEP_COLOUR, DEEP]), 6), DEEP_COLOUR, 0),
    "deep_rgba.tif": (
        tiff(np.dstack([DEEP_COLOUR, DEEP]), photometric="rgb", extrasamples=["unassalpha"]),
        DEEP_COLOUR,
        0,
    ),
    "deep_pages.tif": (tiff(np.stack([DEEP, DEEP + 1])), grey(DEEP), 0),
    "pages.tif": (tiff(np.stack([RAMP, RAMP + 1])), grey(RAMP), 0),
    "integers.tif": (tiff(DEEP.astype(np.int32)), grey(DEEP), 0),
    "negative.tif": (tiff(DEEP.astype(np.int16) - 500), grey(DEEP.astype(np.float32) - 500), 0),
    "large.tif": (tiff(DEEP.astype(np.uint32) * 1000), grey(DEEP.astype(np.float32) * 1000), 0),
    "half.tif": (tiff(REAL.astype(np.float16)), grey(REAL.astype(np.float16).astype(np.float32)), 0),
    "half_colour.tif": (tiff(REAL_COLOUR.astype(np.float16)), REAL_COLOUR, 0.3),
    "half_big_endian.tif": (tiff(REAL.astype(np.float16), byteorder=">"), grey(REAL), 0.3),
    "float.tif": (tiff(REAL), grey(REAL), 0),
    "float_colour.tif": (tiff(REAL_COLOUR), REAL_COLOUR, 0),
    "float_colour_planar.tif": (planar(REAL_COLOUR), REAL_COLOUR, 0),
    "float_zip.tif": (tiff(REAL, compression="zlib"), grey(REAL), 0),
    "double.tif": (tiff(REAL.astype(np.float64)), grey(REAL), 0),
    "double_colour.tif": (tiff(REAL_COLOUR.astype(np.float64)), REAL_COLOUR, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_kind(name: str, tmp_path: Path) -> None:
    content, expected, tolerance = KINDS[name]
    path = tmp_path / name
    path.write_bytes(content)
    picture = images.read(path)
    assert picture.dtype == expected.dtype
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(float) - expected).max() <= tolerance
    assert images.read_size(path) == (HEIGHT, WIDTH)
    assert images.is_deep(path) == (expected.dtype != np.uint8)


# EXIF: what has to be done to the stored picture so that it stands upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}
TURNED: dict[str, tuple[Callable[[int], bytes], np.ndarray]] = {
    "jpeg": (lambda turn: pil(COLOUR, "JPEG", quality=100, subsampling=0, exif=exif(turn)), COLOUR),
    "png": (lambda turn: pil(COLOUR, "PNG", exif=exif(turn)), COLOUR),
    "grey png": (lambda turn: pil(RAMP, "PNG", exif=exif(turn)), grey(RAMP)),
    "tiff": (lambda turn: pil(COLOUR, "TIFF", tiffinfo={274: turn}), COLOUR),
    "deep png": (lambda turn: pil(DEEP, "PNG", exif=exif(turn)), grey(DEEP)),
    "deep tiff": (lambda turn: pil(DEEP, "TIFF", tiffinfo={274: turn}), grey(DEEP)),
    "deep colour png": (lambda turn: deep_png(DEEP_COLOUR, 2, b"eXIf" + exif(turn).tobytes()[6:]), DEEP_COLOUR),
    "deep colour tiff": (lambda turn: tiff(DEEP_COLOUR, extratags=[(274, 3, 1, turn, True)]), DEEP_COLOUR),
    "float colour tiff": (lambda turn: tiff(REAL_COLOUR, extratags=[(274, 3, 1, turn, True)]), REAL_COLOUR),
    "planar tiff": (lambda turn: planar(REAL_COLOUR, extratags=[(274, 3, 1, turn, True)]), REAL_COLOUR),
}


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("kind", TURNED)
def test_orientation(kind: str, turn: int, tmp_path: Path) -> None:
    write, stored = TURNED[kind]
    path = tmp_path / "turned"
    path.write_bytes(write(turn))
    picture, expected = images.read(path), UPRIGHT[turn](stored)
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(float) - expected).max() <= (6 if kind == "jpeg" else 0)
    assert images.read_size(path) == expected.shape[:2]


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "the file is empty (0 bytes)."),
    "text.jpg": (b"dear colleague", "not a picture, or a damaged one; expected JPEG, PNG, BMP or TIFF."),
    "a_gif.png": (pil(RAMP, "GIF"), "not a picture, or a damaged one; expected JPEG, PNG, BMP or TIFF."),
    "cut.png": (KINDS["colour.png"][0][:70], "can't be read as a picture ("),
    "cut.jpg": (pil(np.tile(COLOUR, (20, 20, 1)), "JPEG")[:900], "can't be read as a picture ("),
    "cut.bmp": (KINDS["colour.bmp"][0][:-20], "can't be read as a picture ("),
    "cut.tif": (KINDS["deep.tif"][0][:60], "not a picture, or a damaged one"),
    "cut_deep.png": (KINDS["deep_colour.png"][0][:120], "can't be read as a picture ("),
    "cut_float.tif": (KINDS["float_colour.tif"][0][:-40], "not a picture, or a damaged one"),
    "cut_half.tif": (KINDS["half_colour.tif"][0][:-40], "can't be read as a picture ("),
    "head.png": (KINDS["grey.png"][0][:8], "not a picture, or a damaged one"),
    "half_zip.tif": (tiff(REAL.astype(np.float16), compression="zlib"), "can't be read as a picture (a compressed"),
    "nan.tif": (tiff(np.where(REAL > 0, np.nan, REAL)), "42 pixel values are NaN or infinite; expected finite"),
    "inf.tif": (tiff(np.where(REAL.max() == REAL, np.inf, REAL)), "1 pixel values are NaN or infinite"),
    "nan_colour.tif": (tiff(np.where(REAL_COLOUR > 300, np.nan, REAL_COLOUR)), "7 pixel values are NaN or infinite"),
    "overflow.tif": (tiff(REAL.astype(np.float64) * 1e300), "54 pixel values are NaN or infinite"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        images.read(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
    assert isinstance(images.is_deep(path), bool)


@pytest.mark.parametrize(
    ("name", "message"), [("no.png", "No such file"), ("dir.png", "Is a dir"), ("a\0.png", "null")]
)
def test_no_file(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(ImageError, match=r"can't be opened \(.*" + message):
        images.read(tmp_path / name)
    with pytest.raises(ImageError, match="can't be read as a picture"):
        images.read_size(tmp_path / name)
    assert not images.is_deep(tmp_path / name)


def test_suffix_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(KINDS["colour.png"][0])
    assert np.array_equal(images.read(tmp_path / "a.bmp"), COLOUR)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    (tmp_path / "a.png").write_bytes(KINDS["grey.png"][0])
    for read in (images.read, images.read_size):
        with pytest.raises(ImageError, match="has more than 40 pixels; cut it into tiles first"):
            read(tmp_path / "a.png")
    assert not images.is_deep(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)  # half of that is only a warning, and none of ours
    assert images.read(tmp_path / "a.png").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", [name for name in KINDS if "deep" in name or "half" in name or "colour" in name])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_damage_of_any_kind_is_an_image_error_or_a_picture(name: str, data: st.DataObject) -> None:
    content = bytearray(KINDS[name][0])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(1, len(content)))
    try:
        picture = images.decode(bytes(content[:end]), "damaged")
    except ImageError:
        return
    assert picture.ndim == 3
    assert picture.shape[2] == 3


def test_oddities_of_metadata_are_neither_shown_nor_fatal() -> None:
    odd = exif(6)
    odd[0x010F] = "somebody"
    content = pil(COLOUR, "JPEG", exif=odd.tobytes()[:-6])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(content)).getexif()
        assert shown, "Pillow does not warn of this any more: find another oddity"
        shown.clear()
        images.decode(content, "odd")
        assert not shown
        warnings.warn("ours", UserWarning, stacklevel=1)
        assert shown


def test_reading_in_threads_leaves_the_filters_of_warnings_alone() -> None:
    before = list(warnings.filters)
    content = KINDS["deep_colour.png"][0]
    right: list[bool] = []

    def work() -> None:
        right.extend(np.array_equal(images.decode(content, "x"), DEEP_COLOUR) for _ in range(60))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 480
    assert list(warnings.filters) == before


class TestToChw:
    def test_is_rgb_in_0_1(self) -> None:
        picture = np.zeros((40, 50, 3), np.uint8)
        picture[:, :, 0], picture[:, :, 2] = 255, 51
        out = images.to_chw(picture, Preprocessing((32, 64)))
        assert out.shape == (3, 32, 64)
        assert out.dtype == np.float32
        assert np.allclose(out[0], 1)
        assert np.allclose(out[1], 0)
        assert np.allclose(out[2], 0.2)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 40_000), (40_000, 2), (7, 33)])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_any_size(self, shape: tuple[int, int], dtype: type) -> None:
        picture = np.full((*shape, 3), 100, dtype)
        out = images.to_chw(picture, Preprocessing((32, 48), Intensity(0, 200)))
        assert out.shape == (3, 32, 48)
        assert np.allclose(out, 100 / 255 if dtype == np.uint8 else 0.5)

    def test_a_thin_line_survives_shrinking(self) -> None:
        picture = np.zeros((2048, 2048, 3), np.uint8)
        picture[:, 1001] = 255
        assert images.to_chw(picture, Preprocessing((64, 64))).sum(2).min() > 0

    def test_a_12_bit_ramp_stays_a_ramp(self, tmp_path: Path) -> None:
        ramp = np.tile(np.linspace(0, 4095, 256).astype(np.uint16), (32, 1))
        path = tmp_path / "ramp.png"
        path.write_bytes(pil(ramp, "PNG"))
        rule, failures = images.measure_intensity([path])
        assert not failures
        assert rule == Intensity(0, 4095)
        out = images.to_chw(images.read(path), Preprocessing((32, 256), rule))
        assert np.all(np.diff(out[0, 0]) > 0)
        assert (out.min(), out.max()) == (0, 1)

    def test_a_hot_pixel_beyond_the_rule_is_clipped_but_not_an_area(self) -> None:
        rule = Preprocessing((64, 64), Intensity(0, 4095))
        picture = np.full((64, 64), 1000, np.uint16)
        picture[3, 4] = 60000
        assert images.to_chw(picture, rule).max() == 1
        picture[3:6, 4:9] = 5000
        with pytest.raises(ImageError, match=r"0.4% of them outside the rule 0:4095 .* --intensity LOW:HIGH"):
            images.to_chw(picture, rule)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_any_float(self, dtype: type) -> None:
        out = images.to_chw(np.full((40, 40, 3), 0.25, dtype), Preprocessing((32, 32), Intensity(0, 1)))
        assert np.allclose(out, 0.25)

    def test_deep_pictures_need_a_rule(self) -> None:
        with pytest.raises(ImageError, match=r"image has uint16 pixels, .* or fit again with --intensity LOW:HIGH"):
            images.to_chw(DEEP, Preprocessing())

    @pytest.mark.parametrize("shape", [(3, 32, 32), (32, 32, 4), (32, 32, 1), (0, 32, 3), (2, 32, 32, 3), (32,)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeError, match=r"image has shape \(.*\); expected \(H, W, 3\) or \(H, W\)"):
            images.to_chw(np.zeros(shape, np.uint8), Preprocessing())

    @pytest.mark.parametrize("dtype", [np.int32, np.int64, bool, np.uint32, complex])
    def test_other_types_are_refused(self, dtype: type) -> None:
        with pytest.raises(ShapeError, match="expected uint8, uint16 or floating point"):
            images.to_chw(np.zeros((32, 32, 3), dtype), Preprocessing(intensity=Intensity(0, 1)))

    def test_nan_is_refused(self) -> None:
        with pytest.raises(ImageError, match="image: 1 pixel values are NaN or infinite"):
            images.to_chw(np.array([[0.0, np.nan]]), Preprocessing(intensity=Intensity(0, 1)))

    def test_batches(self) -> None:
        one = np.zeros((40, 50, 3), np.uint8)
        assert images.to_batch(one).shape == (1, 3, 40, 50)
        assert images.to_batch([one, one[:, :, 0]]).shape == (2, 3, 40, 50)
        assert images.to_batch(np.stack([one, one]), Preprocessing((32, 32))).shape == (2, 3, 32, 32)
        with pytest.raises(ShapeError, match="images is empty"):
            images.to_batch([])
        for other in (None, "a.png", Image.new("RGB", (9, 9))):
            for wrong in (other, [one, other]):
                with pytest.raises(ShapeError, match=f"of type {type(other).__name__}; expected a NumPy array"):
                    images.to_batch(wrong, Preprocessing((32, 32)))


class TestIntensity:
    def measure(self, folder: Path, *pictures: np.ndarray) -> Intensity | None:
        paths = [folder / f"{number}.tif" for number in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            path.write_bytes(tiff(picture))
        rule, failures = images.measure_intensity(paths)
        assert not failures
        return rule

    @pytest.mark.parametrize(
        ("largest", "high"),
        [(0, 1023), (300, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (4096, 16383), (65535, 65535)],
    )
    def test_whole_numbers_take_the_least_camera_that_holds_them(self, tmp_path: Path, largest: int, high: int) -> None:
        pictures = [np.full((4, 5), value, np.uint16) for value in (0, largest)]
        assert self.measure(tmp_path, *pictures) == Intensity(0, high)

    def test_floats_in_0_1_are_kept(self, tmp_path: Path) -> None:
        assert self.measure(tmp_path, np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)) == Intensity(0, 1)

    def test_other_floats_have_a_reserve(self, tmp_path: Path) -> None:
        rule = self.measure(tmp_path, np.full((4, 5), -10, np.float32), np.full((4, 5), 90, np.float32))
        assert rule == Intensity(-20, 100)
        assert self.measure(tmp_path, np.full((4, 5), 7, np.float32)) == Intensity(6, 8)

    def test_8_bit_needs_none(self, tmp_path: Path) -> None:
        assert self.measure(tmp_path, RAMP) is None
        assert images.measure_intensity([]) == (None, [])

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.tif").write_bytes(b"")
        (tmp_path / "b.tif").write_bytes(tiff(DEEP))
        rule, failures = images.measure_intensity([tmp_path / "a.tif", tmp_path / "b.tif"])
        assert rule == Intensity(0, 4095)
        assert [failure.path.name for failure in failures] == ["a.tif"]

    @pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (float("nan"), 1)])
    def test_has_to_be_a_range(self, low: float, high: float) -> None:
        with pytest.raises(ConfigError, match="expected LOW:HIGH with LOW < HIGH, for example 0:4095"):
            Intensity(low, high)


class TestMask:
    def write(self, folder: Path, name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    @pytest.mark.parametrize(
        "content",
        [
            pil((RAMP > 90) * np.uint8(255), "PNG"),
            pil((RAMP > 90) * np.uint8(1), "PNG"),
            pil((RAMP > 90) * np.uint8(3), "BMP"),
            pil(RAMP > 90, "PNG"),
            pil(RAMP > 90, "TIFF"),
            pil((RAMP > 90) * np.uint16(700), "PNG"),
            pil(np.dstack([(RAMP > 90) * np.uint8(9), RAMP * 0, RAMP * 0]), "PNG"),
            pil(np.dstack([grey((RAMP > 90) * np.uint8(9)), np.full_like(RAMP, 255)]), "PNG"),
            tiff((RAMP > 90).astype(np.float32)),
        ],
    )
    def test_any_value_above_zero_counts(self, tmp_path: Path, content: bytes) -> None:
        path = self.write(tmp_path, "m", content)
        assert np.array_equal(images.read_mask([path], (HEIGHT, WIDTH), (HEIGHT, WIDTH)), RAMP > 90)

    def test_several_are_united_and_none_is_empty(self, tmp_path: Path) -> None:
        left = self.write(tmp_path, "l", pil(RAMP < 50, "PNG"))
        right = self.write(tmp_path, "r", pil(RAMP > 150, "PNG"))
        size = (HEIGHT, WIDTH)
        assert np.array_equal(images.read_mask([left, right], size, size), (RAMP < 50) | (RAMP > 150))
        assert not images.read_mask([], size, (3, 4)).any()

    def test_resizing_takes_the_nearest_pixel(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "m", pil(RAMP > 90, "PNG"))
        larger = images.read_mask([path], (HEIGHT, WIDTH), (HEIGHT * 3, WIDTH * 3))
        assert np.array_equal(larger, np.kron(RAMP > 90, np.ones((3, 3), bool)))

    def test_another_size_than_the_picture_is_refused(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "m.png", pil(RAMP, "PNG"))
        with pytest.raises(ImageError) as caught:
            images.read_mask([path], (9, 6), (32, 32))
        assert str(caught.value) == (f"{path}: the mask has 6x9 pixels and its picture 9x6; expected the same size.")


class TestListPictures:
    def test_by_suffix_in_any_case(self, tmp_path: Path) -> None:
        for name in ("b.PNG", "a.jpg", "c.Tiff", "d.bmp", "e.jpeg", "f.tif", ".g.png", "Thumbs.db", "h.gif", "i"):
            (tmp_path / name).touch()
        (tmp_path / "j.png").mkdir()
        (tmp_path / "k.png").symlink_to(tmp_path / "gone")
        names = ["a.jpg", "b.PNG", "c.Tiff", "d.bmp", "e.jpeg", "f.tif", "k.png"]
        assert [path.name for path in images.list_pictures(tmp_path)] == names
        assert images.has_pictures(tmp_path)
        assert not images.has_pictures(tmp_path / "j.png")
        assert images.is_picture(Path("x/a.PNG"))
        assert not images.is_picture(Path("x/.a.png"))

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"gone can't be opened \(No such file.*\); expected a folder of pictures"):
            images.list_pictures(tmp_path / "gone")


class TestDrawing:
    def test_heatmap_runs_from_blue_to_red(self) -> None:
        drawn = images.heatmap(np.array([[0, 1, 2, 3]], np.float32), 0, 3)
        assert drawn.shape == (1, 4, 3)
        assert drawn.dtype == np.uint8
        assert drawn[0, 0, 2] > drawn[0, 0, 0]
        assert drawn[0, 3, 0] > drawn[0, 3, 2]
        assert images.heatmap(np.zeros((2, 2), np.float32), 1, 1).shape == (2, 2, 3)

    def test_overlay_and_files(self) -> None:
        image = np.full((3, 32, 48), 0.5, np.float32)
        anomaly_map = np.zeros((32, 48), np.float32)
        outline = np.zeros((32, 48), bool)
        outline[8:20, 10:30] = True
        anomaly_map[0, 0] = np.nan
        plain = images.overlay(image, anomaly_map, (0, 1))
        drawn = images.overlay(image, anomaly_map, (0, 1), [(outline, (255, 255, 255))])
        assert plain.shape == (32, 48, 3)
        assert (drawn[8, 10] == 255).all()
        assert np.array_equal(drawn[14, 20], plain[14, 20])
        assert (plain == plain[0, 0]).all()
        assert np.array_equal(images.decode(images.encode(drawn), "drawn"), drawn)
        assert np.abs(images.decode(images.encode(drawn, "JPEG"), "drawn").astype(int) - drawn).mean() < 8


@pytest.mark.parametrize("size", [(512, 512), (97, 131), (1, 1), (33, 250)])
def test_jpegs_have_the_pixels_that_pillow_sees(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**22)  # Pillow wants to write progressive noise in one piece
    random = np.random.default_rng(0)
    field = images.resize(random.integers(0, 256, (9, 9, 3), np.uint8), size)
    noise = random.integers(0, 256, (*size, 3), np.uint8)
    for picture, quality, subsampling, progressive in itertools.product(
        (field, noise), (30, 90), (0, 1, 2), (False, True)
    ):
        file = io.BytesIO()
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        Image.fromarray(picture).save(file, "JPEG", **options)
        expected = np.asarray(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal(images.decode(file.getvalue(), "picture"), expected)
        np.testing.assert_array_equal(images.decode(file.getvalue() + b"more", "picture"), expected)
        with pytest.raises(ImageError):
            images.decode(file.getvalue()[: -2 - len(file.getvalue()) // 3], "picture")
