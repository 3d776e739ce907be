"""The few types that every part of Blemish speaks: samples, batches, predictions, calibrations.

Axis letters here and everywhere: `B` batch, `N` images, `C` channels, `H W` pixels, `h w` feature
grid, `V` views, `K` regions, `D` embedding width, `M` memory entries. Sizes are (height, width).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from blemish.errors import ConfigError, count_of

if TYPE_CHECKING:
    import numpy as np

Array = TypeVar("Array")
Split = Literal["train", "validation", "test"]
Decision = Literal["good", "review", "defective"]
Unit = Literal["pictures", "parts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture of a dataset and what is known about it."""

    path: Path
    """The picture's file."""
    category: str
    """The kind of part it shows."""
    split: Split
    """What the picture may be used for."""
    is_anomalous: bool | None
    """Whether the part is defective; None when nobody has said."""
    defect: str = ""
    """The kind of defect, as the dataset names it; empty for good and unlabelled pictures."""
    masks: tuple[Path, ...] = ()
    """Pictures whose non-zero pixels are defective; several are united; none when unknown."""
    part: str = ""
    """What joins the views of one part; empty when each picture is a part of its own."""
    view: str = ""
    """Which view of the part this is."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that could not be used, and why, in one sentence."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Intensity:
    """The one linear rule that brings pictures of more than 8 bit to [0, 1]."""

    low: float
    """The value that becomes 0."""
    high: float
    """The value that becomes 1."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(
                f"--intensity is {self.low:g}:{self.high:g}; expected LOW:HIGH with LOW < HIGH, for example 0:4095."
            )


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Everything done to a picture before a detector sees it; stored with the detector."""

    image_size: tuple[int, int] = (256, 256)
    """(height, width) that pictures are brought to; the aspect ratio is not kept."""
    intensity: Intensity | None = None
    """Rule for pictures of more than 8 bit; None when training saw only 8-bit pictures."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures that were read and brought to one size, with the samples they came from."""

    images: "np.ndarray[Any, np.dtype[np.float32]]"
    """(B, 3, H, W) float32 RGB in [0, 1]."""
    samples: Sequence[Sample]
    """B samples, in the order of `images`."""
    sizes: Sequence[tuple[int, int]]
    """(height, width) of each picture's file."""


class Prediction(NamedTuple, Generic[Array]):
    """What a detector says of a batch: where, and how much. Raw: higher = more abnormal.

    Tensors when it comes from a detector's `forward`, NumPy arrays when it comes from a predictor.
    """

    anomaly_map: Array
    """(B, H, W) float32, at the size of the images given."""
    image_score: Array
    """(B,) float32."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How often a good part may be stopped. It is a choice of the business, not of the model."""

    max_false_reject: float = 0.01
    """Share of good parts that may be called defective, at most."""
    max_review: float | None = None
    """Share of good parts that may be stopped at all, rejected or sent to a person, at most.
    It opens a grey zone below the threshold; none when not given."""
    top_views: int = 1
    """A part's score is the mean of so many of its views' image scores, the highest; of all, where it has fewer."""

    def __post_init__(self) -> None:
        if not 0 < self.max_false_reject < 1:
            raise ConfigError(
                f"--max-false-reject is {self.max_false_reject}; expected a share between 0 and 1, "
                "for example 0.005 for at most 5 good parts in 1000."
            )
        if self.max_review is not None and not self.max_false_reject < self.max_review < 1:
            raise ConfigError(
                f"--max-review is {self.max_review}; expected a share between --max-false-reject "
                f"({self.max_false_reject}) and 1: it counts the rejected parts too."
            )
        if self.top_views < 1:
            raise ConfigError(
                f"--top-views is {self.top_views}; expected 1 (a part is as abnormal as its worst view) or more."
            )


