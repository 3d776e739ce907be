"""Metrics: what they see, how it is collected in one pass, and what comes out.

A metric is a row of the table `METRICS` in a file of `metrics/`. It is a pure function of the
`Evidence` of one category (or of one kind of defect and the good pictures), and raises `Undefined`
with the reason where it has no value. Evidence is made of `State`s, one for each kind of defect,
that an `Evaluation` collects picture by picture and that add up: shards, processes and machines
may each see a part, in any order, and the sum is the same bit for bit.

How a state keeps millions of map values in bounded memory, and still exactly where it matters:

- A float32 is given its rank among all float32 as a 32-bit *key*. Nothing is scaled, so that no
  range needs to be known beforehand and no outlier can spoil it.
- Keys are grouped into *pages*: eighths of a power of two, and finer and finer towards 1, where
  saturated maps live. Each page keeps its distinct values exactly while they are few. When all
  pages together would hold more than `CELLS` cells, the fullest pages drop low bits of their keys
  (halving their resolution) until every page has its equal share.
- Which bits are dropped depends only on the set of values, never on the order of arrival: a page
  can only get fuller as data comes in, and dropping bits commutes with adding counts.
- Inside a cell that is wider than one value, values are taken to be spread evenly. Weights are
  whole numbers, so that sums do not depend on their order.

The exact mode is the same state without the bound.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from blemish import registry
from blemish.errors import MetricError
from blemish.types import Sample

Level = Literal["image", "pixel", "region", "part"]
Mode = Literal["auto", "exact", "streaming"]
Protocol = Literal["default", "ader", "adeval"]
Floats: TypeAlias = NDArray[np.float64]
Keys: TypeAlias = NDArray[np.uint32]
Weights: TypeAlias = NDArray[np.int64]
ArrayLike: TypeAlias = Any
"""A NumPy array, a torch tensor, or what `numpy.asarray` takes."""

PROTOCOLS: Mapping[Protocol, tuple[Protocol, ...]] = {
    "default": (),
    "ader": ("ader",),
    "adeval": ("adeval", "ader"),
}
"""Which variants of a metric a protocol takes, the first that exists; else the default."""
CELLS = 2**15
"""Cells that one histogram keeps in streaming mode, at most."""
EXACT_PIXELS = 2**24
"""Pixels up to which the mode "auto" is exact: 256 maps of 256x256."""
_PENDING_PIXELS = 2**22
_UNIT = 2**40
_ONE = 0xBF800000
_PAGES = np.unique(
    np.concatenate(
        [np.arange(0, 2**32, 2**20), *([_ONE - 2**bit, _ONE + 2**bit] for bit in range(20))],
        dtype=np.int64,
    )
).astype(np.uint32)
"""First key of each page. Every page is a dyadic interval, so that cells never cross its ends."""


class Undefined(Exception):  # noqa: N818 - an outcome, not an error
    """A metric has no value here; the message says why."""


class NotAsked(Undefined):
    """The metric is about something that was not given (parts, a threshold), so it is left out."""


Compute: TypeAlias = "Callable[[Evidence], float]"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number, higher or lower is better as its description says."""

    name: str
    """As in tables, JSON and the command line."""
    level: Level
    """What it counts."""
    description: str
    """One line."""
    compute: Compute
    """The value; raises `Undefined` with the reason."""
    variants: Mapping[Protocol, Compute] = field(default_factory=dict)
    """How other protocols compute it, where they differ."""


@cache
def all_metrics() -> Mapping[str, Metric]:
    """All metrics by name, in the order in which tables show them."""
    modules = [registry.load("metrics", name) for name in registry.names("metrics")]
    found = [metric for module in modules for metric in cast(tuple[Metric, ...], module.METRICS)]
    order = ("image", "part", "pixel", "region")
    return {metric.name: metric for metric in sorted(found, key=lambda metric: order.index(metric.level))}


def to_keys(values: NDArray[np.float32]) -> Keys:
    """The rank of each value among all float32, as uint32: greater value, greater key.

    >>> to_keys(np.array([-1, 0, 1], np.float32)) - to_keys(np.array([-1, -0.0, 1], np.float32))
    array([0, 0, 0], dtype=uint32)
    """
    bits = (values + np.float32(0)).view(np.int32)  # adding 0 makes -0 and 0 the same
    return cast(Keys, bits.view(np.uint32) ^ ((bits >> 31).view(np.uint32) | np.uint32(2**31)))


