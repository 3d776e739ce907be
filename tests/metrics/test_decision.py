from blemish.metric import Options
from metrics.cases import images_only

SCORES, LABELS = [0.1, 0.2, 0.5, 0.9, 0.4, 0.5, 0.8], [0, 0, 0, 0, 1, 1, 1]


def test_a_score_at_the_threshold_passes():
    found = images_only(SCORES, LABELS, options=Options(thresholds={"part": 0.5})).metrics["part"]
    counts = [found[name] for name in ("true_rejects", "false_rejects", "misses", "true_passes")]
    assert counts == [1, 1, 2, 3]
    rates = [found[name] for name in ("precision", "recall", "false_reject_rate", "miss_rate")]
    assert rates == [1 / 2, 1 / 3, 1 / 4, 2 / 3]


def test_one_threshold_for_all_categories():
    found = images_only(SCORES, LABELS, options=Options(thresholds={"": 0.5, "other": 9})).metrics["part"]
    assert found["false_rejects"] == 1


def test_nothing_rejected():
    results = images_only(SCORES, LABELS, options=Options(thresholds={"": 2}))
    assert results.undefined["part"]["precision"] == "no picture is rejected at the threshold"
    assert results.metrics["part"]["miss_rate"] == 1


def test_left_out_without_a_threshold():
    results = images_only(SCORES, LABELS)
    assert not {"recall", "misses"} & (results.metrics["part"].keys() | results.undefined["part"].keys())


def test_each_rate_needs_only_the_pictures_it_counts():
    good = images_only([0.1, 0.9], [0, 0], options=Options(thresholds={"": 0.5}))
    assert good.metrics["part"]["false_reject_rate"] == 0.5
    assert good.undefined["part"]["miss_rate"] == "there are no defective pictures"
    bad = images_only([0.1, 0.9, 0.8], [1, 1, 1], options=Options(thresholds={"": 0.5}))
    assert bad.metrics["part"]["miss_rate"] == 1 / 3
    assert bad.metrics["part"]["precision"] == 1
    assert bad.undefined["part"]["false_reject_rate"] == "there are no good pictures"
