"""Judging: a predictor goes through pictures, and each gets its score, decision and regions."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from blemish.artifact import BATCH, Predictor
from blemish.images import Floats
from blemish.reading import read_parts
from blemish.types import Decider, Decision, Failure, Policy, Prediction, Sample, part_score


@dataclass(frozen=True, slots=True)
class Region:
    """A connected piece of a picture whose map values are above the pixel threshold."""

    box: tuple[int, ...]
    """Left, top, right, bottom, in pixels of the picture's file; right and bottom are just outside."""
    area: int
    """Its size in pixels of the picture's file."""
    peak: float
    """Its highest map value."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One picture, and what the predictor says of it."""

    path: str
    image_score: float
    """Raw; higher = more abnormal."""
    calibrated_score: float
    """The same between 0 and 1, with 0.5 at the threshold."""
    decision: Decision
    regions: tuple[Region, ...]
    """Highest peak first."""
    category: str = ""
    """The category whose calibration decided; empty when it was that of all together."""
    is_anomalous: bool | None = None
    """What is known of it."""
    defect: str = ""
    part: str = ""
    """The part it is a view of; empty when it is a part of its own."""
    view: str = ""

    def plain(self) -> dict[str, Any]:
        """The same as values that JSON knows; a score that is not a number is None."""
        return _plain(self)

    def line(self) -> str:
        """One JSON object in one line."""
        return json.dumps(_plain(self), allow_nan=False)


