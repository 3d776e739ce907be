"""A server with a predictor that is quick: a picture is as abnormal as it is bright."""

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from blemish.artifact import Header, Predictor
from blemish.server import Artifact, Options, Record, create_app, server_of
from blemish.types import Calibration, Fitted, Policy, Prediction, Preprocessing

SCORES = tuple(np.linspace(0.1, 0.5, 99))


def brightness(images: np.ndarray) -> Prediction:
    maps = images.mean(axis=1)
    return Prediction(maps, maps.mean(axis=(1, 2)))


def artifact(name="part", run=brightness, categories=("cup",), policy=None) -> Artifact:
    policy = policy or Policy(0.05, 0.2)
    fitted = Fitted(
        preprocessing=Preprocessing((16, 16)),
        calibrations={category: Calibration(SCORES, SCORES) for category in categories},
        policy=policy,
        learned_from=("aa",),
    )
    header = Header("brightness", {"image_size": (16, 16)}, fitted, {"blemish": "0"})
    return Artifact(name, Predictor(header, run), f"{name}-hash", policy)


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
