"""Processes: what is finished stays, what fails is named, nothing outlives its parent."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import textures
from blemish import engine
from blemish.benchmark import Cell, Grid, cells_of, run, run_on
from blemish.errors import OutputError

SCORES = {"metrics": {"cloth": {"image_auroc": 0.75}}, "seconds_per_picture": 0.1, "memory": 1.0, "pictures": 3,
          "failures": [], "notes": []}  # fmt: skip
FIT = {"seconds": 2.0, "memory": 1.0, "gpu_memory": 0.0, "size": 9.0, "failures": []}


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    root = textures.write(tmp_path / "data", train=8)
    return Grid(data=(root,), preset="tiny", device="cpu", out=tmp_path / "runs")


def worker(place: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Puts a script in place of Python; its arguments are -c, the code, the step and the folder."""
    file = place / "worker.sh"
    file.write_text(f'#!/bin/sh\necho "$3" >> {place}/steps; echo "$OMP_NUM_THREADS" >> {place}/threads\n{script}\n')
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))
    return place / "steps"


def finishing(cells: list[Cell]) -> str:
    """A script that leaves what a cell leaves, as fast as can be."""
    names = " ".join({cell.scores for cell in cells})
    return (
        f"if [ $3 = fit ]; then touch $4/detector.blemish; echo '{json.dumps(FIT)}' > $4/fit.json; "
        f"else for name in {names}; do echo '{json.dumps(SCORES)}' > $4/$name; done; fi"
    )


def test_really_fits_and_scores_and_failures_stop_no_other(grid: Grid) -> None:
    (good,) = cells_of(grid)
    bad = replace(good, data="/nowhere")
    found = {outcome.cell.data: outcome for outcome in run([bad, good], grid.out)}
    scored, failed = found[good.data], found[bad.data]
    assert scored.fit is not None
    assert scored.scores is not None
    assert 0 <= scored.scores.metrics["cloth"]["image_auroc"] <= 1
    assert failed.scores is None
    assert failed.reason.startswith("fit: DatasetError: /nowhere does not exist; ")
    assert "Traceback" not in (failed.folder / "fit.log").read_text()


def test_finished_cells_are_not_run_again(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(replace(grid, seeds=(0, 1)))
    steps = worker(tmp_path, monkeypatch, finishing(cells))
    first = list(run(cells[:1], grid.out))
    assert steps.read_text().split() == ["fit", "score"]
    assert not first[0].was_there
    again = {outcome.cell.seed: outcome for outcome in run(cells, grid.out)}
    assert steps.read_text().split() == ["fit", "score"] * 2
    assert (again[0].was_there, again[1].was_there) == (True, False)
    assert again[0].scores == first[0].scores
    assert again[0].scores.metrics == SCORES["metrics"]


def test_actors_run_cells_in_a_folder_that_all_see(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(replace(grid, seeds=(0, 1)))
    steps = worker(tmp_path, monkeypatch, finishing(cells))
    list(run(cells[:1], grid.out))

    def here(blocks, make, shared, cluster):
        work = make(shared)
        yield from ((number, work(text)) for number, text in blocks)

    monkeypatch.setattr(engine, "spread", here)
    found = list(run_on(engine.Cluster(), cells, grid.out))
    assert [(outcome.was_there, outcome.reason) for outcome in found] == [(True, ""), (False, "")]
    assert found[1].scores is not None
    assert found[1].scores.metrics == SCORES["metrics"]
    assert len(steps.read_text().split()) == 4

    def elsewhere(blocks, make, shared, cluster):
        (grid.out / "cells/.shared").write_text("what another machine has there")
        yield from here(blocks, make, shared, cluster)

    monkeypatch.setattr(engine, "spread", elsewhere)
    with pytest.raises(OutputError, match="is another folder than where the benchmark was started"):
        list(run_on(engine.Cluster(), cells, grid.out))


def test_another_protocol_is_scored_without_another_fit(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,), (other,) = (cells_of(replace(grid, protocol=name)) for name in ("default", "ader"))
    steps = worker(tmp_path, monkeypatch, finishing([one]))
    list(run([one], grid.out))
    worker(tmp_path, monkeypatch, finishing([other]))
    assert [outcome.reason for outcome in run([other], grid.out)] == [""]
    assert steps.read_text().split() == ["fit", "score", "score"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -9 $$", "fit: ended by signal 9 (9 is often a lack of memory); see "),
        ("echo one; echo DatasetError: no pictures. >&2; echo; exit 2", "fit: DatasetError: no pictures.; see "),
        ("exit 3", "fit: ended with status 3; see "),
        ("exit 0", "FileNotFoundError: "),
    ],
)
def test_reasons(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str) -> None:
    worker(tmp_path, monkeypatch, script)
    (outcome,) = run(cells_of(grid), grid.out)
    assert outcome.scores is None
    assert outcome.reason.startswith(reason)
    assert outcome.folder.name in outcome.reason


def test_jobs_share_the_processors(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(replace(grid, seeds=(0, 1)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    waiting = f"touch {tmp_path}/here-$$; while [ $(ls {tmp_path}/here-* | wc -l) -lt 2 ]; do sleep 0.02; done; "
    steps = worker(tmp_path, monkeypatch, waiting + finishing(cells))
    assert all(outcome.scores for outcome in run(cells, grid.out, jobs=2)), "each waits until both are there"
    assert sorted(steps.read_text().split()) == ["fit", "fit", "score", "score"]
    assert (tmp_path / "threads").read_text().split() == ["4"] * 4


def test_leaving_early_ends_what_runs(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(replace(grid, seeds=(0, 1)))
    slow = f"case $4 in *seed1*) echo $$ > {tmp_path}/slow; exec sleep 60;; esac; "
    worker(tmp_path, monkeypatch, slow + finishing(cells))
    outcomes = run(cells, grid.out, jobs=2)
    assert next(outcomes).cell.seed == 0
    while not (tmp_path / "slow").exists():
        time.sleep(0.02)
    start = time.monotonic()
    outcomes.close()
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "slow").read_text()), 0)


def test_a_worker_ends_with_its_parent() -> None:
    code = "import time; from blemish.benchmark.cell import _leave_with_parent as leave; leave(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        process.stdin.close()
        assert process.wait(timeout=50) == 1
