"""AUPRO: how much of each defective region is found while few normal pixels are called.

Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2.2.
"""

import numpy as np

from blemish.metric import Evidence, Metric


def aupro(evidence: Evidence) -> float:
    """Area under the per-region overlap over the false-positive rate, up to a limit, divided by it.

    Regions are 8-connected. The overlap is the mean over all regions of the share of their pixels
    above the threshold; the rate counts the normal pixels of all pictures.
    """
    false, overlap = evidence.curve("region").line()
    limit = evidence.options.aupro_limit
    inside = false < limit
    x = np.append(false[inside], limit)
    y = np.append(overlap[inside], np.interp(limit, false, overlap))
    return float(np.trapezoid(y, x) / limit)


METRICS = (
    Metric(
        name="aupro",
        level="region",
        description="area under per-region overlap over FPR up to 0.3, divided by 0.3",
        compute=aupro,
    ),
)
