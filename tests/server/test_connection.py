"""Slow clients on real sockets: each is cut, and takes nothing from anybody else."""

import json
import re
import time
from contextlib import ExitStack

import httpx2
import pytest

from blemish.server import Limits
from served import HEAD, artifact, brightness, connected, listening, picture

LATE = 1.0


@pytest.fixture
def address(tmp_path):
    with listening(tmp_path, limits=Limits(timeout=LATE, waiting=1)) as found:
        yield found


def trickle(connection, letters: bytes) -> bytes:
    """What comes back, and until the connection is cut, of a letter sent every tenth of a second."""
    connection.settimeout(0.1)
    found, started = b"", time.monotonic()
    for letter in letters * 200:
        try:
            while got := connection.recv(65536):
                found += got
            break
        except TimeoutError:
            pass
        except ConnectionError:
            break
        try:
            connection.sendall(bytes([letter]))
        except ConnectionError:
            break
    assert time.monotonic() - started < 8
    return found


def works(address) -> bool:
    return httpx2.post(f"{address}/predict", content=picture(), timeout=20).status_code == 200


@pytest.mark.parametrize("sent", [b"", b"POST /pre", HEAD, HEAD + b"X-Long: "])
def test_a_head_that_trickles_in_is_cut_off(address, sent):
    with connected(address, sent) as slow:
        assert works(address)
        assert trickle(slow, b"x") == b""
    assert works(address)


def test_so_is_the_head_of_a_second_request(address):
    first = HEAD + b"Content-Length: 0\r\n\r\n"
    with connected(address, first) as slow:
        assert slow.recv(65536).startswith(b"HTTP/1.1 422")
        slow.sendall(b"POST")
        trickle(slow, b"x")
    assert works(address)


@pytest.mark.parametrize("size", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nfff\r\n"])
def test_a_body_that_trickles_in_is_told_so_and_holds_no_room(address, size):
    with connected(address, HEAD, size) as slow:
        assert works(address)  # there is room for one picture only
        answer = trickle(slow, b"x")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert "within 1 seconds" in json.loads(body)["error"]
    assert works(address)


def test_who_was_turned_away_and_goes_on_sending_is_cut_off(address):
    with connected(address, HEAD, b"Content-Length: 100000000\r\n\r\n") as slow:
        assert trickle(slow, b"x").startswith(b"HTTP/1.1 413")


def test_who_does_not_take_an_answer_is_cut_off(tmp_path):
    large = artifact(categories=[f"{number:0300}" for number in range(4000)])  # 10 MB to say
    with listening(tmp_path, large, limits=Limits(timeout=LATE)) as address:
        with connected(address, b"GET /model HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as slow:
            found = slow.recv(2000)
            time.sleep(3 * LATE)
            while got := slow.recv(65536):  # what was under way already
                found += got
        head, _, body = found.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])
        assert len(body) < length


def test_many_slow_clients_take_no_worker(address):
    with ExitStack() as stack:
        for number in range(60):
            slow = [HEAD, HEAD + b"Content-Length: 1000\r\n\r\nabc", b"P"][number % 3]
            stack.enter_context(connected(address, slow))
        assert works(address)


def test_a_request_that_takes_longer_than_its_head_may_is_answered(tmp_path):
    def slowly(images):
        time.sleep(2 * LATE)
        return brightness(images)

    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(picture())
    slow = listening(tmp_path, artifact(run=slowly), limits=Limits(timeout=LATE))
    with slow as address, connected(address, head, picture()) as patient:
        assert patient.recv(65536).startswith(b"HTTP/1.1 503")
