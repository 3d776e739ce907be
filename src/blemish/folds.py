"""Folds: detectors like one that there is, fitted anew without some of the pictures, which they then look at."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from blemish import artifact, detector
from blemish.artifact import Header, Predictor
from blemish.dataset import Dataset
from blemish.detector import Detector
from blemish.errors import ArtifactError, ConfigError
from blemish.parts import part_of
from blemish.reading import digest
from blemish.types import Policy, Sample


def assign(samples: Sequence[Sample], count: int, seed: int) -> NDArray[np.intp]:
    """The fold (N,) of each sample, 0 to count - 1, all of about one size; views of a part share theirs."""
    parts = sorted({part_of(sample) for sample in samples})
    order = np.random.default_rng(seed).permutation(len(parts))
    fold = {part: int(place) % count for part, place in zip(parts, order, strict=True)}
    return np.array([fold[part_of(sample)] for sample in samples], np.intp)


def without(data: Dataset, left_out: Sequence[Sample]) -> Dataset:
    """The data without these samples, and without labelled defects."""
    lost = {sample.path for sample in left_out}
    kept = [sample for sample in data.samples if sample.path not in lost and sample.is_anomalous is False]
    return replace(data, samples=tuple(kept))


def refit(header: Header, data: Dataset, device: torch.device, weights: str, place: Path | None) -> Predictor:
    """A predictor like that of an artifact, but of what `data` shows.

    Args:
        header: Of the artifact; its model and configuration are taken.
        data: Good pictures.
        device: Where it learns.
        weights: Of the backbone, as for `blemish.create`.
        place: See `fitted`.

    Raises:
        ConfigError: the artifact itself learned from labelled defects.
    """
    if detector.find(header.model).learns_from_defects:
        raise ConfigError(f"a base that is {header.model} itself can't be fitted anew; leave out --out-of-fold.")
    config = detector.from_header(header.model, header.config)
    new = detector.create(header.model, config=config, backbone_weights=weights, device=str(device))
    return fitted(new, data, header.fitted.policy, place)


def fitted(learner: Detector, data: Dataset, policy: Policy, place: Path | None) -> Predictor:
    """The predictor of a detector that learns from `data`.

    Args:
        learner: A new one.
        data: Good pictures.
        policy: As of `Detector.fit`.
        place: An artifact to leave it in. A killed run finds it there, and does not fit it again.
    """
    device = str(learner.device)
    if place is not None and place.is_file():
        try:
            left = artifact.load(place, device=device)
            pictures = sorted(digest(sample.path) for sample in data.train)
            if (
                dict(left.header.config) == json.loads(json.dumps(asdict(learner.config)))
                and list(left.header.fitted.learned_from) == pictures
            ):
                return left
        except ArtifactError:  # what an older Blemish has left
            pass
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        learner.unfinished = place.with_suffix(".unfinished")
    learner.fit(data, policy)
    predictor = artifact.predictor(learner)
    if place is not None:
        artifact.save(learner, place)
        place.with_suffix(".unfinished").unlink(missing_ok=True)
    return predictor
