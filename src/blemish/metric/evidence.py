"""Metrics and what they may look at: the states of all pictures of a category."""

import json
import zlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from blemish import registry
from blemish.errors import ConfigError, MetricError, bad_option, not_among
from blemish.metric.histogram import Cells, Curve, Floats, Histogram, Pile, edges, to_keys, to_values
from blemish.types import part_score

Level = Literal["image", "pixel", "region", "part"]
CurveKind = Literal["image", "part", "pixel", "region", "picture"]
Protocol = Literal["default", "ader", "adeval"]
Kept = TypeVar("Kept")
ArrayLike: TypeAlias = Any
"""A NumPy array, a torch tensor, or what `numpy.asarray` takes."""
PROTOCOLS: Mapping[Protocol, tuple[Protocol, ...]] = {
    "default": (),
    "ader": ("ader",),
    "adeval": ("adeval", "ader"),
}
"""Which variants of a metric a protocol takes, the first that exists; else the default."""
GROUPS = 64
"""Groups of pictures that intervals are drawn from: all that is known of a group's pixels is their
sum, so that memory stays bounded."""
COLUMNS: Mapping[str, int] = {"pixel": 0, "region": 1, "picture": 2}
PLURAL: Mapping[Level, str] = {"image": "pictures", "part": "parts", "pixel": "pixels", "region": "regions"}
_CELLS = ("normal.spread", "normal.atoms", "anomalous.spread", "anomalous.atoms")


class Undefined(Exception):  # noqa: N818 - an outcome, not an error
    """A metric has no value here; the message says why."""


class NotAsked(Undefined):
    """The metric is about something that was not given (parts, a threshold), so it is left out."""


