"""Every number the papers' evaluators gave on toys that anybody can make, in both modes and all protocols.

Where the reference kept float64, values that are equal on paper differ in their last bit and are
told apart; maps here are float32, so a few of its digits are compared at 2e-4, and once more to the
last digit with the ranks of the values in their place.
"""

import numpy as np
import pytest

from blemish.metric import Options
from metrics.cases import evaluation, images_only

MODES = pytest.mark.parametrize("mode", ["exact", "streaming"])


def coco_ad_toy():
    n, i, j = np.mgrid[0:6, 0:32, 0:32]
    masks = np.zeros((6, 32, 32), bool)
    for picture, rows, columns in (
        (3, slice(4, 12), slice(6, 16)),
        (4, slice(2, 6), slice(2, 6)),
        (4, slice(20, 30), slice(18, 26)),
        (5, slice(10, 14), slice(10, 14)),
        (5, slice(14, 18), slice(14, 18)),  # touches the one above at a corner
    ):
        masks[picture, rows, columns] = True
    base = ((131 * n + 17 * i + 29 * j) % 97) / 96
    return 0.5 * base + 0.4 * masks * (0.5 + ((i + j) % 5) / 8), masks


def multi_view_toy():
    m = np.arange(1, 40 * 256 + 1).reshape(40, 16, 16)
    maps, masks = 0.5 * np.sin(0.073 * m + 5.0) ** 2, np.zeros((40, 16, 16), bool)
    for n in range(40):
        maps[n] *= 0.5 + 0.5 * np.sin(1.7 * n + 5.0)
        if (n // 5) % 2 and n % 3 == 0:
            row = 2 + n % 5
            maps[n, row : row + 5, 3:9] += 0.25 * (0.5 + 0.5 * np.cos(n))
            masks[n, row : row + 5, 3:9] = True
    return maps, masks


def compare(found, expected):
    for name, (value, tolerance) in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance), name


def test_the_toy_is_the_one_described():
    maps, masks = coco_ad_toy()
    assert maps.sum() == pytest.approx(1593.4260417, abs=1e-6)
    assert (maps.min(), maps.max(), masks.sum()) == (0, 0.9, 208)
    assert maps[3, 4, 6] == pytest.approx(0.4760417, abs=1e-6)


COMMON = {
    **dict.fromkeys(("image_auroc", "image_ap", "image_f1_max"), (1.0, 0)),
    "pixel_f1_02_08": (0.322986, 1e-6),
    "pixel_acc_02_08": (0.662775, 1e-6),
    "pixel_iou_02_08": (0.213928, 1e-6),
}


@MODES
@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (
            "default",
            {
                "pixel_auroc": (0.915232, 5e-5),
                "pixel_ap": (0.692743, 5e-5),
                "pixel_f1_max": (0.765579, 1e-6),
                "pixel_iou_max": (0.620192, 1e-6),
                "aupro": (0.777616, 2e-4),
            },
        ),
        (
            "ader",
            {
                "pixel_auroc": (0.915232, 5e-5),
                "pixel_ap": (0.692743, 5e-5),
                "pixel_f1_max": (0.716049, 1e-6),
                "pixel_iou_max": (0.557692, 1e-6),
                "aupro": (0.774735, 1e-6),
            },
        ),
        (
            "adeval",
            {"pixel_auroc": (0.914267, 1e-6), "pixel_ap": (0.680779, 1e-6), "aupro": (0.774633, 1e-6)},
        ),
    ],
)
def test_coco_ad(mode, protocol, expected):
    found = evaluation(*coco_ad_toy(), mode).compute(Options(protocol=protocol)).metrics["part"]
    compare(found, COMMON | expected)
    mean = np.mean([found[name] for name in ("image_auroc", "image_ap", "image_f1_max")])
    assert found["mad_image"] == pytest.approx(mean)
    seven = (*("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max"), "aupro")
    assert found["mad"] == pytest.approx(np.mean([found[name] for name in seven]))
    assert found["mad_02_08"] == pytest.approx((0.322986 + 0.662775 + 0.213928) / 3, abs=1e-6)


