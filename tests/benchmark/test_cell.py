"""One cell, in this process."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

import textures
from blemish import detector
from blemish.benchmark import Cell, Grid, cell, cells_of
from blemish.headers import from_plain


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cell]:
    """A cell that was fitted and scored."""
    root = textures.write(tmp_path_factory.mktemp("data"), train=12)
    (own,) = cells_of(Grid(data=(root,), preset="tiny", device="cpu", protocol="ader"))
    folder = tmp_path_factory.mktemp("cell")
    cell.fit(folder, own)
    cell.score(folder, own)
    return folder, own


def test_a_cell_comes_back_from_its_file(done: tuple[Path, Cell]) -> None:
    again = from_plain(Cell, json.loads(json.dumps(asdict(done[1]))))
    assert again == done[1]
    assert (again.folder, again.scores) == (done[1].folder, done[1].scores)


def test_scores_are_those_of_the_same_by_hand(done: tuple[Path, Cell]) -> None:
    import blemish
    from blemish.metric import Options

    folder, own = done
    data = blemish.open_dataset("auto", own.data, seed=0)
    by_hand = blemish.score(
        blemish.load(folder / "detector.blemish", device="cpu"), data, options=Options(protocol="ader")
    )
    scores = json.loads((folder / own.scores).read_text())
    assert scores["metrics"] == by_hand.results.metrics
    assert scores["pictures"] == len(data.test)


def test_costs_are_measured(done: tuple[Path, Cell]) -> None:
    folder, own = done
    fit, scores = (json.loads((folder / name).read_text()) for name in ("fit.json", own.scores))
    assert 0.01 < fit["seconds"] < 300
    assert fit["size"] == (folder / "detector.blemish").stat().st_size
    assert 50e6 < fit["memory"] < 50e9
    assert 1e-5 < scores["seconds_per_picture"] < 10
    assert sorted(path.name for path in folder.iterdir()) == [
        "attempt.json", "detector.blemish", "fit.json", own.scores,
    ]  # fmt: skip


def test_killed_fit_goes_on_and_its_time_counts(
    done: tuple[Path, Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds were spent, of which six had been saved when it was killed; what came after is lost."""
    (tmp_path / "attempt.json").write_text(json.dumps({"began": 1000.0, "before": 5.0}))
    state = tmp_path / "detector.blemish.unfinished"
    state.write_bytes(b"")
    os.utime(state, (1006.0, 1006.0))
    seen = []
    patchcore = detector.find("patchcore")
    learn = patchcore.learn

    def learned(self: detector.Detector, *rest: object) -> None:
        seen.append(self.unfinished)
        learn(self, *rest)

    monkeypatch.setattr(patchcore, "learn", learned)
    cell.fit(tmp_path, done[1])
    assert seen == [state]
    assert not state.exists(), "it is finished"
    assert 11.0 < json.loads((tmp_path / "fit.json").read_text())["seconds"] < 300


def test_time_of_an_attempt_that_saved_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "attempt.json").write_text(json.dumps({"began": 1000.0, "before": 5.0}))
    assert cell._seconds_before(tmp_path, tmp_path / "missing") == 0.0


def test_a_test_set_that_can_hardly_be_read_has_no_time(done: tuple[Path, Cell], tmp_path: Path) -> None:
    """One of two pictures is damaged: the other only warms up."""
    import blemish

    data = blemish.open_dataset("auto", textures.write(tmp_path, train=2, test=1))
    data.test[:] = data.test[:2]
    data.test[1].path.write_bytes(b"no picture")
    predictor = blemish.load(done[0] / "detector.blemish", device="cpu")
    assert cell._time_of_one(predictor, data) == 0.0
