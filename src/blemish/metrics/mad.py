"""mAD: averages of other metrics, one number for a whole table row.

Source: arXiv 2404.10760, section 4.1.
"""

from functools import partial

import numpy as np

from blemish.metric import Evidence, Level, Metric

_IMAGE = ("image_auroc", "image_ap", "image_f1_max")
_PIXEL = ("pixel_auroc", "pixel_ap", "pixel_f1_max")
_AVERAGES: tuple[tuple[str, Level, str, tuple[str, ...]], ...] = (
    ("mad_image", "image", "image AUROC, AP and F1-max", _IMAGE),
    ("mad_pixel", "pixel", "pixel AUROC, AP and F1-max", _PIXEL),
    ("mad_02_08", "pixel", "F1, recall and IoU at .2 to .8", ("pixel_f1_02_08", "pixel_acc_02_08", "pixel_iou_02_08")),
    ("mad", "region", "the seven of mad_image, mad_pixel and AUPRO", (*_IMAGE, *_PIXEL, "aupro")),
)


def mean_of(evidence: Evidence, names: tuple[str, ...]) -> float:
    """Mean of other metrics; undefined where one of them is."""
    return float(np.mean([evidence.value(name) for name in names]))


METRICS = tuple(
    Metric(name=name, level=level, description=f"mean of {what}", compute=partial(mean_of, names=names))
    for name, level, what, names in _AVERAGES
)
