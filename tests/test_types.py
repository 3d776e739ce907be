import math

import numpy as np
import pytest

from blemish.errors import ConfigError
from blemish.types import Calibration, Decider, Policy, good_pictures_for, pool


def calibration(*scores: float) -> Calibration:
    return Calibration(tuple(sorted(scores)), tuple(sorted(scores)))


@pytest.mark.parametrize(
    ("count", "rate", "value", "promised", "is_kept"),
    [
        (99, 0.01, 99, 0.01, True),  # just enough: the largest of 99
        (98, 0.01, 98, 1 / 99, False),  # one too few
        (100, 0.01, 100, 0.01, True),
        (199, 0.01, 198, 0.01, True),  # twice as many: the second largest
        (999, 0.005, 995, 0.005, True),
        (19, 0.05, 19, 0.05, True),
        (1, 0.01, 1, 0.5, False),
        (9, 0.3, 7, 0.3, True),
    ],
)
def test_threshold_is_the_split_conformal_one(count, rate, value, promised, is_kept):
    threshold = calibration(*range(1, count + 1)).threshold(rate)
    assert threshold.value == value
    assert threshold.promised == pytest.approx(promised)
    assert threshold.is_kept == is_kept
    assert threshold.good_pictures == count


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001])
def test_good_pictures_for_is_the_least_that_keeps_the_promise(rate):
    needed = good_pictures_for(rate)
    assert calibration(*range(needed)).threshold(rate).is_kept
    assert needed == 1 or not calibration(*range(needed - 1)).threshold(rate).is_kept


def test_promise_holds_on_average_over_many_draws():
    random = np.random.default_rng(0)
    rejected = []
    for _ in range(2000):
        threshold = calibration(*random.normal(size=39)).threshold(0.05).value
        rejected.append(np.mean(random.normal(size=50) > threshold))
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.005)


def test_sentence_says_what_would_do_when_there_are_too_few():
    sentence = calibration(*range(9)).threshold(0.01).sentence()
    assert "1 in 10 good parts" in sentence
    assert "To promise 1 in 100 takes 99 good pictures" in sentence
    assert "there are 9" in sentence


def test_decisions_around_both_thresholds():
    decider = Decider(calibration(*range(1, 100)), Policy(0.01, max_review=0.1))
    assert decider.reject.value == 99
    assert decider.review is not None
    assert decider.review.value == 90
    scores = [0, 90, 90.5, 99, 99.5, math.inf, math.nan]
    expected = ["good", "good", "review", "review", "defective", "defective", "defective"]
    assert [decider.decide(score) for score in scores] == expected


def test_calibrated_score_never_loses_order():
    decider = Decider(calibration(1.0, 2.0, 3.0), Policy(0.3))
    scores = np.concatenate([-np.logspace(6, -6, 200), np.logspace(-6, 6, 200)])
    calibrated = np.array([decider.calibrated(score) for score in scores])
    assert (np.diff(calibrated) > 0).all()
    assert calibrated.min() > 0
    assert calibrated.max() < 1
    assert decider.calibrated(decider.reject.value) == 0.5


def test_calibrated_score_where_all_good_scores_are_equal():
    decider = Decider(calibration(2.0, 2.0, 2.0), Policy(0.3))
    assert decider.calibrated(1.9) < decider.calibrated(2.0) == 0.5 < decider.calibrated(2.1)


@pytest.mark.parametrize("scores", [(28.5,), (28.4, 28.5), (-1.0, -1.0), (0.0,)])
def test_calibrated_score_is_no_step_where_there_are_few(scores):
    decider = Decider(calibration(*scores), Policy(0.3))
    threshold = decider.reject.value
    assert 0.2 < decider.calibrated(threshold - 0.02 * abs(threshold)) <= 0.5
    assert decider.calibrated(math.inf) == 1
    assert decider.calibrated(-math.inf) == 0


def test_a_grey_zone_is_said():
    sentences = Decider(calibration(*range(1, 100)), Policy(0.01, max_review=0.1)).sentences()
    assert sentences[1].startswith("to a person from threshold 90: at most 1 in 10 good parts")


def test_an_empty_calibration_is_refused():
    with pytest.raises(ValueError, match="one picture at least"):
        Calibration((), ())


def test_pooling_sorts_all_scores():
    assert pool([calibration(3, 1), calibration(2)]).image_scores == (1, 2, 3)


@pytest.mark.parametrize(("rate", "review"), [(0, None), (1, None), (-0.1, None), (0.1, 0.05), (0.1, 0.1), (0.1, 1)])
def test_rates_that_make_no_sense_are_refused(rate, review):
    with pytest.raises(ConfigError, match="expected a share"):
        Policy(rate, review)
