import numpy as np
import pytest

from metrics.cases import brute_aupimo, evaluation, likely_maps, values


@pytest.mark.parametrize("mode", ["exact", "streaming"])
@pytest.mark.parametrize("decimals", [3, 9])
def test_every_picture_by_itself(mode, decimals):
    masks = np.zeros((8, 128, 128), bool)
    for index in range(3):
        masks[index, 20 : 30 + 9 * index, 30:50] = True
        masks[index, 90:95, 90:99] = True
    maps = np.round(likely_maps(masks, seed=3), decimals)
    assert 0.05 < brute_aupimo(maps, masks) < 0.95
    assert values(maps, masks, mode)["aupimo"] == pytest.approx(brute_aupimo(maps, masks), abs=2e-4)


def test_nothing_to_compare_with():
    masks = np.zeros((2, 4, 4), bool)
    masks[:, 0, 0] = True
    assert evaluation(masks, masks).compute().undefined["part"]["aupimo"] == "there are no good pictures with maps"


def test_good_pictures_of_several_sizes():
    masks = [np.eye(4, dtype=bool), np.zeros((4, 4), bool), np.zeros((5, 5), bool)]
    assert "2 sizes" in evaluation(masks, masks).compute().undefined["part"]["aupimo"]