@dataclass(frozen=True, slots=True)
class Threshold:
    """A score above which a part is stopped, and what can be promised for it."""

    value: float
    """A part is stopped when its score is greater than this."""
    asked: float
    """The rate of stopped good parts that was asked for."""
    promised: float
    """The rate that the number of good pictures allows to promise."""
    good_pictures: int
    """How many good pictures (or parts), held out of training, it rests on."""
    unit: Unit = "pictures"
    """Whether it is for pictures or for parts seen in several."""

    @property
    def is_kept(self) -> bool:
        """Whether what was asked for can be promised."""
        return self.promised <= self.asked

    def sentence(self) -> str:
        """The promise in words.

        >>> Calibration(tuple(range(99)), (0.0,)).threshold(0.01).sentence()
        'threshold 98: at most 1 in 100 good parts is expected above it (99 good pictures held out of training).'
        """
        noun = f"good {self.unit.removesuffix('s')}"
        promise = f"threshold {self.value:.6g}: at most {one_in(self.promised)} good parts is expected above it"
        if self.is_kept:
            return f"{promise} ({count_of(self.good_pictures, noun)} held out of training)."
        return (
            f"{promise}. To promise {one_in(self.asked)} takes {count_of(good_pictures_for(self.asked), noun)} held "
            f"out of training; there are {self.good_pictures}."
        )