@MODES
def test_coco_ad_to_the_last_digit(mode):
    """Ranks of the float64 values keep apart what float32 would join, and change no curve."""
    maps, masks = coco_ad_toy()
    ranks = np.unique(maps, return_inverse=True)[1].reshape(maps.shape).astype(np.float32)
    scores = maps.max((1, 2))
    for connectivity, aupro in ((8, 0.777616), (4, 0.782440)):
        found = evaluation(ranks, masks, mode, scores=scores, connectivity=connectivity).compute().metrics["part"]
        expected = {"pixel_auroc": (0.915232, 1e-6), "pixel_ap": (0.692743, 1e-6), "aupro": (aupro, 1e-6)}
        compare(found, expected | {"pixel_f1_max": (0.765579, 1e-6), "pixel_iou_max": (0.620192, 1e-6)})


@MODES
def test_counts_at_thresholds(mode):
    from blemish.metric import Evidence

    whole = evaluation(*coco_ad_toy(), mode)
    whole.compute()
    states = {key[1]: state for key, state in whole._states.items()}
    evidence = Evidence((states[""],), (states["defective"],), Options(), "part")
    found, called, defective = evidence.above([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert defective == 208
    assert found.tolist() == [208, 202, 178, 149, 116, 76, 36]
    assert called.tolist() == [3975, 2928, 1820, 751, 116, 76, 36]


@MODES
@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("ader", {"pixel_f1_max": (0.208178, 1e-6), "aupro": (0.364086, 1e-6)}),
        ("default", {}),
    ],
)
def test_multi_view(mode, protocol, expected):
    maps, masks = multi_view_toy()
    parts = [str(n // 5) for n in range(40)]
    found = evaluation(maps, masks, mode, parts=parts).compute(Options(protocol=protocol)).metrics["part"]
    common = {
        "part_auroc": (0.6875, 1e-6),
        "part_ap": (0.8125, 1e-6),
        "part_f1_max": (0.75, 1e-6),
        "image_auroc": (0.744589, 1e-6),
        "image_ap": (0.61577, 1e-6),
        "image_f1_max": (0.6, 1e-6),
        "pixel_auroc": (0.751593, 1e-6),
        "pixel_ap": (0.180277, 1e-6),
    }
    compare(found, common | expected)


@pytest.mark.parametrize(
    ("bad", "good", "fpr", "auroc"),
    [
        ([1, 1, 1, 2, 2, 3, 3, 3, 4, 5], [0, 0, 1, 1, 1, 1, 2, 2, 3, 0], 0.7, 0.795),
        ([0.5] * 4, [0.5] * 6, 1, 0.5),
        (range(11), [0.2, 0.5, 0.5, 0.50001, 0.49999, 1, -1, 0.1], 0.5, 0.914773),
        ([2, 3], [0, 1], 0, 1),
        ([0.889418, 0.979426, 1.06464, 1.14422], [-0.925815, 0.656987], 0, 1),
    ],
)
def test_fpr_at_95_tpr(bad, good, fpr, auroc):
    found = images_only([*bad, *good], [True] * len(bad) + [False] * len(good)).metrics["part"]
    assert found["fpr_at_95_tpr"] == pytest.approx(fpr)
    assert found["image_auroc"] == pytest.approx(auroc, abs=1e-6)


def realnet_toy(number):
    raw = np.zeros((number, 32, 32), int)
    raw[0, 4:12, 6:16] = raw[0, 20:26, 20:30] = 255
    raw[1, 10:22, 3:9] = 1
    if number == 5:
        raw[3, :3, :3] = 128
        raw[4, 8:20, 8:20] = 255
        raw[4, 11:17, 11:17] = 0
    step = np.arange(raw.size).reshape(raw.shape) + 1
    defect = 0.5 * (raw > 0) * np.abs(np.sin(0.013 * step + 6.0))
    return (0.2 + 0.15 * np.sin(0.1 * step + 5.0) + defect).astype(np.float32), raw > 0


@MODES
@pytest.mark.parametrize(("number", "total", "auroc"), [(3, 681.252, 0.91929), (5, 1125.69, 0.914172)])
def test_realnet(mode, number, total, auroc):
    maps, masks = realnet_toy(number)
    assert maps.sum() == pytest.approx(total, abs=5e-3)
    expected = {"image_auroc": (1, 0), "pixel_auroc": (auroc, 1e-6)}
    if number == 3:  # the other has a ring, whose hole that paper's script fills
        expected["aupro"] = (0.80605, 5e-4)  # from 1000 steps there, exact here
    compare(evaluation(maps, masks, mode).compute().metrics["part"], expected)
