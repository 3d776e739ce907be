"""What labels bring: scores with and without them, compared on the same pictures."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from blemish.images import Bools, Floats
from blemish.types import Calibration, LabelGain, Quality, one_in

RESAMPLES = 1000
FOLDS = 5
"""Parts that the rows are cut into, to learn what margins are worth on pictures not learned from."""
Judge = Callable[[Floats], Floats]
"""Gives the margins (N,) of rows (N, D)."""


def label_gain(
    bases: Mapping[str, Floats], margins: Sequence[Floats], is_defective: Bools, max_false_reject: float
) -> LabelGain:
    """What labels bring to the best of the bases.

    Args:
        bases: {name: scores (N,)} of each detector without labels.
        margins: Scores (N,) with labels, of pictures that were not learned from; several cross-validations.
        is_defective: (N,), both kinds among them.
        max_false_reject: The rate of stopped good parts asked for.
    """
    base = max(bases, key=lambda name: auroc(bases[name], is_defective))
    alone = bases[base]
    found = [quality(each, is_defective, max_false_reject) for each in margins]
    draw = np.random.default_rng(0)
    kinds = [np.flatnonzero(is_defective == kind) for kind in (False, True)]
    wins = 0.0
    for number in range(RESAMPLES):
        rows = np.concatenate([draw.choice(own, len(own)) for own in kinds])
        supervised = margins[number % len(margins)]
        rise = auroc(supervised[rows], is_defective[rows]) - auroc(alone[rows], is_defective[rows])
        wins += 0.5 + 0.5 * float(np.sign(rise))
    return LabelGain(
        base=base,
        good=len(kinds[0]),
        defective=len(kinds[1]),
        max_false_reject=max_false_reject,
        without=quality(alone, is_defective, max_false_reject),
        supervised=Quality(
            *(
                float(np.mean([getattr(each, name) for each in found]))
                for name in ("auroc", "fpr_at_95_tpr", "miss_rate")
            )
        ),
        better=wins / RESAMPLES,
    )


def held_out(
    table: Floats, is_defective: Bools, learn: Callable[[Floats, Bools], Judge], seed: tuple[int, int]
) -> tuple[Floats, Bools]:
    """Margins (N,) by what has not learned from the row, and which rows have one.

    Args:
        table: Rows (N, D).
        is_defective: (N,).
        learn: Gives what judges, of rows and which of them are defective.
        seed: And the number of the cross-validation; each cuts the rows in another way.
    """
    folds = np.zeros(len(is_defective), int)
    for kind in (False, True):
        rows = np.flatnonzero(is_defective == kind)
        draw = np.random.default_rng([seed[0], int(kind), seed[1]])
        folds[draw.permutation(rows)] = np.arange(len(rows)) % FOLDS
    margins = np.zeros(len(is_defective), np.float32)
    judged = np.zeros(len(is_defective), bool)
    for fold in range(FOLDS):
        inside, outside = folds == fold, folds != fold
        if inside.any() and 0 < is_defective[outside].sum() < outside.sum() - 1:
            margins[inside] = learn(table[outside], is_defective[outside])(table[inside])
            judged |= inside
    return margins, judged


def quality(scores: Floats, is_defective: Bools, max_false_reject: float) -> Quality:
    """How well scores (N,) tell defective pictures from good ones.

    The threshold that misses are counted at is the one a calibration on these good pictures gives.
    """
    good, bad = scores[~is_defective], scores[is_defective]
    scored = tuple(float(score) for score in np.sort(good))
    threshold = Calibration(scored, scored).threshold(max_false_reject)
    return Quality(
        auroc=auroc(scores, is_defective),
        fpr_at_95_tpr=float(np.mean(good >= np.quantile(bad, 0.05))),
        miss_rate=float(np.mean(bad <= threshold.value)),
    )


def auroc(scores: Floats, is_defective: Bools) -> float:
    """Share of the pairs of a defective and a good picture whose scores are in order; equal ones count one half."""
    good, bad = np.sort(scores[~is_defective]), scores[is_defective]
    below = np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")
    return float(below.mean() / 2 / len(good))


def sentences(gain: LabelGain) -> list[str]:
    """What was seen, and what follows from it."""
    helps = (
        "The labels help."
        if gain.is_recommended
        else "The labels do not help for certain: the detector without them is recommended."
    )
    return [
        f"Judged by cross-validation on {gain.good} good and {gain.defective} defective pictures, misses at the "
        f"threshold for {one_in(gain.max_false_reject)} good parts stopped:",
        f"{gain.base} alone: {gain.without.sentence()}.",
        f"with the labels: {gain.supervised.sentence()}.",
        f"{helps} They raise the AUROC in {100 * gain.better:.0f} of 100 resamples of these pictures.",
    ]
