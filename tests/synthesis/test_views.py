import numpy as np
import pytest

from blemish.synthesis.views import COLOUR, SHIFT, recoloured, view

DOWN, ACROSS = np.meshgrid(np.arange(64), np.arange(80), indexing="ij")
PICTURE = np.stack([DOWN * 3, ACROSS * 2, 100 + 40 * np.sin(DOWN / 4)], axis=2).clip(0, 255).astype(np.uint8)


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_views_differ_a_little_and_follow_their_draw():
    one, same, other = (view(PICTURE, 1.0, False, draw(seed)) for seed in (0, 0, 1))
    assert one.shape == PICTURE.shape
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, same)
    assert np.abs(one.astype(int) - other).mean() > 2


def test_without_strength_nothing_changes_but_mirroring():
    np.testing.assert_array_equal(view(PICTURE, 0.0, False, draw(0)), PICTURE)
    turned = {view(PICTURE, 0.0, True, draw(seed)).tobytes() for seed in range(30)}
    assert turned == {np.ascontiguousarray(PICTURE[::d, ::a]).tobytes() for d in (1, -1) for a in (1, -1)}


def test_a_defect_stays_in_every_view():
    dotted = PICTURE.copy()
    dotted[30:36, 38:44] = (255, 0, 0)
    for seed in range(30):
        with_defect, without = (view(picture, 1.0, False, draw(seed)) for picture in (dotted, PICTURE))
        assert (np.abs(with_defect.astype(int) - without).max(2) > 40).sum() >= 15
    reach = int(80 * SHIFT) + 6  # and it stays near its place
    changed = np.argwhere(np.abs(with_defect.astype(int) - without).max(2) > 40)
    assert np.abs(changed - (33, 41)).max() <= reach


def test_grey_stays_grey_and_colours_stay_within_their_share():
    grey = np.repeat(PICTURE[:, :, :1], 3, axis=2)
    assert np.ptp(view(grey, 1.0, False, draw(1)).astype(int), axis=2).max() == 0
    plain = np.full((8, 8, 3), 100, np.uint8)
    values = [recoloured(plain, COLOUR, 0.02, draw(seed))[0, 0, 0] for seed in range(200)]
    assert min(values) == pytest.approx(100 * (1 - COLOUR), abs=2)
    assert max(values) == pytest.approx(100 * (1 + COLOUR), abs=2)