@dataclass(frozen=True)
class Calibration:
    """What a trained detector says of good pictures that it has not learned from.

    The pictures themselves are kept as their scores, so that another rate can be asked for later
    without training again.
    """

    image_scores: tuple[float, ...]
    """Image scores of the held-out good pictures, sorted ascending."""
    map_maxima: tuple[float, ...]
    """Maxima of their anomaly maps, sorted ascending."""
    parts: tuple[tuple[float, ...], ...] = ()
    """Image scores of the views of each held-out good part; empty where each picture is a part of its own."""
    unit: Unit = "pictures"
    """What `image_scores` are of."""
    appearance: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """What the pictures look like, whatever the detector makes of it: {name of `blemish.appearance`: values},
    sorted ascending; empty in artifacts that are older than this."""

    def of_parts(self, top_views: int = 1) -> "Calibration":
        """The same for parts with scores as `part_score` gives them; thresholds keep their promise for them."""
        if not self.parts:
            return self
        scores = sorted(part_score(views, top_views) for views in self.parts)
        return replace(self, image_scores=tuple(scores), parts=(), unit="parts")

    def threshold(self, max_false_reject: float) -> Threshold:
        """The split-conformal threshold on the image score.

        With n held-out good scores and k = ceil((n + 1)(1 - rate)), the k-th smallest is exceeded by
        a new good part with probability at most `max_false_reject`, on average over the choice of
        the held-out pictures and as long as they are like the parts to come. When n is too small
        (k > n) the largest score is used, which promises 1 / (n + 1).

        Source: arXiv 2107.07511, section 1 (split conformal prediction).
        """
        return replace(_conformal(self.image_scores, max_false_reject), unit=self.unit)

    def pixel_threshold(self, max_false_reject: float) -> float:
        """The value that the whole map of a good part stays below, with the same promise."""
        return _conformal(self.map_maxima, max_false_reject).value

    def __post_init__(self) -> None:
        if not self.image_scores or not self.map_maxima:
            raise ValueError("a calibration needs the score and the map maximum of one picture at least")

    @cached_property
    def middle(self) -> float:
        """The median score of good parts; of an even number, the lower one."""
        return self.image_scores[(len(self.image_scores) - 1) // 2]


@dataclass
class Outcome:
    """What a training by gradients came to."""

    step: int = 0
    """Batches learned from."""
    seconds: float = field(default=0.0, compare=False)
    """Time spent, over all attempts."""
    scores: list[tuple[int, float]] = field(default_factory=list)
    """(step, how good the weights then were on pictures that were held out), higher = better."""
    losses: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(step, parts of the loss), about a hundred of them."""
    waited: float = field(default=0.0, compare=False)
    """Part of the time spent on waiting for batches."""

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the highest score, the later of equals; None where nothing was validated."""
        return max(self.scores, key=lambda pair: (pair[1], pair[0]), default=None)

    def sentence(self) -> str:
        """How long it took, and which weights were kept.

        >>> Outcome(20, 83.0, [(10, 0.5), (20, 0.4)]).sentence()
        '20 batches in 1 min 23 s; the weights of batch 10 are kept, with a validation score of 0.5 (last: 0.4).'
        """
        took = f"{self.step} batches in {self.seconds // 60:.0f} min {self.seconds % 60:.0f} s"
        if self.best is None:
            return f"{took}; the last weights are kept."
        step, score = self.best
        kept = f"the weights of batch {step} are kept, with a validation score of {score:.4g}"
        return f"{took}; {kept} (last: {self.scores[-1][1]:.4g})."


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model kept of many: those with the smallest losses."""

    losses: tuple[float, ...]
    """Of each."""
    kept: tuple[int, ...]
    """Numbers of those kept, ascending."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How well scores tell defective pictures from good ones."""

    auroc: float
    """Area under the ROC curve."""
    fpr_at_95_tpr: float
    """Share of the good pictures that the threshold stops which stops 95 % of the defective ones."""
    miss_rate: float
    """Share of the defective pictures that pass the threshold for the false-reject rate asked for."""

    def sentence(self) -> str:
        """All of it in words.

        >>> Quality(0.98, 0.1, 0.25).sentence()
        'AUROC 0.9800, 10.0 % of good ones stopped to stop 95 % of the defective, 25.0 % missed'
        """
        return (
            f"AUROC {self.auroc:.4f}, {100 * self.fpr_at_95_tpr:.1f} % of good ones stopped to stop 95 % of the "
            f"defective, {100 * self.miss_rate:.1f} % missed"
        )


@dataclass(frozen=True, slots=True)
class LabelGain:
    """What labelled defects brought, on pictures that were not learned from."""

    base: str
    """The detector without labels; of several, the one with the highest AUROC."""
    good: int
    """Good pictures that were judged."""
    defective: int
    """Labelled defects that were judged, in turn by forests that have not learned from them."""
    max_false_reject: float
    """Rate of stopped good parts that misses are counted at."""
    without: Quality
    """The base alone."""
    supervised: Quality
    """With labels: the mean of several cross-validations."""
    better: float
    """Share of resamples of these pictures in which labels raise the AUROC."""

    @property
    def is_recommended(self) -> bool:
        """Whether labels help for certain enough: in 3 of 4 resamples, and no defect more is missed.

        Labels help more often than not (3 to 1, say, before anything is known), and few of them show little: what
        3 of 4 resamples say makes that 9 to 1.
        """
        return self.better >= 0.75 and self.supervised.miss_rate <= self.without.miss_rate


@dataclass(frozen=True)
class Fitted:
    """What `fit` found out beside the weights."""

    preprocessing: Preprocessing
    """Done to each picture before the detector sees it."""
    calibrations: dict[str, Calibration]
    """Category → what the detector says of good pictures of it that were held out of training."""
    policy: Policy
    """The false-reject rate asked for."""
    learned_from: tuple[str, ...]
    """A digest of the contents of each training picture, sorted."""
    training: Outcome | None = None
    """How the training by gradients went, if the model has one."""
    choices: dict[str, Choice] = field(default_factory=dict)
    """What was chosen from → what was kept of it, if the model chooses."""
    importance: dict[str, float] = field(default_factory=dict)
    """What decides → its share in the decisions, largest first, if the model can say."""
    gain: LabelGain | None = None
    """What labelled defects brought, if the model learned from any."""
    remarks: tuple[str, ...] = ()
    """What else is to be said of how it learned, a sentence each."""

    def __post_init__(self) -> None:
        if not self.calibrations:
            raise ValueError("nothing is calibrated")


def part_score(image_scores: Iterable[float], top_views: int = 1) -> float:
    """How abnormal a part is: the mean of the highest scores of its views; no number if one of them is none.

    >>> part_score([0.25, 1.0, 0.5]), part_score([0.25, 1.0, 0.5], 2), part_score([0.25], 2)
    (1.0, 0.75, 0.25)
    """
    scores = sorted(image_scores, reverse=True)
    if any(math.isnan(score) for score in scores):
        return math.nan
    return math.fsum(scores[:top_views]) / min(top_views, len(scores))


def good_pictures_for(max_false_reject: float) -> int:
    """The least number of held-out good pictures that can promise `max_false_reject`.

    >>> good_pictures_for(0.01), good_pictures_for(0.005)
    (99, 199)
    """
    return math.ceil(1 / max_false_reject - 1e-9) - 1


def pool(calibrations: Iterable[Calibration]) -> Calibration:
    """The calibration of all categories together, for a picture whose category is not known."""
    parts = list(calibrations)
    return Calibration(
        tuple(sorted(score for part in parts for score in part.image_scores)),
        tuple(sorted(maximum for part in parts for maximum in part.map_maxima)),
        parts=tuple(views for part in parts for views in part.parts or [(score,) for score in part.image_scores])
        if any(part.parts for part in parts)
        else (),
        appearance={
            name: tuple(sorted(value for part in parts for value in part.appearance[name]))
            for name in sorted(set.intersection(*(set(part.appearance) for part in parts)))
        },
    )


@dataclass(frozen=True)
class Decider:
    """Turns scores into decisions: a calibration and the policy chosen for it."""

    calibration: Calibration
    policy: Policy

    @cached_property
    def reject(self) -> Threshold:
        """Above it a part is called defective."""
        return self.calibration.threshold(self.policy.max_false_reject)

    @cached_property
    def review(self) -> Threshold | None:
        """Above it, and not above `reject`, a part is sent to a person; None without a grey zone."""
        rate = self.policy.max_review
        return None if rate is None else self.calibration.threshold(rate)

    @cached_property
    def pixel(self) -> float:
        """Map values above it belong to a predicted region."""
        return self.calibration.pixel_threshold(self.policy.max_false_reject)

    def of_parts(self) -> "Decider":
        """What decides on parts by their scores; the same where parts were not calibrated."""
        return replace(self, calibration=self.calibration.of_parts(self.policy.top_views))

    def sentences(self) -> list[str]:
        """What is promised, in words: of rejecting and, where there is a grey zone, of stopping at all."""
        found = [self.reject.sentence()]
        if self.review is not None:
            found.append(f"to a person from {self.review.sentence()}")
        return found

    @property
    def heat_span(self) -> tuple[float, float]:
        """The map values that heatmaps draw blue and red; the threshold of regions is in the middle."""
        low = min(self.calibration.map_maxima[0], self.pixel) / 2
        return low, 2 * self.pixel - low

    def decide(self, image_score: float) -> Decision:
        """What to do with a part of that score; a score that is not a number is never good."""
        if not image_score <= self.reject.value:
            return "defective"
        return "review" if self.review is not None and image_score > self.review.value else "good"

    def calibrated(self, image_score: float) -> float:
        """The score as a number between 0 and 1 with 0.5 at the threshold.

        Strictly increasing, so that it never makes two different scores equal as clipping would:
        0.5 + 0.5 z / (1 + |z|) with z the distance to the threshold, counted in distances from the
        median good score to the threshold (but at least a twentieth of the threshold, where there are
        few good scores).
        """
        if math.isinf(image_score):
            return float(image_score > 0)
        threshold = self.reject.value
        scale = max(threshold - self.calibration.middle, 0.05 * abs(threshold)) or 1.0
        z = (image_score - threshold) / scale
        return 0.5 + 0.5 * z / (1 + abs(z))


def _conformal(good_scores: Sequence[float], rate: float) -> Threshold:
    n = len(good_scores)
    # Rounded so that 99 pictures keep the promise of 0.01 in spite of binary fractions.
    k = math.ceil(round((n + 1) * (1 - rate), 9))
    return Threshold(
        value=float(good_scores[min(k, n) - 1]),
        asked=rate,
        promised=rate if k <= n else 1 / (n + 1),
        good_pictures=n,
    )


def one_in(rate: float) -> str:
    """A small share as people say it.

    >>> one_in(0.005)
    '1 in 200'
    """
    return f"1 in {1 / rate:.4g}"
