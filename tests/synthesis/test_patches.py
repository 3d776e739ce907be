import numpy as np
import pytest

from blemish.synthesis.patches import LEAST, MARGIN, clone, cut_paste, seamless
from blemish.synthesis.perlin import Recipe
from blemish.synthesis.sources import parse

DOWN, ACROSS = np.meshgrid(np.arange(96), np.arange(128), indexing="ij")
PICTURES = np.stack(
    [
        np.stack([DOWN * 2, ACROSS * 1.5, 60 + 50 * np.sin(DOWN / 5 + number)], axis=2).clip(0, 255).astype(np.uint8)
        for number in range(3)
    ]
)
EVERYWHERE = np.ones((96, 128), bool)


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_cut_paste_has_the_sizes_of_the_paper():
    shares = np.array([cut_paste(PICTURES, 0, EVERYWHERE, draw(seed)).mask.mean() for seed in range(300)])
    scars = shares < 0.012
    assert np.mean(scars) == pytest.approx(0.5, abs=0.15)
    # The border cuts some; a quarter of a rectangle stays at least, for the centre is on the picture.
    assert shares.max() < 0.17  # half a pixel of rim more
    assert shares[~scars].min() > 0.02 / 4 * 0.9


def test_what_is_pasted_is_from_elsewhere_in_the_picture():
    """Green says how far right a pixel was cut: constant shift inside of the patch."""
    patch = cut_paste(PICTURES, 0, EVERYWHERE, draw(3))
    inside = patch.mask & np.roll(patch.mask, 1, 1)
    steps = np.diff(patch.foreign[:, :, 1].astype(int), axis=1)[inside[:, 1:]]
    assert np.abs(np.median(steps) - 1.5) < 0.6
    assert np.abs(patch.foreign.astype(int) - PICTURES[0])[patch.mask].mean() > 3


def test_patches_have_their_centre_where_they_may():
    allowed = np.zeros_like(EVERYWHERE)
    allowed[40:50, 60:70] = True
    for make in (cut_paste, seamless):
        for seed in range(20):
            assert (make(PICTURES, 0, allowed, draw(seed)).mask & allowed).any()


def test_a_seamless_patch_has_no_seam_and_changes_nothing_around_it():
    for seed in range(20):
        patch = seamless(PICTURES, 0, EVERYWHERE, draw(seed))
        down, across = np.nonzero(patch.mask)
        assert patch.mask.sum() == (np.ptp(down) + 1) * (np.ptp(across) + 1)  # a rectangle
        assert min(np.ptp(down), np.ptp(across)) >= LEAST - 1
        assert down.min() >= MARGIN
        assert across.max() < 128 - MARGIN
        damaged = clone(PICTURES[0], patch.foreign, patch.mask, draw(seed))
        change = np.abs(damaged.astype(int) - PICTURES[0]).max(2)
        assert change[~patch.mask].max() <= 1
        rim = patch.mask & ~(np.roll(patch.mask, 1, 0) & np.roll(patch.mask, -1, 0))
        assert change[rim].max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (33, 200)])
def test_patches_fit_into_any_picture(size):
    pictures = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    for make in (cut_paste, seamless):
        masks = [make(pictures, 1, np.ones(size, bool), draw(seed)).mask for seed in range(20)]
        assert all(mask.any() for mask in masks)


@pytest.mark.parametrize("generator", ["cutpaste", "seamless"])
def test_items_of_a_generator_depend_on_their_key_alone(generator):
    recipe = Recipe(generator=generator, sources=parse("procedural"), clean_share=0.3)
    items = [recipe.item(PICTURES, np.stack([EVERYWHERE] * 3), number % 3, (0, number)) for number in range(40)]
    again = recipe.item(PICTURES, np.stack([EVERYWHERE] * 3), 1, (0, 31))
    np.testing.assert_array_equal(again.damaged, items[31].damaged)
    assert {item.source for item in items} == {"", generator}
    assert np.mean([not item.source for item in items]) == pytest.approx(0.3, abs=0.2)
    for item in items:
        changed = np.abs(item.damaged.astype(int) - item.clean).max(axis=2)
        assert (changed[item.mask] >= 8).all()


def test_grey_pictures_get_grey_defects():
    grey = np.repeat(PICTURES[:, :, :, 2:], 3, axis=3)
    for generator in ("cutpaste", "seamless"):
        recipe = Recipe(generator=generator, sources=parse("procedural"), clean_share=0.0)
        for number in range(10):
            item = recipe.item(grey, np.stack([EVERYWHERE] * 3), 0, (number,))
            assert np.ptp(item.damaged.astype(int), axis=2).max() <= 1
