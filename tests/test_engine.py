"""The Ray engine, really: it takes a while to start."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import textures
from blemish import engine
from blemish.engine import Cluster, spread
from blemish.errors import ConfigError
from shell import TINY, call

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="needs blemish[scale]")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return textures.write(tmp_path_factory.mktemp("data"), train=12, test=40)


@pytest.fixture(scope="module")
def artifact(data) -> Path:
    file = data / "part.blemish"
    assert call("fit", "patchcore", data, "--out", file, *TINY) == 0
    return file


def actors_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name().startswith("ray::MapWorker"):
                found.append(child)
    return found


def blemish(*words: object) -> psutil.Popen:
    return psutil.Popen([sys.executable, "-m", "blemish", *map(str, words)], stderr=subprocess.PIPE)


def test_killed_actors_and_drivers_lose_nothing(artifact, data, tmp_path):
    score = ["score", artifact, data, "--mode", "streaming", "--device", "cpu"]
    assert call(*score, "--json", tmp_path / "local.json") == 0
    expected, parts = json.loads((tmp_path / "local.json").read_text()), tmp_path / "parts"
    ray = ["--engine", "ray", "--actors", 1, "--block", 4, "--parts", parts, "--json", tmp_path / "ray.json"]
    done = []
    for victim in ("driver", "actor"):
        running = blemish(*score, *ray)
        while running.poll() is None and len(list(parts.glob("*.parquet"))) <= len(done) + 2:
            time.sleep(0.05)
        done = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
        assert 0 < len(done) < 20
        target = running if victim == "driver" else actors_of(running)[0]
        target.kill()
        said = running.communicate()[1].decode()
        assert running.returncode == (-9 if victim == "driver" else 0), said
        assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    found = json.loads((tmp_path / "ray.json").read_text())
    assert found == expected


def test_a_cluster_that_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match=r'no Ray cluster can be reached at "127.0.0.1:1" .*ray start --head'):
        list(spread([(0, "")], dict, {}, Cluster("127.0.0.1:1")))


@pytest.mark.filterwarnings("ignore")  # Ray warns of what it does itself
def test_no_more_blocks_are_made_than_actors_have_in_hand(monkeypatch):
    made, taken, texts = [], [], [f"block {number}" for number in range(10)]
    monkeypatch.setattr(engine, "AHEAD", 4)

    def blocks():
        for number, text in enumerate(texts):
            made.append(number)
            assert len(made) - len(taken) <= 4
            yield number, text

    def make(_):
        return lambda text: {"said": text.encode()}

    for number, found in spread(blocks(), make, {}, Cluster(actors=1)):
        taken.append(number)
        assert found == {"said": texts[number].encode()}
    assert sorted(taken) == list(range(10))
