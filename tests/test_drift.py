from dataclasses import replace

import numpy as np
import pytest

from blemish.artifact import Header, Predictor
from blemish.command import say
from blemish.drift import compare, draw, population_stability, table
from blemish.errors import ConfigError
from blemish.server.record import Inspection
from blemish.types import Calibration, Fitted, Policy, Preprocessing

RANDOM = np.random.default_rng(0)
GOOD = RANDOM.normal(1, 0.1, 200)
CALIBRATION = Calibration(
    tuple(sorted(GOOD)),
    tuple(sorted(2 * GOOD)),
    appearance={name: tuple(sorted(0.5 * GOOD)) for name in ("brightness", "contrast", "sharpness", "warmth")},
)


def predictor(calibration=CALIBRATION) -> Predictor:
    fitted = Fitted(Preprocessing(), {"cup": calibration, "lid": calibration}, Policy(), ())
    return Predictor(Header("m", {}, fitted), lambda images: images)


def rows(count=150, category="cup", verdict=None, seed=1, **shift) -> list[Inspection]:
    draws = np.random.default_rng(seed).normal(1, 0.1, count)
    looks = {name: factor for name, factor in shift.items() if name != "image_score"}
    return [
        Inspection(
            category=category, image_score=value + shift.get("image_score", 0), map_maximum=2 * value, verdict=verdict,
            appearance={name: 0.5 * value + looks.get(name, 0) for name in CALIBRATION.appearance},
        )
        for value in draws
    ]  # fmt: skip


def states(found) -> dict[str, str]:
    return {one.quantity: one.state for one in found}


def test_the_index_is_that_of_its_formula():
    reference, recent = np.arange(1000.0), np.concatenate([np.arange(500.0), np.arange(500.0)])
    p, q = np.array([200.5] * 5 + [0.5] * 5) / 1005, np.full(10, 100.5) / 1005
    assert population_stability(reference, recent) == pytest.approx(np.sum((p - q) * np.log(p / q)))
    assert population_stability(np.ones(50), np.ones(50)) == 0


def test_what_is_like_the_calibration_is_stable():
    calls = [set(states(compare(predictor(), rows(seed=seed))).values()) for seed in range(30)]
    assert sum(found != {"stable"} for found in calls) <= 1


def test_a_darker_lamp_shows_as_brightness_alone():
    found = states(compare(predictor(), rows(brightness=-0.1)))
    assert found.pop("brightness") == "changed"
    assert set(found.values()) == {"stable"}


def test_rising_scores_show():
    found = {one.quantity: one for one in compare(predictor(), rows(image_score=0.1))}
    assert found["image_score"].state == "changed"
    assert found["image_score"].p_value < 1e-6
    assert found["image_score"].plain()["recent_median"] > found["image_score"].plain()["reference_median"]


def test_parts_known_to_be_bad_do_not_count():
    some = rows() + rows(verdict="defective", image_score=5)
    assert states(compare(predictor(), some))["image_score"] == "stable"
    some = rows() + rows(verdict="good", image_score=5)
    assert states(compare(predictor(), some))["image_score"] == "changed"


def test_categories_are_apart_and_few_values_say_nothing():
    found = compare(predictor(), rows(10, "cup") + rows(60, "lid", image_score=1))
    assert {one.state for one in found if one.category == "cup"} == {"too few"}
    assert states([one for one in found if one.category == "lid"])["image_score"] == "changed"
    assert all(one.plain()["psi"] is None for one in found if one.category == "cup")
    assert table(found).row_count == 12


def test_the_table_says_the_state_in_plain_words(capsys):
    say(table(compare(predictor(), rows(10, "cup"))))
    printed = capsys.readouterr().out
    assert "few" in printed
    assert "[" not in printed


def test_old_artifacts_compare_what_they_have():
    found = compare(predictor(replace(CALIBRATION, appearance={})), rows())
    assert set(states(found)) == {"image_score", "map_maximum"}


def test_it_is_drawn(tmp_path):
    found = compare(predictor(), rows(brightness=1))[1:3]
    draw(found, tmp_path / "drift.svg")
    assert (tmp_path / "drift.svg").stat().st_size > 9000
    with pytest.raises(ConfigError, match=r"expected a name ending in .png"):
        draw(found, tmp_path / "drift.gif")
