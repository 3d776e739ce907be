"""Metrics: what they see, how it is collected in one pass, and what comes out.

A metric is a row of the table `METRICS` in a file of `metrics/`. It is a pure function of the
`Evidence` of one category (or of one kind of defect and the good pictures), and raises `Undefined`
with the reason where it has no value. Evidence is made of `State`s, one for each kind of defect,
that an `Evaluation` collects picture by picture and that add up: shards, processes and machines
may each see a part, in any order, and the sum is the same bit for bit.

How map values are kept in bounded memory, and still exactly where it matters:

- A float32 is given its rank among all float32 as a 32-bit *key*. Nothing is scaled, so that no
  range needs to be known beforehand and no outlier can spoil it.
- Keys are grouped into *pages*: eighths of a power of two, and finer and finer towards 1, where
  saturated maps live. Each page keeps its distinct values exactly while they are few. When all
  pages together would hold more than `CELLS` cells, the fullest pages drop low bits of their keys
  (halving their resolution) until every page has its equal share.
- Which bits are dropped depends only on the set of values, never on the order of arrival: a page
  can only get fuller as data comes in, and dropping bits commutes with adding counts.
- Values that many pixels of one picture share are kept apart, so that clipped and constant areas
  stay ties.
- Inside a cell that is wider than one value, values are taken to be spread evenly. Weights are
  whole numbers, so that sums do not depend on their order.

The exact mode is the same state without the bound.
"""

import json
import os
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, cast, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from blemish import registry
from blemish.errors import ConfigError, MetricError, not_among
from blemish.types import Sample

