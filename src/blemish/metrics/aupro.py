"""AUPRO: how much of each defective region is found while few normal pixels are called.

Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2.2.
"""

import numpy as np

from blemish.metric import Evidence, Floats, Metric, Undefined


def aupro(evidence: Evidence) -> float:
    """Area under the per-region overlap over the false-positive rate, up to a limit, divided by it.

    Regions are 8-connected. The overlap is the mean over all regions of the share of their pixels
    above the threshold; the rate counts the normal pixels of all pictures.
    """
    false, overlap = evidence.curve("region").line()
    return _area(false, overlap, evidence.options.aupro_limit)


def aupro_steps(evidence: Evidence) -> float:
    """The same from 100 equal steps of the threshold, with the rates below the limit stretched to [0, 1].

    Source: arXiv 2404.10760, its evaluation code; not comparable with the exact area.
    """
    false, overlap = _steps(evidence, 100, or_equal=False)
    inside = false < evidence.options.aupro_limit
    false, overlap = false[inside], overlap[inside]
    if not false.size or false[-1] == false[0]:
        raise Undefined("the 100 thresholds have only one false-positive rate below the limit")
    return float(np.trapezoid(overlap, (false - false[0]) / (false[-1] - false[0])))


def aupro_strips(evidence: Evidence) -> float:
    """The same from 50 strips, interpolated at the limit and divided by it."""
    return _area(*_steps(evidence, 50, or_equal=True), evidence.options.aupro_limit)


def _steps(evidence: Evidence, steps: int, *, or_equal: bool) -> tuple[Floats, Floats]:
    shares = [step / steps for step in range(steps, -1, -1)]
    found, called, _ = evidence.above(shares, or_equal=or_equal)
    covered, _, regions = evidence.above(shares, level="region", or_equal=or_equal)
    return (called - found) / evidence.normal.totals[0], covered / regions


def _area(false: Floats, overlap: Floats, limit: float) -> float:
    inside = false <= limit  # a jump right at the limit has no area, so both of its ends may stay
    x = np.append(false[inside], limit)
    y = np.append(overlap[inside], np.interp(limit, false, overlap))
    return float(np.trapezoid(y, x) / limit)


METRICS = (
    Metric(
        name="aupro",
        level="region",
        description="area under per-region overlap over FPR up to 0.3, divided by 0.3",
        compute=aupro,
        variants={"ader": aupro_steps, "adeval": aupro_strips},
    ),
)
