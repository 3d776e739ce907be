"""Histograms of map values that add up bit for bit, in bounded memory, exact where it matters.

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

The exact mode is the same without the bound.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Keys: TypeAlias = NDArray[np.uint32]
Weights: TypeAlias = NDArray[np.int64]
_ATOM_PIXELS, _ATOM_SHARE, _ATOM_SAMPLE = 4, 16384, 4096
_ONE = 0xBF800000
_PAGES = np.unique(
    np.concatenate(
        [np.arange(0, 2**32, 2**20), *([_ONE - 2**bit, _ONE + 2**bit] for bit in range(20))],
        dtype=np.int64,
    )
).astype(np.uint32)
"""First key of each page. Every page is a dyadic interval, so that cells never cross its ends."""


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


def extended(histogram: Histogram, entries: Sequence[tuple[Keys, Weights | None]]) -> Histogram:
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