Level = Literal["image", "pixel", "region", "part"]
CurveKind = Literal["image", "part", "pixel", "region", "picture"]
Mode = Literal["auto", "exact", "streaming"]
Protocol = Literal["default", "ader", "adeval"]
Floats: TypeAlias = NDArray[np.float64]
Keys: TypeAlias = NDArray[np.uint32]
Weights: TypeAlias = NDArray[np.int64]
Kept = TypeVar("Kept")
Key: TypeAlias = tuple[str, str, int]
"""Category, kind of defect ("" for good) and group of pictures (0 where there are none)."""
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
GROUPS = 64
"""Groups of pictures that intervals are drawn from: all that is known of a group's pixels is their
sum, so that memory stays bounded."""
_RESAMPLED_KEYS = 4096
_PENDING_PIXELS = 2**20
_ATOM_PIXELS, _ATOM_SHARE, _ATOM_SAMPLE = 4, 16384, 4096
_UNIT = 2**40
_ONE = 0xBF800000
_COLUMNS: Mapping[str, int] = {"pixel": 0, "region": 1, "picture": 2}
_PLURAL: Mapping[Level, str] = {"image": "pictures", "part": "parts", "pixel": "pixels", "region": "regions"}
_FORMAT = "blemish evaluation 2"
_CELLS = ("normal.spread", "normal.atoms", "anomalous.spread", "anomalous.atoms")
_STREAMING = (
    "Map values were counted in cells (streaming mode), which agrees with exact values to about 1e-4; "
    'for exact values choose the mode "exact".'
)
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
class Cells:
    """Whole-number weights of keys, in cells of 2^shift keys; the shift differs from page to page."""

    keys: Keys
    """(n,) lowest key of each cell that holds something, ascending."""
    weights: Weights
    """(n, columns)."""
    shifts: NDArray[np.uint8]
    """(pages,) low bits that each page has dropped."""
    last: int
    """The greatest key, to the last bit: of clipped maps, nothing may seem to lie above it; -1 if none."""

    @classmethod
    def empty(cls, columns: int) -> "Cells":
        """Nothing yet."""
        return cls(np.empty(0, np.uint32), np.empty((0, columns), np.int64), np.zeros(_PAGES.size, np.uint8), -1)

    def plus(self, keys: Keys, weights: Weights | None = None) -> "Cells":
        """The same and more keys, which are sorted in place; a weight of one each unless given."""
        last = int(keys.max()) if keys.size else -1
        if weights is None:
            keys.sort()
            keys = _dropped(keys, self.shifts)
            first = _first_of_each(keys)
            more = Cells(keys[first], np.diff(first, append=keys.size)[:, None], self.shifts, last)
        else:
            order = np.argsort(keys)
            more = Cells(*_grouped(_dropped(keys[order], self.shifts), weights[order]), self.shifts, last)
        return self + more

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """(n,) number of keys that each cell spans; 1 where it is exact."""
        widths = np.left_shift(1, np.repeat(self.shifts, self._per_page).astype(np.int64))
        if widths.size:
            widths[-1] = min(widths[-1], self.last - int(self.keys[-1]) + 1)
        return widths

    def above(self, keys: NDArray[np.int64], column: int) -> Floats:
        """The weight of everything at or above each of `keys`."""
        if not self.keys.size:
            return np.zeros(keys.shape)
        # NumPy looks up ascending values several times faster than descending ones.
        wanted = keys.clip(0, 2**32 - 1).astype(np.uint32)[::-1]
        cell = np.searchsorted(self.keys, np.ascontiguousarray(wanted), side="right")[::-1] - 1
        inside = np.minimum(keys - self.keys[cell], self.widths[cell]) / self.widths[cell]
        cumulated = self._cumulated[column]
        below = np.where(cell < 0, 0.0, cumulated[cell] + inside * self.weights[cell, column])
        return np.asarray(cumulated[-1] - below)

    def coarsened(self, budget: int) -> "Cells":
        """The same in at most `budget` cells (or one a page, if that is more).

        Every page gets the same share, the largest power of two that fits if pages that are exact
        with less need only that. The share can only shrink as data is added, and so each page's
        resolution; that is what makes the outcome independent of the order.
        """
        needed = np.where(self.shifts > 0, budget, self._per_page)
        share = budget
        while share > 1 and int(np.minimum(needed, share).sum()) > budget:
            share //= 2
        result = self
        while (result._per_page > share).any():
            # Dropping one bit halves the number of cells at best.
            least = np.ceil(np.log2(np.maximum(result._per_page, share) / share))
            result = result._with_shifts(result.shifts + least.astype(np.uint8))
        return result

    def __add__(self, other: "Cells") -> "Cells":
        if not self.keys.size and np.array_equal(self.shifts, other.shifts):
            return other
        shifts = np.maximum(self.shifts, other.shifts)
        one, two = self._with_shifts(shifts), other._with_shifts(shifts)
        keys = np.concatenate([one.keys, two.keys])
        order = np.argsort(keys, kind="stable")  # which merges two sorted runs in linear time
        weights = np.concatenate([one.weights, two.weights])
        return Cells(*_grouped(keys[order], weights[order]), shifts, max(one.last, two.last))

    def _with_shifts(self, shifts: NDArray[np.uint8]) -> "Cells":
        if np.array_equal(shifts, self.shifts):
            return self
        return Cells(*_grouped(_dropped(self.keys, shifts), self.weights), shifts, self.last)

    @cached_property
    def _per_page(self) -> NDArray[np.int64]:
        """(pages,) number of cells in each page."""
        return _per_page(self.keys)

    @cached_property
    def _cumulated(self) -> Floats:
        """(columns, n + 1) weight in all cells before each, and in all."""
        result = np.zeros((self.weights.shape[1], len(self.weights) + 1))
        np.cumsum(self.weights.T, axis=1, out=result[:, 1:])
        return result


def _per_page(keys: Keys) -> NDArray[np.int64]:
    return np.diff(np.searchsorted(keys, _PAGES), append=keys.size)


