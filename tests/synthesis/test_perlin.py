import cv2
import numpy as np
import pytest

from blemish.synthesis.perlin import PIECES, Recipe, blend, few_pieces, perlin_mask, perlin_noise, rotate
from blemish.synthesis.sources import MADE, PATTERNS, WAYS, Foreign, Source, parse


def wave(*shape: int, offset: float) -> np.ndarray:
    return np.sin(0.1 * np.arange(1, np.prod(shape) + 1) + offset).reshape(shape)


@pytest.mark.parametrize(
    ("seed", "size", "grid", "absolute", "entries", "masked"),
    [
        (0, 256, (4, 8), 17399.3, {(85, 51): -0.571166, (3, 5): -0.0906224, (254, 253): 0.138736}, 3606),
        (1, 64, (1, 2), 704.512, {(21, 12): 0.139264, (32, 32): -0.279141, (62, 61): -0.101351}, 12),
        (None, 256, (4, 8), 16624.8, {(85, 51): -0.408069, (3, 5): 0.102098, (128, 128): 0}, 5914),
        (None, 32, (2, 4), 225.793, {(10, 6): -0.0206332, (30, 29): 0.281495, (0, 1): 0.0330608}, 35),
    ],
)
def test_noise_is_that_of_the_reference(seed, size, grid, absolute, entries, masked):
    nodes = (grid[0] + 1, grid[1] + 1)
    share = (wave(*nodes, offset=5.0) + 1) / 2 if seed is None else np.random.RandomState(seed).rand(*nodes)
    noise = perlin_noise((size, size), 2 * np.pi * share)
    assert np.abs(noise, dtype=np.float64).sum() == pytest.approx(absolute, rel=1e-5)
    for place, value in entries.items():
        assert noise[place] == pytest.approx(value, abs=2e-6)
    assert abs(np.count_nonzero(noise > 0.5) - masked) <= 1  # one value lies 1e-6 from the threshold
    assert not noise[:: size // grid[0], :: size // grid[1]].any()


@pytest.mark.parametrize(
    ("degrees", "entries", "masked"),
    [
        (30, {(0, 1): 0, (85, 51): -0.186426, (200, 60): 0.355104}, 4292),
        (-75, {(0, 1): 0, (85, 51): 0.482346, (200, 60): -0.24296}, 5643),
    ],
)
def test_turned_noise_is_nearly_that_of_the_reference(degrees, entries, masked):
    noise = perlin_noise((256, 256), np.pi * (wave(5, 9, offset=5.0) + 1))
    turned = rotate(noise, -degrees)  # the reference counts clockwise
    for place, value in entries.items():
        assert turned[place] == pytest.approx(value, abs=2e-2)
    assert np.count_nonzero(turned > 0.5) == pytest.approx(masked, rel=0.02)


@pytest.mark.parametrize(
    ("seed", "exponents", "masked"),
    [(0, (2, 3), 3606), (1, (1, 5), 3569), (2, (0, 3), 3818), (3, (4, 2), 3356), (4, (4, 0), 3040)],
)
def test_masks_are_those_of_the_reference(seed, exponents, masked):
    nodes = [2**exponent + 1 for exponent in exponents]
    noise = perlin_noise((256, 256), 2 * np.pi * np.random.RandomState(seed).rand(*nodes))
    assert abs(np.count_nonzero(noise > 0.5) - masked) <= 1


def test_masks_cover_a_twentieth():
    shares = [perlin_mask((256, 256), np.random.default_rng([7, number])).mean() for number in range(1500)]
    assert np.mean(shares) == pytest.approx(0.049, abs=0.004)
    assert np.mean(np.array(shares) == 0) == pytest.approx(0.043, abs=0.02)


def test_masks_of_a_few_pieces_have_few_and_small_ones_too():
    masks = [few_pieces((256, 256), np.random.default_rng([7, number])) for number in range(300)]
    counts = [cv2.connectedComponents(mask.astype(np.uint8))[0] - 1 for mask in masks]
    assert max(counts) <= PIECES
    assert len(set(counts)) >= PIECES
    areas = np.array([mask.sum() for mask in masks if mask.any()])
    assert np.mean(areas < 200) > 0.2
    assert np.mean(areas > 2000) > 0.1


@pytest.mark.parametrize("size", [(64, 96), (65, 79), (32, 32), (200, 700)])
def test_masks_have_any_size(size):
    masks = [perlin_mask(size, np.random.default_rng(number)) for number in range(20)]
    assert {mask.shape for mask in masks} == {size}
    assert any(mask.any() for mask in masks)


def test_blend_is_that_of_the_reference():
    clean = np.floor(127.5 * (1 + wave(8, 8, 3, offset=5.0))).astype(np.uint8)
    foreign = np.floor(127.5 * (1 + wave(8, 8, 3, offset=7.0))).astype(np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 1:5] = True
    made = blend(clean, foreign, 0.7 * mask)
    assert made.sum() == 25677
    assert [made[2, 1, 0], made[3, 3, 1], made[5, 4, 2], made[0, 0, 0]] == [68, 188, 202, 9]
    np.testing.assert_array_equal(made[~mask], clean[~mask])
    assert np.abs(blend(clean, clean, 0.7 * mask).astype(int) - clean).max() <= 1


PICTURES = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
EVERYWHERE = np.ones((4, 40, 48), bool)


def test_items_depend_on_their_key_alone_and_half_are_clean():
    recipe = Recipe(sources=parse("self,procedural"), seed=3)
    items = [recipe.item(PICTURES, EVERYWHERE, number % 4, (0, number)) for number in range(400)]
    again = recipe.item(PICTURES, EVERYWHERE, 1, (0, 257))
    np.testing.assert_array_equal(again.damaged, items[257].damaged)
    np.testing.assert_array_equal(again.mask, items[257].mask)
    assert np.mean([not item.source for item in items]) == pytest.approx(0.5, abs=0.08)
    assert {item.source for item in items} == {"", "self", "procedural"}
    for item in items:
        assert item.mask.any() == bool(item.source)
        changed = np.abs(item.damaged.astype(int) - item.clean).max(axis=2)
        assert changed[~item.mask].max() < max(8, 0.3 * changed.max())


def test_defects_lie_on_the_foreground():
    foregrounds = np.zeros((4, 40, 48), bool)
    foregrounds[:, :, 24:] = True
    recipe = Recipe(sources=parse("procedural"), clean_share=0.0)
    items = [recipe.item(PICTURES, foregrounds, 0, (number,)) for number in range(30)]
    assert not any(item.mask[:, :24].any() for item in items)
    assert all((item.damaged == item.clean)[:, :24].all() for item in items)  # soft edges end there, too
    assert sum(item.mask.any() for item in items) > 20


@pytest.mark.parametrize("name", MADE)
def test_made_sources_give_other_pictures(name):
    give, _ = MADE[name]
    made = [give(PICTURES, 1, np.random.default_rng(number)) for number in range(12)]
    assert all(picture.shape == (40, 48, 3) and picture.dtype == np.uint8 for picture in made)
    assert len({picture.tobytes() for picture in made}) >= 10  # some changes draw nothing
    assert all((picture != PICTURES[1]).any() for picture in made)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_ways_of_changing_keep_type_and_shape(way):
    for number in range(5):
        changed = way(PICTURES[0], np.random.default_rng(number))
        assert (changed.shape, changed.dtype) == (PICTURES[0].shape, np.uint8)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__.strip("_"))
