"""What marking everything gets: the floor below which a figure shows no skill.

A detector that calls every picture, part or pixel defective has the share of defective ones as its
precision, and misses none. No ranking can have a lower F1-max or IoU-max, and a ranking at random
has that share as its average precision. AUROC has its floor at 0.5 for any data.

Source: arXiv 2404.10760 has data for which these floors are high (COCO-AD).
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from blemish.metric import Evidence, Level, Metric


def share(evidence: Evidence, level: Level) -> float:
    """Share of the pictures, parts or pixels that are defective: their average precision at random."""
    if level != "pixel":
        return float(np.mean(evidence.scores(level)[1]))
    _, _, true, normal = evidence.curve(level)
    return float(true[-1] / (true[-1] + normal))


def f1_of_all(evidence: Evidence, level: Level) -> float:
    """F1 of calling all of them defective."""
    found = share(evidence, level)
    return 2 * found / (1 + found)


_FLOORS: tuple[tuple[str, Level, Callable[..., float]], ...] = (
    ("image_ap", "image", share),
    ("image_f1_max", "image", f1_of_all),
    ("pixel_ap", "pixel", share),
    ("pixel_f1_max", "pixel", f1_of_all),
    ("pixel_iou_max", "pixel", share),
)

METRICS = tuple(
    Metric(
        name=f"{name}_chance",
        level=level,
        description=f"the floor of {name}: what calling everything defective gets",
        compute=partial(compute, level=level),
    )
    for name, level, compute in _FLOORS
)
