"""AUPIMO: how much of each defective picture's defect is found at hardly any false alarm.

The mean over pictures of an area is the area under the mean, so that one curve is enough: defective
pixels weighted by one over their number in the picture, against the pixels of good pictures.

Source: arXiv 2401.01984, section 3 (recall per picture, averaged over the logarithm of the
false-positive rate of good pictures between 1e-5 and 1e-4).
"""

import numpy as np

from blemish.metric import Evidence, Metric, Undefined

LOW, HIGH = 1e-5, 1e-4


def aupimo(evidence: Evidence) -> float:
    """Recall per picture, averaged over log FPR in [1e-5, 1e-4].

    The recall at a rate is that of the lowest threshold which calls at most this share of the
    pixels of good pictures. It is a staircase that falls at each value of a good pixel; where values
    are in cells, it is a slope.
    """
    sizes = {picture.pixels for state in evidence.good for picture in state.pictures.values() if picture.pixels}
    if not sizes:
        raise Undefined("there are no good pictures with maps")
    if len(sizes) > 1:
        raise Undefined(f"good pictures have maps of {len(sizes)} sizes, so that their rates can't be pooled")
    curve = evidence.curve("picture")
    rate, recall = curve.false / curve.negatives, curve.true / curve.true[-1]
    # While the rate climbs through a single value, the threshold stays just above it; in a cell, it
    # moves through.
    within = np.where(np.diff(curve.keys) == -1, recall[:-1], (recall[:-1] + recall[1:]) / 2)
    rate = np.append(rate, 1.0)
    within = np.append(within, 1.0)
    return float(np.sum(np.diff(np.log(np.clip(rate, LOW, HIGH))) * within) / np.log(HIGH / LOW))


METRICS = (
    Metric(
        name="aupimo",
        level="pixel",
        description="recall per defective picture, averaged over log FPR of good pictures in [1e-5, 1e-4]",
        compute=aupimo,
    ),
)
