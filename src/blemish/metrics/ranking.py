"""How well scores rank defective above good: AUROC, AP, F1-max, FPR at 95 % TPR.

Of pictures, of parts (the highest score of their views), and of pixels. Equal scores are never
ordered: AUROC gives them one half, AP and F1 count them together, as scikit-learn does.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from blemish.metric import Evidence, Floats, Level, Metric, Protocol


def auroc(evidence: Evidence, level: Level) -> float:
    """Area under the receiver operating characteristic."""
    false, true = evidence.curve(level).line()
    return float(np.trapezoid(true, false))


def average_precision(evidence: Evidence, level: Level) -> float:
    """Mean, over the positives, of the precision at their own score.

    In a cell of the streaming mode, positives and negatives are evenly mixed: of `a` positives, the
    j-th has j - 1/2 shares of the cell's negatives above it. The sum over j is taken as an integral.
    """
    keys, false, true, _ = evidence.curve(level)
    positives = np.diff(true)
    found = positives > 0
    is_exact = (np.diff(keys) == -1)[found]
    positives, both = positives[found], (np.diff(true) + np.diff(false))[found]
    at_once = true[1:][found] / (true[1:] + false[1:])[found]
    start = true[:-1][found] + 0.5
    above = start + false[:-1][found]
    mixed = (positives + (start - positives * above / both) * np.log1p(both / above)) / both
    return float(np.sum(positives * np.where(is_exact, at_once, mixed)) / true[-1])


def f1_max(evidence: Evidence, level: Level) -> float:
    """The highest F1 over all thresholds."""
    curve = evidence.curve(level)
    return float(np.max(2 * curve.true / (curve.true[-1] + curve.true + curve.false)))


def f1_max_21(evidence: Evidence) -> float:
    """The highest F1 of pixels over 21 thresholds that divide the range of the map values."""
    found, called, defective = evidence.above([step / 20 for step in range(21)])
    return float(np.max(2 * found / (called + defective)))


def auroc_strips(evidence: Evidence) -> float:
    """AUROC of pixels from 50 strips."""
    false, true, _ = _strips(evidence)
    return float(np.trapezoid(true, false))


def average_precision_strips(evidence: Evidence) -> float:
    """Area under precision over recall (by trapezoids, so not the average precision) from 50 strips."""
    _, true, precision = _strips(evidence)
    return float(np.trapezoid(precision, true))


def _strips(evidence: Evidence) -> tuple[Floats, Floats, Floats]:
    """Share of normal and of defective pixels above each edge, and the precision there."""
    found, called, defective = evidence.above([step / 50 for step in range(50, -1, -1)], or_equal=True)
    normal = evidence.normal.totals[0]
    return (called - found) / normal, found / defective, found / called


def fpr_at_95_tpr(evidence: Evidence) -> float:
    """Share of good pictures stopped by the threshold that stops 95 % of the defective ones.

    The threshold is the 0.05 quantile of the defective scores, interpolated linearly; good pictures
    at the threshold count as stopped.
    """
    scores, labels = evidence.scores("image")
    return float(np.mean(scores[~labels] >= np.quantile(scores[labels], 0.05)))


_LEVELS: tuple[tuple[Level, str], ...] = (("image", "pictures"), ("part", "parts"), ("pixel", "pixels"))
_CURVES: tuple[tuple[str, str, Callable[..., float]], ...] = (
    ("auroc", "area under the ROC curve of {}", auroc),
    ("ap", "average precision of {}", average_precision),
    ("f1_max", "highest F1 of {} over all thresholds", f1_max),
)

_PIXEL_VARIANTS: dict[str, dict[Protocol, Callable[[Evidence], float]]] = {
    "auroc": {"adeval": auroc_strips},
    "ap": {"adeval": average_precision_strips},
    "f1_max": {"ader": f1_max_21},
}

METRICS = (
    *(
        Metric(
            name=f"{level}_{name}",
            level=level,
            description=description.format(what),
            compute=partial(compute, level=level),
            variants=_PIXEL_VARIANTS[name] if level == "pixel" else {},
        )
        for level, what in _LEVELS
        for name, description, compute in _CURVES
    ),
    Metric(
        name="fpr_at_95_tpr",
        level="image",
        description="share of good pictures stopped where 95 % of the defective ones are; lower is better",
        compute=fpr_at_95_tpr,
    ),
)
