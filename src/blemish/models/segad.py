"""SegAD: a few labelled defects turn the maps of any detectors into a supervised decision.

Source: Baitieva et al., "Supervised Anomaly Detection for Complex Industrial Images",
arXiv 2405.04953. Each component of a part (from a label map) gives four statistics of the map of each
base detector; a boosted random forest learns from them which pictures are defective. That takes many labels. With
few, `blemish.nn.peaks` adds to the bases' own scores how much the peaks of their maps look like labelled defects.
"""

import math
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from blemish import artifact, components, folds
from blemish.bases import Bases, Looked
from blemish.components import Components
from blemish.dataset import Dataset, hold_out
from blemish.defects import NOWHERE, mask_of, with_readable_masks
from blemish.detector import Detector, DetectorConfig
from blemish.errors import ArtifactError, ConfigError, DatasetError, bad_option, count_of
from blemish.images import Bools, Floats
from blemish.label_gain import held_out, label_gain
from blemish.nn import map_features, peaks
from blemish.nn.classifier import Gist, InformedForest
from blemish.nn.forest import Forest, ForestConfig, platt
from blemish.nn.map_features import features
from blemish.nn.peaks import Eye, Layout, Peaks
from blemish.parts import part_of
from blemish.progress import bar
from blemish.reading import digest, read_parts
from blemish.synthesis.disturbances import disturb
from blemish.training import generator
from blemish.types import Failure, Policy, Prediction, Preprocessing, Sample

SEEDS = (333, 576, 725, 823, 831, 902, 226, 598, 874, 589)
"""Seeds of the paper's ten draws of labelled defects."""
REPEATS = 3
"""Cross-validations, to see what labels bring."""
NAMED = 2
"""Features that are named as what decided, at most."""


@dataclass
class _Rows:
    """What is known of pictures."""

    features: list[Floats] = field(default_factory=list)
    scores: list[Floats] = field(default_factory=list)
    """Image score of each base."""


