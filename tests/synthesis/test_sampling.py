import numpy as np
import pytest

from blemish.errors import ConfigError
from blemish.synthesis.samplers import SOLVERS
from blemish.synthesis.sampling import LADDER, Drawing, changed, class_of, draw, ladder, parse_strength
from untrained import exact, untrained


@pytest.fixture(scope="module")
def model():
    return untrained("a", "b", grey=("b",), classifier=True)


def drawn(*given, **named):
    """The pictures alone, in the order of their numbers."""
    return list(dict(draw(*given, **named)).values())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_picture_does_not_depend_on_what_else_is_drawn(model, solver):
    drawing = exact(solver=solver, steps=4)
    together = dict(draw(model, 0, range(6, 10), drawing))
    assert list(together) == [6, 7, 8, 9]
    for number, one in together.items():
        (other,) = drawn(model, 0, [number], drawing)
        assert one.strength == other.strength
        np.testing.assert_array_equal(one.picture, other.picture)
        np.testing.assert_array_equal(one.confidence, other.confidence)
    assert len({one.picture.tobytes() for one in together.values()}) == 4


def test_strengths_are_drawn_from_the_span_one_for_each_picture(model):
    found = [one.strength for one in drawn(model, 0, range(40), exact(steps=1, strength=(0.1, 0.2)))]
    assert 0.1 <= min(found) < 0.12
    assert 0.18 < max(found) <= 0.2
    assert len(set(found)) == 40


def test_the_twin_is_the_picture_of_strength_0(model):
    """The mask is where a picture differs from the one with the same number and no strength."""
    plain = drawn(model, 0, range(4), exact(strength=(0.0, 0.0), steps=5))
    strong = drawn(model, 0, range(4), exact(strength=(0.3, 0.3), steps=5))
    for one, other in zip(strong, plain, strict=True):
        # Alone, it may be rounded otherwise than as a twin: by one grey level here and there.
        np.testing.assert_allclose(one.confidence, changed(one.picture, other.picture, 16), atol=0.03)
        assert not other.mask.any()
        assert other.surety == 0
    assert any(one.mask.any() for one in strong)


def test_more_strength_changes_more(model):
    shares = [
        np.mean([one.confidence.mean() for one in drawn(model, 0, range(6), exact(strength=(s, s), steps=5))])
        for s in (0.0, 0.05, 0.2, 0.8)
    ]
    assert shares[0] == 0
    assert shares == sorted(shares)


def test_categories_differ_and_grey_ones_have_no_colour(model):
    coloured, grey = (drawn(model, label, [0], exact(steps=3))[0].picture for label in (0, 1))
    assert (grey == grey[:, :, :1]).all()
    assert not (coloured == coloured[:, :, :1]).all()


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_pictures_that_are_started_from_real_ones_stay_near_them(model, solver):
    real = np.full((16, 16, 3), 200, np.uint8)
    near, far = (
        [
            np.abs(one.picture.astype(int) - 200).mean()
            for one in drawn(model, 0, [0], exact(solver=solver, depth=depth, strength=(0.0, 0.0)), lambda number: real)
        ]
        for depth in (0.03, 1.0)
    )
    assert max(near) < 40 < min(far)


def test_guidance_needs_a_classifier_and_changes_the_pictures(model):
    plain, guided = (drawn(model, 0, [0], exact(steps=3, guidance=scale))[0].picture for scale in (0.0, 5.0))
    assert (plain != guided).any()
    with pytest.raises(ConfigError, match="--guidance is 1, and this model has no classifier"):
        drawn(untrained("a"), 0, [0], exact(guidance=1.0))


def test_confidence_is_half_where_the_change_is_the_least_that_counts():
    picture = np.zeros((64, 64, 3), np.uint8)
    twin = picture.copy()
    twin[:, 32:, 1] = 16
    confidence = changed(picture, twin, 16)
    assert confidence[:, 40:] == pytest.approx(0.5)
    assert (confidence[:, :24] == 0).all()
    assert ((changed(picture, twin, 15) >= 0.5)[:, 33:]).all()
    assert not (changed(picture, twin, 17) >= 0.5).any()


def test_the_ladder_begins_with_good_pictures_and_keeps_columns(model):
    sheet = ladder(model, [0], 3, LADDER, exact(steps=3))
    assert sheet.shape == (16 * len(LADDER), 16 * 3, 3)
    good = drawn(model, 0, range(3), exact(strength=(0.0, 0.0), steps=3))
    _nearly(sheet[:16], np.concatenate([one.picture for one in good], axis=1))
    strong = drawn(model, 0, range(3), exact(strength=(0.4, 0.4), steps=3))
    _nearly(sheet[-16:], np.concatenate([one.picture for one in strong], axis=1))


def _nearly(one: np.ndarray, other: np.ndarray) -> None:
    """Equal up to a grey level: arithmetic rounds otherwise for other sizes of a batch."""
    assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strength": (-0.1, 0.2)}, "--strength is -0.1:0.2; expected LOW:HIGH between 0"),
        ({"strength": (0.2, 0.1)}, "--strength is 0.2:0.1"),
        ({"strength": (0.1, 50.0)}, "--strength is 0.1:50"),
        ({"strength": (float("nan"), 0.2)}, "--strength is nan"),
        ({"solver": "euler"}, 'no solver named "euler"'),
        ({"steps": 0}, "--steps is 0"),
        ({"steps": -5, "solver": "dpm"}, "--steps is -5; expected 1 to 1000"),
        ({"steps": 1001, "solver": "dpm"}, "--steps is 1001"),
        ({"steps": 999}, "--steps is 999"),
        ({"guidance": -1.0}, "--guidance is -1"),
        ({"depth": 0.0}, "--depth is 0"),
        ({"least_change": 0}, "--least-change is 0"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_drawings_without_sense_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Drawing(**fields)


def test_a_category_that_the_model_does_not_know_is_named(model):
    with pytest.raises(ConfigError, match='no category named "c"'):
        class_of(model, "c")
    with pytest.raises(ConfigError, match="Known: a, b"):
        class_of(model, "")
    assert class_of(untrained("only"), "") == 0


@pytest.mark.parametrize("text", ["a", "0.1:b", ":"])
def test_strengths_that_are_no_numbers_are_refused(text):
    with pytest.raises(ConfigError, match="--strength is"):
        parse_strength(text)
