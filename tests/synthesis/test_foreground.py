from dataclasses import replace

import numpy as np
import pytest

from blemish.errors import ConfigError
from blemish.synthesis.foreground import RECIPES, Threshold, apply, foreground


def disc() -> np.ndarray:
    """The toy of the reference's run."""
    down, across = np.ogrid[:64, :64]
    inside = (down - 30) ** 2 + (across - 34) ** 2 < 18**2
    picture = np.where(inside[:, :, None], (200.0, 90.0, 220.0), (60.0, 170.0, 40.0))
    picture = picture + 12 * np.sin(0.1 * np.arange(1, picture.size + 1) + 5.0).reshape(picture.shape)
    picture[28:30, 30:32] = 0
    picture[5, 5] = 255
    return np.clip(np.floor(picture), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("category", "count", "points"),
    [
        ("pill", 1990, [1, 1, 1, 1]), ("hazelnut", 4096, [1, 1, 1, 1]), ("bottle", 2882, [0, 1, 1, 0]),
        ("carpet", 4096, [1, 1, 1, 1]), ("pcb1", 1005, [1, 0, 0, 1]), ("candle", 2302, [1, 0, 1, 1]),
        ("capsules", 4096, [1, 1, 1, 1]), ("bracket_black", 1005, [1, 0, 0, 1]), ("tubes", 1006, [1, 0, 1, 1]),
        ("metal_plate", 2886, [0, 1, 1, 1]), ("01", 4096, [1, 1, 1, 1]), ("02", 4096, [1, 1, 1, 1]),
    ],
)  # fmt: skip
def test_recipes_see_what_the_reference_sees(category, count, points):
    recipe = RECIPES[category] or Threshold()
    # The reference's squares do not grow with the picture, which has 64 pixels a side here.
    fixed = replace(recipe, close=4 * recipe.close, open=4 * recipe.open)
    found = apply(fixed, disc()) if RECIPES[category] else foreground(disc(), category, "paper")
    assert found.sum() == count
    assert [found[30, 34], found[2, 2], found[5, 5], found[28, 30]] == [bool(point) for point in points]


def test_every_category_of_the_paper_has_a_recipe():
    assert len(RECIPES) == 15 + 12 + 6 + 3
    with pytest.raises(ConfigError, match="no recipe for the category mug"):
        foreground(disc(), "mug", "paper")


@pytest.mark.parametrize("bright", [True, False])
def test_unknown_parts_are_told_from_their_border(bright):
    down, across = np.ogrid[:128, :128]
    inside = (down - 60) ** 2 + (across - 70) ** 2 < 35**2
    values = np.where(inside == bright, 200, 40) + np.random.default_rng(0).normal(0, 8, (128, 128))
    picture = np.repeat(values.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    found = foreground(picture, "mug")
    assert (found == inside).mean() > 0.97


def test_textures_and_wrong_answers_give_the_whole_picture():
    texture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert foreground(texture, "mug").all()
    assert foreground(np.full((96, 96, 3), 90, np.uint8), "mug").all()
    assert foreground(texture, "bottle").all()
    assert not foreground(texture, "bottle", "paper").all()
    assert foreground(disc(), "mug", "whole").all()
