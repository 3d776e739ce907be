"""Teaching a diffusion model of good pictures (SDAS): batches with noise, the loss, judging, checkpoints of others.

Source: RealNet, arXiv 2403.05897, section 3.1; Nichol and Dhariwal, arXiv 2102.09672 (loss).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blemish import distributed, headers, images
from blemish.dataset import Dataset
from blemish.errors import ConfigError
from blemish.reading import digest
from blemish.synthesis.diffusion import TIMES, classifier_loss, diffused, losses, noise_schedule
from blemish.synthesis.pictures import TRAIN, VALIDATE, Pictures, read_groups
from blemish.synthesis.sdas import (
    SUFFIX,
    DiffusionConfig,
    DiffusionModel,
    Known,
    hash_of,
    read_checkpoint,
    read_known,
    take_over,
    to_image,
)
from blemish.training import Unfinished, autocast, choose_device, choose_precision, generator, optimise
from blemish.types import Failure, Outcome, Preprocessing

VALIDATED = 64
"""Noisy pictures that weights are judged on, at times evenly spread; always the same."""


class Noisy(NamedTuple):
    """A batch to learn from."""

    image: Tensor
    """(B, 3, H, W) float32 in [-1, 1]."""
    label: Tensor
    """(B,) which category."""
    time: Tensor
    """(B,) how noisy: 0 to 999."""
    noise: Tensor
    """(B, 3, H, W) standard normal."""

    def to(self, device: torch.device) -> "Noisy":
        """The same on a device, in the memory layout that convolutions like best."""
        image, noise = (part.to(device, memory_format=torch.channels_last) for part in (self.image, self.noise))
        return Noisy(image, self.label.to(device), self.time.to(device), noise)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a training reads from and writes to, beside its data."""

    unfinished: Path | None = None
    """File that its state is kept in, so that a killed one goes on from there."""
    weights: Path | None = None
    """Weights of others to begin with."""
    classifier_weights: Path | None = None
    """The same for the classifier."""


@dataclass
class Trained:
    """What a training came to."""

    model: DiffusionModel
    outcome: Outcome
    failures: list[Failure]
    """Pictures that could not be read."""
    reports: list[str]
    """What was taken from weights of others."""


def fit(
    data: Dataset,
    config: DiffusionConfig,
    device: str = "auto",
    places: Places | None = None,
    watch: Callable[[DiffusionModel], None] | None = None,
) -> Trained:
    """A diffusion model of the good pictures of `data`.

    Its weights are, of the moving averages judged, those that see the noise on held-out good pictures best.

    Args:
        data: `train` is learned from; `validation` judges.
        config: What it shall be.
        device: "auto", "cpu", "cuda", …
        places: Unfinished state, and weights to begin with.
        watch: Called with the model whenever it was judged.

    Raises:
        DatasetError: a category has no good pictures.
        ConfigError: weights that don't fit, or no budget.
        TrainingError: a loss that is not a number.
    """
    data.require_train()
    places = places or Places()
    has_classifier = config.classifier_steps > 0 and len(data.categories) > 1
    distributed.check_shares(config.batch_size)
    if has_classifier:
        distributed.check_shares(config.classifier_batch_size, "classifier_batch_size")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = DiffusionModel(Known(config, tuple(data.categories), has_classifier=has_classifier))
    reports = _begin(model, places)
    model.to(choose_device(device))
    failures: list[Failure] = []
    rule = config.intensity
    if rule is None:
        rule, _ = images.measure_intensity(sample.path for sample in data.train if images.is_deep(sample.path))
    preprocessing = Preprocessing(config.image_size, rule)
    learn, judge = (
        Pictures(read_groups(samples, preprocessing, "whole", failures), (), config.seed, config.balance)
        for samples in (data.train, data.validation or data.train)
    )
    unread = {failure.path for failure in failures}
    model.known = replace(
        model.known,
        grey=tuple(group.category for group in learn.groups if (group.pictures == group.pictures[..., :1]).all()),
        intensity=rule,
        learned_from=tuple(sorted(digest(sample.path) for sample in data.train if sample.path not in unread)),
        versions=headers.versions(),
    )
    outcome = _train(model, learn, judge, places, watch)
    model.known = replace(model.known, steps=outcome.step)
    return Trained(model.eval(), outcome, failures, reports)


