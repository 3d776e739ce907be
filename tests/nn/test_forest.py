"""The boosted random forest, against margins of the published code's own XGBoost and against XGBoost itself."""

import numpy as np
import pytest
import torch
import xgboost
from sklearn.linear_model import LogisticRegression

from blemish.errors import ConfigError
from blemish.nn.forest import Forest, ForestConfig, platt

EVERYTHING = {"share": 1.0}


def waves(rows: int, phase: float) -> np.ndarray:
    return np.sin(0.1 * (np.arange(rows * 9) + 1) + phase).reshape(rows, 9).astype(np.float32)


ROWS, UNSEEN = waves(40, 5.0), waves(10, 6.0)
DEFECTIVE = np.arange(40) % 4 == 0


def margins(forest: Forest, rows: np.ndarray) -> np.ndarray:
    return forest(torch.from_numpy(rows)).numpy()


@pytest.mark.parametrize(
    ("seed", "weight", "first", "total", "unseen"),
    [
        (333, 4.0, [1.05035, -0.17166, -0.321748, -0.773061, 0.632173], -3.59323, [0.704096, -0.809136, -0.300162]),
        (333, 3.0, [0.733524, -0.353615, -0.454431, -0.841082, 0.376193], -10.4686, [0.47761, -0.902501, -0.43141]),
        (576, 4.0, [1.01785, -0.283006, -0.279531, -0.76392, 0.644598], -4.00575, [0.735965, -0.835332, -0.30629]),
    ],
)
def test_margins_are_those_of_the_published_code(seed, weight, first, total, unseen):
    forest = Forest.grown(ROWS, DEFECTIVE, weight, seed, ForestConfig())
    found = margins(forest, ROWS)
    np.testing.assert_allclose(found[:5], first, rtol=1e-4)
    np.testing.assert_allclose(found.sum(), total, rtol=1e-4)
    np.testing.assert_allclose(margins(forest, UNSEEN)[:3], unseen, rtol=1e-4)
    assert forest.value.shape == (2000, 63)


def test_good_rows_first_as_segad_gives_them():
    order = np.r_[np.flatnonzero(~DEFECTIVE), np.flatnonzero(DEFECTIVE)]
    forest = Forest.grown(ROWS[order], DEFECTIVE[order], 4.0, 333, ForestConfig())
    expected = [0.424383, -0.130311, -0.489663, -0.810543, 0.627365]
    np.testing.assert_allclose(margins(forest, ROWS)[:5], expected, rtol=1e-4)


ONE_ROUND = ([0.24, 0, 0.2, -0.272727, 0.2], -2.02909, [0.2, -0.272727, -0.272727, 0, -0.2])
TEN_ROUNDS = (
    [0.675941, -0.685305, -0.397715, -0.996782, 0.931211],
    -13.3618,
    [0.501009, -1.1043, -0.0477623, -0.338223, -1.11176],
)
HEAVIER = (
    [1.07717, -0.730431, -0.138396, -1.01441, 1.20518],
    -6.63322,
    [0.920513, -1.06613, 0.0138861, -0.191222, -0.963134],
)
HEAVIER_ONE = (
    [0.532266, 0.181746, 0.489353, -0.0454332, 0.489353],
    8.57879,
    [0.489353, -0.0454332, -0.0454332, 0.181746, 0.0356191],
)