def to_values(keys: Keys) -> NDArray[np.float32]:
    """The float32 of each key; the inverse of `to_keys`."""
    is_negative = keys < 2**31
    return cast(Keys, keys ^ np.where(is_negative, np.uint32(2**32 - 1), np.uint32(2**31))).view(np.float32)


@dataclass(frozen=True)
class Histogram:
    """Whole-number weights of keys, in cells of 2^shift keys; the shift differs from page to page."""

    keys: Keys
    """(n,) lowest key of each cell that holds something, ascending."""
    weights: Weights
    """(n, columns)."""
    shifts: NDArray[np.uint8]
    """(pages,) low bits that each page has dropped."""

    @classmethod
    def empty(cls, columns: int) -> "Histogram":
        """Nothing yet."""
        return cls(np.empty(0, np.uint32), np.empty((0, columns), np.int64), np.zeros(_PAGES.size, np.uint8))

    @classmethod
    def of(cls, keys: Keys, weights: Weights | None = None) -> "Histogram":
        """Every key by itself; a weight of one each unless given. Sorts `keys` in place if it can."""
        if weights is None:
            keys.sort()
            first = _first_of_each(keys)
            weights = np.diff(first, append=keys.size)[:, None]
            return cls(keys[first], weights, np.zeros(_PAGES.size, np.uint8))
        order = np.argsort(keys, kind="stable")
        return cls(*_grouped(keys[order], weights[order]), np.zeros(_PAGES.size, np.uint8))

    @cached_property
    def widths(self) -> Weights:
        """(n,) number of keys that each cell spans; 1 where it is exact."""
        return np.left_shift(1, np.repeat(self.shifts, self._cells).astype(np.int64))

    @cached_property
    def totals(self) -> Floats:
        """(columns,) sum of all weights."""
        return np.asarray(self.weights.sum(axis=0), np.float64)

    def above(self, keys: NDArray[Any], column: int = 0) -> Floats:
        """The weight of everything at or above each of `keys` (whole numbers up to 2^32)."""
        if not self.keys.size:
            return np.zeros(len(keys))
        keys = keys.astype(np.int64)
        cell = np.searchsorted(self.keys, keys, side="right") - 1
        inside = np.minimum(keys - self.keys[cell], self.widths[cell]) / self.widths[cell]
        below = self._before[column][cell] + inside * self.weights[cell, column]
        return np.asarray(self.totals[column] - np.where(cell < 0, 0.0, below))

    def coarsened(self, budget: int) -> "Histogram":
        """The same in at most `budget` cells (or one a page, if that is more).

        Every page gets the same share, the largest power of two that fits if pages that are exact
        with less need only that. The share can only shrink as data is added, and so each page's
        resolution; that is what makes the outcome independent of the order.
        """
        needed = np.where(self.shifts > 0, budget, self._cells)
        share = budget
        while share > 1 and int(np.minimum(needed, share).sum()) > budget:
            share //= 2
        result = self
        while (too_full := result._cells > share).any():
            result = result._with_shifts(result.shifts + too_full.astype(np.uint8))
        return result

    def __add__(self, other: "Histogram") -> "Histogram":
        shifts = np.maximum(self.shifts, other.shifts)
        one, two = self._with_shifts(shifts), other._with_shifts(shifts)
        keys = np.concatenate([one.keys, two.keys])
        order = np.argsort(keys, kind="stable")  # which merges two sorted runs in linear time
        weights = np.concatenate([one.weights, two.weights])
        return Histogram(*_grouped(keys[order], weights[order]), shifts)

    def _with_shifts(self, shifts: NDArray[np.uint8]) -> "Histogram":
        if np.array_equal(shifts, self.shifts):
            return self
        drop = np.repeat(shifts, self._cells)
        return Histogram(*_grouped(self.keys >> drop << drop, self.weights), shifts)

    @cached_property
    def _cells(self) -> NDArray[np.int64]:
        """(pages,) number of cells in each page."""
        return np.diff(np.searchsorted(self.keys, _PAGES), append=self.keys.size)

    @cached_property
    def _before(self) -> Floats:
        """(columns, n) weight in all cells before each."""
        return (np.cumsum(self.weights, axis=0) - self.weights).T.astype(np.float64)


