import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import blemish
from blemish import judging, scoring
from blemish.artifact import Header, Predictor
from blemish.errors import DatasetError
from blemish.judging import Region, Scored, find_regions, from_line, judge
from blemish.types import Calibration, Decider, Fitted, Policy, Prediction, Preprocessing
from trees import BAD, GOOD, SIZE, grow, mvtec, picture


def predictor(run=None, categories=("cup",)) -> Predictor:
    """Scores brightness: good pictures stay below 0.65, the square of bad ones is at 0.94."""

    def brightness(batch: np.ndarray) -> Prediction[np.ndarray]:
        grey = batch.mean(axis=1)
        return Prediction(grey, grey.max(axis=(1, 2)))

    scores = tuple(np.linspace(0.5, 0.7, 19))
    calibrations = {category: Calibration(scores, scores) for category in categories}
    fitted = Fitted(Preprocessing(SIZE), calibrations, Policy(0.05), ())
    return Predictor(Header("patchcore", {}, fitted), run or brightness)


@pytest.fixture
def data(tmp_path):
    return blemish.open_dataset("auto", grow(tmp_path, mvtec("cup")))


def test_regions_are_in_pixels_of_the_file():
    anomaly_map = np.zeros((10, 20), np.float32)
    anomaly_map[2:4, 5:8] = 1
    anomaly_map[4, 8] = 3  # joined by a corner
    anomaly_map[9, 19] = 2
    big, small = find_regions(anomaly_map, 0.5, (100, 100))
    assert big.box == (25, 20, 45, 50)
    assert big.area == 7 * 50
    assert big.peak == 3
    assert small.box == (95, 90, 100, 100)
    assert find_regions(anomaly_map, 3, (100, 100)) == ()


def test_everything_is_judged_in_order(data):
    failures = []
    judged = list(judge(predictor(), data.test, failures))
    assert [item.sample for item in judged] == data.test
    assert failures == []
    for item in judged:
        assert (item.scored.decision == "defective") == item.sample.is_anomalous
        assert len(item.scored.regions) == int(bool(item.sample.is_anomalous))
        assert (item.scored.calibrated_score > 0.5) == (item.scored.decision == "defective")
    left, top, right, bottom = next(item.scored.regions[0].box for item in judged if item.scored.regions)
    assert (left, top, right, bottom) == (30, 10, 42, 22)


def test_score_measures_and_names(data):
    report = scoring.score(predictor(), data)
    assert report.results.metrics["cup"]["image_auroc"] == 1
    assert report.results.metrics["cup"]["pixel_auroc"] == pytest.approx(1, abs=1e-3)
    assert report.results.metrics["cup"]["miss_rate"] == 0
    assert len(report.scored) == len(data.test)
    plain = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert plain["metrics"]["cup"]["image_auroc"] == plain["mean"]["image_auroc"] == 1
    assert plain["thresholds"]["cup"]["reject"]["promised"] == pytest.approx(0.05)


def test_intervals_hold_the_value(data):
    from blemish.metric import Options

    results = scoring.score(predictor(), data, options=Options(resamples=50)).results
    low, high = results.intervals["cup"]["pixel_ap"]
    assert low <= results.metrics["cup"]["pixel_ap"] <= high


def test_a_test_set_of_good_pictures_only_still_gives_a_report(tmp_path):
    data = blemish.open_dataset("auto", grow(tmp_path, mvtec("cup", bad=0)))
    report = scoring.score(predictor(), data)
    assert "image_auroc" not in report.results.metrics["cup"]
    assert "defective" in report.results.undefined["cup"]["image_auroc"]
    assert len(report.scored) == 3


def test_unreadable_pictures_and_masks_are_named_and_the_rest_scored(data):
    bad = [sample for sample in data.test if sample.is_anomalous]
    bad[0].path.write_bytes(b"")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(bad[1].masks[0])
    report = scoring.score(predictor(), data)
    assert len(report.scored) == len(data.test) - 1
    reasons = [failure.reason for failure in report.failures]
    assert any("empty (0 bytes)" in reason for reason in reasons)
    assert any("expected the same size" in reason for reason in reasons)
    assert report.results.metrics["cup"]["image_auroc"] == 1


def test_nothing_to_score_is_said(tmp_path, data):
    only_train = blemish.open_dataset("auto", grow(tmp_path / "x", {f"train/good/{n}.png": GOOD for n in range(3)}))
    with pytest.raises(DatasetError, match="no labelled test pictures"):
        scoring.score(predictor(), only_train)
    for sample in data.test:
        sample.path.write_bytes(b"")
    with pytest.raises(DatasetError, match="none of 6 test pictures can be read"):
        scoring.score(predictor(), data)


def test_no_test_picture_moves_a_threshold(data):
    before = predictor().decider("cup").reject.value
    report = scoring.score(predictor(), data)
    assert report.deciders["cup"].reject.value == before


def test_an_unknown_category_goes_by_the_pooled_threshold(data):
    report = scoring.score(predictor(categories=("lid", "jar")), data)
    assert report.deciders["cup"].reject.good_pictures == 38
    assert {row.category for row in report.scored} == {""}


def test_a_score_that_is_no_number_is_defective_and_null(data):
    def broken(batch: np.ndarray) -> Prediction[np.ndarray]:
        return Prediction(np.full((len(batch), *SIZE), np.nan, np.float32), np.full(len(batch), np.nan, np.float32))

    report = scoring.score(predictor(broken), data)
    assert {row.decision for row in report.scored} == {"defective"}
    assert json.loads(report.scored[0].line())["image_score"] is None
    assert "image_auroc" in report.results.undefined["cup"]


