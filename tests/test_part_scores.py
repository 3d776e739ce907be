"""Parts seen in several views, from fitting to one decision for each."""

import json
import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import blemish
import textures
from blemish import scoring
from blemish.detector import infer
from blemish.errors import ConfigError
from blemish.judging import decide_parts, judge
from blemish.parts import Views
from blemish.predictions import find_pictures, part_table, predict, summary, write_parts
from blemish.types import Calibration, Decider, Policy, part_score, pool


def joined(data):
    """Parts of two views; defective ones are seen to be so in the second only."""

    def of(sample):
        number, kind = int(sample.path.stem), sample.path.parent.name
        if sample.split != "test":
            return replace(sample, part=f"train{number // 2}", view=f"C{number % 2 + 1}")
        first = kind == "good" and number < 4
        name = f"bad{number}" if first or kind == "blob" else f"good{number // 2}"
        view = "C1" if first or (kind == "good" and number % 2 == 0) else "C2"
        return replace(sample, part=name, view=view)

    kept = [sample for sample in data.samples if sample.path.parent.name != "blob" or int(sample.path.stem) < 4]
    return replace(data, samples=tuple(map(of, kept)))


@pytest.fixture(scope="module", params=["patchcore", "mvad"])
def fitted(request, tmp_path_factory):
    root = textures.write(tmp_path_factory.mktemp("parts"), train=24, test=8)
    data = joined(blemish.open_dataset("auto", root, validation_fraction=0.5))
    detector = blemish.create(request.param, preset="tiny", device="cpu").fit(data)
    path = root / "part.blemish"
    blemish.save(detector, path)
    return detector, blemish.load(path, device="cpu"), data


def test_parts_are_calibrated_by_their_highest_view(fitted):
    detector, predictor, data = fitted
    calibration = predictor.header.fitted.calibrations["cloth"]
    assert calibration == detector.fitted.calibrations["cloth"]
    judged = list(judge(predictor, data.validation, []))
    views = {}
    for each in judged:
        views.setdefault(each.sample.part, []).append(each.scored.image_score)
    for top, score in ((1, max), (2, fmean)):
        expected = sorted(map(score, views.values()))
        assert calibration.of_parts(top).image_scores == pytest.approx(expected, rel=1e-4)
    assert calibration.image_scores == pytest.approx(sorted(each.scored.image_score for each in judged), rel=1e-4)
    assert len(calibration.parts) < len(calibration.image_scores) <= 2 * len(calibration.parts)


def test_one_defective_view_makes_a_part_defective(fitted):
    _, predictor, data = fitted
    scored = [each.scored for each in judge(predictor, data.test, [])]
    parts = decide_parts(predictor, scored, Policy(0.2))
    assert len(parts) == 6
    for part in parts:
        assert part.is_anomalous == part.part.startswith("bad")
        assert len(part.views) == 2
        assert part.part_score == max(part.views.values())
        assert part.decision == ("defective" if part.is_anomalous else part.decision)
        if part.is_anomalous:
            assert part.worst_view == "C2"
    assert min(part.part_score for part in parts if part.is_anomalous) > max(
        part.part_score for part in parts if not part.is_anomalous
    )


def test_metrics_of_parts(fitted):
    _, predictor, data = fitted
    report = blemish.score(predictor, data)
    assert report.results.metrics["cloth"]["part_auroc"] == 1.0
    plain = report.plain()
    assert {part["part"] for part in plain["parts"]} == {sample.part for sample in data.test}
    assert plain["thresholds"]["cloth"]["part_reject"]["unit"] == "parts"
    assert json.dumps(plain)


