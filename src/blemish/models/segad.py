"""SegAD: a few labelled defects turn the maps of any detectors into a supervised decision.

Source: Baitieva et al., "Supervised Anomaly Detection for Complex Industrial Images",
arXiv 2405.04953. Each component of a part (from a label map) gives four statistics of the map of each
base detector; a boosted random forest learns from them which pictures are defective.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blemish import artifact, images
from blemish.dataset import Dataset, hold_out
from blemish.detector import Detector, DetectorConfig, to_tensor
from blemish.errors import ArtifactError, ConfigError, DatasetError, ShapeError
from blemish.images import Bools, Floats
from blemish.nn.clusters import Clusters
from blemish.nn.forest import Forest, ForestConfig, platt
from blemish.progress import bar
from blemish.reading import digest, read_batches
from blemish.synthesis.foreground import foreground
from blemish.training import generator
from blemish.types import Policy, Prediction, Preprocessing, Sample

Labels = NDArray[np.uint8]
STATISTICS = ("q995", "skewness", "kurtosis", "mean")
SEEDS = (333, 576, 725, 823, 831, 902, 226, 598, 874, 589)
"""Seeds of the paper's ten draws of labelled defects."""
FOLDS = 5
"""Parts that the rows are cut into, to learn what margins are worth on pictures not learned from."""
MOST_COMPONENTS = 64


@dataclass(frozen=True, kw_only=True)
class SegADConfig(DetectorConfig, ForestConfig):
    """What can be chosen for SegAD."""

    base: tuple[str, ...] = ()
    """Artifacts of the detectors whose maps are looked at; they become part of the new artifact."""
    components: str = "none"
    """How pictures fall into components: none (one component), foreground (part and background, found
    in each picture), cluster:K (K parts found in the good pictures by their features), or static:FILE
    (a label picture for aligned parts, one value or colour for each)."""
    calibration_fraction: float = 0.5
    """Share of the good pictures the bases have not learned from that sets the threshold; the forest
    learns from the others."""

    def __post_init__(self) -> None:
        DetectorConfig.__post_init__(self)
        ForestConfig.__post_init__(self)
        kind, _, rest = self.components.partition(":")
        is_known = {
            "none": not rest,
            "foreground": not rest,
            "static": bool(rest),
            "cluster": rest.isdecimal() and 2 <= int(rest) <= MOST_COMPONENTS,
        }
        if not is_known.get(kind):
            raise ConfigError(
                f'--components is "{self.components}"; expected none, foreground, static:FILE, '
                f"or cluster:K with K from 2 to {MOST_COMPONENTS}."
            )
        if not 0 < self.calibration_fraction < 1:
            raise ConfigError(
                f"--calibration-fraction is {self.calibration_fraction}; expected a share between 0 and 1."
            )


