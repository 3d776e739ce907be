"""Hostile requests, many at once, beside slow clients: the server stays up, and says what is wrong."""

import http.client
import io
import struct
import sys
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from blemish.server import Limits
from served import HEAD, bomb, connected, listening, picture, tiff_bomb

CLIENTS = 16
LIMITS = Limits(max_megabytes=0.2, max_megapixels=1, timeout=20)
PLACES = ["/predict", "/predict?heatmap=png&picture=jpeg", "/predict/batch", "/predict/batch?part=7"]
TRICKS = [
    "/predict?file=../../../etc/passwd", "/predict?file=%00", "/predict?file=%ff%fe", "/predict?part=" + "p" * 400,
    "/predict?model=../part", "/predict?category=%27%3B--", "/page/../../app.py", "/page/..%2f..%2fapp.py",
    "/page/%2e%2e/app.py", "//etc/passwd", "/page//etc/passwd", "/records/99999999999999999999999/verdict",
    "/records/1/verdict", "/records/-1/verdict", "/predict/", "/%00", "/page/%00", "/page/" + "a" * 5000,
    "/records?after=99999999999999999999", "/records?since=9999-99-99", "/records?limit=-1", "/health?x=%",
]  # fmt: skip


def encoded(values: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, values)[1].tobytes()