def _first_of_each(keys: Keys) -> NDArray[np.int64]:
    """Where each run of equal keys begins."""
    if not keys.size:
        return np.empty(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))


def _grouped(keys: Keys, weights: Weights) -> tuple[Keys, Weights]:
    """Sorted keys, each once, with the sum of their weights."""
    first = _first_of_each(keys)
    return keys[first], np.add.reduceat(weights, first, axis=0) if first.size else weights[:0]


class Curve(NamedTuple):
    """What lies above a falling threshold: one entry for each cell that holds something positive."""

    false_before: Floats
    """(n,) negatives above the cell."""
    false: Floats
    """(n,) negatives in and above the cell."""
    true_before: Floats
    """(n,) weight of positives above the cell."""
    true: Floats
    """(n,) weight of positives in and above the cell."""
    is_exact: NDArray[np.bool_]
    """(n,) whether all positives in the cell have the same value."""
    negatives: float
    """Number of all negatives."""

    def line(self) -> tuple[Floats, Floats]:
        """The curve from (0, 0) to (1, 1): share of negatives and of positives above."""
        false = np.stack([self.false_before, self.false], axis=1).ravel()
        true = np.stack([self.true_before, self.true], axis=1).ravel()
        x = np.concatenate([[0.0], false, [self.negatives]]) / self.negatives
        return x, np.concatenate([[0.0], true, true[-1:]]) / true[-1]


class Picture(NamedTuple):
    """What is kept of every picture."""

    path: str
    image_score: float
    is_anomalous: bool
    part: str
    defective_pixels: int
    """-1 when there is no mask."""
    pixels: int
    """0 when there is no map, -1 when it has values that are not finite."""