def test_a_part_that_was_half_scored_is_looked_at_whole(fitted, monkeypatch, tmp_path):
    _, predictor, data = fitted
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(scoring, "SAVE_EVERY", -1.0)
    whole = {row.path: row.image_score for row in scoring.score(predictor, data).scored}
    add, seen = scoring._Work.add, []

    def dying(self, judged):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(judged.scored.path)
        add(self, judged)

    with monkeypatch.context() as patch:
        patch.setattr(scoring._Work, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            scoring.score(predictor, data, resume=True)
    assert len(seen) == 3
    report = scoring.score(predictor, data, resume=True)
    assert {row.path: row.image_score for row in report.scored} == pytest.approx(whole, rel=1e-4)
    scoring.forget(report)


def test_predicting_joins_views_and_tells_a_line_for_each_part(fitted, tmp_path):
    _, predictor, data = fitted
    for sample in data.test:
        (tmp_path / f"{sample.part}_{sample.view}.png").write_bytes(sample.path.read_bytes())
    pictures = find_pictures([tmp_path])
    views = Views(r"(?P<part>.+)_(?P<view>C\d+)")
    failures = []
    scored = [each.scored for each in predict(predictor, pictures, failures, category="cloth", views=views)]
    parts = decide_parts(predictor, scored)
    assert {row.part for row in parts} == {sample.part for sample in data.test}
    assert part_table(parts).row_count == len(parts) == 6
    assert summary(parts, "part").startswith("6 parts: ")
    assert summary(parts[:1], "part").startswith("1 part: ")
    write_parts(parts, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/parts.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == [row.part for row in parts]
    assert [len(line["views"]) for line in lines] == [2] * 6
    alone = [each.scored for each in predict(predictor, pictures, failures, category="cloth")]
    assert decide_parts(predictor, alone) == []
    assert not failures


def test_views_that_look_at_one_another_are_predicted_together(fitted):
    detector, predictor, _ = fitted
    images = np.random.default_rng(0).random((4, 3, 64, 64), dtype=np.float32)
    together = predictor.predict_parts(images, ["a", "a", "a", "b"])
    alone = predictor.predict(images)
    np.testing.assert_array_equal(together.anomaly_map, infer(detector, images, ["a", "a", "a", "b"]).anomaly_map)
    sees_parts = type(detector).__name__ == "MVAD"
    assert np.allclose(together.anomaly_map[:3], alone.anomaly_map[:3], atol=1e-6) != sees_parts
    np.testing.assert_allclose(together.anomaly_map[3], alone.anomaly_map[3], rtol=1e-4, atol=1e-6)
    with pytest.raises(blemish.errors.ShapeError, match="4 images and 2 names of parts"):
        predictor.predict_parts(images, ["a", "b"])


def test_the_promise_is_for_parts():
    parts = tuple((float(score), 0.0) for score in range(100, 199))
    calibration = Calibration(tuple(map(float, range(198))), (0.0,), parts)
    decider = Decider(calibration, Policy(0.01))
    assert decider.reject.value == 197
    assert decider.of_parts().reject.value == 198
    assert decider.of_parts().sentences() == [
        "threshold 198: at most 1 in 100 good parts is expected above it (99 good parts held out of training)."
    ]
    half = replace(decider, policy=Policy(0.01, top_views=2)).of_parts()
    assert half.reject.value == 99
    assert half.reject.unit == "parts"
    plain = Calibration((1.0, 2.0), (0.0,))
    assert plain.of_parts() == plain
    both = pool([calibration, plain])
    assert len(both.image_scores) == 200
    assert both.of_parts().image_scores[:2] == (1.0, 2.0)
    assert pool([plain, plain]).parts == ()


def test_top_views_keep_the_promise_for_parts_whatever_their_number():
    random = np.random.default_rng(0)
    level = random.normal(size=(4000, 1))  # views of a part are alike
    scores = level + random.normal(size=(4000, 5))
    held_out, fresh = scores[:399], scores[399:]
    calibration = Calibration(tuple(sorted(held_out.ravel())), (0.0,), tuple(map(tuple, held_out)))
    for top in range(1, 6):
        decider = Decider(calibration, Policy(0.05, top_views=top)).of_parts()
        stopped = np.mean([decider.decide(part_score(views, top)) == "defective" for views in fresh])
        assert 0.02 < stopped < 0.07
    of_pictures = Decider(calibration, Policy(0.05)).decide
    assert np.mean([of_pictures(views.max()) == "defective" for views in fresh]) > 0.1


def test_the_mean_of_several_views_decides_and_is_measured(fitted):
    _, predictor, data = fitted
    policy = Policy(0.2, top_views=2)
    report = blemish.score(predictor, data, policy=policy)
    scores, labels = [], []
    for part in report.parts:
        views = [row.image_score for row in report.scored if row.part == part.part]
        assert part.part_score == pytest.approx(fmean(views))
        scores.append(part.part_score)
        labels.append(part.is_anomalous)
    assert report.results.metrics["cloth"]["part_auroc"] == roc_auc_score(labels, scores)
    decider = predictor.decider("cloth", policy).of_parts()
    limit, highest = decider.reject.value, predictor.decider("cloth", Policy(0.2)).of_parts().calibration.image_scores
    assert sum(decider.calibration.image_scores) < sum(highest)
    assert report.plain()["thresholds"]["cloth"]["part_reject"]["value"] == limit


def test_a_view_whose_score_is_no_number_makes_its_part_no_good():
    assert math.isnan(part_score([0.1, math.nan, 0.2], 2))
    assert Decider(Calibration((1.0,), (0.0,), ((1.0, 0.0),)), Policy()).of_parts().decide(math.nan) == "defective"
    with pytest.raises(ConfigError, match="--top-views is 0; expected 1"):
        Policy(top_views=0)
