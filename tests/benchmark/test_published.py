"""Facts: each has its source, and stands as its source says."""

import pytest

from blemish.benchmark import datasets, published
from blemish.errors import ConfigError
from blemish.metric import all_metrics

ALL = [row for dataset in datasets() for row in published(dataset, ["split_0", "bottle", "candle", "audiojack"])]
SEVEN = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")


def test_every_row_has_a_source_and_values_of_metrics_that_exist():
    assert len(ALL) > 300
    for row in ALL:
        assert row.source
        assert row.values
        assert set(row.values) <= set(all_metrics())
        assert all(0 <= value <= 1 for value in row.values.values())


@pytest.mark.parametrize(
    ("dataset", "category", "method", "source", "values"),
    [
        ("mvtec_ad", "", "InvAD", "ADer: benchmark README and training logs", {"mad": 0.866, "aupro": 0.944}),
        ("coco_ad", "split_0", "ViTAD", "ADer: training logs", {"pixel_ap": 0.553, "pixel_iou_max": 0.362}),
        ("mvtec_ad", "", "RealNet", "RealNet: README (best epoch on the test set)", {"image_auroc": 0.996}),
        ("real_iad", "audiojack", "MVAD", "MVAD: test log", {"part_auroc": 0.929, "aupro": 0.848}),
        ("visa", "candle", "All AD+SegAD", "SegAD: README (mean of 10 seeds)", {"image_auroc": 0.99}),
    ],
)
def test_some_as_they_were_printed(dataset, category, method, source, values):
    found = [row for row in ALL if (row.dataset, row.category, row.method) == (dataset, category, method)]
    of_source = [row.values for row in found if row.source == source]
    assert any(all(own[name] == pytest.approx(value) for name, value in values.items()) for own in of_source)


def test_mad_is_the_mean_of_its_seven():
    checked = [row for row in ALL if {"mad", *SEVEN} <= set(row.values)]
    assert len(checked) > 200
    for row in checked:
        assert row.values["mad"] == pytest.approx(sum(row.values[name] for name in SEVEN) / 7, abs=0.0016), row


def test_means_are_always_there_and_categories_where_named():
    assert {row.category for row in published("coco_ad", [])} == {""}
    assert {row.category for row in published("coco_ad", ["split_2"])} == {"", "split_2"}


def test_unknown_dataset_is_refused():
    with pytest.raises(ConfigError, match='no dataset with published figures named "mvtec". Did you mean "mvtec_ad"'):
        published("mvtec", [])
