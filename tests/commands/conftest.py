"""A folder of parts and an artifact, for all commands."""

from pathlib import Path

import pytest

import textures
from shell import TINY, call


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return textures.write(tmp_path_factory.mktemp("data"), train=20)


@pytest.fixture(scope="session")
def artifact(data) -> Path:
    file = data / "part.blemish"
    assert call("fit", "patchcore", data, "--out", file, "--max-false-reject", 0.25, *TINY) == 0
    return file