def _dropped(keys: Keys, shifts: NDArray[np.uint8]) -> Keys:
    """Sorted keys without the low bits that their pages have dropped; still sorted."""
    if not shifts.any():
        return keys
    kept = np.left_shift(2**32 - 1, shifts.astype(np.int64)).astype(np.uint32)
    return keys & np.repeat(kept, _per_page(keys))


def _first_of_each(keys: NDArray[Any]) -> NDArray[np.int64]:
    """Where each run of equal keys begins."""
    if not keys.size:
        return np.empty(0, np.int64)
    is_first = np.ones(keys.size, bool)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    return np.flatnonzero(is_first)


def _grouped(keys: Keys, weights: Weights) -> tuple[Keys, Weights]:
    """Sorted keys, each once, with the sum of their weights."""
    first = _first_of_each(keys)
    return keys[first], np.add.reduceat(weights, first, axis=0) if first.size else weights[:0]


class Histogram(NamedTuple):
    """How often each map value occurs, finely where it is spread out and exactly where it is not."""

    spread: Cells
    """Values that few pixels of a picture share."""
    atoms: Cells
    """Values that many pixels of one picture share (clipped, saturated, constant): they would be
    torn apart if they were spread over a cell."""

    @classmethod
    def empty(cls, columns: int) -> "Histogram":
        """Nothing yet."""
        return cls(Cells.empty(columns), Cells.empty(columns))

    @property
    def totals(self) -> Floats:
        """(columns,) sum of all weights."""
        return np.asarray(self.spread.weights.sum(axis=0) + self.atoms.weights.sum(axis=0), np.float64)

    def coarsened(self, budget: int) -> "Histogram":
        """The same in bounded memory."""
        return Histogram(self.spread.coarsened(budget), self.atoms.coarsened(budget))

    def plus(self, other: "Histogram") -> "Histogram":
        """Both together."""
        return Histogram(self.spread + other.spread, self.atoms + other.atoms)

    @property
    def size(self) -> int:
        """Number of cells held."""
        return self.spread.keys.size + self.atoms.keys.size


