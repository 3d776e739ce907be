"""A server with a predictor that is quick: a picture is as abnormal as it is bright."""

import io
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from blemish.artifact import Header, Predictor
from blemish.server import Artifact, Options, Record, create_app, server_of
from blemish.server.record import Inspection
from blemish.types import Calibration, Fitted, Policy, Prediction, Preprocessing

HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SCORES = tuple(np.linspace(0.1, 0.5, 99))


def row(**changes) -> Inspection:
    """An inspection as the record keeps it, with these values in place of unremarkable ones."""
    values = {
        "time": datetime.now(UTC), "model": "m", "model_hash": "h", "category": "", "part": "", "file": "",
        "picture_hash": "p", "threshold": 0.5, "image_score": 0.4, "calibrated_score": 0.3, "map_maximum": 0.9,
        "appearance": {"brightness": 0.5}, "decision": "good", "regions": [],
    }  # fmt: skip
    return Inspection(**values | changes)


def brightness(images: np.ndarray) -> Prediction:
    maps = images.mean(axis=1)
    return Prediction(maps, maps.mean(axis=(1, 2)))


def artifact(name="part", run=brightness, categories=("cup",), calibration=None, look=None) -> Artifact:
    policy = Policy(0.05, 0.2)
    calibration = calibration or Calibration(SCORES, SCORES)
    fitted = Fitted(
        preprocessing=Preprocessing((16, 16)),
        calibrations=dict.fromkeys(categories, calibration),
        policy=policy,
        learned_from=("aa",),
    )
    header = Header("brightness", {"image_size": (16, 16)}, fitted, {"blemish": "0"})
    return Artifact(name, Predictor(header, run, look), f"{name}-hash", policy)


def picture(value=40, size=(20, 30), kind="PNG", spot=None) -> bytes:
    """The file of a grey picture; with a `spot` of that value in its middle."""
    values = np.full((*size, 3), value, np.uint8)
    if spot is not None:
        values[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = spot
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def client(folder: Path, *artifacts: Artifact, record=True, **options) -> TestClient:
    """A client of a new server; use it as a context, so that the server's workers run."""
    place = Record(str(folder / "record.sqlite")) if record is True else record or None
    app = create_app(artifacts or (artifact(),), place, Options(**options))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@contextmanager
def listening(folder: Path, *artifacts: Artifact, **options) -> Iterator[str]:
    """The address of a new server that listens on a real socket."""
    chosen = Options(**options)
    app = create_app(artifacts or (artifact(),), Record(str(folder / "record.sqlite")), chosen)
    server = server_of(app, chosen.limits)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as opened:
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()  # who connects before it accepts waits in the socket's queue
        yield f"http://127.0.0.1:{opened.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@contextmanager
def connected(address, *sent: bytes):
    """A connection that has sent something."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as found:
        for piece in sent:
            found.sendall(piece)
        yield found


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it is huge, with data that unpacks to nothing much."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 6, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def tiff_bomb() -> bytes:
    """A TIFF that Pillow does not know, of 10^10 pixels."""
    fields = [(256, 100_000), (257, 100_000), (258, 64), (259, 1), (262, 99), (277, 1), (339, 3)]
    rows = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in fields
    )
    return b"II*\0" + (8).to_bytes(4, "little") + len(fields).to_bytes(2, "little") + rows + bytes(4)
