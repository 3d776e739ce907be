"""serve and drift as they are typed: a real process, real requests, a real stop."""

import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx2
import pytest

import blemish
from blemish.files import digest
from blemish.server import Record
from shell import call


@contextmanager
def started(code: str, *words: object):
    """The address of a server in a process of its own, and the process; the code is run before."""
    code = f"{code}\nimport sys\nfrom blemish.cli import main\nmain(sys.argv[1:])"
    command = [sys.executable, "-u", "-c", code, "serve", "--port", "0", "--device", "cpu", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            while "http://" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield re.search(r"http://\S+", said)[0], process
        finally:
            process.kill()


@pytest.fixture
def served(artifact, tmp_path):
    """The address of a server of an artifact, and its process."""
    with started("", f"part={artifact}", "--record", tmp_path / "r.sqlite") as found:
        yield found


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "timm", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def test_exports_are_served_without_torch_and_their_hash_speaks_for_the_weights(data, artifact, tmp_path):
    files = [tmp_path / name for name in ("one.onnx", "two.xml")]
    for file in files:
        assert call("export", artifact, file) == 0
    bad = min((data / "cloth/test/blob").iterdir())
    with started(WITHOUT, *files, "--record", "none") as (address, _):
        models = {one["name"]: one for one in httpx2.get(f"{address}/model").json()["models"]}
        found = [post(f"{address}/predict?model={name}&file=a.png", bad.read_bytes()) for name in models]
    expected = blemish.load(artifact).predict(bad).image_score[0]
    assert [one["decision"] for one in found] == ["defective"] * 2
    assert [one["image_score"] for one in found] == pytest.approx([expected] * 2, rel=1e-3)
    assert {name: one["model_hash"] for name, one in models.items()} == {file.stem: digest(file) for file in files}
    assert digest(tmp_path / "two.bin") in files[1].read_text()  # so the hash of the .xml covers its .bin
    (tmp_path / "two.bin").unlink()
    assert call("serve", files[1]) == 2


def post(address: str, content: bytes) -> dict:
    return httpx2.post(address, content=content, timeout=60).json()


def test_from_picture_to_drift(served, data, artifact, tmp_path, capsys):
    address, process = served
    good = sorted((data / "cloth/test/good").iterdir())
    bad = sorted((data / "cloth/test/blob").iterdir())
    for _ in range(5):
        found = [post(f"{address}/predict?file={path.name}", path.read_bytes()) for path in good + bad]
    assert {one["decision"] for one in found[len(good) :]} == {"defective"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)
    record = Record(str(tmp_path / "r.sqlite"))
    assert len(record.rows()) == 60
    record.close()
    words = ["drift", artifact, "--record", tmp_path / "r.sqlite", "--json", tmp_path / "d.json"]
    assert call(*words) == 0  # four good pictures calibrated it: too few to say anything
    figures = json.loads((tmp_path / "d.json").read_text())
    assert {one["quantity"] for one in figures} >= {"image_score", "map_maximum", "brightness", "warmth"}
    assert {(one["recent_count"], one["reference_count"], one["state"]) for one in figures} == {(60, 4, "too few")}
    assert call(*words, "--category", "cup") == 2
    assert "has no inspections of cup" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "nowhere.blemish"], "no such file"),
        (["serve", "ARTIFACT", "ARTIFACT"], 'two artifacts are called "part"'),
        (["serve", "ARTIFACT", "--watch", "nowhere"], "is not a folder"),
        (["serve", "ARTIFACT", "--port", "70000"], "--port is 70000"),
        (["serve", "ARTIFACT", "--host", "192.0.2.1"], "can't listen on 192.0.2.1"),
        (["serve", "ARTIFACT", "--waiting", "0"], "--waiting is 0"),
        (["serve", "ARTIFACT", "--record", "nothing://"], "expected a file such as"),
        (["drift", "ARTIFACT", "--record", "nowhere.sqlite"], "no such file"),
        (["drift", "ARTIFACT", "--last", "0"], "--last is 0"),
        (["drift", "ARTIFACT", "--plot", "a.gif"], "expected a name ending in"),
    ],
)
def test_what_cannot_be_done_is_said(words, message, artifact, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*(str(artifact) if word == "ARTIFACT" else word for word in words)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # no empty record


def test_a_taken_port_leaves_no_empty_record(artifact, capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call("serve", artifact, "--port", port, "--record", tmp_path / "r.sqlite") == 2
    assert f"can't listen on 127.0.0.1, port {port}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