@pytest.mark.parametrize("trees", [1, 4])
@pytest.mark.parametrize(
    ("weight", "rounds", "expected"),
    [(3.0, 1, ONE_ROUND), (3.0, 10, TEN_ROUNDS), (4.0, 1, HEAVIER_ONE), (4.0, 10, HEAVIER)],
)
def test_without_sampling_a_round_is_one_tree_however_many_there_are(trees, weight, rounds, expected):
    config = ForestConfig(trees=trees, rounds=rounds, **EVERYTHING)
    forest = Forest.grown(ROWS, DEFECTIVE, weight, 0, config)
    first, total, unseen = expected
    np.testing.assert_allclose(margins(forest, ROWS)[:5], first, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(margins(forest, ROWS).sum(), total, rtol=1e-4)
    np.testing.assert_allclose(margins(forest, UNSEEN)[:5], unseen, rtol=1e-4, atol=1e-6)


def test_missing_values_go_to_the_better_side():
    rows = ROWS.copy()
    rows[np.arange(40) % 3 == 0, 2] = np.nan
    rows[np.arange(40) % 5 == 1, 0] = np.nan
    forest = Forest.grown(rows, DEFECTIVE, 3.0, 0, ForestConfig(trees=1, **EVERYTHING))
    expected = [0.792355, -1.18759, -0.985275, -0.641744, 1.20283]
    np.testing.assert_allclose(margins(forest, rows)[:5], expected, rtol=1e-4)
    np.testing.assert_allclose(margins(forest, rows).sum(), -16.6136, rtol=1e-4)


def test_torch_says_what_xgboost_says_of_rows_with_gaps():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(300, 7)).astype(np.float32)
    rows[draw.random(rows.shape) < 0.1] = np.nan
    defective = np.nan_to_num(rows[:, 0] * rows[:, 1]) > 0.2
    config = ForestConfig(trees=10, rounds=4)
    parameters = {
        "objective": "binary:logitraw", "num_parallel_tree": 10, "max_depth": 5, "learning_rate": 0.3,
        "subsample": 0.6, "colsample_bytree": 0.6, "colsample_bynode": 0.6, "reg_alpha": 1.0,
        "scale_pos_weight": 2.0, "seed": 5,
    }  # fmt: skip
    theirs = xgboost.train(parameters, xgboost.DMatrix(rows, label=defective.astype(np.float32)), num_boost_round=4)
    ours = Forest.grown(rows, defective, 2.0, 5, config)
    new = np.concatenate([draw.normal(size=(100, 7)), np.full((1, 7), np.nan)]).astype(np.float32)
    np.testing.assert_allclose(margins(ours, new), theirs.predict(xgboost.DMatrix(new), output_margin=True), atol=1e-5)
    gains = theirs.get_score(importance_type="total_gain")
    expected = np.array([gains.get(f"f{number}", 0.0) for number in range(7)])
    np.testing.assert_allclose(ours.gain, expected / expected.sum(), atol=1e-4)


def test_contributions_add_up_and_name_the_feature_that_decided():
    rows = np.random.default_rng(1).normal(size=(200, 5)).astype(np.float32)
    forest = Forest.grown(rows, rows[:, 3] > 0.5, 2.0, 0, ForestConfig(trees=10))
    tensor = torch.from_numpy(rows)
    parts = forest.contributions(tensor)
    torch.testing.assert_close(parts.sum(1) + forest.start + forest.value[:, 0].sum(), forest(tensor))
    assert (parts[rows[:, 3] > 1].argmax(1) == 3).all()
    assert int(forest.gain.argmax()) == 3


def test_two_hundred_trees_a_round_shrink_like_one():
    few, many = (Forest.grown(ROWS, DEFECTIVE, 3.0, 1, ForestConfig(rounds=1, trees=n)) for n in (1, 200))
    one, other = (np.abs(margins(forest, ROWS)).max() for forest in (few, many))
    assert 0.3 < other / one < 3


def test_platt_is_logistic_regression_with_softened_targets():
    draw = np.random.default_rng(2)
    scores = draw.normal(size=60).astype(np.float32)
    defective = scores + draw.normal(size=60) > 0.5
    slope, offset = platt(scores, defective)
    bad, good = defective.sum(), (~defective).sum()
    target = np.where(defective, (bad + 1) / (bad + 2), 1 / (good + 2))
    # scikit-learn takes no soft targets: each row twice, once for each class, weighted.
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    oracle.fit(np.r_[scores, scores][:, None], np.r_[np.ones(60), np.zeros(60)], np.r_[target, 1 - target])
    np.testing.assert_allclose([slope, offset], [oracle.coef_[0, 0], oracle.intercept_[0]], rtol=1e-3)
    assert platt(-scores, defective)[0] == 0
    assert np.isfinite(platt(np.where(defective, 9.0, -9.0), defective)).all()


@pytest.mark.parametrize(
    ("name", "value"), [("rounds", 0), ("share", 0.0), ("share", 1.5), ("depth", 20), ("sparsity", -1.0)]
)
def test_impossible_forests_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"--{name}"):
        ForestConfig(**{name: value})
