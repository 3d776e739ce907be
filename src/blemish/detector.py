"""Detectors: what a model must be able to do, and what is the same for all of them.

A model is one file in `models/`. It is a module that defines `DETECTOR`, a subclass of `Detector`
with its config, its presets, `learn` and `forward`. Everything else (reading, the intensity rule,
holding out and calibrating) happens here, once.
"""

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from blemish import distributed, images, registry
from blemish.appearance import NAMES, appearance
from blemish.dataset import Dataset, hold_out
from blemish.errors import ConfigError, DatasetError, ImageError, bad_option, not_among
from blemish.headers import from_plain
from blemish.images import Floats
from blemish.nn.backbone import DEFAULT, Backbone, fingerprint
from blemish.parts import part_of
from blemish.progress import bar
from blemish.reading import digest, read_image, read_parts
from blemish.training import Plan, TrainingConfig, Unfinished, choose_device
from blemish.types import (
    Calibration,
    Choice,
    Failure,
    Fitted,
    Intensity,
    LabelGain,
    Outcome,
    Policy,
    Prediction,
    Preprocessing,
    Sample,
)

CHOOSING = 0.1
"""Share of the training pictures that choose among weights, so that those for calibration need not."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What can be chosen for every model; each model adds its own fields."""

    image_size: tuple[int, int] = (256, 256)
    """Height and width that pictures are brought to."""
    backbone: str = DEFAULT
    """Feature extractor, by timm's name."""
    batch_size: int = 8
    """Pictures taken at a time."""
    seed: int = 0
    """Seed of everything that is drawn at random."""
    intensity: Intensity | None = None
    """Range of values for pictures of more than 8 bit; measured on the training pictures if not given."""
    weights: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision that weights are left with: 16 bits halve the artifact, and float16 changes scores least."""

    def __post_init__(self) -> None:
        if min(self.image_size) < 32 or max(self.image_size) > 8192:
            height, width = self.image_size
            raise ConfigError(f"--image-size is {height}x{width}; expected 32 to 8192 pixels a side, for example 256.")
        if self.batch_size < 1:
            raise bad_option("batch_size", self.batch_size, "1 or more")
        if self.seed < 0:
            raise bad_option("seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(DetectorConfig, TrainingConfig):
    """What can be chosen for every model that is trained by gradients."""

    def __post_init__(self) -> None:
        DetectorConfig.__post_init__(self)
        TrainingConfig.__post_init__(self)

    def plan(self, pictures: int) -> Plan:
        """How to train on so many pictures."""
        return self.counted(pictures / self.batch_size)


class Detector(nn.Module, ABC):
    """A model that learns from good pictures and says where a new one differs."""

    presets: ClassVar[Mapping[str, DetectorConfig]]
    """Named configurations: "paper" (faithful), "small" (quick on a CPU), "tiny" (for tests)."""
    learns_from_defects: ClassVar[bool] = False
    """Whether `learn` looks at `data.train_defects`, too."""
    is_one_graph: ClassVar[bool] = True
    """Whether `forward` is all tensors, so that it can be exported."""
    sensitive: ClassVar[tuple[str, ...]] = ()
    """Modules that exports of 8 bit leave in floating point, because what they round would decide."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.fitted: Fitted | None = None
        self.failures: list[Failure] = []
        """Pictures that `fit` could not use."""
        self.unfinished: Path | None = None
        """File that a long `learn` keeps its state in, so that a killed one goes on from there; None: nowhere."""
        self.outcome: Outcome | None = None
        """What `learn` sets if it trains by gradients; it goes into the artifact."""
        self.choices: dict[str, Choice] = {}
        """What `learn` sets if it chooses, say, channels; it goes into the artifact."""
        self.importance: dict[str, float] = {}
        """What `learn` sets if it knows what decides; it goes into the artifact."""
        self.gain: LabelGain | None = None
        """What `learn` sets if it learns from labelled defects; it goes into the artifact."""
        self.remarks: list[str] = []
        """What `learn` sets if there is more to say, a sentence each; it goes into the artifact."""

    @abstractmethod
    def learn(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Learns from `data.train`; pictures that can't be read are added to `self.failures`."""

    @abstractmethod
    def forward(self, image: Tensor) -> Prediction[Tensor]:
        """Prediction for images (B, 3, H, W) float32 RGB in [0, 1]; normalises inside, pure, exportable."""

    def look(self, image: Tensor, parts: Sequence[Hashable]) -> Prediction[Tensor]:  # noqa: ARG002 - for others
        """Prediction for images (B, 3, H, W) of which those with equal `parts` are views of one part.

        A model that looks at each picture alone has nothing to do here.
        """
        return self(image)  # type: ignore[no-any-return]

    @property
    def shown_backbone(self) -> Backbone | None:
        """The backbone whose feature maps `look_and_show` gives; None where it has none that others could use."""
        return None

    def look_and_show(self, image: Tensor) -> tuple[Prediction[Tensor], Mapping[int, Tensor]]:
        """As `forward`, and the feature maps (B, C, h, w) by stride that the backbone gave of the images (B, 3, H, W).

        So that a model on top need not run the same backbone again.
        """
        raise NotImplementedError(f"{type(self).__name__} shows no feature maps")

    def explain(self, image: Tensor, parts: Sequence[Hashable]) -> list[str]:  # noqa: ARG002 - for others
        """What decided on each of the images (B, 3, H, W), in a few words; empty where the model can't say."""
        return [""] * len(image)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a saved `state_dict`; buffers that `learn` sizes take the saved size.

        Raises:
            RuntimeError: tensors are missing, of another shape, or too many.
        """
        for name, buffer in self.named_buffers():
            if name in state and state[name].dim() == buffer.dim():
                buffer.resize_(state[name].shape)
        self.load_state_dict(state)

    def split(self, data: Dataset) -> tuple[list[Sample], list[Sample]]:
        """The training pictures that weights are learned from, and those that choose among weights."""
        samples = hold_out(data.train, CHOOSING, self.config.seed)
        learn, choose = ([sample for sample in samples if sample.split == name] for name in ("train", "validation"))
        return learn, choose

    def state_of(self, data: Dataset) -> Unfinished | None:
        """Where a training on `data` keeps its unfinished state, if anywhere: that of no other one is taken up."""
        if self.unfinished is None:
            return None
        frozen = {name: value for name, value in self.state_dict().items() if name.startswith("backbone.")}
        pictures = sorted((digest(sample.path), sample.part, sample.view) for sample in data.train)
        known = [asdict(self.config), pictures, fingerprint(frozen)]
        return Unfinished(self.unfinished, hashlib.sha256(json.dumps(known).encode()).hexdigest())

    @property
    def device(self) -> torch.device:
        """Where the detector's tensors are."""
        tensors = itertools.chain(self.parameters(), self.buffers(), [torch.empty(0)])
        return next(tensors).device

    def fit(self, data: Dataset, policy: Policy | None = None) -> Self:
        """The detector itself, after learning from `data.train` and calibrating on `data.validation`.

        Args:
            data: Good pictures of one or more categories; one model learns them all, and each is
                calibrated apart. Its test pictures are not looked at.
            policy: The false-reject rate asked for; it can be changed later without a new fit.

        Several processes (`distributed.joined`) share the batches of a training by gradients; all else
        that is found out, the first one tells the others.

        Raises:
            DatasetError: a category has too few good pictures that can be read.
            ConfigError: several processes can't share a batch evenly.
        """
        data.require_train()
        is_trained, is_first = isinstance(self.config, TrainedConfig), distributed.is_first()
        if is_trained:
            distributed.check_shares(self.config.batch_size)
        self.failures = []
        rule = self.config.intensity or self._measure_intensity(data.train)
        preprocessing = Preprocessing(self.config.image_size, rule)
        _require_readable(data, preprocessing)
        self.train(False)
        self._round()  # what is frozen is rounded before anything is learned from what it gives
        if is_trained:
            self.learn(data, preprocessing)
        with distributed.alone():
            if is_first and not is_trained:
                self.learn(data, preprocessing)
            self._round()
            self.train(False)
            if is_first:
                self.fitted = self._found(data, policy or Policy(), preprocessing)
        if distributed.world_size() > 1:
            self._listen()
        return self

    def _found(self, data: Dataset, policy: Policy, preprocessing: Preprocessing) -> Fitted:
        """What is known beside the weights, after calibrating."""
        unread = {failure.path for failure in self.failures}
        return Fitted(
            preprocessing=preprocessing,
            calibrations={category: self._calibrate(data, category, preprocessing) for category in data.categories},
            policy=policy,
            learned_from=tuple(sorted(digest(sample.path) for sample in data.train if sample.path not in unread)),
            training=self.outcome,
            choices=self.choices,
            importance=self.importance,
            gain=self.gain,
            remarks=tuple(self.remarks),
        )

    def _listen(self) -> None:
        """Takes over what the first process has learned."""
        text, state = distributed.from_first(json.dumps(self.fitted and asdict(self.fitted)), self.state_dict())
        self.fitted = from_plain(Fitted, json.loads(text))
        self.restore(state)

    def _round(self) -> None:
        """Leaves the precision that was asked for in matrices and filters; vectors are too few to matter."""
        kind: torch.dtype = getattr(torch, self.config.weights)
        for tensor in self.state_dict().values():
            if tensor.is_floating_point() and sum(side > 1 for side in tensor.shape) > 1:
                tensor.copy_(tensor.clamp(torch.finfo(kind).min, torch.finfo(kind).max).to(kind))

    def _measure_intensity(self, samples: list[Sample]) -> Intensity | None:
        deep = [sample.path for sample in samples if images.is_deep(sample.path)]
        return images.measure_intensity(deep)[0]

    def _calibrate(self, data: Dataset, category: str, preprocessing: Preprocessing) -> Calibration:
        held_out = [sample for sample in data.validation if sample.category == category]
        scores: list[float] = []
        maxima: list[float] = []
        parts: dict[Hashable, list[float]] = {}
        looks: list[dict[str, float]] = []
        with bar(f"Calibrate {category}", len(held_out)) as drawn:
            for batch in read_parts(held_out, preprocessing, self.config.batch_size, self.failures):
                prediction = infer(self, batch.images, [part_of(sample) for sample in batch.samples])
                scores += prediction.image_score.tolist()
                for sample, score in zip(batch.samples, prediction.image_score.tolist(), strict=True):
                    parts.setdefault(part_of(sample), []).append(score)
                maxima += prediction.anomaly_map.max(axis=(1, 2)).tolist()
                looks += [appearance(image) for image in batch.images]
                drawn.advance(len(batch.samples))
        return Calibration(
            image_scores=tuple(sorted(scores)),
            map_maxima=tuple(sorted(maxima)),
            parts=tuple(map(tuple, parts.values())) if len(parts) < len(scores) else (),
            appearance={name: tuple(sorted(one[name] for one in looks)) for name in NAMES},
        )


def _require_readable(data: Dataset, preprocessing: Preprocessing) -> None:
    """Nothing, if there is a picture to learn from, and one to calibrate each category on: asked before long work.

    Raises:
        DatasetError: there is none that can be read.
    """
    _first_of(data.train, "to learn from", preprocessing)
    for category in data.categories:
        held_out = [sample for sample in data.validation if sample.category == category]
        if not held_out:
            raise DatasetError(
                f"{category} has no good picture left to calibrate on; expected at least 2 good training "
                "pictures, one of which is held out (100 or more make a useful promise)."
            )
        _first_of(held_out, f"that are held out to calibrate {category}", preprocessing)


def _first_of(samples: Sequence[Sample], what: str, preprocessing: Preprocessing) -> None:
    reason = ""
    for sample in samples:
        try:
            read_image(sample.path, preprocessing)
        except ImageError as error:
            reason = reason or str(error)
        else:
            return
    raise DatasetError(
        f"of the good pictures {what}, none of {len(samples)} can be read ({reason}); replace them, or take them away."
    )


def create(
    model: str,
    *,
    preset: str = "small",
    config: DetectorConfig | Mapping[str, Any] | None = None,
    backbone_weights: str = "default",
    device: str = "auto",
) -> Detector:
    """A new detector that has learned nothing yet.

    Args:
        model: A name of `blemish list models`.
        preset: Named configuration to start from.
        config: A whole config, or the fields in which it differs from the preset.
        backbone_weights: "default" (embedded or downloaded), "random" (for tests), or a file.
        device: "auto", "cpu", "cuda", "cuda:1", …

    Raises:
        ConfigError: no such model, preset, field or device; weights that can't be had.
    """
    kind = find(model)
    if not isinstance(config, DetectorConfig):
        config = configure(preset_of(kind, model, preset), config or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # random weights, where there are any, follow the seed
        detector: Detector = kind(config, backbone_weights)
    return detector.to(choose_device(device))


def find(model: str) -> Any:
    """The class of model `model`; calling it with (config, backbone_weights) builds a detector.

    Raises:
        ConfigError: no such model.
    """
    return registry.load("models", model).DETECTOR


def preset_of(kind: type[Detector], model: str, preset: str) -> DetectorConfig:
    """The configuration of that name.

    Raises:
        ConfigError: the model has no such preset.
    """
    if preset not in kind.presets:
        raise ConfigError(not_among(f"preset of {model}", preset, kind.presets))
    return kind.presets[preset]


def from_header(model: str, values: Mapping[str, Any]) -> DetectorConfig:
    """The configuration of `model` that an artifact's header holds as plain values.

    Raises:
        ConfigError: no such model.
        TypeError: the values are not a configuration of it.
    """
    return from_plain(type(next(iter(find(model).presets.values()))), values)  # type: ignore[no-any-return]


def configure(config: DetectorConfig, changes: Mapping[str, Any]) -> DetectorConfig:
    """`config` with some fields changed.

    Raises:
        ConfigError: a field that does not exist, or a value that does not fit it.
    """
    known = {field.name for field in fields(config)}
    for name in changes:
        if name not in known:
            raise ConfigError(not_among(f"option of {type(config).__name__}", name, known))
    try:
        return replace(config, **changes)
    except TypeError as error:
        given = ", ".join(f"{name} {value!r}" for name, value in changes.items())
        raise ConfigError(
            f"the options {given} don't fit {type(config).__name__} ({error}); see its fields."
        ) from error


def infer(detector: Detector, image: Floats, parts: Sequence[Hashable] | None = None) -> Prediction[Floats]:
    """What a detector says of images (B, 3, H, W) float32 in [0, 1], as NumPy arrays.

    Args:
        detector: A trained one.
        image: The images.
        parts: What part each shows; each another one, if not given.
    """
    with torch.inference_mode():
        return _to_arrays(detector.look(to_tensor(image, detector), parts or range(len(image))))


def show(detector: Detector, image: Floats) -> tuple[Prediction[Floats], Mapping[int, Tensor]]:
    """As `infer`, and the feature maps by stride that the detector's backbone gave, on its device."""
    with torch.inference_mode():
        prediction, features = detector.look_and_show(to_tensor(image, detector))
    return _to_arrays(prediction), features


def _to_arrays(prediction: Prediction[Tensor]) -> Prediction[Floats]:
    return Prediction(*(value.float().cpu().numpy() for value in prediction))


def explain(detector: Detector, image: Floats, parts: Sequence[Hashable]) -> list[str]:
    """What decided on images (B, 3, H, W) float32 in [0, 1], in a few words each; empty where it can't be said."""
    with torch.inference_mode():
        return detector.explain(to_tensor(image, detector), parts)


def to_tensor(image: Floats, detector: Detector) -> Tensor:
    """Images (B, 3, H, W) on the detector's device, in the memory layout that convolutions like best."""
    return torch.from_numpy(image).to(detector.device, memory_format=torch.channels_last)
