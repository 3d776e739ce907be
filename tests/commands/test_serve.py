"""serve and drift as they are typed: a real process, real requests, a real stop."""

import json
import re
import signal
import subprocess
import sys

import httpx2
import pytest

from blemish.server import Record
from shell import call


@pytest.fixture
def served(artifact, tmp_path):
    """The address of a server in a process of its own, and the process."""
    words = ["serve", f"part={artifact}", "--port", "0", "--device", "cpu", "--record", tmp_path / "r.sqlite"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "blemish", *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    said = ""
    while "http://" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    yield re.search(r"http://\S+", said)[0], process
    process.kill()
    process.wait()
    process.stdout.close()


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
        (["serve", "ARTIFACT", "--port", "70000", "--record", "none"], "--port is 70000"),
        (["serve", "ARTIFACT", "--host", "192.0.2.1", "--record", "none"], "can't listen on 192.0.2.1"),
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