def _train(
    model: DiffusionModel,
    learn: Pictures,
    judge: Pictures,
    places: Places,
    watch: Callable[[DiffusionModel], None] | None,
) -> Outcome:
    config, categories = model.known.config, model.known.categories
    schedule = noise_schedule().to(model.device)
    held_out = [
        _noisy(judge, categories, range(first, min(first + config.batch_size, VALIDATED)), VALIDATE)
        for first in range(0, VALIDATED, config.batch_size)
    ]

    def loss(batch: Noisy) -> dict[str, Tensor]:
        image, label, time, noise = batch.to(model.device)
        output = model(diffused(schedule, time, image, noise), time, label)
        squared, bits = losses(schedule, time, image, noise, output)
        if config.predicts == "velocity":  # the error of the noise is √ᾱ times that of the velocity
            squared = squared / schedule.alphas_cumprod[time].float()
        return {"noise": squared.mean(), "variance": bits.mean()}

    def validate() -> float:
        with autocast(model.device, choose_precision(config.precision, model.device)):
            found = [float(sum(loss(batch).values())) * len(batch.time) for batch in held_out]
        if watch is not None:
            watch(model)
        return -sum(found) / VALIDATED

    def batch(number: int, size: int) -> Noisy:
        return _noisy(learn, categories, distributed.share(range(number * size, (number + 1) * size)), TRAIN)

    plan = config.counted(len(learn) / config.batch_size)
    outcome = optimise(
        loss, model.network, partial(batch, size=config.batch_size), plan, validate, _unfinished(model, places, "")
    )
    if model.classifier is not None:
        classifier = model.classifier

        def name_loss(batch: Noisy) -> dict[str, Tensor]:
            image, label, time, noise = batch.to(model.device)
            return {"category": classifier_loss(classifier(diffused(schedule, time, image, noise), time), label)}

        own = replace(config, steps=config.classifier_steps, epochs=None, minutes=None, accumulate=1, average=0.0)
        batches = partial(batch, size=config.classifier_batch_size)
        optimise(name_loss, classifier, batches, own.counted(0), None, _unfinished(model, places, ".classifier"))
    return outcome


def _noisy(pictures: Pictures, categories: Sequence[str], positions: Sequence[int], purpose: int) -> Noisy:
    """The pictures at some positions of the endless sequence, each with a time and noise of its own."""
    found, labels, times, noises = [], [], [], []
    for position in positions:
        _, group, index = pictures.place(position, purpose)
        own = generator(pictures.seed, purpose, position)
        found.append(torch.from_numpy(pictures.groups[group].pictures[index]))
        labels.append(categories.index(pictures.groups[group].category))
        # What judges is spread evenly over the times, so that few pictures are enough.
        drawn = (
            torch.randint(TIMES, (), generator=own)
            if purpose == TRAIN
            else (2 * position + 1) * TIMES // (2 * VALIDATED)
        )
        times.append(int(drawn))
        noises.append(torch.randn(3, *found[0].shape[:2], generator=own))
    return Noisy(to_image(torch.stack(found)), torch.tensor(labels), torch.tensor(times), torch.stack(noises))


def _unfinished(model: DiffusionModel, places: Places, which: str) -> Unfinished | None:
    if places.unfinished is None:
        return None
    begun = [None if path is None else hash_of(path) for path in (places.weights, places.classifier_weights)]
    known = json.dumps([which, asdict(model.known.config), model.known.learned_from, begun])
    path = places.unfinished.with_name(f"{places.unfinished.name}{which}")
    return Unfinished(path, hashlib.sha256(known.encode()).hexdigest())


def forget(places: Places) -> None:
    """Deletes the unfinished state, after the model was saved."""
    for which in ("", ".classifier"):
        if places.unfinished is not None:
            places.unfinished.with_name(f"{places.unfinished.name}{which}").unlink(missing_ok=True)


def _begin(model: DiffusionModel, places: Places) -> list[str]:
    pairs: list[tuple[nn.Module | None, Path | None, str]] = [
        (model.network, places.weights, "--weights"),
        (model.classifier, places.classifier_weights, "--classifier-weights"),
    ]
    reports = []
    for network, file, option in pairs:
        if file is not None:
            if network is None:
                raise ConfigError(f"{option} is {file}, but no classifier is trained; see --classifier-steps.")
            reports.append(take_over(network, read_checkpoint(file, option), str(file)))
    if (file := places.weights) is not None:
        said = read_known(file).config.predicts if file.suffix == SUFFIX else "noise"
        if said != model.known.config.predicts:
            raise ConfigError(
                f"--weights is {file}, whose network predicts {said}; expected one that predicts "
                f"{model.known.config.predicts}, or --predicts {said}."
            )
    return reports
