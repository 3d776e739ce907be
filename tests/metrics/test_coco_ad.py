import numpy as np
import pytest
from hypothesis import given, settings

from blemish.metric import Options
from metrics.cases import maps_and_masks, values


def brute(maps, masks, thresholds):
    scaled = (maps.astype(np.float64) - maps.min()) / (maps.max().astype(np.float64) - maps.min())
    rows = []
    for threshold in thresholds:
        called = scaled > threshold
        found = np.sum(called & masks)
        rows.append((2 * found / (called.sum() + masks.sum()), found / masks.sum(), found / np.sum(called | masks)))
    return np.array(rows)


@pytest.mark.parametrize("mode", ["exact", "streaming"])
@given(case=maps_and_masks())
@settings(max_examples=60, deadline=None)
def test_counting_at_each_threshold(mode, case):
    maps, masks = case
    found = values(maps, masks, mode)
    if maps.min() == maps.max():
        assert "pixel_f1_02_08" not in found
        return
    f1, recall, iou = brute(maps, masks, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]).mean(axis=0)
    assert found["pixel_f1_02_08"] == pytest.approx(f1)
    assert found["pixel_acc_02_08"] == pytest.approx(recall)
    assert found["pixel_iou_02_08"] == pytest.approx(iou)
    assert found["pixel_iou_max"] == pytest.approx(found["pixel_f1_max"] / (2 - found["pixel_f1_max"]))
    grid = brute(maps, masks, np.arange(21) / 20)
    published = values(maps, masks, mode, Options(protocol="ader"))
    assert published["pixel_f1_max"] == pytest.approx(grid[:, 0].max())
    assert published["pixel_iou_max"] == pytest.approx(grid[:, 2].max())
