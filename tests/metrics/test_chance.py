import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from blemish.benchmark import published
from blemish.datasets.coco_ad import COUNTS
from metrics.cases import images_only, maps_and_masks, values


@pytest.mark.parametrize("mode", ["exact", "streaming"])
@given(case=maps_and_masks())
@settings(max_examples=30, deadline=None)
def test_pixels_as_a_predictor_that_marks_everything(mode, case):
    maps, masks = case
    found, truth = values(maps, masks, mode), masks.ravel()
    everything = np.ones(truth.size, bool)
    assert found["pixel_ap_chance"] == pytest.approx(average_precision_score(truth, everything), abs=1e-9)
    assert found["pixel_f1_max_chance"] == pytest.approx(f1_score(truth, everything), abs=1e-9)
    assert found["pixel_iou_max_chance"] == pytest.approx(jaccard_score(truth, everything), abs=1e-9)
    for name in ("pixel_f1_max", "pixel_iou_max"):
        assert found[name] >= found[f"{name}_chance"] - 1e-12


def test_a_flat_map_gets_the_floors():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2] = True
    found = values(np.full((2, 4, 4), 0.3, np.float32), masks)
    for name in ("pixel_ap", "pixel_f1_max", "pixel_iou_max"):
        assert found[name] == pytest.approx(found[f"{name}_chance"])
    assert found["pixel_ap_chance"] == pytest.approx(8 / 32)


@pytest.mark.parametrize("split", COUNTS)
def test_floors_of_coco_ad_are_those_published(split):
    _, good, bad = COUNTS[split]
    labels = np.repeat([False, True], [good, bad])
    found = images_only(np.zeros(good + bad), labels).metrics["part"]
    (floors,) = [row.values for row in published("coco_ad", [split]) if row.method == "marking everything"]
    assert found["image_ap_chance"] == pytest.approx(floors["image_ap"], abs=6e-4)
    assert found["image_f1_max_chance"] == pytest.approx(floors["image_f1_max"], abs=6e-4)
    share = floors["pixel_iou_max"]
    assert 2 * share / (1 + share) == pytest.approx(floors["pixel_f1_max"], abs=1.1e-3)
