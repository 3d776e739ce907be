"""How well scores rank defective above good: AUROC, AP, F1-max, FPR at 95 % TPR.

Of pictures, of parts (the highest score of their views), and of pixels. Equal scores are never
ordered: AUROC gives them one half, AP and F1 count them together, as scikit-learn does.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from blemish.metric import Evidence, Level, Metric


def auroc(evidence: Evidence, level: Level) -> float:
    """Area under the receiver operating characteristic."""
    false, true = evidence.curve(level).line()
    return float(np.trapezoid(true, false))


def average_precision(evidence: Evidence, level: Level) -> float:
    """Mean, over the positives, of the precision at their own score.

    In a cell of the streaming mode, positives and negatives are evenly mixed: of `a` positives, the
    j-th has j - 1/2 shares of the cell's negatives above it. The sum over j is taken as an integral.
    """
    curve = evidence.curve(level)
    positives = curve.true - curve.true_before
    negatives = curve.false - curve.false_before
    at_once = curve.true / (curve.true + curve.false)
    start = curve.true_before + 0.5
    above = start + curve.false_before
    both = positives + negatives
    mixed = (positives + (start - positives * above / both) * np.log1p(both / above)) / both
    precision = np.where(curve.is_exact, at_once, mixed)
    return float(np.sum(positives * precision) / curve.true[-1])


def f1_max(evidence: Evidence, level: Level) -> float:
    """The highest F1 over all thresholds."""
    curve = evidence.curve(level)
    return float(np.max(2 * curve.true / (curve.true[-1] + curve.true + curve.false)))


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

METRICS = (
    *(
        Metric(
            name=f"{level}_{name}",
            level=level,
            description=description.format(what),
            compute=partial(compute, level=level),
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