def test_patterns_are_shares(pattern):
    made = pattern((33, 47), np.random.default_rng(0))
    assert made.shape == (33, 47)
    assert 0 <= made.min() <= made.max() <= 1


def test_only_what_changed_counts_as_damaged():
    recipe = Recipe(sources=parse("cutpaste"), clean_share=0.0, least_change=8)
    halves = np.zeros((1, 64, 64, 3), np.uint8)
    halves[:, :, 32:] = 250
    items = [recipe.item(halves, np.ones((1, 64, 64), bool), 0, (number,)) for number in range(20)]
    for item in items:
        changed = np.abs(item.damaged.astype(int) - item.clean).max(axis=2)
        np.testing.assert_array_equal(item.mask, changed >= max(8, 0.3 * changed.max()))
        assert (item.damaged == item.damaged[:, :, :1]).all()  # grey stays grey
    assert sum(item.mask.any() for item in items) == 20


def test_soft_edges_fade_and_count_where_they_show():
    source = Source("white", lambda pictures, *_: Foreign(np.full_like(pictures[0], 255)), opacity=(1.0, 1.0))
    black, everywhere = np.zeros((1, 128, 128, 3), np.uint8), np.ones((1, 128, 128), bool)
    levels = {}
    for soft in (0.0, 1.0):
        recipe = Recipe(sources=(source,), clean_share=0.0, soft=soft, least_change=8)
        items = [recipe.item(black, everywhere, 0, (number,)) for number in range(30)]
        levels[soft] = np.concatenate([item.damaged[:, :, 0].ravel() for item in items])
        for item in items:
            assert item.mask.any()
            assert item.damaged[:, :, 0].max() in (254, 255)
            assert item.damaged[:, :, 0][item.mask].min() >= 76  # three tenths of white
            assert item.damaged[:, :, 0][~item.mask].max() <= 77
    assert set(levels[0.0]) == {0, 255}
    between = (levels[1.0] > 20) & (levels[1.0] < 235)
    assert between.mean() > 0.3 * (levels[1.0] >= 235).mean()


def test_opacity_is_drawn_between_its_bounds():
    source = Source("sdas", lambda pictures, *_: Foreign(np.full_like(pictures[0], 255)), opacity=(0.5, 1.0))
    recipe = Recipe(sources=(source,), clean_share=0.0, soft=0.0)
    black = np.zeros((1, 64, 64, 3), np.uint8)
    items = [recipe.item(black, np.ones((1, 64, 64), bool), 0, (number,)) for number in range(200)]
    values = [int(item.damaged.max()) for item in items]
    assert all(len(np.unique(item.damaged[item.mask])) == 1 for item in items)
    assert 127 <= min(values) <= 133
    assert 250 <= max(values) <= 255
    assert np.mean(values) == pytest.approx(0.75 * 255, abs=8)


def test_weights_are_shares():
    recipe = Recipe(sources=parse("self=3,procedural=1"), clean_share=0.0)
    names = [recipe.item(PICTURES, EVERYWHERE, 0, (number,)).source for number in range(300)]
    assert names.count("self") == pytest.approx(225, abs=30)
    assert isinstance(recipe.sources[0], Source)


def test_damage_stays_where_its_source_is_abnormal():
    half = np.zeros((64, 64), bool)
    half[:, :32] = True
    source = Source("half", lambda pictures, index, draw: Foreign(np.full_like(pictures[index], 255), half))
    pictures, foregrounds = np.zeros((1, 64, 64, 3), np.uint8), np.ones((1, 64, 64), bool)
    recipe = Recipe(sources=(source,), clean_share=0.0)
    masks = [recipe.item(pictures, foregrounds, 0, (epoch,)).mask for epoch in range(20)]
    assert any(mask.any() for mask in masks)
    assert not any(mask[:, 32:].any() for mask in masks)
