"""Evaluation: pictures in, one at a time; every metric of them out.

It works on NumPy arrays and torch tensors, without a detector: `evaluate(anomaly_maps, masks)`.
"""

import json
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from blemish.errors import ConfigError, MetricError, count_of, not_among
from blemish.files import replacing
from blemish.metric.evidence import (
    COLUMNS,
    GROUPS,
    ArrayLike,
    CurveKind,
    Evidence,
    Level,
    NotAsked,
    Options,
    Picture,
    PictureError,
    Protocol,
    State,
    Undefined,
    all_metrics,
    as_map,
    as_mask,
    group_of,
    refuse_duplicates,
)
from blemish.metric.histogram import Curve, Floats, Keys, Pile, Weights, extended, to_keys
from blemish.types import Sample

Mode = Literal["auto", "exact", "streaming"]
Key: TypeAlias = tuple[str, str, int]
"""Category, kind of defect ("" for good) and group of pictures (0 where there are none)."""
CELLS = 2**15
"""Cells that one histogram keeps in streaming mode, at most."""
EXACT_PIXELS = 2**24
"""Pixels up to which the mode "auto" is exact: 256 maps of 256x256."""
_RESAMPLED_KEYS = 4096
_PENDING_PIXELS = 2**20
_UNIT = 2**40
_FORMAT = "blemish evaluation 2"
_STREAMING = (
    "Map values were counted in cells (streaming mode), which agrees with exact values to about 1e-4; "
    'for exact values choose the mode "exact".'
)


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
        column = COLUMNS[level]
        found = self._drawn((*key, column), "anomalous", keys, column)
        lowest = self._drawn(("all", column), "anomalous", np.zeros(1, np.int64), column)
        return found, called, self._some(float(lowest[0]), "defective")

    def _counted(self, kind: CurveKind) -> Curve:
        keys = self.base.curve(kind).keys
        keys = keys[:: 1 + keys.size // _RESAMPLED_KEYS]
        false = self._drawn(("false", kind), "normal", np.append(keys, 0), 0, good_only=kind == "picture")
        true = self._drawn(("true", kind), "anomalous", np.append(keys, 0), COLUMNS[kind])
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

    def __init__(self, mode: Mode = "auto", *, intervals: bool = False, connectivity: Literal[4, 8] = 8) -> None:
        """Nothing collected yet.

        Args:
            mode: "exact" keeps all map values, "streaming" counts them in bounded memory, "auto" is
                exact up to `EXACT_PIXELS`.
            intervals: Whether to keep what `Options.resamples` needs.
            connectivity: Whether pixels of a region touch by sides and corners (8) or sides only (4).
        """
        if mode not in get_args(Mode):
            raise ConfigError(not_among("mode", mode, get_args(Mode)))
        self.mode: Mode = mode
        self.intervals = intervals
        self.connectivity: Literal[4, 8] = connectivity
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
                name, f"it is labelled good, but its mask marks {count_of(defective, 'pixel')}", "an empty mask or none"
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
            weights, regions = _weights(truth, self.connectivity)
            state.regions += regions
            pending.append((keys[truth], weights))
            keys = keys[~truth]
        pending.append((keys.ravel(), None))
        self._pending_pixels += values.size
        if self._pending_pixels > _PENDING_PIXELS and not self.is_exact:
            self._flush()

    def _settings(self) -> dict[str, Any]:
        return {"mode": self.mode, "intervals": self.intervals, "connectivity": self.connectivity}

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
            state.normal = extended(state.normal, [(keys, None) for keys, weights in entries if weights is None])
            state.anomalous = extended(state.anomalous, [entry for entry in entries if entry[1] is not None])
        if not self.is_exact:
            budget = CELLS // 16 if self.intervals else CELLS
            for key in self._pending if self._is_coarse else self._states:
                self._states[key] = self._states[key].coarsened(budget)
            self._is_coarse = True
        self._pending, self._pending_pixels = {}, 0

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Both together, as if one evaluation had seen all pictures."""
        if self._settings() != other._settings():
            raise MetricError(
                f"one evaluation has {self._settings()}, the other {other._settings()}; expected the same."
            )
        refuse_duplicates(self.paths, other.paths)
        self._flush()
        other._flush()
        result = Evaluation(self.mode, intervals=self.intervals, connectivity=self.connectivity)
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
        header = {**self._settings(), "states": keys}
        # One entry, because the order of several differs from run to run.
        with replacing(Path(path)) as temporary:
            save_file(arrays, temporary, {_FORMAT: json.dumps(header)})

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
        result = cls(header["mode"], intervals=header["intervals"], connectivity=header["connectivity"])
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
            f"there are {count_of(len(anomaly_maps), 'anomaly map')}, {count_of(len(masks), 'mask')} and {scores} "
            "image scores; expected the same number of each."
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
        raise MetricError(f"{faults[0]} The same is wrong with {alike} of {count_of(pictures, 'picture')}.")


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


def _weights(truth: NDArray[np.bool_], connectivity: int) -> tuple[Weights, int]:
    """For each defective pixel, row by row: 1, 1 / area of its region, 1 / area of all; and the regions."""
    rows, columns = (np.flatnonzero(truth.any(axis=axis)) for axis in (1, 0))
    box = truth[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(box.astype(np.uint8), connectivity=connectivity)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    weights = np.empty((int(areas[1:].sum()), 3), np.int64)
    weights[:, 0] = 1
    weights[:, 1] = ((_UNIT + areas // 2) // np.maximum(areas, 1))[labels[box]]
    weights[:, 2] = (_UNIT + len(weights) // 2) // len(weights)
    return weights, count - 1
