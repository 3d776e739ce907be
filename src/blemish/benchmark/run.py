"""Running cells: what is finished is taken as it is, the rest goes through processes, failures stop no other."""

import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from blemish import engine
from blemish.benchmark.cell import CELL, DETECTOR, FIT, Fit, Scores
from blemish.benchmark.grid import Cell
from blemish.engine import Cluster, Files, Work
from blemish.errors import BlemishError, OutputError
from blemish.files import check_writable, write_text
from blemish.headers import from_plain

_SHARED = ".shared"
_WORKER = "from blemish.benchmark.cell import main; main()"


@dataclass(frozen=True)
class Outcome:
    """What came of a cell."""

    cell: Cell
    folder: Path
    fit: Fit | None = None
    scores: Scores | None = None
    reason: str = ""
    """Why there are no scores."""
    was_there: bool = False
    """Whether it had been finished before."""


def run(cells: Sequence[Cell], out: Path, jobs: int = 1) -> Iterator[Outcome]:
    """What comes of each cell, as it comes.

    Args:
        cells: What to run.
        out: Each cell has a folder in `out/cells`.
        jobs: How many run at the same time; processors are shared out among them.

    Raises:
        OutputError: nothing can be written there.
    """
    check_writable(out / "cells" / "cell")
    running: set[subprocess.Popen[bytes]] = set()
    pool = ThreadPoolExecutor(jobs)
    futures: list[Future[Outcome]] = [pool.submit(_run_cell, cell, out / "cells", jobs, running) for cell in cells]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:  # also when the caller leaves, or is interrupted
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):  # a cell may be between its two processes
            for process in list(running):
                process.terminate()
            time.sleep(0.05)


def run_on(cluster: Cluster, cells: Sequence[Cell], out: Path) -> Iterator[Outcome]:
    """What comes of each cell, as it comes, where actors run them.

    Args:
        cluster: Where.
        cells: What to run.
        out: A folder that all machines see; each cell has a folder in `out/cells`.

    Raises:
        OutputError: nothing can be written there, or a machine does not see the folder.
    """
    place = (out / "cells").absolute()
    check_writable(place / "cell")
    token = uuid.uuid4().hex
    write_text(place / _SHARED, token)
    blocks = [(number, json.dumps(asdict(cell))) for number, cell in enumerate(cells)]
    for number, found in engine.spread(blocks, partial(_running, place, token), {}, cluster):
        reason, was_there = json.loads(found["outcome"])
        cell = cells[number]
        outcome = Outcome(cell, place / cell.folder, reason=reason)
        # What it came to is in its folder.
        yield outcome if reason else replace(_run_cell(cell, place, 1, set()), was_there=was_there)


def _running(place: Path, token: str, _: Files) -> Work:
    """What an actor does with a cell."""
    shared = place / _SHARED
    if not shared.is_file() or shared.read_text("utf-8") != token:
        raise OutputError(
            f"{place} on {platform.node()} is another folder than where the benchmark was started; expected --out to "
            "be on storage that all machines share."
        )

    def work(text: str) -> Files:
        outcome = _run_cell(from_plain(Cell, json.loads(text)), place, 1, set())
        return {"outcome": json.dumps((outcome.reason, outcome.was_there)).encode()}

    return work


def _run_cell(cell: Cell, place: Path, jobs: int, running: set[subprocess.Popen[bytes]]) -> Outcome:
    folder = place / cell.folder
    try:
        return _finish(cell, folder, jobs, running)
    except (BlemishError, OSError, ValueError, TypeError, KeyError) as error:  # a full disk, a damaged file
        return Outcome(cell, folder, reason=f"{type(error).__name__}: {error}; see {folder}")


def _finish(cell: Cell, folder: Path, jobs: int, running: set[subprocess.Popen[bytes]]) -> Outcome:
    was_there = (folder / cell.scores).exists()
    if not was_there:
        write_text(folder / CELL, json.dumps(asdict(cell), indent=2) + "\n")
        steps = [step for step, done in (("fit", folder / FIT), ("score", folder / cell.scores)) if not done.exists()]
        if not (folder / DETECTOR).exists() and "fit" not in steps:
            steps.insert(0, "fit")  # the artifact was deleted to save space
        for step in steps:
            if reason := _run_step(step, folder, jobs, running):
                return Outcome(cell, folder, reason=f"{step}: {reason}")
    fit, scores = (json.loads((folder / name).read_text("utf-8")) for name in (FIT, cell.scores))
    return Outcome(cell, folder, from_plain(Fit, fit), from_plain(Scores, scores), was_there=was_there)


def _run_step(step: str, folder: Path, jobs: int, running: set[subprocess.Popen[bytes]]) -> str:
    """Runs one process, which leaves what it says in a log; the reason if it fails, else nothing."""
    log = folder / f"{step}.log"
    # Threads of several jobs that wait for each other would slow all of them down.
    shared = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), "GOMP_SPINCOUNT": "0"} if jobs > 1 else {}
    with log.open("wb") as opened:
        process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-c", _WORKER, step, str(folder)],
            stdin=subprocess.PIPE,
            stdout=opened,
            stderr=subprocess.STDOUT,
            env=shared | os.environ,
        )
        running.add(process)
        # Its input stays open while this program lives; see `cell._leave_with_parent`.
        status = process.wait()
        running.discard(process)
        if process.stdin is not None:
            process.stdin.close()
    if status == 0:
        return ""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    if status < 0:
        return f"ended by signal {-status} (9 is often a lack of memory); see {log}"
    return f"{lines[-1] if lines else f'ended with status {status}'}; see {log}"
