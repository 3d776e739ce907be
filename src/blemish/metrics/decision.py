"""Decisions at the calibrated threshold: how many good parts are stopped, how many bad ones pass.

A picture is rejected when its score is greater than the threshold. Counts of the confusion matrix,
and the rates made of them.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from blemish.metric import Evidence, Metric, Undefined

Confusion = tuple[int, int, int, int]
Part = Callable[[Confusion], tuple[int, int]]


def confusion(evidence: Evidence) -> Confusion:
    """Defective and rejected, good and rejected, defective and passed, good and passed."""
    threshold = evidence.threshold
    scores, labels = evidence.labelled("image")
    rejected = scores > threshold
    counts = (labels & rejected, ~labels & rejected, labels & ~rejected, ~labels & ~rejected)
    return tuple(int(np.count_nonzero(count)) for count in counts)  # type: ignore[return-value]


def count(evidence: Evidence, index: int) -> float:
    """One entry of the confusion matrix."""
    return float(confusion(evidence)[index])


def rate(evidence: Evidence, of: Part, lack: str) -> float:
    """One entry of the confusion matrix divided by the sum of it and another; `lack` says why that is 0."""
    one, other = of(confusion(evidence))
    if not one + other:
        raise Undefined(lack)
    return one / (one + other)


_COUNTS = (
    ("true_rejects", "defective pictures rejected at the calibrated threshold"),
    ("false_rejects", "good pictures rejected at the calibrated threshold"),
    ("misses", "defective pictures passed at the calibrated threshold"),
    ("true_passes", "good pictures passed at the calibrated threshold"),
)
_RATES: tuple[tuple[str, str, Part, str], ...] = (
    (
        "precision",
        "share of the rejected pictures that are defective",
        lambda c: (c[0], c[1]),
        "no picture is rejected at the threshold",
    ),
    (
        "recall",
        "share of the defective pictures that are rejected",
        lambda c: (c[0], c[2]),
        "there are no defective pictures",
    ),
    (
        "false_reject_rate",
        "share of the good pictures that are rejected; lower is better",
        lambda c: (c[1], c[3]),
        "there are no good pictures",
    ),
    (
        "miss_rate",
        "share of the defective pictures that pass, or go to a person; lower is better",
        lambda c: (c[2], c[0]),
        "there are no defective pictures",
    ),
)

METRICS = (
    *(
        Metric(name=name, level="image", description=description, compute=partial(count, index=index))
        for index, (name, description) in enumerate(_COUNTS)
    ),
    *(
        Metric(name=name, level="image", description=description, compute=partial(rate, of=of, lack=lack))
        for name, description, of, lack in _RATES
    ),
)