@dataclass
class State:
    """All that is known of one kind of defect of one category, or of its good pictures."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    """By path."""
    normal: Histogram = field(default_factory=lambda: Histogram.empty(1))
    """Number of normal pixels."""
    anomalous: Histogram = field(default_factory=lambda: Histogram.empty(3))
    """Number of defective pixels; the same divided by the size of their region, and by the number of
    defective pixels in their picture, both times 2^40 and rounded."""
    regions: int = 0
    """Number of regions."""
    low: float = np.inf
    """The smallest map value."""
    high: float = -np.inf
    """The largest map value."""

    def __add__(self, other: "State") -> "State":
        _refuse_duplicates(self.pictures, other.pictures)
        return State(
            self.pictures | other.pictures,
            self.normal + other.normal,
            self.anomalous + other.anomalous,
            self.regions + other.regions,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    def coarsened(self) -> "State":
        """The same in bounded memory."""
        normal, anomalous = self.normal.coarsened(CELLS), self.anomalous.coarsened(CELLS)
        return State(self.pictures, normal, anomalous, self.regions, self.low, self.high)


def _refuse_duplicates(one: Iterable[str], two: Iterable[str]) -> None:
    both = sorted(set(one) & set(two))
    if both:
        raise MetricError(
            f"{both[0]} is there twice, as {len(both)} picture(s) are; expected every path once: "
            "a picture that counts twice shifts every metric."
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compute."""

    protocol: Protocol = "default"
    """"default": the dataset's labels, exact curves. "ader": the published tables' way (labels from
    masks, 21 thresholds, AUPRO from 100 steps with rescaled FPR). "adeval": the same with pixel
    curves from 50 strips, as in the tables of ADer's benchmark."""
    aupro_limit: float = 0.3
    """The false-positive rate up to which AUPRO is taken; the area is divided by it."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """The calibrated threshold of each category; "" stands for all others."""


@dataclass(frozen=True)
class Evidence:
    """What a metric may look at: the pictures of one category, or one kind of defect and the good."""

    state: State
    """All pictures together."""
    good: State
    """The good ones among them."""
    options: Options
    """How to compute."""
    category: str

    def value(self, name: str) -> float:
        """The metric of that name on this evidence."""
        if name not in self._values:
            metric = all_metrics()[name]
            variants = [metric.variants[key] for key in PROTOCOLS[self.options.protocol] if key in metric.variants]
            self._values[name] = (variants or [metric.compute])[0](self)
        return self._values[name]

    @cached_property
    def _values(self) -> dict[str, float]:
        return {}

    def scores(self, level: Level) -> tuple[Floats, NDArray[np.bool_]]:
        """Scores and labels of pictures, or of parts: the highest score, and any label, of its views."""
        pictures = list(self.state.pictures.values())
        if level == "part" and not any(picture.part for picture in pictures):
            raise NotAsked("no picture says which part it shows")
        bad = [picture.path for picture in pictures if not np.isfinite(picture.image_score)]
        if bad:
            raise Undefined(f"the score of {min(bad)} is not finite ({len(bad)} of {len(pictures)} pictures)")
        found: dict[str, tuple[float, bool]] = {}
        for picture in pictures:
            key = (level == "part" and picture.part) or f"\0{picture.path}"
            score, is_anomalous = found.get(key, (-np.inf, False))
            score = max(score, picture.image_score)
            found[key] = (score, is_anomalous or self._is_anomalous(picture))
        scores = np.array([score for score, _ in found.values()])
        labels = np.array([label for _, label in found.values()], bool)
        if labels.all() or not labels.any():
            raise Undefined(f"there are no {'good' if labels.all() else 'defective'} {level}s")
        return scores, labels

    def _is_anomalous(self, picture: Picture) -> bool:
        if self.options.protocol == "default" or picture.defective_pixels < 0:
            return picture.is_anomalous
        return picture.defective_pixels > 0

    def curve(self, level: Level) -> Curve:
        """The curve whose areas are ROC, precision-recall and, for regions, per-region overlap."""
        if level in {"image", "part"}:
            scores, labels = self.scores(level)
            ranks = np.unique(scores, return_inverse=True)[1].astype(np.uint32)
            return _curve(Histogram.of(ranks[~labels]), Histogram.of(ranks[labels]), 0)
        self.need_pixels()
        return _curve(self.state.normal, self.state.anomalous, 0 if level == "pixel" else 1)

    def need_pixels(self) -> None:
        """Raises `Undefined` unless there are normal and defective pixels with maps."""
        pictures = self.state.pictures.values()
        bad = [picture.path for picture in pictures if picture.pixels < 0]
        if bad:
            raise Undefined(
                f"the map of {min(bad)} has values that are not finite ({len(bad)} of {len(pictures)} maps)"
            )
        if not any(picture.pixels for picture in pictures):
            raise Undefined("there are no anomaly maps")
        if not self.state.anomalous.keys.size:
            unknown = sum(picture.defective_pixels < 0 for picture in pictures)
            raise Undefined(
                f"no pixel is marked defective ({unknown} pictures have no mask)"
                if unknown
                else "no pixel is marked defective"
            )
        if not self.state.normal.keys.size:
            raise Undefined("every pixel is marked defective")

    def keys_above(self, shares: Sequence[float] | Floats) -> NDArray[np.int64]:
        """The first key whose value, scaled to [0, 1] by the smallest and largest, exceeds each share."""
        self.need_pixels()
        low, high = self.state.low, self.state.high
        if not low < high:
            raise Undefined(f"all map values are {low:g}, so that they can't be scaled to [0, 1]")
        wanted = np.asarray(shares, np.float64)
        first = np.full(wanted.shape, int(to_keys(np.array([low], np.float32))[0]), np.int64)
        last = np.full(wanted.shape, int(to_keys(np.array([high], np.float32))[0]) + 1, np.int64)
        while (first < last).any():
            middle = (first + last) // 2
            values = to_values(middle.astype(np.uint32)).astype(np.float64)
            exceeds = (values - low) / (high - low) > wanted
            first, last = np.where(exceeds, first, np.minimum(middle + 1, last)), np.where(exceeds, middle, last)
        return first


def _curve(negative: Histogram, positive: Histogram, column: int) -> Curve:
    low = positive.keys[::-1].astype(np.int64)
    widths = positive.widths[::-1]
    weights = positive.weights[::-1, column]
    true = np.cumsum(weights)
    return Curve(
        negative.above(low + widths),
        negative.above(low),
        (true - weights).astype(np.float64),
        true.astype(np.float64),
        widths == 1,
        float(negative.totals[0]),
    )


@dataclass(frozen=True)
class Results:
    """All metrics of all categories."""

    metrics: dict[str, dict[str, float]]
    """{category: {name: value}}, only what is defined."""
    mean: dict[str, float]
    """{name: mean over the categories where it is defined}."""
    by_defect: dict[str, dict[str, dict[str, float]]]
    """{category: {defect: {name: value}}}, each kind of defect against all good pictures."""
    undefined: dict[str, dict[str, str]]
    """{category: {name: reason}}."""
    protocol: Protocol
    """Which protocol the values follow."""
    mode: Literal["exact", "streaming"]
    """Whether map values were all kept, or counted in cells."""
    notes: list[str]
    """Sentences on what was left out."""


class Evaluation:
    """Collects pictures, one at a time, and computes every metric of them.

    >>> from pathlib import Path
    >>> evaluation = Evaluation()
    >>> for name, score in {"a": 0.1, "b": 0.7, "c": 0.4}.items():
    ...     sample = Sample(path=Path(name), category="cup", split="test", is_anomalous=name == "b")
    ...     evaluation.add(sample, score)
    >>> evaluation.compute().metrics["cup"]["image_auroc"]
    1.0
    """

    def __init__(self, mode: Mode = "auto") -> None:
        self.mode = mode
        self._states: dict[tuple[str, str], State] = {}
        self._pending: dict[tuple[str, str], list[tuple[Keys, Keys, Weights]]] = {}
        self._pending_pixels = 0
        self._pixels = 0

    def add(
        self, sample: Sample, image_score: float, anomaly_map: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> None:
        """Takes one picture in; its map is not kept.

        Args:
            sample: The picture; its path may come only once.
            image_score: How abnormal it is.
            anomaly_map: (H, W) floating point, higher = more abnormal; None when there is none.
            mask: (H, W), True (or 1, or 255) where defective; None when unknown. A good picture
                needs none.

        Raises:
            MetricError: the path is there already; map and mask differ in shape; the mask is not
                binary, or marks pixels of a good picture; nobody said whether it is good.
        """
        name = str(sample.path)
        values = None if anomaly_map is None else _as_map(anomaly_map, name)
        truth = None if mask is None else as_mask(mask, name)
        if values is not None and truth is not None and values.shape != truth.shape:
            raise MetricError(
                f"{name}: the anomaly map has shape {values.shape} and the mask {truth.shape}; expected the same."
            )
        is_anomalous = bool(truth.any()) if sample.is_anomalous is None and truth is not None else sample.is_anomalous
        if is_anomalous is None:
            raise MetricError(f"{name} has neither a label nor a mask; expected to know whether it is good.")
        if not is_anomalous and truth is None and values is not None:
            truth = np.zeros(values.shape, bool)
        key = (sample.category, (sample.defect or "defective") if is_anomalous else "")
        state = self._states.setdefault(key, State())
        _refuse_duplicates([name], state.pictures)
        pixels = 0 if values is None else values.size if np.isfinite(values).all() else -1
        defective = -1 if truth is None else int(np.count_nonzero(truth))
        state.pictures[name] = Picture(name, float(image_score), is_anomalous, sample.part, defective, pixels)
        if values is not None and truth is not None and pixels > 0:
            self._add_map(key, values, truth)

    def _add_map(self, key: tuple[str, str], values: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        state = self._states[key]
        state.low, state.high = min(state.low, float(values.min())), max(state.high, float(values.max()))
        keys = to_keys(values)
        if truth.any():
            weights, regions = _weights(truth)
            state.regions += regions
            entry = (keys[~truth], keys[truth], weights)
        else:
            entry = (keys.ravel(), np.empty(0, np.uint32), np.empty((0, 3), np.int64))
        self._pending.setdefault(key, []).append(entry)
        self._pending_pixels += values.size
        self._pixels += values.size
        if self._pending_pixels > max(_PENDING_PIXELS, self._held if self.is_exact else 0):
            self._flush()

    @property
    def is_exact(self) -> bool:
        """Whether all map values are kept; "auto" stops that at `EXACT_PIXELS`."""
        return self.mode == "exact" or (self.mode == "auto" and self._pixels <= EXACT_PIXELS)

    @property
    def _held(self) -> int:
        return sum(state.normal.keys.size + state.anomalous.keys.size for state in self._states.values())

    def _flush(self) -> None:
        for key, entries in self._pending.items():
            state = self._states[key]
            normal, anomalous, weights = (list(column) for column in zip(*entries, strict=True))
            state.normal = state.normal + Histogram.of(np.concatenate(normal))
            state.anomalous = state.anomalous + Histogram.of(np.concatenate(anomalous), np.concatenate(weights))
        self._pending, self._pending_pixels = {}, 0
        if not self.is_exact:
            self._states = {key: state.coarsened() for key, state in self._states.items()}

    def compute(self, options: Options | None = None) -> Results:
        """Every metric of every category and kind of defect."""
        options = options or Options()
        self._flush()
        metrics, by_defect, undefined = {}, {}, {}
        for category in sorted({category for category, _ in self._states}):
            states = {defect: state for (name, defect), state in sorted(self._states.items()) if name == category}
            good = states.pop("", State())
            together = sum(states.values(), good)
            metrics[category], undefined[category] = _values(Evidence(together, good, options, category))
            by_defect[category] = {
                defect: _values(Evidence(state + good, good, options, category))[0] for defect, state in states.items()
            }
        if not metrics:
            raise MetricError("there is nothing to evaluate (0 pictures); expected at least one.")
        mean = {
            name: float(np.mean([values[name] for values in metrics.values() if name in values]))
            for name in all_metrics()
            if any(name in values for values in metrics.values())
        }
        mode: Literal["exact", "streaming"] = "exact" if self.is_exact else "streaming"
        return Results(metrics, mean, by_defect, undefined, options.protocol, mode, [])


def _values(evidence: Evidence) -> tuple[dict[str, float], dict[str, str]]:
    values, undefined = {}, {}
    for name in all_metrics():
        try:
            values[name] = float(evidence.value(name))
        except NotAsked:
            continue
        except Undefined as reason:
            undefined[name] = str(reason)
    return values, undefined


def _weights(truth: NDArray[np.bool_]) -> tuple[Weights, int]:
    """For each defective pixel, row by row: 1, 1 / area of its region, 1 / area of all; and the regions."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(truth.view(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    weights = np.empty((int(areas[1:].sum()), 3), np.int64)
    weights[:, 0] = 1
    weights[:, 1] = ((_UNIT + areas // 2) // np.maximum(areas, 1))[labels[truth]]
    weights[:, 2] = (_UNIT + len(weights) // 2) // len(weights)
    return weights, count - 1


def _as_array(values: ArrayLike) -> NDArray[Any]:
    """NumPy's view of an array of any kind; torch is not imported, only recognised."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _as_map(values: ArrayLike, name: str) -> NDArray[np.float32]:
    array = _as_array(values)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiub":
        raise MetricError(f"{name}: the anomaly map has shape {array.shape} {array.dtype}; expected (H, W) numbers.")
    return np.ascontiguousarray(array, np.float32)


def as_mask(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    """A mask (H, W) as booleans.

    Raises:
        MetricError: it has another shape, or other values than 0 and 1, or 0 and 255.
    """
    array = _as_array(values)
    if array.ndim != 2 or not array.size:
        raise MetricError(f"{name}: the mask has shape {array.shape}; expected (H, W).")
    if array.dtype != np.bool_:
        odd = array[(array != 0) & (array != array.max())]
        if odd.size or array.max() not in (0, 1, 255):
            value = odd[0] if odd.size else array.max()
            raise MetricError(
                f"{name}: the mask is not binary, it holds {value:g} (and {array.max():g}); expected 0 and 1, "
                "or 0 and 255. Threshold it first."
            )
    return np.ascontiguousarray(array != 0)
