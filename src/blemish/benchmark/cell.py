"""One cell, in a process of its own, which is told to fit or to score it, and its folder.

The folder holds the cell (`cell.json`); what comes of it is put there whole: `detector.blemish` and
`fit.json`, then the scores. A killed fit goes on where it stopped, and its time is the time of all
attempts, less what was lost of them.
"""

import itertools
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from blemish import artifact, judging, scoring
from blemish.benchmark.grid import Cell
from blemish.dataset import Dataset, open_dataset
from blemish.errors import BlemishError
from blemish.files import write_text
from blemish.headers import from_plain
from blemish.metric import Options
from blemish.types import Failure

CELL, FIT, DETECTOR = "cell.json", "fit.json", "detector.blemish"
TIMED = 100
"""Pictures that the time of one is taken from, at most."""
_WARM = 8  # pictures before the clock starts
_ATTEMPT = "attempt.json"


@dataclass(frozen=True)
class Fit:
    """What learning took."""

    seconds: float
    """Reading, learning and calibrating."""
    memory: float
    """Largest memory of the process, in bytes."""
    gpu_memory: float
    """The same of the GPU; 0 where there is none."""
    size: float
    """Bytes of the artifact."""
    failures: tuple[str, ...]
    """Pictures that could not be used, and why."""


@dataclass(frozen=True)
class Scores:
    """What came of a cell."""

    metrics: dict[str, dict[str, float]]
    """{category: {name: value}}."""
    seconds_per_picture: float
    """Reading, predicting and deciding, after the first pictures."""
    memory: float
    """Largest memory of the process, in bytes."""
    pictures: int
    """How many were scored."""
    failures: tuple[str, ...]
    """Pictures that could not be used, and why."""
    notes: tuple[str, ...]
    """What to know of the metrics."""


def fit(folder: Path, cell: Cell) -> None:
    """Learns, writes the artifact and what it took."""
    data = _open(cell)
    from blemish import detector

    kind = detector.find(cell.model)
    config = from_plain(type(detector.preset_of(kind, cell.model, "small")), dict(cell.config))
    learner = detector.create(cell.model, config=config, backbone_weights=cell.backbone_weights, device=cell.device)
    learner.unfinished = folder / f"{DETECTOR}.unfinished"
    before = _seconds_before(folder, learner.unfinished)
    write_text(folder / _ATTEMPT, json.dumps({"began": time.time(), "before": before}))
    start = time.perf_counter()
    learner.fit(data)
    seconds = before + time.perf_counter() - start
    artifact.save(learner, folder / DETECTOR)
    size = (folder / DETECTOR).stat().st_size
    done = Fit(seconds, _peak_memory(), _gpu_memory(), size, _reasons(learner.failures))
    write_text(folder / FIT, json.dumps(asdict(done)))
    learner.unfinished.unlink(missing_ok=True)


def score(folder: Path, cell: Cell) -> None:
    """Measures the artifact on the labelled test pictures."""
    predictor = artifact.load(folder / DETECTOR, device=cell.device)
    data = _open(cell)
    seconds = _time_of_one(predictor, data)
    report = scoring.score(predictor, data, options=Options(protocol=cell.protocol), mode=cell.mode, resume=True)
    scored = Scores(
        metrics=report.results.metrics,
        seconds_per_picture=seconds,
        memory=_peak_memory(),
        pictures=len(report.scored),
        failures=_reasons(report.failures),
        notes=tuple(report.results.notes),
    )
    write_text(folder / cell.scores, json.dumps(asdict(scored)))
    scoring.forget(report)


def _open(cell: Cell) -> Dataset:
    return open_dataset(cell.layout, cell.data, category=cell.categories, seed=cell.seed)


def _time_of_one(predictor: artifact.Predictor, data: Dataset) -> float:
    samples = [sample for sample in data.test if sample.is_anomalous is not None]
    rows = judging.judge(predictor, samples[: _WARM + TIMED], [])
    for _ in itertools.islice(rows, min(_WARM, len(samples) // 2)):
        pass
    start = time.perf_counter()
    timed = sum(1 for _ in rows)
    return (time.perf_counter() - start) / timed if timed else 0.0


def _seconds_before(folder: Path, unfinished: Path) -> float:
    """Time of earlier attempts that an unfinished state holds the fruit of."""
    attempt = folder / _ATTEMPT
    if not unfinished.exists() or not attempt.exists():
        return 0.0
    found = json.loads(attempt.read_text("utf-8"))
    return float(found["before"]) + max(0.0, unfinished.stat().st_mtime - float(found["began"]))


def _peak_memory() -> float:
    """The largest memory that this process had, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone, where the other counts what it was started from
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return 1024.0 * int(lines[0].split()[1]) if lines else 0.0
    try:
        import resource
    except ModuleNotFoundError:
        return 0.0
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _gpu_memory() -> float:
    import torch

    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0


def _reasons(failures: list[Failure]) -> tuple[str, ...]:
    return tuple(failure.reason for failure in failures)


def _leave_with_parent() -> None:
    """Ends this process when the one that started it has gone, so that no cell is worked on twice."""

    def wait() -> None:
        os.read(0, 1)  # nothing is ever written there, so this waits for its end
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Does what the arguments say; the last line on the error stream is the reason where it can't."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    _leave_with_parent()
    try:
        cell = from_plain(Cell, json.loads((folder / CELL).read_text("utf-8")))
        {"fit": fit, "score": score}[what](folder, cell)
    except BlemishError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(2)
