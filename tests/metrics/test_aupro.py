import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.metric import Options
from metrics.cases import brute_aupro, maps_and_masks, values


@pytest.mark.parametrize("mode", ["exact", "streaming"])
@given(case=maps_and_masks(), limit=st.sampled_from([0.05, 0.3, 1.0]))
@settings(max_examples=60, deadline=None)
def test_every_threshold_and_region_by_itself(mode, case, limit):
    found = values(*case, mode, Options(aupro_limit=limit))
    assert found["aupro"] == pytest.approx(brute_aupro(*case, limit), abs=1e-6)


def test_regions_that_touch_at_a_corner_are_one():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 1:3, 1:3] = masks[0, 3:7, 3:7] = True
    maps = np.zeros((1, 8, 8))
    maps[0, 3:7, 3:7] = 1  # 16 of the 20 pixels: 0.8 of one region; of two it would be half
    assert values(maps, masks)["aupro"] == pytest.approx(0.8 + 0.2 * 0.15, abs=1e-6)


def test_ader_needs_two_thresholds_below_the_limit():
    maps = np.array([[[0.0, 1.0, 1.0]]])
    masks = np.array([[[True, False, False]]])
    from metrics.cases import evaluation

    results = evaluation(maps, masks).compute(Options(protocol="ader"))
    assert "only one false-positive rate" in results.undefined["part"]["aupro"]
