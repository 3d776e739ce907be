"""What all tests share: quiet threads, no network, real pictures where they are."""

import os
import socket
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")
# Tiny networks gain nothing from threads, and lose a lot where they wait for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def real_data() -> Path:
    """The folder of real pictures; tests that need it skip where it is absent."""
    if not REAL.is_dir():
        pytest.skip("needs the real pictures in ../shared/data, which are not here")
    return REAL


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise OSError(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keeps unfinished work of tests out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
