"""Metrics: what they see, how it is collected in one pass, and what comes out.

A metric is a row of the table `METRICS` in a file of `metrics/`. It is a pure function of the
`Evidence` of one category (or of one kind of defect and the good pictures), and raises `Undefined`
with the reason where it has no value. Evidence is made of `State`s, one for each kind of defect,
that an `Evaluation` collects picture by picture and that add up: shards, processes and machines
may each see a part, in any order, and the sum is the same bit for bit.
"""

from blemish.metric.evaluation import Evaluation, Mode, Results, evaluate, refuse
from blemish.metric.evidence import (
    ArrayLike,
    Evidence,
    Level,
    Metric,
    NotAsked,
    Options,
    PictureError,
    Protocol,
    Undefined,
    all_metrics,
)
from blemish.metric.histogram import Curve, Floats

__all__ = [
    "ArrayLike",
    "Curve",
    "Evaluation",
    "Evidence",
    "Floats",
    "Level",
    "Metric",
    "Mode",
    "NotAsked",
    "Options",
    "PictureError",
    "Protocol",
    "Results",
    "Undefined",
    "all_metrics",
    "evaluate",
    "refuse",
]
