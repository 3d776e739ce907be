"""Object stores: S3 as a server on this machine speaks it."""

import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from blemish.blocks import pictures_of
from blemish.errors import DatasetError
from blemish.objects import name_of, open_store, shadow

pytest.importorskip("pyarrow", reason="needs blemish[scale]")
from pyarrow.fs import S3FileSystem


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def address(bucket: str, port: int) -> str:
    return f"s3://{bucket}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A bucket called parts."""
    server = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    own = server.get_host_and_port()[1]
    urllib.request.urlopen(
        f"http://127.0.0.1:{own}/moto-api/", timeout=600
    ).close()  # until it has loaded what it needs
    files = S3FileSystem(
        access_key="key",
        secret_key="secret",  # noqa: S106 - of a server that takes any
        endpoint_override=f"127.0.0.1:{own}",
        scheme="http",
        region="us-east-1",
        request_timeout=300,
        allow_bucket_creation=True,
    )
    files.create_dir("parts")
    for name in ("test/good/1.png", "test/bad/1.png", "test/bad/2.PNG", "manifest.csv"):
        with files.open_output_stream(f"parts/set/{name}") as stream:
            stream.write(name.encode())
    yield own
    server.stop()


def test_a_bucket_is_listed_and_read(port, tmp_path):
    store = open_store(Path(address("parts/set", port)))  # as the command line gives it
    names = [store.named(path) for path, _ in store.list()]
    inside = ("manifest.csv", "test/bad/1.png", "test/bad/2.PNG", "test/good/1.png")
    assert names == [f"s3://parts/set/{name}" for name in inside]
    store.fetch(Path("s3://parts/set/test/bad/1.png"), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"test/bad/1.png"
    one = open_store(address("parts/set/test/bad/1.png", port))
    assert one.list() == [("parts/set/test/bad/1.png", 14)]
    with pytest.raises(OSError, match="nowhere"):
        store.fetch(Path("s3://parts/nowhere"), tmp_path / "copy")


def test_a_shadow_has_all_names_and_what_is_not_a_picture(port, tmp_path):
    store = open_store(address("parts/set", port))
    found = dict(shadow(store, tmp_path, {".png"}))
    assert {str(path.relative_to(tmp_path)): name for path, name in found.items()} == {
        f"test/{name}": f"s3://parts/set/test/{name}" for name in ("bad/1.png", "bad/2.PNG", "good/1.png")
    }
    assert all(path.read_bytes() == b"" for path in found)
    assert (tmp_path / "manifest.csv").read_text() == "manifest.csv"


def test_a_bucket_that_is_not_there_is_an_error(port):
    with pytest.raises(
        DatasetError, match=r"s3://nowhere\?.* can't be read .*expected a folder or an object that exists"
    ):
        open_store(address("nowhere", port)).list()


class Forbidding(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - the server's name

    def log_message(self, *_: object) -> None:
        pass


def test_a_bucket_without_permission_is_an_error():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbidding)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(DatasetError, match=r"(?i)s3://secret\?.* can't be read .*ACCESS.DENIED.*credentials"):
            open_store(address("secret", server.server_port)).list()
        with pytest.raises(DatasetError, match=r"(?i)secret/list.csv\?.* can't be read .*ACCESS.DENIED.*credentials"):
            list(pictures_of([Path(address("secret/list.csv", server.server_port))])[0])
    finally:
        server.shutdown()
        server.server_close()


def test_names_keep_their_slashes():
    assert name_of(Path("s3://bucket/a//b.png")) == "s3://bucket/a/b.png"
    assert name_of("/data/a.png") == "/data/a.png"