def test_lines_hold_what_was_found(data):
    row = next(item.scored for item in judge(predictor(), data.test, []) if item.scored.regions)
    line = json.loads(row.line())
    assert set(line) >= {"path", "image_score", "calibrated_score", "decision", "regions", "category"}
    assert set(line["regions"][0]) == {"box", "area", "peak"}
    assert "\n" not in row.line()


class Killed(Exception):
    """Stands for the power going off."""


def test_a_killed_score_goes_on_where_it_was(tmp_path, monkeypatch):
    data = blemish.open_dataset("auto", grow(tmp_path, mvtec("cup", good=20, bad=20)))
    monkeypatch.setattr(judging, "BATCH", 4)
    monkeypatch.setattr(scoring, "SAVE_EVERY", 0.0)
    first_bad = next(sample for sample in data.test if sample.is_anomalous)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(first_bad.masks[0])
    whole = scoring.score(predictor(), data)
    assert len(whole.failures) == 1
    seen: list[int] = []

    def failing(batch: np.ndarray) -> Prediction[np.ndarray]:
        if len(seen) == 5:
            raise Killed
        seen.append(len(batch))
        grey = batch.mean(axis=1)
        return Prediction(grey, grey.max(axis=(1, 2)))

    with pytest.raises(Killed):
        scoring.score(predictor(failing), data, resume=True)
    assert sum(seen) == 20
    seen.clear()
    again = scoring.score(predictor(failing), data, resume=True)
    assert sum(seen) == 20
    assert again.results == whole.results
    assert again.scored == whole.scored
    assert again.failures == whole.failures
    kept = tmp_path / "cache" / "blemish" / "score"
    assert list(kept.iterdir()) == [again.progress]
    scoring.forget(again)
    assert not list(kept.iterdir())


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_damaged_progress_is_left_aside(data, monkeypatch, damage, caplog):
    monkeypatch.setattr(scoring, "SAVE_EVERY", 0.0)
    first = scoring.score(predictor(), data, resume=True)
    assert first.progress is not None
    for name in ("evaluation.safetensors", "scores.jsonl"):
        file = first.progress / name
        file.write_bytes(file.read_bytes()[:50] if damage is None else damage)
    again = scoring.score(predictor(), data, resume=True)
    assert again.scored == first.scored
    assert "starting anew" in caplog.text


def test_progress_that_cannot_be_kept_stops_nothing(data, monkeypatch, caplog):
    monkeypatch.setattr(scoring, "SAVE_EVERY", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    report = scoring.score(predictor(), data, resume=True)
    assert len(report.scored) == len(data.test)
    assert caplog.text.count("can't be kept") == 1


def test_pictures_that_were_learned_from_are_named(data):
    from blemish import report as reports
    from blemish.reading import digest

    known = next(sample for sample in data.test if not sample.is_anomalous)
    chosen = predictor()
    header = replace(chosen.header, fitted=replace(chosen.header.fitted, learned_from=(digest(known.path),)))
    report = scoring.score(Predictor(header, chosen._run), data)
    assert report.learned == (str(known.path),)
    assert any("1 good test picture was learned from" in note for note in reports.notes(report))
    assert scoring.score(chosen, data).learned == ()


def test_boxes_never_leave_the_picture():
    for grid in (224, 256, 300, 448):
        for size in (*range(1, 60), 204, 1013, 3999):
            anomaly_map = np.zeros((grid, grid), np.float32)
            anomaly_map[-3:, -5:] = anomaly_map[:2, :2] = 1
            for left, top, right, bottom in (found.box for found in find_regions(anomaly_map, 0.5, (size, size))):
                assert 0 <= left < right <= size
                assert 0 <= top < bottom <= size


def test_a_stopped_part_points_somewhere(data):
    def spread(batch: np.ndarray) -> Prediction[np.ndarray]:
        grey = batch.mean(axis=1)
        return Prediction(grey * 0.5, np.full(len(batch), 0.9, np.float32))

    for judged in judge(predictor(spread), data.test, []):
        assert judged.scored.decision == "defective"
        assert len(judged.scored.regions) == 1
        assert judged.scored.regions[0].peak == pytest.approx(judged.anomaly_map.max())


def test_unfinished_work_of_other_pictures_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "SAVE_EVERY", 0.0)
    data = blemish.open_dataset("auto", grow(tmp_path, mvtec("cup")))

    def failing(batch: np.ndarray) -> Prediction[np.ndarray]:
        raise Killed

    with pytest.raises(Killed):
        scoring.score(predictor(failing), data, resume=True)
    changed = data.test[0].path
    Image.fromarray(picture(BAD, "other")).resize((60, 44)).save(changed)
    report = scoring.score(predictor(), data, resume=True)
    assert len(report.scored) == len(data.test)


def test_rows_survive_their_own_lines():
    row = Scored("a.png", float("nan"), 0.5, "good", (Region((1, 2, 3, 4), 5, 6.5),), "cup", is_anomalous=False)
    back = from_line(row.line())
    assert back.regions == row.regions
    assert np.isnan(back.image_score)
    assert Decider(Calibration((1.0,), (1.0,)), Policy()).decide(back.image_score) == "defective"