class PictureError(MetricError):
    """One picture can't be evaluated: what is wrong with it, and what was expected instead."""

    def __init__(self, name: str, wrong: str, expected: str) -> None:
        super().__init__(f"{name}: {wrong}; expected {expected}.")
        self.expected = expected


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
    names = sorted(registry.names("metrics"), key=lambda name: name != "ranking")  # the best known come first
    modules = [registry.load("metrics", name) for name in names]
    found = [metric for module in modules for metric in cast(tuple[Metric, ...], module.METRICS)]
    order = ("image", "part", "pixel", "region")
    return {metric.name: metric for metric in sorted(found, key=lambda metric: order.index(metric.level))}


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

    @property
    def pixels(self) -> int:
        """Number of map values counted."""
        return int(self.normal.totals[0] + self.anomalous.totals[0])

    def __add__(self, other: "State") -> "State":
        refuse_duplicates(self.pictures, other.pictures)
        return State(
            self.pictures | other.pictures,
            self.normal.plus(other.normal),
            self.anomalous.plus(other.anomalous),
            self.regions + other.regions,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @cached_property
    def group(self) -> int:
        """The group of its pictures, where an evaluation keeps them in groups."""
        return group_of(next(iter(self.pictures.values())))

    def coarsened(self, budget: int) -> "State":
        """The same in bounded memory; defective pixels are few and have three weights, so they get half."""
        return replace(self, normal=self.normal.coarsened(budget), anomalous=self.anomalous.coarsened(budget // 2))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as named arrays; equal states give equal arrays, in whatever order they grew."""
        pictures = sorted(self.pictures.values())
        texts = json.dumps([[picture.path, picture.part] for picture in pictures]).encode()
        arrays: dict[str, NDArray[Any]] = {
            "texts": np.frombuffer(texts, np.uint8),
            "image_scores": np.array([picture.image_score for picture in pictures], np.float64),
            "labels": np.array([picture.is_anomalous for picture in pictures], np.uint8),
            "pixels": np.array([(picture.defective_pixels, picture.pixels) for picture in pictures], np.int64),
            "regions": np.array([self.regions], np.int64),
            "range": np.array([self.low, self.high], np.float64),
        }
        for name, cells in zip(_CELLS, (*self.normal, *self.anomalous), strict=True):
            arrays |= {f"{name}.keys": cells.keys, f"{name}.weights": cells.weights, f"{name}.shifts": cells.shifts}
            arrays[f"{name}.last"] = np.array([cells.last], np.int64)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "State":
        """The state that gave these arrays."""
        columns = [arrays[name].tolist() for name in ("image_scores", "labels", "pixels")]
        pictures = {
            path: Picture(path, score, bool(label), part, *pixels)
            for (path, part), score, label, pixels in zip(json.loads(arrays["texts"].tobytes()), *columns, strict=True)
        }
        cells = []
        for name in _CELLS:
            keys, weights, shifts, last = (arrays[f"{name}.{key}"] for key in ("keys", "weights", "shifts", "last"))
            cells.append(Cells(keys, weights, shifts, int(last[0])))
        low, high = arrays["range"].tolist()
        return cls(pictures, Histogram(*cells[:2]), Histogram(*cells[2:]), int(arrays["regions"][0]), low, high)


def group_of(picture: Picture) -> int:
    """Which of `GROUPS` a picture belongs to; the views of one part stay together."""
    return zlib.crc32((picture.part or picture.path).encode("utf-8", "surrogateescape")) % GROUPS


def refuse_duplicates(one: Collection[str], two: Collection[str]) -> None:
    """Raises `MetricError` if a path is in both; the larger one should be quick to look into."""
    few, many = sorted((one, two), key=len)
    both = sorted(path for path in few if path in many)
    if both:
        raise MetricError(
            f"{both[0]} is in both evaluations, as {len(both)} pictures are; expected every path once, "
            "because each copy shifts every metric."
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
    top_views: int = 1
    """A part's score is the mean of so many of its views' scores, the highest."""
    resamples: int = 0
    """How often to draw the pictures again, for intervals; 200 is enough."""
    seed: int = 0
    """Decides which pictures are drawn."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigError(not_among("protocol", self.protocol, PROTOCOLS))
        if not 0 < self.aupro_limit <= 1:
            raise bad_option("aupro_limit", self.aupro_limit, "more than 0 and at most 1, as 0.3")
        if self.resamples < 0:
            raise bad_option("resamples", self.resamples, "0 (no intervals) or more, as 200")


@dataclass(frozen=True)
class Evidence:
    """What a metric may look at: the pictures of one category, or one kind of defect and the good."""

    good: tuple[State, ...]
    """The good pictures."""
    defective: tuple[State, ...]
    """The others, for each kind of defect."""
    options: Options
    """How to compute."""
    category: str

    def value(self, name: str) -> float:
        """The metric of that name on this evidence."""
        metric = all_metrics()[name]
        variants = [metric.variants[key] for key in PROTOCOLS[self.options.protocol] if key in metric.variants]
        return self.keep(("value", name), partial((variants or [metric.compute])[0], self))

    @cached_property
    def _kept(self) -> dict[Hashable, Any]:
        """What several metrics need, computed once."""
        return {}

    def keep(self, key: Hashable, compute: Callable[[], Kept]) -> Kept:
        """What was computed under `key`, now or before."""
        if key not in self._kept:
            self._kept[key] = compute()
        return cast(Kept, self._kept[key])

    @cached_property
    def pictures(self) -> list[Picture]:
        """All pictures."""
        return [picture for state in (*self.good, *self.defective) for picture in state.pictures.values()]

    @cached_property
    def normal(self) -> Pile:
        """Normal pixels of all pictures, one column: their number."""
        return Pile(tuple(state.normal for state in (*self.good, *self.defective)))

    @cached_property
    def anomalous(self) -> Pile:
        """Defective pixels, three columns: see `State.anomalous`."""
        return Pile(tuple(state.anomalous for state in self.defective))

    def labelled(self, level: Level) -> tuple[Floats, NDArray[np.bool_]]:
        """Scores and labels of pictures, or of parts: the highest scores, and any label, of its views."""
        scores, labels, _ = self.keep(("units", level), partial(self.units, level))
        return scores, labels

    def scores(self, level: Level) -> tuple[Floats, NDArray[np.bool_]]:
        """The same, where there are both good and defective ones to be told apart."""
        scores, labels = self.labelled(level)
        if labels.all() or not labels.any():
            raise Undefined(f"there are no {'good' if labels.all() else 'defective'} {PLURAL[level]}")
        return scores, labels

    def units(self, level: Level) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
        """Scores, labels and groups of pictures or parts."""
        pictures = self.pictures
        if level == "part" and not any(picture.part for picture in pictures):
            raise NotAsked("no picture says which part it shows")
        bad = [picture.path for picture in pictures if not np.isfinite(picture.image_score)]
        if bad:
            raise Undefined(f"the score of {min(bad)} is not finite ({len(bad)} of {len(pictures)} pictures)")
        units: Sequence[Sequence[Picture]] = [(picture,) for picture in pictures]
        if level == "part":
            found: dict[str, list[Picture]] = {}
            for picture in pictures:
                found.setdefault(picture.part or f"\0{picture.path}", []).append(picture)
            units = list(found.values())
        top = self.options.top_views
        scores = [part_score((picture.image_score for picture in views), top) for views in units]
        labels = [any(self._is_anomalous(picture) for picture in views) for views in units]
        groups = [group_of(views[0]) for views in units]
        return np.array(scores, np.float64), np.array(labels, bool), np.array(groups, np.int64)

    def _is_anomalous(self, picture: Picture) -> bool:
        if self.options.protocol == "default" or picture.defective_pixels < 0:
            return picture.is_anomalous
        return picture.defective_pixels > 0

    def curve(self, kind: CurveKind) -> Curve:
        """The curve of which areas are taken.

        Args:
            kind: "image" and "part" count pictures and parts; "pixel" counts defective pixels,
                "region" weighs every region the same, both against the normal pixels of all
                pictures; "picture" weighs the defect of every picture the same, against the pixels
                of good pictures.
        """
        of = self._ranked if kind in {"image", "part"} else self._counted
        return self.keep(("curve", kind), partial(of, kind))

    def _ranked(self, kind: CurveKind) -> Curve:
        scores, labels = self.scores(cast(Level, kind))
        ranks = np.unique(scores, return_inverse=True)[1].astype(np.uint32)
        good, bad = (Cells.empty(1).plus(ranks[chosen]) for chosen in (~labels, labels))
        return Curve.of(Pile((Histogram(good, good.empty(1)),)), Pile((Histogram(bad, bad.empty(1)),)))

    def _counted(self, kind: CurveKind) -> Curve:
        self.need_pixels()
        normal = Pile(tuple(state.normal for state in self.good)) if kind == "picture" else self.normal
        keys = self.keep("edges", lambda: edges([*self.anomalous.cells, *self.normal.atoms]))
        false = self.keep(("false", kind == "picture"), lambda: normal.above(keys))
        return Curve(keys, false, self.anomalous.above(keys, COLUMNS[kind]), float(normal.totals[0]))

    def need_pixels(self) -> None:
        """Raises `Undefined` unless there are normal and defective pixels with maps."""
        pictures = self.pictures
        bad = [picture.path for picture in pictures if picture.pixels < 0]
        if bad:
            raise Undefined(
                f"the map of {min(bad)} has values that are not finite ({len(bad)} of {len(pictures)} maps)"
            )
        if not any(picture.pixels for picture in pictures):
            raise Undefined("there are no anomaly maps")
        if not self.anomalous.size:
            unknown = sum(picture.is_anomalous and picture.defective_pixels < 0 for picture in pictures)
            raise Undefined(
                "no pixel is marked defective" + f" (defective pictures without a mask: {unknown})" * (unknown > 0)
            )
        if not self.normal.size:
            raise Undefined("every pixel is marked defective")

    def above(
        self, shares: Sequence[float], *, level: Level = "pixel", or_equal: bool = False
    ) -> tuple[Floats, Floats, float]:
        """Defective weight above thresholds, all pixels above them, and all defective weight.

        Args:
            shares: Thresholds as shares of the range of the map values, 0 for the smallest.
            level: "pixel" weighs every defective pixel the same, "region" every region.
            or_equal: Whether a value that equals the threshold counts as above.
        """
        keys = self.keys_above(np.asarray(shares, np.float64), or_equal)
        column = COLUMNS[level]
        called = self.normal.above(keys) + self.anomalous.above(keys)
        return self.anomalous.above(keys, column), called, float(self.anomalous.totals[column])

    def keys_above(self, shares: Floats, or_equal: bool) -> NDArray[np.int64]:
        """The first key that is above each share; all are found by bisection at once."""
        self.need_pixels()
        states = (*self.good, *self.defective)
        low, high = min(state.low for state in states), max(state.high for state in states)
        if not low < high:
            raise Undefined(f"all map values are {low:g}, so that no range can be divided")
        ends = to_keys(np.array([low, high], np.float32)).astype(np.int64)
        first, last = np.full(shares.shape, ends[0]), np.full(shares.shape, ends[1] + 1)
        is_above = np.greater_equal if or_equal else np.greater
        while (first < last).any():
            middle = (first + last) // 2
            values = to_values(middle.astype(np.uint32)).astype(np.float64)
            above = is_above((values - low) / (high - low), shares)
            first, last = np.where(above, first, np.minimum(middle + 1, last)), np.where(above, middle, last)
        return first

    @property
    def threshold(self) -> float:
        """The calibrated threshold on the image score."""
        thresholds = self.options.thresholds
        if self.category not in thresholds and "" not in thresholds:
            raise NotAsked("no threshold is given")
        return thresholds.get(self.category, thresholds.get("", 0.0))


def as_array(values: ArrayLike) -> NDArray[Any]:
    """NumPy's view of an array of any kind; torch is not imported, only recognised."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if "bfloat16" in str(values.dtype) else values  # which NumPy does not have
    return np.asarray(values)


def as_map(values: ArrayLike, name: str) -> NDArray[np.float32]:
    """An anomaly map as (H, W) float32.

    Raises:
        MetricError: it has another shape, or does not hold numbers.
    """
    array = as_array(values)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiub":
        raise PictureError(name, f"the anomaly map has shape {array.shape} of {array.dtype}", "(H, W) numbers")
    return np.ascontiguousarray(array, np.float32)


def as_mask(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    """A mask (H, W) as booleans.

    Raises:
        MetricError: it has another shape, or other values than 0 and 1, or 0 and 255.
    """
    array = as_array(values)
    if array.ndim != 2 or not array.size:
        raise PictureError(name, f"the mask has shape {array.shape}", "(H, W)")
    if array.dtype != np.bool_:
        odd = array[(array != 0) & (array != array.max())]
        if odd.size or array.max() not in (0, 1, 255):
            value = odd[0] if odd.size else array.max()
            raise PictureError(name, f"the mask is not binary, it holds {value:g}", "0 and 1, or 0 and 255")
    return np.ascontiguousarray(array != 0)