def from_line(line: str) -> Scored:
    """The picture that a JSON object in one line is about."""
    values = _known(json.loads(line))
    regions = tuple(Region(**_known(each) | {"box": tuple(each["box"])}) for each in values["regions"])
    return Scored(**values | {"regions": regions})


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with what is not a number for None."""
    return {key: math.nan if value is None else value for key, value in values.items()}


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """One part, and what the predictor says of all its views together."""

    part: str
    part_score: float
    """The mean of the highest image scores of its views, as many as the policy says; one is the maximum."""
    calibrated_score: float
    """The same between 0 and 1, with 0.5 at the threshold for parts."""
    decision: Decision
    worst_view: str
    """The view, or where views have no names the picture, with the highest image score."""
    views: dict[str, float]
    """{path: image score}."""
    category: str = ""
    is_anomalous: bool | None = None
    """What is known of it: defective if any view is."""

    def line(self) -> str:
        """One JSON object in one line; a score that is not a number is null."""
        return json.dumps(_plain(self), allow_nan=False)


@dataclass(frozen=True)
class Judged:
    """A picture with everything that was computed for it."""

    sample: Sample
    scored: Scored
    image: Floats
    """(3, H, W) as the detector saw it."""
    anomaly_map: Floats
    """(H, W)."""
    decider: Decider
    """What decided."""
    size: tuple[int, int]
    """(height, width) of the file."""


def judge(
    predictor: Predictor, samples: Sequence[Sample], failures: list[Failure], policy: Policy | None = None
) -> Iterator[Judged]:
    """Every picture that can be read, in order, with its map, score, decision and regions.

    The views of a part follow on its first one.

    Args:
        predictor: A loaded artifact.
        samples: Pictures; those of a category that the artifact was not calibrated for are decided
            by the calibration of all categories together.
        failures: Grows by the pictures that could not be read.
        policy: Another false-reject rate than the artifact's own.
    """
    deciders = {category: predictor.decider(category, policy) for category in {item.category for item in samples}}
    for batch, prediction in predictor.stream(read_parts(samples, predictor.preprocessing, BATCH, failures), failures):
        rows = zip(batch.samples, batch.images, batch.sizes, *prediction, strict=True)
        for sample, image, size, anomaly_map, image_score in rows:
            found = Prediction(anomaly_map, float(image_score))
            yield judge_one(predictor, deciders[sample.category], sample, found, (image, size))


def judge_one(
    predictor: Predictor,
    decider: Decider,
    sample: Sample,
    found: "Prediction[Any]",
    seen: tuple[Floats, tuple[int, int]],
) -> Judged:
    """A picture with its score, decision and regions.

    Args:
        predictor: What found it.
        decider: What decides.
        sample: The picture.
        found: Its anomaly map (H, W) and its image score.
        seen: Its image (3, H, W) as the predictor saw it, and the (height, width) of its file.
    """
    image, size = seen
    anomaly_map, image_score = found
    decision = decider.decide(image_score)
    scored = Scored(
        path=str(sample.path),
        category=sample.category if sample.category in predictor.categories else "",
        image_score=image_score,
        calibrated_score=decider.calibrated(image_score),
        decision=decision,
        regions=find_regions(anomaly_map, decider.pixel, size) or _highest(anomaly_map, decision, size),
        is_anomalous=sample.is_anomalous,
        defect=sample.defect,
        part=sample.part,
        view=sample.view,
    )
    return Judged(sample, scored, image, anomaly_map, decider, size)


def decide_parts(
    predictor: Predictor,
    scored: Sequence[Scored],
    policy: Policy | None = None,
    categories: Mapping[str, str] | None = None,
) -> list[ScoredPart]:
    """What the predictor says of each part, in order of their first views.

    A picture that belongs to no part is one, named by its path; where all are such, there are no parts.

    Args:
        predictor: What judged the pictures.
        scored: All views.
        policy: Another one than the artifact's own.
        categories: {path: category}, where the artifact was not calibrated for them: parts of two may
            have one name.
    """
    if not any(row.part for row in scored):
        return []
    views: dict[tuple[str, str], list[Scored]] = {}
    for row in scored:
        category = (categories or {}).get(row.path, row.category)
        views.setdefault((category, row.part or row.path), []).append(row)
    found = []
    for (_, part), own in views.items():
        category = own[0].category
        decider = predictor.decider(category, policy).of_parts()
        score = part_score((row.image_score for row in own), decider.policy.top_views)
        # A score that is not a number is the highest of all: such a part is never good.
        worst = max(own, key=lambda row: math.inf if math.isnan(row.image_score) else row.image_score)
        known = [row.is_anomalous for row in own]
        found.append(
            ScoredPart(
                part=part,
                part_score=score,
                calibrated_score=decider.calibrated(score),
                decision=decider.decide(score),
                worst_view=worst.view or worst.path,
                views={row.path: row.image_score for row in own},
                category=category,
                is_anomalous=True if True in known else None if None in known else False,
            )
        )
    return found


def find_regions(anomaly_map: Floats, threshold: float, picture_size: tuple[int, int]) -> tuple[Region, ...]:
    """The connected regions (by sides and corners) of a map (H, W) that are above `threshold`.

    Args:
        anomaly_map: At the detector's size.
        threshold: Map values above it belong to a region.
        picture_size: (height, width) of the picture's file, in whose pixels regions are given.
    """
    above = (anomaly_map > threshold).astype(np.uint8)
    if not above.any():  # as on nearly every part
        return ()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    (high, wide), (rows, columns) = picture_size, anomaly_map.shape
    regions = []
    for number in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[number])
        inside = labels[top : top + height, left : left + width] == number
        # Whole numbers, because a box that is rounded up must not leave the picture.
        right, bottom = -(-(left + width) * wide // columns), -(-(top + height) * high // rows)
        box = (left * wide // columns, top * high // rows, right, bottom)
        peak = float(anomaly_map[top : top + height, left : left + width][inside].max())
        regions.append(Region(box, max(1, round(area * wide * high / (rows * columns))), peak))
    return tuple(sorted(regions, key=lambda region: -region.peak))


def _highest(anomaly_map: Floats, decision: Decision, picture_size: tuple[int, int]) -> tuple[Region, ...]:
    """Where a stopped part is most abnormal: the top tenth of its map's range, if no region stands out."""
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    if decision == "good" or not low < high:
        return ()
    return find_regions(anomaly_map, high - 0.1 * (high - low), picture_size)[:1]


def _plain(row: Scored | ScoredPart) -> dict[str, Any]:
    """What is known of it, as values that JSON knows."""
    return {key: finite(value) for key, value in asdict(row).items() if value not in (None, "")}


def finite(value: Any) -> Any:
    """The same values with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