def real_pictures() -> list[bytes]:
    """A picture in each kind of file that is read."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (24, 32, 3), np.uint8)
    deep = random.integers(0, 65536, (24, 32, 3), np.uint16)
    found = [encoded(colour, suffix) for suffix in (".png", ".jpg", ".bmp", ".tiff")]
    found += [encoded(deep, ".png"), encoded(deep[:, :, 0], ".png"), encoded(deep, ".tiff")]
    found += [encoded(random.random((24, 32), np.float32), ".tiff")]
    for mode, kind, options in (
        ("P", "PNG", {}), ("1", "PNG", {}), ("LA", "PNG", {}), ("RGBA", "PNG", {}), ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True, "exif": exif()}), ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "TIFF", {"compression": "tiff_adobe_deflate"}), ("1", "TIFF", {"compression": "group4"}),
        ("RGB", "TIFF", {"compression": "jpeg"}), ("P", "BMP", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        Image.fromarray(colour).convert(mode).save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


def exif() -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = 6
    return made


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs() -> list[bytes]:
    """Small files that unpack to a lot, or say so."""
    good = picture(size=(16, 16))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000), 9))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(30_000_000), 9))
    head = good[:33]
    most = Image.new("1", (1000, 1000))
    buffer = io.BytesIO()
    most.save(buffer, "PNG")
    excess = head[:16] + struct.pack(">II", 64, 64) + head[24:29]
    excess += struct.pack(">I", zlib.crc32(excess[12:29])) + chunk(b"IDAT", zlib.compress(bytes(100_000_000), 9))
    return [
        bomb(10_000, 9_000), bomb(60_000, 60_000), bomb(2**31 - 1, 2**31 - 1), bomb(0, 0), bomb(1, 2**31 - 1),
        tiff_bomb(), head + text + good[33:], head + profile + good[33:], head + text * 5 + good[33:],
        buffer.getvalue(), excess + chunk(b"IEND", b""), bytes(300_000), b"BM" + b"\xff" * 100,
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + b"\x01\x22\x00" * 3 + b"\xff\xd9",
    ]  # fmt: skip


REAL, BOMBS = real_pictures(), bombs()


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """The file cut off, or with some bits flipped, bytes set, or a piece taken out or put in twice."""
    values = bytearray(content)
    how = random.integers(5)
    if how == 0:
        return bytes(values[: random.integers(len(values))])
    for _ in range(random.integers(1, 9)):
        # Heads decide what decoders do, so most of the damage is there.
        at = int(random.integers(min(len(values), 120) if random.random() < 0.7 else len(values)))
        if how == 1:
            values[at] ^= 1 << int(random.integers(8))
        elif how == 2:
            values[at] = int(random.choice([0, 1, 127, 128, 255]))
        elif how == 3:
            del values[at : at + int(random.integers(1, 20))]
            values = values or bytearray(1)
        else:
            values[at:at] = values[at : at + int(random.integers(1, 20))]
    return bytes(values)


def form(content: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """A form with pictures, often not a whole one."""
    name = random.choice(["a.png", "../../x.png", "C:\\x", "\xff", "", 'a"; x="', "a\r\nb: c"])
    piece = f'--cut\r\nContent-Disposition: form-data; name="a"; filename="{name}"\r\n\r\n'.encode("latin-1")
    body = (piece + content + b"\r\n") * int(random.integers(1, 4)) + b"--cut--\r\n"
    kinds = ["multipart/form-data; boundary=cut"] * 4 + ["multipart/form-data", "multipart/form-data; boundary=other"]
    return (damaged(body, random) if random.random() < 0.4 else body), str(random.choice(kinds))


def request(number: int) -> tuple[str, bytes, str]:
    """The path, body and content type of the request of that number; always the same."""
    random = np.random.default_rng([7, number])
    kind = random.integers(10)
    real = REAL[random.integers(len(REAL))]
    if kind == 0:
        body = random.bytes(int(random.integers(2000)))
    elif kind == 1:
        body = BOMBS[random.integers(len(BOMBS))]
    elif kind == 2:
        body = real
    elif kind == 3:
        body = real[: int(random.integers(1, 9))] + random.bytes(200)
    else:
        body = damaged(real, random)
    path = str(random.choice(PLACES if random.random() < 0.85 else TRICKS))
    content_type = str(
        random.choice(["image/png", "application/json", "text/html", "", "multipart/form-data", "x" * 99])
    )
    if path.startswith("/predict/batch") and random.random() < 0.9:
        body, content_type = form(body, random)
    return path, body, content_type


def answers(address: str, numbers: range) -> Counter[tuple[str, int]]:
    """How often each path had which status."""
    host, found = address.removeprefix("http://"), Counter()
    connection = http.client.HTTPConnection(host, timeout=60)
    for number in numbers:
        path, body, content_type = request(number)
        for is_last in (False, True):
            try:
                connection.request("POST", path, body, {"Content-Type": content_type})
                answer = connection.getresponse()
                said = answer.read()
                break
            except (ConnectionError, http.client.HTTPException):  # turned away and closed while it still sent
                connection.close()
                if is_last:
                    raise
        assert b"Traceback" not in said
        assert answer.status != 500, (number, path, said)
        found[path, answer.status] += 1
    connection.close()
    return found


def slowly(address: str, stop: threading.Event) -> None:
    """Clients that send a letter now and then, and come again when they are cut off."""
    while not stop.is_set():
        with ExitStack() as stack:
            starts = [b"POST /pre", HEAD, HEAD + b"Content-Length: 1000\r\n\r\n"] * 10
            slow = [stack.enter_context(connected(address, start)) for start in starts]
            for _ in range(20):
                stop.wait(0.2)
                for one in slow:
                    try:
                        one.sendall(b"x")
                    except OSError:
                        continue


@pytest.mark.parametrize("count", [320, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_server_stays_up(tmp_path, count):
    stop, before = threading.Event(), psutil.Process().memory_info().rss
    with listening(tmp_path, limits=LIMITS) as address, ThreadPoolExecutor(CLIENTS + 1) as pool:
        slow = pool.submit(slowly, address, stop)
        shares = [pool.submit(answers, address, range(start, count, CLIENTS)) for start in range(CLIENTS)]
        try:
            found = sum((share.result() for share in shares), Counter())
        finally:
            stop.set()
        slow.result()
        after = psutil.Process().memory_info().rss
        statuses = Counter()
        for (_, status), times in found.items():
            statuses[status] += times
        assert sum(statuses.values()) == count
        assert not [status for status in statuses if status != 200 and not 400 <= status < 500], statuses
        assert {200, 404, 413, 422} <= statuses.keys()
        assert not [key for key in found if key[0].startswith("/page") and key[1] == 200]
        assert after - before < 400e6
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        for path in ("/health", "/metrics"):
            connection.request("GET", path)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, said
        assert b"blemish_pictures_in_work 0.0" in said
        connection.request("POST", "/predict", picture(230))
        assert b'"decision":"defective"' in connection.getresponse().read()
        connection.close()
    sys.stdout.write(f"{dict(statuses)}, {(after - before) / 1e6:.0f} MB more\n")