@dataclass(frozen=True, kw_only=True)
class SegADConfig(DetectorConfig, ForestConfig):
    """What can be chosen for SegAD."""

    base: tuple[str, ...] = ()
    """Artifacts of the detectors whose maps are looked at; they become part of the new artifact."""
    decision: Literal["peaks", "forest"] = "peaks"
    """What decides: peaks (the bases' own scores, and how much the highest places of their maps look like labelled
    defects; for tens of defects), or the paper's forest (statistics of the maps; for hundreds)."""
    components: str = "none"
    """How pictures fall into components: none (one component), foreground (part and background, found
    in each picture), cluster:K (K parts found in the good pictures by their features), static:FILE
    (a label picture for aligned parts, one value or colour for each), or folder:DIR (a label map for each
    picture, in folders like the picture's or with its name)."""
    out_of_fold: int = 0
    """Fit each base anew so many times, each time without some of the pictures that it has learned from, which
    these fits then look at: so the forest can learn from them, too. 0: it learns from other good pictures."""
    classifier: bool = False
    """Let the forest know, too, how defective the whole picture looks to a linear classifier on the backbone (the
    paper's g, for hundreds of labelled defects)."""
    masks: bool = True
    """Learn from the masks of labelled defects, where they have any, what the defect itself looks like."""
    disturbed: int = 0
    """Good pictures, at most, that are shown again blurred or with a bar of grey as if they were defects (the paper's
    one-class protocol). They may make it worse than the base alone."""
    calibration_fraction: float = 0.5
    """Share of the good pictures the bases have not learned from that sets the threshold; the forest
    learns from the others. With --out-of-fold all of them set it."""

    def __post_init__(self) -> None:
        DetectorConfig.__post_init__(self)
        ForestConfig.__post_init__(self)
        components.parse(self.components)
        if self.out_of_fold < 0 or self.out_of_fold == 1:
            raise bad_option("out_of_fold", self.out_of_fold, "0 (none), or 2 and more")
        if self.disturbed < 0:
            raise bad_option("disturbed", self.disturbed, "0 (none) or more")
        if self.classifier and self.decision != "forest":
            raise ConfigError("--classifier goes with --decision forest; leave it out, or choose the forest.")
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
        "paper": SegADConfig(calibration_fraction=0.1, decision="forest"),
        "small": SegADConfig(),
        "tiny": SegADConfig(image_size=(64, 64), trees=20),
    }

    def __init__(self, config: SegADConfig, backbone_weights: str = "default") -> None:
        super().__init__(config)
        self.components = Components(config.components, config.backbone, backbone_weights)
        self.eye = Eye(config.backbone, backbone_weights) if config.decision == "peaks" else None
        self.gist = Gist(config.backbone, backbone_weights) if config.classifier else None
        self.decision: Forest | InformedForest | Peaks = (
            Forest() if self.gist is None else InformedForest(self.gist.width)
        )
        if self.eye is not None:
            self.decision = Peaks(self._layout(self.eye))
        self.platt: Tensor
        """(2,) slope and offset of the probability."""
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))
        for number in range(len(config.base)):
            self.register_buffer(f"base_{number}", torch.zeros(0, dtype=torch.uint8))
        self._weights, self._policy = backbone_weights, Policy()
        self._opened: tuple[torch.device, Bases] | None = None

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
        self._policy = policy or Policy()
        known = {picture for base in self._bases().predictors for picture in base.header.fitted.learned_from}
        lost: list[Failure] = []
        defects = list(with_readable_masks(data.train_defects, lost)) if self.config.masks else data.train_defects
        usable = self.components.usable([*data.train, *data.validation, *defects], lost)
        paths = {sample.path for sample in usable}
        kept = [sample for sample in data.samples if sample.split == "test" or sample.path in paths]
        super().fit(self._chosen(replace(data, samples=tuple(kept)), known), policy)
        self.failures = lost + self.failures
        if self.fitted is not None:
            own = {*self.fitted.learned_from, *(digest(sample.path) for sample in data.train_defects)}
            self.fitted = replace(self.fitted, learned_from=tuple(sorted(own | known)))
        return self

    def learn(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Learns the decision from good pictures, then defects."""
        self.components.learn(data.train, preprocessing, self.config.batch_size, generator(self.config.seed, 0))
        self._round()
        self._opened = None  # whether a base has the eye's very weights is to be seen anew
        good, bad, made = self._rows(data, preprocessing)
        table = np.array(good.features + bad.features + made.features, np.float32)
        scores = np.array(good.scores + bad.scores + made.scores, np.float32)
        labels = np.arange(len(table)) >= len(good.features)
        is_real = np.arange(len(table)) < len(good.features + bad.features)
        if labels.sum() < 2 or (~labels).sum() < 2:
            raise DatasetError(
                f"{labels.sum()} defective and {count_of(int((~labels).sum()), 'good picture')} can be read; SegAD "
                "learns from 2 of each at least, better 10 defects and more."
            )
        self.config = replace(self.config, base=_different([Path(name).name for name in self.config.base]))
        self.decision = self._decide(table, labels)
        self.remarks = self._remarks(data.train_defects)
        if self.eye is None and not self.decision.gain.any():
            raise DatasetError(
                f"{(~labels).sum()} good and {count_of(int(labels.sum()), 'defective picture')} give the forest "
                "nothing to split on: they are too few, or the maps of the bases do not tell them apart. Fit the "
                "base with --validation-fraction 0.5, so that more good pictures are new to it, use --out-of-fold 3 or "
                "--decision peaks, or add pictures."
            )
        folded = [held_out(table, labels, self._judge, (self.config.seed, number)) for number in range(REPEATS)]
        margins, judged = folded[0]
        self.platt = torch.tensor(platt(margins[judged], labels[judged]))
        by_gain = sorted(zip(self.decision.gain.tolist(), self.names(), strict=True), key=lambda pair: -pair[0])
        self.importance = {name: gain for gain, name in by_gain if gain > 0}
        for _, own in folded:
            judged = judged & own & is_real & np.isfinite(scores).all(1)
        if 0 < labels[judged].sum() < judged.sum():
            alone = dict(zip(self.config.base, scores[judged].T, strict=True))
            supervised = [found[judged] for found, _ in folded]
            self.gain = label_gain(alone, supervised, labels[judged], self._policy.max_false_reject)

    def look(self, image: Tensor, parts: Sequence[Hashable]) -> Prediction[Tensor]:
        """The mean of the bases' maps, each scaled by its own good pictures, and the margin of the decision."""
        seen = image.cpu().numpy()
        looked = self._bases().look(seen, parts)
        margin = self.decision(torch.from_numpy(self._features(seen, looked, _files(parts))).to(image.device))
        broken = torch.from_numpy(~np.isfinite(looked.heat).all(axis=(1, 2))).to(image.device)
        return Prediction(torch.from_numpy(looked.heat).to(image.device), margin.masked_fill(broken, math.nan))

    def forward(self, image: Tensor) -> Prediction[Tensor]:
        """The same for images that are not views of one part."""
        return self.look(image, range(image.shape[0]))

    def probability(self, margin: Tensor) -> Tensor:
        """The probability (B,) of a defect, as common as among the pictures learned from, of margins (B,)."""
        return (self.platt[0] * margin + self.platt[1]).sigmoid()

    def names(self) -> list[str]:
        """What each feature is that decides, in words, in its order."""
        if self.eye is not None:
            return peaks.names(self.config.base, self.components.count)
        found = map_features.names(self.components.count, self.config.base)
        return found if self.gist is None else [*found, "classifier of the whole picture"]

    def explain(self, image: Tensor, parts: Sequence[Hashable]) -> list[str]:
        """The features that moved the margin of each image (B, 3, H, W) most towards its decision."""
        seen = image.cpu().numpy()
        rows = self._features(seen, self._bases().look(seen, parts), _files(parts))
        table = torch.from_numpy(rows).to(image.device)
        margins, shares = self.decision(table), self.decision.contributions(table).cpu().numpy()
        found, names = [], self.names()
        odds = (
            margins if self.eye is None else self.platt[0] * margins + self.platt[1]
        )  # a forest gives log-odds itself
        for is_bad, own in zip((odds > 0).tolist(), shares, strict=True):
            towards = own if is_bad else -own
            best = [place for place in np.argsort(-towards)[:NAMED] if towards[place] > 0]
            found.append(", ".join(f"{names[place]} ({own[place]:+.2g})" for place in best))
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a saved state, and opens the bases in it."""
        is_older = "decision.filters" in state and "decision.probe" not in state
        if is_older or "forest.start" in state:
            raise ArtifactError(
                "this SegAD was made by an earlier version of Blemish; expected one of now: fit it again."
            )
        super().restore(state)
        if isinstance(self.decision, Peaks):
            self.decision.check(self.decision.layout if self.eye is None else self._layout(self.eye))
        else:
            self.decision.check(len(self.names()))
        self._bases()

    def _judge(self, table: Floats, labels: Bools) -> Callable[[Floats], Floats]:
        decision = self._decide(table, labels).cpu()
        return lambda rows: decision(torch.from_numpy(rows)).numpy()

    def _decide(self, table: Floats, labels: Bools) -> Forest | InformedForest | Peaks:
        if self.eye is not None:
            return Peaks.learned(table, labels, self._layout(self.eye), self.config.seed).to(self.device)
        how = (float((~labels).sum() / labels.sum()), self.config.seed, self.config)
        if self.gist is not None:
            return InformedForest.grown(table, labels, self.gist.width, how).to(self.device)
        return Forest.grown(table, labels, *how).to(self.device)

    def _rows(self, data: Dataset, preprocessing: Preprocessing) -> tuple[_Rows, _Rows, _Rows]:
        """What the decision learns from: the rows of the good pictures, of the defects, and of disturbed good ones."""
        good, bad, count = data.train, data.train_defects, self.config.out_of_fold
        found = (_Rows(), _Rows(), _Rows())
        draw = np.random.default_rng([self.config.seed, 2])
        marked = {good[place].path for place in draw.permutation(len(good))[: self.config.disturbed]}
        if not count:
            for rows, samples in zip(found, (good, bad), strict=False):
                self._read_rows(rows, samples, preprocessing, self._bases())
            self._read_rows(
                found[2], [each for each in good if each.path in marked], preprocessing, self._bases(), draw
            )
            return found
        fold = folds.assign(good, count, self.config.seed)
        place = None if self.unfinished is None else self.unfinished.with_name(f"{self.unfinished.name}-folds")
        for number in range(count):
            inside = [sample for sample, own in zip(good, fold, strict=True) if own == number]
            others = folds.without(data, inside)
            bases = [
                folds.refit(
                    base.header, others, self.device, self._weights, place and place / f"{number}-{name}.blemish"
                )
                for name, base in enumerate(self._bases().predictors)
            ]
            # Defects are looked at by each in turn, so that no detector is for one kind alone.
            fold_bases = Bases(bases, self.eye, self.config.image_size)
            self._read_rows(found[0], inside, preprocessing, fold_bases)
            self._read_rows(found[1], bad[number::count], preprocessing, fold_bases)
            self._read_rows(found[2], [each for each in inside if each.path in marked], preprocessing, fold_bases, draw)
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        return found

    def _read_rows(
        self,
        rows: _Rows,
        samples: Sequence[Sample],
        preprocessing: Preprocessing,
        bases: Bases,
        disturbing: np.random.Generator | None = None,
    ) -> None:
        """Adds what is to be known of pictures; with `disturbing`, after disturbing them."""
        with bar("Look at the maps", len(samples)) as drawn:
            for batch in read_parts(samples, preprocessing, self.config.batch_size, self.failures):
                parts = [part_of(sample) for sample in batch.samples]
                seen = batch.images
                if disturbing is not None:
                    labels = [self.components.labels(*each) for each in zip(seen, _files(parts), strict=True)]
                    seen = np.stack([disturb(*each, disturbing) for each in zip(seen, labels, strict=True)])
                looked = bases.look(seen, parts)
                masks = [mask_of(sample) if self.config.masks else NOWHERE for sample in batch.samples]
                rows.features += list(self._features(seen, looked, _files(parts), masks))
                rows.scores += list(np.stack([each.image_score for each in looked.found], 1))
                drawn.advance(len(batch.samples))

    def _features(
        self, image: Floats, looked: Looked, files: Sequence[Path | None], masks: Sequence[Bools] = ()
    ) -> Floats:
        """What is to be known (B, D) of images (B, 3, H, W), seen like this by the bases, read from these files.

        With masks of labelled defects, where these are learned from.
        """
        labels = [self.components.labels(each, file) for each, file in zip(image, files, strict=True)]
        count = self.components.count
        if looked.patches is None:
            maps = zip(*(each.anomaly_map for each in looked.found), strict=True)
            rows = np.stack([features(own, each, count) for own, each in zip(maps, labels, strict=True)])
            if self.gist is None:
                return rows
            with torch.inference_mode():
                return np.concatenate([rows, self.gist(torch.from_numpy(image).to(self.device)).cpu().numpy()], 1)
        levels = peaks.levels_of(looked.found, labels, count)
        masks = masks or [NOWHERE] * len(image)
        return peaks.rows(levels, looked.patches, looked.heat, labels, masks)

    def _remarks(self, defects: Sequence[Sample]) -> list[str]:
        """What was used beside the pictures."""
        if self.eye is None:
            return []
        marked = sum(bool(sample.masks) for sample in defects) if self.config.masks else 0
        shown = self._bases().shown
        ran = "run beside the bases" if shown is None else f"the one that {self.config.base[shown]} has run anyway"
        return [
            f"{marked} of {len(defects)} labelled defects have masks, which say what the defect itself looks like.",
            f"The backbone that sees the peaks is {ran}.",
        ]

    def _layout(self, eye: Eye) -> Layout:
        return peaks.layout(eye.backbone.channels, len(self.config.base), self.components.count, self.config.image_size)

    def _take_bases(self) -> None:
        """Reads the artifacts that the configuration names, as bytes."""
        if not self.config.base:
            raise ConfigError("SegAD has no base; name the artifacts of one or more detectors with --base a.blemish.")
        for number, name in enumerate(self.config.base):
            artifact.read_header(name)  # what is wrong with it is said with its path
            self.register_buffer(f"base_{number}", torch.from_numpy(np.fromfile(name, np.uint8)))
        self._opened = None
        rules = {base.preprocessing.intensity for base in self._bases().predictors}
        if len(rules) > 1 or (self.config.intensity is not None and self.config.intensity not in rules):
            raise ConfigError("the bases and --intensity differ in their range of values; expected the same for all.")
        self.config = replace(self.config, intensity=rules.pop())
        for name, base in zip(self.config.base, self._bases().predictors, strict=True):
            height, width = base.preprocessing.image_size
            if height > self.config.image_size[0] or width > self.config.image_size[1]:
                raise ConfigError(f"{name} looks at {height}x{width} pixels: give --image-size {height}x{width}.")

    def _bases(self) -> Bases:
        if self._opened is None or self._opened[0] != self.device:
            opened = [self._open(number) for number in range(len(self.config.base))]
            self._opened = self.device, Bases(opened, self.eye, self.config.image_size)
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

    def _chosen(self, data: Dataset, known: set[str]) -> Dataset:
        """The data split anew, by which good pictures the bases have learned from."""
        if len(data.categories) > 1:
            raise DatasetError(
                f"SegAD learns one category at a time, not {len(data.categories)}; choose one with --category."
            )
        if len(data.train_defects) + self.config.disturbed < 2:
            raise DatasetError(
                f"{data.root} has {count_of(len(data.train_defects), 'labelled defect')} to learn from; SegAD takes "
                "2 at least, better 10: name their folder with --defects DIR. Without any, good pictures can be "
                "disturbed: --disturbed 100."
            )
        good = data.train + data.validation
        new = [replace(sample, split="train") for sample in good if digest(sample.path) not in known]
        others = [sample for sample in data.samples if sample.is_anomalous is not False or sample.split == "test"]
        if self.config.out_of_fold:
            fresh = {sample.path for sample in new}
            seen = [replace(sample, split="train") for sample in good if sample.path not in fresh]
            if not new or len(seen) < 2 * self.config.out_of_fold:
                raise DatasetError(
                    f"{count_of(len(seen), 'good picture')} trained the base and {len(new)} did not; --out-of-fold "
                    f"{self.config.out_of_fold} takes {2 * self.config.out_of_fold} and 1 at least: the latter set the "
                    "threshold. Add good pictures, or fit the base with another --validation-fraction."
                )
            held_out = [replace(sample, split="validation") for sample in new]
            return replace(data, samples=(*seen, *held_out, *others))
        if len(new) < 3:
            raise DatasetError(
                f"{len(good) - len(new)} of {count_of(len(good), 'good picture')} trained the base, whose maps of "
                "them are too low to learn from; SegAD needs 3 others at least. Fit the base with "
                "--validation-fraction 0.5, use --out-of-fold 3, or add new good pictures."
            )
        return replace(data, samples=(*hold_out(new, self.config.calibration_fraction, self.config.seed), *others))


def _files(parts: Sequence[Hashable]) -> list[Path | None]:
    """The file of each picture, where `parts.part_of` made the part; None where it shows a view of one."""
    return [Path(part[2]) if isinstance(part, tuple) and len(part) == 3 and part[2] else None for part in parts]


def _different(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number before those that there are several of."""
    return tuple(name if names.count(name) == 1 else f"{number}-{name}" for number, name in enumerate(names, 1))


def draw_defects(count: int, labelled: int, seed: int) -> list[int]:
    """Which of `count` defects are labelled, in the order that the forest sees them: the paper's draw.

    Raises:
        DatasetError: there are not more defects than are to be labelled.
    """
    if not 0 < labelled < count:
        raise DatasetError(
            f"{labelled} of {count_of(count, 'defect')} can't be drawn; expected at least 1, and one left to test."
        )
    order = np.random.RandomState(seed).permutation(count)  # as published figures were drawn
    return [int(number) for number in order[-labelled:]]


DETECTOR = SegAD
