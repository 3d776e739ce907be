"""Disturbances of good pictures."""

import numpy as np

from blemish.synthesis.disturbances import disturb


def test_a_disturbance_changes_something_and_only_inside_the_chosen_components():
    draw = np.random.default_rng(0)
    image = draw.random((3, 64, 48)).astype(np.float32)
    labels = np.zeros((64, 48), np.uint8)
    labels[:, 24:] = 5
    kinds = set()
    for seed in range(60):
        found = disturb(image, labels, np.random.default_rng(seed))
        assert found.shape == image.shape
        assert 0 <= found.min() <= found.max() <= 1
        changed = (found != image).any(0)
        assert changed.any()
        kinds.add((changed[:, :24].any(), changed[:, 24:].any(), changed.mean() > 0.3))
    # Each component alone and both, by blur and by bars.
    assert kinds >= {(True, False, True), (False, True, True), (True, True, True), (True, False, False)}


def test_the_same_draw_gives_the_same_picture():
    image = np.random.default_rng(1).random((3, 40, 40)).astype(np.float32)
    labels = np.zeros((40, 40), np.uint8)
    one, other = (disturb(image, labels, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(one, other)