class SegAD(Detector):
    """The detector; see the module's docstring."""

    config: SegADConfig
    learns_from_defects = True
    is_one_graph = False
    presets: ClassVar[Mapping[str, DetectorConfig]] = {
        "paper": SegADConfig(calibration_fraction=0.1),
        "small": SegADConfig(),
        "tiny": SegADConfig(image_size=(64, 64), trees=20),
    }

    def __init__(self, config: SegADConfig, backbone_weights: str = "default") -> None:
        super().__init__(config)
        kind, _, rest = config.components.partition(":")
        self.clusters = Clusters(config.backbone, backbone_weights, int(rest)) if kind == "cluster" else None
        self.forest = Forest()
        self.static: Tensor
        """(H, W) uint8 component of each pixel; empty unless components are static."""
        self.platt: Tensor
        """(2,) slope and offset of the probability."""
        self.register_buffer("static", torch.zeros(0, 0, dtype=torch.uint8))
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))
        for number in range(len(config.base)):
            self.register_buffer(f"base_{number}", torch.zeros(0, dtype=torch.uint8))
        self._opened: tuple[torch.device, list[artifact.Predictor]] | None = None

    @property
    def count(self) -> int:
        """The number of components."""
        if self.static.numel():
            return int(self.static.max()) + 1
        if self.clusters is not None:
            return len(self.clusters.centres)
        return 2 if self.config.components == "foreground" else 1

    def fit(self, data: Dataset, policy: Policy | None = None) -> Self:
        """The detector itself, after learning from labelled defects and good pictures that are new to the bases.

        Args:
            data: Its labelled training defects are learned from, and those of its good pictures,
                for training or held out, that no base has learned from.
            policy: As of every detector.

        Raises:
            ConfigError: no base, or one that does not fit.
            DatasetError: fewer than 2 defects, fewer than 3 new good pictures, several categories.
        """
        self._take_bases()
        known = {picture for base in self._bases() for picture in base.header.fitted.learned_from}
        super().fit(self._new_to_bases(data, known), policy)
        if self.fitted is not None:
            own = {*self.fitted.learned_from, *(digest(sample.path) for sample in data.train_defects)}
            self.fitted = replace(self.fitted, learned_from=tuple(sorted(own | known)))
        return self

    def learn(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Grows the forest on good pictures, then defects."""
        if self.config.components.startswith("static:"):
            file = Path(self.config.components.partition(":")[2])
            self.static = torch.from_numpy(numbered(images.read(file), str(file), self.config.image_size))
        if self.clusters is not None:
            batches = read_batches(data.train, preprocessing, self.config.batch_size, [])  # failures are noted below
            draw = generator(self.config.seed, 0)
            with torch.inference_mode():
                self.clusters.learn((to_tensor(each.images, self) for each in batches), len(data.train), draw)
            self._round()
        rows, is_defective = [], []
        for samples, defective in ((data.train, False), (data.train_defects, True)):
            found = self._read_rows(samples, preprocessing)
            rows += found
            is_defective += [defective] * len(found)
        table, labels = np.array(rows, np.float32), np.array(is_defective)
        if labels.sum() < 2 or (~labels).sum() < 2:
            raise DatasetError(
                f"{labels.sum()} defective and {(~labels).sum()} good pictures can be read; SegAD learns from 2 of "
                "each at least, better 10 defects and more."
            )
        self.forest = self._grow(table, labels)
        if not self.forest.gain.any():
            raise DatasetError(
                f"{(~labels).sum()} good and {labels.sum()} defective pictures give the forest nothing to split on: "
                "they are too few, or the maps of the bases do not tell them apart. Fit the base with "
                "--validation-fraction 0.5, so that more good pictures are new to it, or add pictures."
            )
        margins, judged = self.held_out_margins(table, labels)
        self.platt = torch.tensor(platt(margins[judged], labels[judged]))
        self.config = replace(self.config, base=tuple(Path(name).name for name in self.config.base))

    def forward(self, image: Tensor) -> Prediction[Tensor]:
        """The mean of the bases' maps, each scaled by its own good pictures, and the forest's margin."""
        maps = self._maps(image.cpu().numpy())
        scaled = [
            (each - low) / (high - low)
            for each, (low, high) in zip(maps, (base.decider().heat_span for base in self._bases()), strict=True)
        ]
        size = (image.shape[2], image.shape[3])
        anomaly_map = np.mean([[images.resize(one, size) for one in each] for each in scaled], axis=0, dtype=np.float32)
        features = torch.from_numpy(self._features(image.cpu().numpy(), maps)).to(image.device)
        margin = self.forest(features)
        broken = torch.from_numpy(~np.isfinite(anomaly_map).all(axis=(1, 2))).to(image.device)
        return Prediction(torch.from_numpy(anomaly_map).to(image.device), margin.masked_fill(broken, math.nan))

    def probability(self, margin: Tensor) -> Tensor:
        """The probability (B,) of a defect, as common as among the pictures learned from, of margins (B,)."""
        return (self.platt[0] * margin + self.platt[1]).sigmoid()

    def names(self) -> list[str]:
        """What each feature is, in words, in the order of the forest's columns."""
        bases = self.config.base
        found = [
            f"{name} of {base} in component {part}"
            for part in range(self.count)
            for base in bases
            for name in STATISTICS
        ]
        return found + [f"maximum of {base}" for base in bases]

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a saved state, and opens the bases in it."""
        super().restore(state)
        width = len(self.names())
        if (
            self.forest.feature.numel()
            and not 0 <= int(self.forest.feature.min()) <= int(self.forest.feature.max()) < width
        ):
            raise ValueError("a tree asks for a feature that there is not")
        self._bases()

    def held_out_margins(self, table: Floats, labels: Bools) -> tuple[Floats, Bools]:
        """Margins (N,) by forests that have not learned from the row, and which rows have one."""
        folds = np.zeros(len(labels), int)
        for kind in (False, True):
            rows = np.flatnonzero(labels == kind)
            draw = np.random.default_rng([self.config.seed, int(kind)])
            folds[draw.permutation(rows)] = np.arange(len(rows)) % FOLDS
        margins = np.zeros(len(labels), np.float32)
        judged = np.zeros(len(labels), bool)
        for fold in range(FOLDS):
            inside, outside = folds == fold, folds != fold
            if inside.any() and 0 < labels[outside].sum() < outside.sum():
                forest = self._grow(table[outside], labels[outside])
                margins[inside] = forest(torch.from_numpy(table[inside])).numpy()
                judged |= inside
        return margins, judged

    def _grow(self, table: Floats, labels: Bools) -> Forest:
        weight = float((~labels).sum() / labels.sum())
        return Forest.grown(table, labels, weight, self.config.seed, self.config).to(self.device)

    def _read_rows(self, samples: Sequence[Sample], preprocessing: Preprocessing) -> list[Floats]:
        rows: list[Floats] = []
        with bar("Look at the maps", len(samples)) as drawn:
            for batch in read_batches(samples, preprocessing, self.config.batch_size, self.failures):
                rows += list(self._features(batch.images, self._maps(batch.images)))
                drawn.advance(len(batch.samples))
        return rows

    def _maps(self, image: Floats) -> list[Floats]:
        """Of each base, (B, h, w)."""
        return [base.predict(image).anomaly_map for base in self._bases()]

    def _features(self, image: Floats, maps: list[Floats]) -> Floats:
        """The features (B, D) of images (B, 3, H, W) with the maps of each base."""
        rows = [
            features([of_base[number] for of_base in maps], self._components(each), self.count)
            for number, each in enumerate(image)
        ]
        return np.stack(rows)

    def _components(self, image: Floats) -> Labels:
        """The component (H, W) of each pixel of an image (3, H, W)."""
        if self.static.numel():
            return np.asarray(self.static.cpu().numpy())
        if self.clusters is not None:
            with torch.inference_mode():
                return np.asarray(self.clusters(to_tensor(image[None], self))[0].cpu().numpy(), np.uint8)
        if self.config.components == "foreground":
            return foreground(images.to_picture(image), "").astype(np.uint8)
        return np.zeros(image.shape[1:], np.uint8)

    def _take_bases(self) -> None:
        """Reads the artifacts that the configuration names, as bytes."""
        if not self.config.base:
            raise ConfigError("SegAD has no base; name the artifacts of one or more detectors with --base a.blemish.")
        for number, name in enumerate(self.config.base):
            artifact.read_header(name)  # what is wrong with it is said with its path
            self.register_buffer(f"base_{number}", torch.from_numpy(np.fromfile(name, np.uint8)))
        self._opened = None
        rules = {base.preprocessing.intensity for base in self._bases()}
        if len(rules) > 1 or (self.config.intensity is not None and self.config.intensity not in rules):
            raise ConfigError("the bases and --intensity differ in their range of values; expected the same for all.")
        self.config = replace(self.config, intensity=rules.pop())
        for name, base in zip(self.config.base, self._bases(), strict=True):
            height, width = base.preprocessing.image_size
            if height > self.config.image_size[0] or width > self.config.image_size[1]:
                raise ConfigError(f"{name} looks at {height}x{width} pixels: give --image-size {height}x{width}.")

    def _bases(self) -> list[artifact.Predictor]:
        if self._opened is None or self._opened[0] != self.device:
            self._opened = self.device, [self._open(number) for number in range(len(self.config.base))]
        return self._opened[1]

    def _open(self, number: int) -> artifact.Predictor:
        name = self.config.base[number]
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"base{Path(name).suffix}"
            self.get_buffer(f"base_{number}").cpu().numpy().tofile(file)
            try:
                return artifact.load(file, device=str(self.device))
            except ArtifactError as error:
                raise ArtifactError(f"the base {name} can't be used: {error}".replace(str(file), name)) from error

    def _new_to_bases(self, data: Dataset, known: set[str]) -> Dataset:
        """The data with only the good pictures that no base has learned from, split anew."""
        if len(data.categories) > 1:
            raise DatasetError(
                f"SegAD learns one category at a time, not {len(data.categories)}; choose one with --category."
            )
        if len(data.train_defects) < 2:
            raise DatasetError(
                f"{data.root} has {len(data.train_defects)} labelled defects to learn from; SegAD takes 2 at least, "
                "better 10: name their folder with --defects DIR."
            )
        good = data.train + data.validation
        new = [replace(sample, split="train") for sample in good if digest(sample.path) not in known]
        if len(new) < 3:
            raise DatasetError(
                f"{len(good) - len(new)} of {len(good)} good pictures trained the base, whose maps of them are "
                "too low to learn from; SegAD needs 3 others at least. Fit the base with --validation-fraction 0.5, "
                "or add new good pictures."
            )
        others = [sample for sample in data.samples if sample.is_anomalous is not False or sample.split == "test"]
        return replace(data, samples=(*hold_out(new, self.config.calibration_fraction, self.config.seed), *others))


def features(
    maps: Sequence[Floats], labels: Labels, count: int, *, global_max: bool = True, supervised: float | None = None
) -> Floats:
    """The features (D,) of a picture.

    By component, then by base: 0.995 quantile, skewness, excess kurtosis and mean of the map inside
    the component; then the maximum of each map. A component without pixels gives zeros, one whose values
    are all the same NaN for skewness and kurtosis.

    Args:
        maps: Of each base, (h, w); they may differ in size.
        labels: (H, W) component of each pixel, brought to the size of each map by the nearest pixel.
        count: The number of components.
        global_max: Whether to append the maxima.
        supervised: The score of a supervised classifier, to append.

    Raises:
        ShapeError: a component that there is not.

    Source: arXiv 2405.04953, section 3.2.
    """
    if labels.max() >= count:
        raise ShapeError(f"a label map has the component {labels.max()}; expected 0 to {count - 1}.")
    fitted = [
        labels
        if labels.shape == each.shape
        else cv2.resize(labels, each.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        for each in maps
    ]
    found = [
        statistic
        for part in range(count)
        for each, own in zip(maps, fitted, strict=True)
        for statistic in statistics(each[own == part] if count > 1 else each.ravel())
    ]
    found += [float(each.max()) for each in maps] if global_max else []
    return np.array(found + ([] if supervised is None else [supervised]), np.float32)


def statistics(values: Floats) -> tuple[float, float, float, float]:
    """0.995 quantile, skewness, excess kurtosis and mean of values (N,), in their own precision."""
    if not len(values):
        return 0.0, 0.0, 0.0, 0.0
    mean = values.mean()
    around = values - mean
    square = around * around
    variance = square.mean()
    # Rounding leaves a trace of variance in values that are all the same.
    constant = variance <= (np.finfo(values.dtype).resolution * mean) ** 2
    skewness = math.nan if constant else float((square * around).mean() / variance**1.5)
    kurtosis = math.nan if constant else float((square * square).mean() / variance**2 - 3)
    return float(np.quantile(values, 0.995)), skewness, kurtosis, float(mean)


def numbered(picture: images.Picture, name: str, size: tuple[int, int] | None = None) -> Labels:
    """The components (H, W), 0 and on, of a label picture (H, W, 3), by its values (or colours) in ascending order.

    Raises:
        ShapeError: more values than there can be components, as in a photograph.
    """
    height, width = picture.shape[:2]
    colours, found = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) > MOST_COMPONENTS:
        raise ShapeError(
            f"{name} has {len(colours)} different values; expected a label picture with at most {MOST_COMPONENTS}, "
            "one for each component (PNG: JPEG blurs them)."
        )
    labels = found.reshape(height, width).astype(np.uint8)
    if size is None or labels.shape == size:
        return labels
    return np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def draw_defects(count: int, labelled: int, seed: int) -> list[int]:
    """Which of `count` defects are labelled, in the order that the forest sees them: the paper's draw.

    Raises:
        DatasetError: there are not more defects than are to be labelled.
    """
    if not 0 < labelled < count:
        raise DatasetError(f"{labelled} of {count} defects can't be drawn; expected at least 1, and one left to test.")
    order = np.random.RandomState(seed).permutation(count)  # as published figures were drawn
    return [int(number) for number in order[-labelled:]]


DETECTOR = SegAD
