"""The threshold-dependent pixel metrics of COCO-AD: F1, recall and IoU at .2 to .8, and IoU-max.

The thresholds are shares of the range between the smallest and the largest map value of the
category's pictures, so that one outlier shifts all of them; read them beside `pixel_f1_max`, which
does not depend on the scale.

Source: arXiv 2404.10760, section 3.3 (mF1, mAcc and mIoU at .2 to .8, mIoU-max).
"""

import numpy as np

from blemish.metric import Evidence, Metric

_GRID = tuple(share / 10 for share in range(2, 9))
_GRID_21 = tuple(share / 20 for share in range(21))


def f1_02_08(evidence: Evidence) -> float:
    """F1 of the pixels above a threshold, averaged over seven thresholds."""
    found, called, defective = evidence.above(_GRID)
    return float(np.mean(2 * found / (called + defective)))


def recall_02_08(evidence: Evidence) -> float:
    """Share of the defective pixels above a threshold, averaged over seven thresholds."""
    found, _, defective = evidence.above(_GRID)
    return float(np.mean(found / defective))


def iou_02_08(evidence: Evidence) -> float:
    """Intersection over union of the pixels above a threshold, averaged over seven thresholds."""
    found, called, defective = evidence.above(_GRID)
    return float(np.mean(found / (called + defective - found)))


def iou_max(evidence: Evidence) -> float:
    """The highest intersection over union over all thresholds; it is F1-max / (2 - F1-max)."""
    curve = evidence.curve("pixel")
    return float(np.max(curve.true / (curve.true[-1] + curve.false)))


def iou_max_21(evidence: Evidence) -> float:
    """The same over 21 thresholds."""
    found, called, defective = evidence.above(_GRID_21)
    return float(np.max(found / (called + defective - found)))


METRICS = (
    Metric(
        name="pixel_f1_02_08",
        level="pixel",
        description="F1 at thresholds .2 to .8 of the map's range, averaged",
        compute=f1_02_08,
    ),
    Metric(
        name="pixel_acc_02_08",
        level="pixel",
        description='recall (published as "Acc") at thresholds .2 to .8 of the map\'s range, averaged',
        compute=recall_02_08,
    ),
    Metric(
        name="pixel_iou_02_08",
        level="pixel",
        description="intersection over union at thresholds .2 to .8 of the map's range, averaged",
        compute=iou_02_08,
    ),
    Metric(
        name="pixel_iou_max",
        level="pixel",
        description="highest intersection over union over all thresholds",
        compute=iou_max,
        variants={"ader": iou_max_21},
    ),
)
