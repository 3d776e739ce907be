"""The Ray engine: blocks of work done by actors, on one machine or many (Ray Data).

Ray is imported only when work is really spread. An actor loads what it works with once; what an actor
or a machine that dies was working on is given to another one. Blocks are handed out as actors get free
and results as the caller takes them, so that neither piles up. Blocks are made as they are needed, too:
memory does not grow with their number.
"""

import base64
import json
import logging
import os
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice
from typing import Any, Literal, TypeAlias, TypeVar

from blemish import errors
from blemish.errors import BlemishError, ConfigError, bad_option, count_of

Kind = Literal["local", "ray"]
Block = TypeVar("Block")
Files: TypeAlias = Mapping[str, bytes]
"""Contents by name."""
Work: TypeAlias = Callable[[str], Files]
"""What a block, as text, comes to."""
_END = b"."
"""Behind all content: tables of other libraries may lose zeros at an end."""
Make: TypeAlias = Callable[[Files], Work]
"""What an actor does first: with the shared files, it gets ready to work."""
REACHED_IN = 10
"""Seconds in which a cluster must answer."""
AHEAD = 128
"""Blocks for each actor that are made, and handed out, at a time. Actors are started anew for the next so many."""


@dataclass(frozen=True)
class Cluster:
    """Where actors run."""

    address: str = ""
    """Of a Ray cluster that runs, "auto" for the one that this machine is part of; empty to start Ray here."""
    actors: int = 0
    """How many; 0: one for each GPU or, where there is none, for each processor."""
    device: str = "auto"
    """What they compute on."""

    def __post_init__(self) -> None:
        if self.actors < 0:
            raise bad_option("actors", self.actors, "1 or more, or 0 for as many as fit")


def spread(
    blocks: Iterable[tuple[int, str]], make: Make, shared: Files, cluster: Cluster
) -> Iterator[tuple[int, Files]]:
    """The number of each block with what it comes to, as they get done; where there is none, nothing starts.

    Args:
        blocks: Numbers and texts; made as they are needed, no more than `AHEAD` for an actor before what came
            of them was taken.
        make: A function that other processes can import, or a partial of one.
        shared: Contents that each actor gets once, such as an artifact's.
        cluster: Where.

    Raises:
        ConfigError: the cluster can't be reached, or has no room for an actor.
        BlemishError: as the work raises it on an actor.
    """
    waiting = iter(blocks)
    first = list(islice(waiting, 1))
    if not first:
        return
    _check_answers(cluster.address)
    import ray

    was_running = ray.is_initialized()
    _connect(cluster)
    try:
        count, needs = _size(cluster, ray.cluster_resources())
        reference = ray.put(dict(shared))  # kept here, so that an actor that is started again finds it
        for some in in_hand(chain(first, waiting), count * AHEAD):
            yield from _done(some, count, needs, (make, reference, version("blemish")))
    finally:
        if not was_running:
            ray.shutdown()


def in_hand(blocks: Iterable[Block], size: int) -> Iterator[list[Block]]:
    """The blocks in lists of at most `size`, each made when it is asked for."""
    waiting = iter(blocks)
    while some := list(islice(waiting, size)):
        yield some


def _done(
    blocks: Sequence[tuple[int, str]], count: int, needs: Mapping[str, float], arguments: tuple[Any, ...]
) -> Iterator[tuple[int, Files]]:
    """What so many actors make of these blocks."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"number": number, "block": _wrapped(text.encode())} for number, text in blocks]
    # Each block is a task of its own, so that no more than it is lost with an actor.
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    done = data.map(
        _Actor,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
        **needs,
    )
    for row in done.iter_rows():
        if row["error"]:
            kind, _, sentence = row["error"].partition(": ")
            raise getattr(errors, kind, BlemishError)(sentence)
        yield int(row["number"]), _files(row)


class _Actor:
    """Works on one block at a time."""

    def __init__(self, make: Make, shared: Any, expected: str) -> None:
        self._make, self._shared, self._version = make, shared, expected
        self._work: Work | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        error, found = "", dict[str, bytes]()
        try:
            found = dict(self._ready()(zlib.decompress(base64.b64decode(row["block"])).decode()))
        except BlemishError as raised:
            error = f"{type(raised).__name__}: {raised}"
        sizes = json.dumps([(name, len(content)) for name, content in found.items()])
        return {"number": row["number"], "error": error, "sizes": sizes, "content": b"".join([*found.values(), _END])}

    def _ready(self) -> Work:
        """What works; got ready when the first block comes."""
        if self._work is None:
            import ray

            if (here := version("blemish")) != self._version:
                where = ray.util.get_node_ip_address()
                raise ConfigError(
                    f"Blemish {here} is installed on {where}, and {self._version} where the job was started; "
                    f"expected the same on all machines: pip install blemish=={self._version}"
                )
            self._work = self._make(ray.get(self._shared))
        return self._work


def _wrapped(content: bytes) -> str:
    """Lists of names are alike, and shrink to a tenth."""
    return base64.b64encode(zlib.compress(content)).decode()


def _files(row: Mapping[str, Any]) -> Files:
    """The contents in an actor's answer."""
    found, at = dict[str, bytes](), 0
    for name, size in json.loads(row["sizes"]):
        found[name] = row["content"][at : at + size]
        at += size
    return found


def _check_answers(address: str) -> None:
    """Nothing, if somebody answers at HOST:PORT: Ray itself is slow to load, tries for long, and ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), REACHED_IN).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, error) from error


def _connect(cluster: Cluster) -> None:
    # Each actor computes with the threads it was given, and nobody reads what Ray says of itself.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray
    import ray.data  # before, because it decides anew what is said

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster.address:
        options["address"] = cluster.address
    else:
        options |= {"address": "local", "include_dashboard": False}
    try:
        ray.init(**options)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise _unreachable(cluster.address, error) from error


def _unreachable(address: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:300]
    return ConfigError(
        f'no Ray cluster can be reached at "{address or "local"}" ({reason}); start one with ray start --head or '
        "ray up, give its address with --address, or leave --address out to use this machine alone."
    )


def _size(cluster: Cluster, there: Mapping[str, float]) -> tuple[int, dict[str, float]]:
    """How many actors, and what each needs."""
    gpus, processors = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    if cluster.device.startswith("cuda") and not gpus:
        raise ConfigError(f'--device is "{cluster.device}", and the cluster has no GPU; expected auto or cpu.')
    uses_gpus = gpus > 0 and cluster.device != "cpu"
    room = gpus if uses_gpus else processors
    if not room or cluster.actors > room:
        raise ConfigError(
            f"--actors is {cluster.actors}, and the cluster has {count_of(processors, 'processor')} and "
            f"{count_of(gpus, 'GPU')}; expected at most {room}, one for each."
        )
    return cluster.actors or room, {"num_gpus": 1.0} if uses_gpus else {"num_cpus": 1.0}