def is_atom(keys: Keys) -> NDArray[np.bool_] | None:
    """For each pixel of one picture, whether many others have the same value; None if none has.

    Whether a closer look is worth it is decided by some of the pixels, spread evenly.
    """
    some = np.sort(keys[:: 1 + keys.size // _ATOM_SAMPLE])
    if not (some[2:] == some[:-2]).any():
        return None
    order = np.sort(keys)
    first = _first_of_each(order)
    counts = np.diff(first, append=keys.size)
    heavy = order[first[counts >= max(_ATOM_PIXELS, keys.size // _ATOM_SHARE)]]
    if not heavy.size:
        return None
    place = np.searchsorted(heavy, keys).clip(max=heavy.size - 1)
    return np.asarray(heavy[place] == keys)


@dataclass(frozen=True)
class Pile:
    """Several histograms seen as one; they are not added up, so that none loses resolution."""

    histograms: tuple[Histogram, ...]

    @cached_property
    def totals(self) -> Floats:
        """(columns,) sum of all weights."""
        return np.asarray(sum(histogram.totals for histogram in self.histograms))

    @property
    def size(self) -> int:
        """Number of cells."""
        return sum(histogram.size for histogram in self.histograms)

    def above(self, keys: NDArray[np.int64], column: int = 0) -> Floats:
        """The weight of everything at or above each of `keys`."""
        cells = [part for histogram in self.histograms for part in (histogram.spread, histogram.atoms)]
        return np.asarray(sum(part.above(keys, column) for part in cells))

    @property
    def atoms(self) -> tuple[Cells, ...]:
        """The cells of values that many pixels share."""
        return tuple(histogram.atoms for histogram in self.histograms)

    @property
    def cells(self) -> tuple[Cells, ...]:
        """All cells."""
        return (*(histogram.spread for histogram in self.histograms), *self.atoms)


def edges(cells: Iterable[Cells]) -> NDArray[np.int64]:
    """Ends of all cells, each once, descending: between two of them, everything is evenly spread."""
    ends = [end for part in cells for end in (part.keys.astype(np.int64), part.keys + part.widths)]
    keys = np.sort(np.concatenate(ends))
    return keys[_first_of_each(keys)][::-1]


class Curve(NamedTuple):
    """What lies at or above a falling threshold: at both ends of all cells that matter, descending."""

    keys: NDArray[np.int64]
    """(n,) thresholds."""
    false: Floats
    """(n,) number of negatives."""
    true: Floats
    """(n,) weight of positives."""
    negatives: float
    """Number of all negatives."""

    @classmethod
    def of(cls, negative: Pile, positive: Pile, column: int = 0) -> "Curve":
        """The curve of two histograms; `column` is that of the positives' weight."""
        keys = edges([*positive.cells, *negative.atoms])
        return cls(keys, negative.above(keys), positive.above(keys, column), float(negative.totals[0]))

    def line(self) -> tuple[Floats, Floats]:
        """Shares of negatives and of positives above, from (0, 0) to (1, 1)."""
        false = np.concatenate([[0.0], self.false, [self.negatives]]) / self.negatives
        return false, np.concatenate([[0.0], self.true, self.true[-1:]]) / self.true[-1]


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
        _refuse_duplicates(self.pictures, other.pictures)
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


def _refuse_duplicates(one: Iterable[str], two: Iterable[str]) -> None:
    both = sorted(set(one) & set(two))
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
    resamples: int = 0
    """How often to draw the pictures again, for intervals; 200 is enough."""
    seed: int = 0
    """Decides which pictures are drawn."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigError(not_among("protocol", self.protocol, PROTOCOLS))
        if not 0 < self.aupro_limit <= 1:
            raise ConfigError(f"--aupro-limit is {self.aupro_limit}; expected more than 0 and at most 1, as 0.3.")


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

    def scores(self, level: Level) -> tuple[Floats, NDArray[np.bool_]]:
        """Scores and labels of pictures, or of parts: the highest score, and any label, of its views."""
        scores, labels, _ = self.keep(("units", level), partial(self.units, level))
        if labels.all() or not labels.any():
            raise Undefined(f"there are no {'good' if labels.all() else 'defective'} {_PLURAL[level]}")
        return scores, labels

    def units(self, level: Level) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
        """Scores, labels and groups of pictures or parts."""
        pictures = self.pictures
        if level == "part" and not any(picture.part for picture in pictures):
            raise NotAsked("no picture says which part it shows")
        bad = [picture.path for picture in pictures if not np.isfinite(picture.image_score)]
        if bad:
            raise Undefined(f"the score of {min(bad)} is not finite ({len(bad)} of {len(pictures)} pictures)")
        found: dict[str, tuple[float, bool, int]] = {}
        for picture in pictures:
            key = (level == "part" and picture.part) or f"\0{picture.path}"
            score, is_anomalous, _ = found.get(key, (-np.inf, False, 0))
            score, is_anomalous = max(score, picture.image_score), is_anomalous or self._is_anomalous(picture)
            found[key] = (score, is_anomalous, group_of(picture))
        scores, labels, groups = zip(*found.values(), strict=True)
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
        return Curve(keys, false, self.anomalous.above(keys, _COLUMNS[kind]), float(normal.totals[0]))

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
        column = _COLUMNS[level]
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


@dataclass(frozen=True)
class Resample(Evidence):
    """The same pictures, drawn again with replacement, group by group."""

    base: Evidence
    """The pictures, each once."""
    copies: NDArray[np.int64]
    """(GROUPS,) how often each group was drawn."""

    def units(self, level: Level) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
        """Scores, labels and groups of pictures or parts."""
        scores, labels, groups = self.base.keep(("units", level), partial(self.base.units, level))
        chosen = np.repeat(np.arange(len(groups)), self.copies[groups])
        if not chosen.size:
            raise Undefined("nothing was drawn")
        return scores[chosen], labels[chosen], groups[chosen]

    def above(
        self, shares: Sequence[float], *, level: Level = "pixel", or_equal: bool = False
    ) -> tuple[Floats, Floats, float]:
        """As for the pictures drawn; the range of the map values is that of all."""
        keys = self.base.keys_above(np.asarray(shares, np.float64), or_equal)
        key = ("above", tuple(shares), or_equal)
        called = self._drawn((*key, "normal"), "normal", keys, 0) + self._drawn((*key, 0), "anomalous", keys, 0)
        column = _COLUMNS[level]
        found = self._drawn((*key, column), "anomalous", keys, column)
        lowest = self._drawn(("all", column), "anomalous", np.zeros(1, np.int64), column)
        return found, called, self._some(float(lowest[0]), "defective")

    def _counted(self, kind: CurveKind) -> Curve:
        keys = self.base.curve(kind).keys
        keys = keys[:: 1 + keys.size // _RESAMPLED_KEYS]
        false = self._drawn(("false", kind), "normal", np.append(keys, 0), 0, good_only=kind == "picture")
        true = self._drawn(("true", kind), "anomalous", np.append(keys, 0), _COLUMNS[kind])
        self._some(true[-1], "defective")
        return Curve(np.append(keys, 0), false, true, self._some(float(false[-1]), "normal"))

    def _drawn(
        self, key: Hashable, name: str, keys: NDArray[np.int64], column: int, *, good_only: bool = False
    ) -> Floats:
        """The weight at or above `keys`, of the pictures drawn."""
        states = self.good if good_only else (*self.good, *self.defective)
        rows = self.base.keep(
            ("rows", key),
            lambda: np.stack([Pile((getattr(state, name),)).above(keys, column) for state in states]),
        )
        return np.asarray(self.copies[[state.group for state in states]] @ rows)

    def _some(self, total: float, what: str) -> float:
        if not total:
            raise Undefined(f"no {what} pixel was drawn")
        return total


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
    intervals: dict[str, dict[str, tuple[float, float]]]
    """{category: {name: (low, high)}}, 95 % bootstrap intervals over pictures, if asked for."""
    notes: list[str]
    """Sentences on how the values came about and what was left out."""


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

    def __init__(self, mode: Mode = "auto", *, intervals: bool = False) -> None:
        """Nothing collected yet.

        Args:
            mode: "exact" keeps all map values, "streaming" counts them in bounded memory, "auto" is
                exact up to `EXACT_PIXELS`.
            intervals: Whether to keep what `Options.resamples` needs.
        """
        if mode not in get_args(Mode):
            raise ConfigError(not_among("mode", mode, get_args(Mode)))
        self.mode: Mode = mode
        self.intervals = intervals
        self._states: dict[Key, State] = {}
        self._pending: dict[Key, list[tuple[Keys, Weights | None]]] = {}
        self._pending_pixels = 0
        self._is_coarse = False

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
        values = None if anomaly_map is None else as_map(anomaly_map, name)
        truth = None if mask is None else as_mask(mask, name)
        if values is not None and truth is not None and values.shape != truth.shape:
            raise PictureError(
                name, f"the anomaly map has shape {values.shape} and the mask {truth.shape}", "the same shape"
            )
        defective = -1 if truth is None else int(np.count_nonzero(truth))
        is_anomalous = defective > 0 if sample.is_anomalous is None and truth is not None else sample.is_anomalous
        if is_anomalous is None:
            raise PictureError(name, "it has neither a label nor a mask", "to know whether it is good")
        if not is_anomalous and defective > 0:
            raise PictureError(
                name, f"it is labelled good, but its mask marks {defective} pixels", "an empty mask or none"
            )
        if any(name in state.pictures for state in self._states.values()):
            raise PictureError(name, "it is there twice", "every path once, because each copy shifts every metric")
        pixels = 0 if values is None else values.size if np.isfinite(values).all() else -1
        picture = Picture(name, float(image_score), is_anomalous, sample.part, defective, pixels)
        kind = (sample.defect or "defective") if is_anomalous else ""
        key = (sample.category, kind, group_of(picture) if self.intervals else 0)
        self._states.setdefault(key, State()).pictures[name] = picture
        if values is not None and pixels > 0 and (truth is not None or not is_anomalous):
            self._add_map(key, values, truth if defective > 0 else None)

    def _add_map(self, key: Key, values: NDArray[np.float32], truth: NDArray[np.bool_] | None) -> None:
        state = self._states[key]
        state.low, state.high = min(state.low, float(values.min())), max(state.high, float(values.max()))
        keys = to_keys(values)
        pending = self._pending.setdefault(key, [])
        if truth is not None:
            weights, regions = _weights(truth)
            state.regions += regions
            pending.append((keys[truth], weights))
            keys = keys[~truth]
        pending.append((keys.ravel(), None))
        self._pending_pixels += values.size
        if self._pending_pixels > _PENDING_PIXELS and not self.is_exact:
            self._flush()

    @property
    def paths(self) -> frozenset[str]:
        """The pictures taken in so far."""
        return frozenset(path for state in self._states.values() for path in state.pictures)

    @property
    def is_exact(self) -> bool:
        """Whether all map values are kept; "auto" stops that at `EXACT_PIXELS`."""
        return self.mode == "exact" or (self.mode == "auto" and self._pixels <= EXACT_PIXELS)

    @property
    def _pixels(self) -> int:
        return self._pending_pixels + sum(state.pixels for state in self._states.values())

    def _flush(self) -> None:
        for key, entries in self._pending.items():
            state = self._states[key]
            state.normal = _extended(state.normal, [(keys, None) for keys, weights in entries if weights is None])
            state.anomalous = _extended(state.anomalous, [entry for entry in entries if entry[1] is not None])
        if not self.is_exact:
            budget = CELLS // 16 if self.intervals else CELLS
            for key in self._pending if self._is_coarse else self._states:
                self._states[key] = self._states[key].coarsened(budget)
            self._is_coarse = True
        self._pending, self._pending_pixels = {}, 0

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Both together, as if one evaluation had seen all pictures."""
        if (self.mode, self.intervals) != (other.mode, other.intervals):
            raise MetricError(
                f"one evaluation has mode {self.mode} and intervals {self.intervals}, the other {other.mode} and "
                f"{other.intervals}; expected the same."
            )
        _refuse_duplicates(self.paths, other.paths)
        self._flush()
        other._flush()
        result = Evaluation(self.mode, intervals=self.intervals)
        for one in (self, other):
            for key, state in one._states.items():
                result._states[key] = result._states.get(key, State()) + state
        result._flush()
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything collected to a safetensors file, to be loaded, added to and merged later."""
        self._flush()
        keys = sorted(self._states)
        arrays = {
            f"{index}.{name}": np.ascontiguousarray(array)
            for index, key in enumerate(keys)
            for name, array in self._states[key].to_arrays().items()
        }
        temporary = Path(f"{os.fspath(path)}.part")
        header = {"mode": self.mode, "intervals": self.intervals, "states": keys}
        # One entry, because the order of several differs from run to run.
        save_file(arrays, temporary, {_FORMAT: json.dumps(header)})
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Evaluation":
        """The evaluation that was saved to a file.

        Raises:
            MetricError: it can't be read, or is something else.
        """
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise MetricError(f"{path}: can't be read as a saved evaluation ({error}).") from error
        if _FORMAT not in about:
            raise MetricError(f"{path} is not an evaluation saved by this version; expected a file of Evaluation.save.")
        header = json.loads(about[_FORMAT])
        result = cls(header["mode"], intervals=header["intervals"])
        for index, key in enumerate(header["states"]):
            start = f"{index}."
            own = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
            result._states[tuple(key)] = State.from_arrays(own)
        return result

    def compute(self, options: Options | None = None) -> Results:
        """Every metric of every category and kind of defect.

        Raises:
            MetricError: there are no pictures.
        """
        options = options or Options()
        self._flush()
        if not self._states:
            raise MetricError("there is nothing to evaluate (0 pictures); expected at least one.")
        if options.resamples and not self.intervals:
            raise MetricError("intervals were asked for, but not collected; start with Evaluation(intervals=True).")
        metrics, by_defect, undefined, intervals = {}, {}, {}, {}
        notes = [] if self.is_exact else [_STREAMING]
        for category in sorted({key[0] for key in self._states}):
            states: dict[str, tuple[State, ...]] = {}
            for (name, defect, _), state in sorted(self._states.items(), key=lambda item: item[0]):
                if name == category:
                    states[defect] = (*states.get(defect, ()), state)
            good = states.pop("", ())
            everything = Evidence(good, sum(states.values(), ()), options, category)
            metrics[category], undefined[category] = _values(everything)
            by_defect[category] = {
                defect: _values(Evidence(good, found, options, category))[0] for defect, found in states.items()
            }
            if options.resamples:
                intervals[category] = _intervals(everything)
            notes += _notes(category, everything.pictures)
        mean = {
            name: float(np.mean([values[name] for values in metrics.values() if name in values]))
            for name in all_metrics()
            if any(name in values for values in metrics.values())
        }
        mode: Literal["exact", "streaming"] = "exact" if self.is_exact else "streaming"
        return Results(metrics, mean, by_defect, undefined, options.protocol, mode, intervals, notes)


def _intervals(evidence: Evidence) -> dict[str, tuple[float, float]]:
    """For each metric, between which values 95 % of the resamples lie."""
    generator = np.random.default_rng(evidence.options.seed)
    groups = np.unique([group_of(picture) for picture in evidence.pictures])
    drawn: dict[str, list[float]] = {}
    for _ in range(evidence.options.resamples):
        copies = np.zeros(GROUPS, np.int64)
        copies[groups] = generator.multinomial(groups.size, np.full(groups.size, 1 / groups.size))
        resample = Resample(evidence.good, evidence.defective, evidence.options, evidence.category, evidence, copies)
        for name, value in _values(resample)[0].items():
            drawn.setdefault(name, []).append(value)
    return {name: tuple(np.quantile(values, (0.025, 0.975)).tolist()) for name, values in drawn.items()}


def evaluate(
    anomaly_maps: ArrayLike,
    masks: ArrayLike,
    image_scores: ArrayLike | None = None,
    *,
    mode: Mode = "auto",
    options: Options | None = None,
) -> Results:
    """All metrics of maps and masks in memory, as one category named "all".

    Args:
        anomaly_maps: N maps (H, W), higher = more abnormal: an array (N, H, W) or a sequence.
        masks: N masks (H, W), non-zero where defective; a picture without such pixels is good.
        image_scores: (N,) scores of the pictures; the maximum of the map when not given.
        mode: "exact", "streaming", or "auto" for what fits the size.
        options: How to compute.

    Raises:
        MetricError: as `Evaluation.add`, or the numbers of maps, masks and scores differ.

    >>> masks = np.eye(2)[:, :, None]
    >>> evaluate(masks + 0.5, masks).mean["pixel_auroc"]
    1.0
    """
    if len(anomaly_maps) != len(masks) or (image_scores is not None and len(image_scores) != len(masks)):
        scores = "no" if image_scores is None else len(image_scores)
        raise MetricError(
            f"there are {len(anomaly_maps)} anomaly maps, {len(masks)} masks and {scores} image scores; "
            "expected the same number of each."
        )
    evaluation = Evaluation(mode, intervals=options is not None and options.resamples > 0)
    faults = []
    for index, (values, mask) in enumerate(zip(anomaly_maps, masks, strict=True)):
        sample = Sample(path=Path(f"picture {index}"), category="all", split="test", is_anomalous=None)
        try:
            score = as_map(values, str(sample.path)).max() if image_scores is None else image_scores[index]
            evaluation.add(sample, float(score), values, mask)
        except PictureError as fault:
            faults.append(fault)
    refuse(faults, len(masks))
    return evaluation.compute(options)


def refuse(faults: Sequence[PictureError], pictures: int) -> None:
    """Raises `MetricError`, if there are faults, with the first and the number of those like it."""
    if faults:
        alike = sum(fault.expected == faults[0].expected for fault in faults)
        raise MetricError(f"{faults[0]} The same is wrong with {alike} of {pictures} pictures.")


def _notes(category: str, pictures: Sequence[Picture]) -> list[str]:
    """What a reader of the numbers should know about the masks."""
    defective = sorted(picture for picture in pictures if picture.is_anomalous and picture.pixels)
    cases = (
        (-1, "have no mask, so that their maps are left out of pixel metrics"),
        (0, "have a mask without defective pixels, so that all their pixels count as normal"),
    )
    notes = []
    for pixels, meaning in cases:
        found = [picture.path for picture in defective if picture.defective_pixels == pixels]
        if found:
            notes.append(f"{category}: {len(found)} of {len(defective)} defective pictures {meaning} ({found[0]}).")
    return notes


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


def _extended(histogram: Histogram, entries: Sequence[tuple[Keys, Weights | None]]) -> Histogram:
    """The histogram with the pixels of more pictures."""
    spread: list[tuple[Keys, Weights | None]] = []
    atoms: list[tuple[Keys, Weights | None]] = []
    for keys, weights in entries:
        atom = is_atom(keys)
        if atom is None:
            spread.append((keys, weights))
            continue
        for found, chosen in ((spread, ~atom), (atoms, atom)):
            found.append((keys[chosen], None if weights is None else weights[chosen]))
    return Histogram(_plus(histogram.spread, spread), _plus(histogram.atoms, atoms))


def _plus(cells: Cells, entries: Sequence[tuple[Keys, Weights | None]]) -> Cells:
    if not entries:
        return cells
    weights = [weights for _, weights in entries if weights is not None]
    return cells.plus(np.concatenate([keys for keys, _ in entries]), np.concatenate(weights) if weights else None)


def _weights(truth: NDArray[np.bool_]) -> tuple[Weights, int]:
    """For each defective pixel, row by row: 1, 1 / area of its region, 1 / area of all; and the regions."""
    rows, columns = (np.flatnonzero(truth.any(axis=axis)) for axis in (1, 0))
    box = truth[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(box.astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    weights = np.empty((int(areas[1:].sum()), 3), np.int64)
    weights[:, 0] = 1
    weights[:, 1] = ((_UNIT + areas // 2) // np.maximum(areas, 1))[labels[box]]
    weights[:, 2] = (_UNIT + len(weights) // 2) // len(weights)
    return weights, count - 1


def _as_array(values: ArrayLike) -> NDArray[Any]:
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
    array = _as_array(values)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiub":
        raise PictureError(name, f"the anomaly map has shape {array.shape} of {array.dtype}", "(H, W) numbers")
    return np.ascontiguousarray(array, np.float32)


def as_mask(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    """A mask (H, W) as booleans.

    Raises:
        MetricError: it has another shape, or other values than 0 and 1, or 0 and 255.
    """
    array = _as_array(values)
    if array.ndim != 2 or not array.size:
        raise PictureError(name, f"the mask has shape {array.shape}", "(H, W)")
    if array.dtype != np.bool_:
        odd = array[(array != 0) & (array != array.max())]
        if odd.size or array.max() not in (0, 1, 255):
            value = odd[0] if odd.size else array.max()
            raise PictureError(name, f"the mask is not binary, it holds {value:g}", "0 and 1, or 0 and 255")
    return np.ascontiguousarray(array != 0)
