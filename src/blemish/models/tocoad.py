"""ToCoAD: a memory bank of features that were tuned in two stages, by made defects and by contrast.

Source: Liang et al., "ToCoAD: Two-Stage Contrastive Learning for Industrial Anomaly Detection", arXiv
2407.01312.

Stage I teaches a discriminative network, a mirror of the backbone, to mark made defects in the features
of the frozen backbone. Stage II freezes it and tunes the backbone: two views of a good picture shall have
alike embeddings (SimSiam), while the frozen network must still find made defects, which keeps the
features from collapsing. Then PatchCore's memory bank is filled with the tuned features.

There is no official code, and the paper's equations and most of its numbers were not to be had: this is
ToCoAD as reconstructed here. `docs/tocoad.md` says what is the paper's and what is ours. Preset "small" adds
what keeps the tuning from doing harm: the features may not leave the frozen ones far behind, and of
all states, the untuned one among them, the one is kept that finds made defects best on held-out good pictures.
And what the discriminative network says counts beside the memory bank, which brings more than the tuning.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.dataset import Dataset
from blemish.detector import DetectorConfig, TrainedConfig
from blemish.distributed import share
from blemish.errors import ConfigError, DatasetError, bad_option
from blemish.images import Picture
from blemish.nn.backbone import Backbone, is_pyramid, strides_of
from blemish.nn.fusion import Fusion, average_precision, image_score, window
from blemish.nn.tocoad import COLLAPSED, Contrast, Head, Mirror, Tuned, Tuning, Weights, focal_loss
from blemish.progress import note
from blemish.remembering import Rememberer, RememberingConfig
from blemish.synthesis.perlin import Generator
from blemish.synthesis.pictures import TUNE, VALIDATE, DamageConfig, Damaged, Group, Pictures, read_groups
from blemish.synthesis.views import view
from blemish.training import Plan, Unfinished, generator, optimise
from blemish.types import Outcome, Prediction, Preprocessing

GENERATORS: tuple[Generator, ...] = ("perlin", "cutpaste", "seamless")
VALIDATED = 12
"""Damaged pictures of each generator that weights are judged on: what helps against one's own kind alone is no gain."""
KNOWN, CANDIDATES, ENTRIES = 48, 16_384, 1_000
"""Good pictures, patches and entries of the memory bank that weights are judged with."""
COMPARED = 16
"""Good pictures that embeddings are compared on, to see whether they have collapsed."""
WINDOW = 8
"""Side of the square whose highest mean is the discriminative network's image score, in pixels of a picture of 256."""
LOST = 0.0
"""The validation score of embeddings that have collapsed."""


class Held(NamedTuple):
    """What weights are judged on."""

    known: Tensor
    """(N, H, W, 3) uint8, good pictures that are learned from."""
    good: Tensor
    """(N, H, W, 3) uint8, good pictures that are not."""
    damaged: Tensor
    """(N, H, W, 3) uint8, of the latter."""
    mask: Tensor
    """(N, H, W) bool, where they are damaged."""


@dataclass(frozen=True, kw_only=True)
class ToCoADConfig(RememberingConfig, TrainedConfig, DamageConfig):
    """What can be chosen for ToCoAD; the budget is that of both stages together."""

    pretraining: float = 0.9
    """Share of the budget (steps, epochs, minutes) that stage I takes."""
    contrast: Contrast = "simsiam"
    """What makes two views of a picture alike in stage II: simsiam, byol, or none."""
    guide: float = 1.0
    """Weight of what the frozen discriminative network says in stage II; 0: no guide, and no stage I."""
    distill: float = 1.0
    """Weight of the distance to the frozen features in stage II, which keeps what was known from being forgotten."""
    layers: tuple[int, ...] = (16, 32)
    """Stages of the backbone whose embeddings are compared, by their stride in pixels."""
    tuned: tuple[int, ...] = (8, 16, 32)
    """Stages of the backbone that learn, by their stride; those not named stay as they are."""
    tuning_rate: float = 5e-5
    """Learning rate of the backbone; `learning_rate` is that of the discriminative network and the heads."""
    select: Literal["best", "last"] = "best"
    """Keep the weights that find made defects on held-out good pictures best, the untuned ones among them; or the last
    ones."""
    loss: Literal["focal", "ce"] = "focal"
    """Of the discriminative network: focal, or cross-entropy (by half, so that an exponent of 0 is the difference)."""
    mirrored: tuple[int, ...] = (4, 8, 16)
    """Stages of the backbone that the discriminative network looks at, by stride, each twice the one before."""
    depths: tuple[int, ...] = (2, 2)
    """Its blocks for each doubling, coarsest first."""
    deep: bool = False
    """Build it of blocks with three convolutions instead of two, as the Wide ResNet-50-2 that the paper mirrors."""
    width: int = 256
    """Width of the embeddings that are compared."""
    jitter: float = 1.0
    """Factor on how much views of a picture differ in place, colour and sharpness."""
    fuse: float = 0.0
    """Weight of the discriminative network's own map and image score beside those of the memory bank, each in its
    spread on good pictures; 0, as in the paper: it is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        DamageConfig.__post_init__(self)
        for name in ("guide", "distill", "jitter", "fuse"):
            if not 0 <= getattr(self, name) < math.inf:
                raise bad_option(name, getattr(self, name), "0 (off) or more")
        if not 0 < self.pretraining < 1:
            raise bad_option("pretraining", self.pretraining, "a share above 0 and below 1")
        if not 0 < self.tuning_rate < math.inf:
            raise bad_option("tuning_rate", self.tuning_rate, "a number above 0")
        if self.width < 4:
            raise bad_option("width", self.width, "4 or more")
        doubled = all(fine * 2 == coarse for fine, coarse in zip(self.mirrored, self.mirrored[1:], strict=False))
        if len(self.mirrored) < 2 or not doubled:
            raise bad_option(
                "mirrored", self.mirrored, "two strides or more, each twice the one before, such as 4 8 16"
            )
        if len(self.depths) != len(self.mirrored) - 1 or min(self.depths) < 1:
            raise bad_option("depths", self.depths, f"{len(self.mirrored) - 1} numbers above 0, one for each doubling")
        if self.contrast != "none" and not self.layers:
            raise bad_option("layers", self.layers, "at least one stride, such as 16 32, or --contrast none")
        if not self.tuned:
            raise bad_option("tuned", self.tuned, "at least one stride, such as 8 16 32")

    @property
    def is_tuning(self) -> bool:
        """Whether anything is learned in stage II: without contrast and guide, this is PatchCore."""
        return self.contrast != "none" or self.guide > 0

    @property
    def is_discriminating(self) -> bool:
        """Whether anything asks for the discriminative network."""
        return self.guide > 0 or self.fuse > 0

    @property
    def compared(self) -> tuple[int, ...]:
        """Strides whose embeddings are compared."""
        return self.layers if self.contrast != "none" else ()

    @property
    def all_strides(self) -> list[int]:
        """Every stride that is looked at while learning."""
        return sorted({*self.strides, *self.mirrored, *self.compared, *self.tuned})

    @property
    def gamma(self) -> float:
        """The exponent of the focal loss."""
        return 2.0 if self.loss == "focal" else 0.0

    def stage(self, share: float, pictures: int) -> Plan:
        """How to train with that share of the budget."""
        steps = None if self.steps is None else max(1, round(share * self.steps))
        epochs, minutes = (None if whole is None else share * whole for whole in (self.epochs, self.minutes))
        return replace(self, steps=steps, epochs=epochs, minutes=minutes).plan(pictures)


class ToCoAD(Rememberer):
    """The detector; see the module's docstring."""

    config: ToCoADConfig
    sensitive: ClassVar[tuple[str, ...]] = (*Rememberer.sensitive, "discriminator")
    presets: ClassVar[Mapping[str, DetectorConfig]] = {
        "paper": ToCoADConfig(
            backbone="wide_resnet50_2.tv_in1k",
            strides=(8, 16),
            coreset_size=16_384,
            pretraining=0.8,
            epochs=100,
            distill=0.0,
            select="last",
            tuning_rate=2e-5,
            mirrored=(4, 8, 16, 32),
            depths=(3, 4, 6),
            deep=True,
            width=512,
            sources="self",
            few=0.0,
            soft=0.0,
            mirror=False,
            least_change=0,
            precision="float32",
        ),
        "small": ToCoADConfig(steps=560, learning_rate=1e-3, schedule="cosine", clip=1.0, evaluations=4, fuse=0.3),
        "tiny": ToCoADConfig(
            image_size=(64, 64),
            coreset_size=64,
            candidates=2_000,
            projection=16,
            blur=2.0,
            layers=(16,),
            tuned=(8, 16),
            mirrored=(4, 8),
            depths=(1,),
            width=32,
            pretraining=0.5,
            steps=12,
            batch_size=4,
            learning_rate=1e-3,
            evaluations=2,
        ),
    }

    def __init__(self, config: ToCoADConfig, backbone_weights: str = "default") -> None:
        check_mirrored(config)
        super().__init__(config, backbone_weights, config.mirrored if config.fuse else ())
        self.backbone_weights = backbone_weights
        self.discriminator = self._mirror(self.backbone) if config.fuse else None
        self.fusion = Fusion(config.fuse, config.fuse) if config.fuse else None

    def learn(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Stage I, stage II, and the memory bank; a tenth of `data.train` is not learned from and judges."""
        config = self.config
        groups, others = (read_groups(own, preprocessing, config.foreground, self.failures) for own in self.split(data))
        slim, tuning, pictures = self.backbone, self._tuning(), config.damaging(groups, config.seed)
        self.backbone = tuning.backbone
        held, unfinished = self._held(groups, others) if others else None, self.state_of(data)
        first, second = (None if unfinished is None else unfinished.stage(name) for name in ("I", "II"))
        if config.is_discriminating and not (config.is_tuning and second is not None and second.is_there):
            self.outcome = self._pretrain(tuning.discriminator, pictures, held, first)
        if config.is_tuning:
            self.outcome = self._tune(tuning, pictures, held, second)
        self.discriminator = tuning.discriminator.eval() if config.fuse else None
        self._round()  # all that follows is learned from what will be seen
        if self.fusion is not None:
            self._compare(held)
        tuned = tuning.backbone.state_dict()
        slim.load_state_dict({name: tuned[name] for name in slim.state_dict()})
        self.backbone = slim
        self.memorise(data, preprocessing)

    def forward(self, image: Tensor) -> Prediction[Tensor]:
        """What the memory bank says of the tuned features, perhaps with the discriminative network's opinion."""
        features = self.see(image)
        found = self.compare(features, image.shape[-2:])
        if self.fusion is None:
            return found
        return Prediction(*self.fusion(*self._opinions(features, found)))

    def _opinions(self, features: Mapping[int, Tensor], found: Prediction[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (2, B, H, W) and image scores (2, B) of the memory bank, and of -log(1 - p) of the discriminator."""
        if self.discriminator is None:
            raise ConfigError("the discriminative network's map is not to be had; expected --fuse above 0.")
        marked = F.softplus(self.discriminator(features, found.anomaly_map.shape[-2:]))
        score = image_score(marked, window(WINDOW, marked))
        return torch.stack([found.anomaly_map, marked]), torch.stack([found.image_score, score])

    def _mirror(self, backbone: Backbone) -> Mirror:
        channels = dict(zip(backbone.strides, backbone.channels, strict=True))
        own = {stride: channels[stride] for stride in self.config.mirrored}
        return Mirror(own, self.config.depths, deep=self.config.deep)

    def _tuning(self) -> Tuning:
        """Everything that learns, as it is at the beginning: it follows the seed, and the backbone is that of now."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            whole = Backbone(config.backbone, config.all_strides, self.backbone_weights)
            whole.load_state_dict({**whole.state_dict(), **self.backbone.state_dict()})
            whole.to(self.device).to(memory_format=torch.channels_last).requires_grad_(False).eval()
            channels = dict(zip(whole.strides, whole.channels, strict=True))
            heads = {stride: Head(channels[stride], config.width) for stride in config.compared}
            stages = whole.stages()
            for parameter in (parameter for stride in config.tuned for parameter in stages[stride]):
                parameter.requires_grad_()
            weights = Weights(config.guide, config.distill, gamma=config.gamma)
            tuning = Tuning(whole, self._mirror(whole), weights, config.contrast, heads)
        return tuning.to(self.device).to(memory_format=torch.channels_last)

    def _pretrain(
        self, network: Mirror, pictures: Pictures, held: Held | None, unfinished: Unfinished | None
    ) -> Outcome:
        """Stage I: the discriminative network learns to mark made defects; the backbone stays as it is."""
        config = self.config

        def loss(batch: Damaged) -> dict[str, Tensor]:
            with torch.no_grad():
                features = self.see(self._image(batch.damaged))
            mask = batch.mask.squeeze(1).to(self.device)
            return {config.loss: focal_loss(network(features, mask.shape[-2:]), mask, gamma=config.gamma)}

        plan = config.stage(config.pretraining, len(pictures))
        batches = partial(pictures.shared, size=config.batch_size)
        validate = partial(self._judge_marks, network, held) if held is not None and config.select == "best" else None
        network.requires_grad_()
        outcome = optimise(loss, network, batches, plan, validate, unfinished)
        network.requires_grad_(requires_grad=False)
        note(f"Stage I: {outcome.sentence()}")
        return outcome

    def _tune(self, tuning: Tuning, pictures: Pictures, held: Held | None, unfinished: Unfinished | None) -> Outcome:
        """Stage II: the backbone learns, under the frozen discriminative network."""
        config = self.config

        def loss(batch: Tuned) -> dict[str, Tensor]:
            return tuning.loss(Tuned(self._image(batch.damaged), batch.mask.to(self.device), self._image(batch.views)))

        validate = partial(self._judge, tuning, held) if held is not None and config.select == "best" else None
        rates = {"backbone.": config.tuning_rate / config.learning_rate}
        plan = config.stage(1 - config.pretraining, len(pictures))
        if config.precision == "auto" and self.device.type == "cpu":
            # Back through depthwise convolutions: 2.9 s a batch of "small" in bfloat16, 1.2 s in float32 (one core).
            plan = replace(plan, config=replace(plan.config, precision="float32"))
        plan = replace(plan, rates=rates, judge_first=True)
        outcome = optimise(loss, tuning, partial(self._batch, pictures), plan, validate, unfinished)
        note(f"Stage II: {outcome.sentence()}")
        self._say_collapse(tuning, pictures.some(COMPARED), outcome)
        return outcome

    def _batch(self, pictures: Pictures, number: int) -> Tuned:
        """Batch `number` of stage II, in bytes (..., H, W, 3): good pictures, some damaged, and two views of each."""
        config = self.config
        made = pictures.shared(number, config.batch_size, TUNE)
        views: list[Picture] = []
        for which in range(2 if config.contrast != "none" else 0):
            for position in share(range(number * config.batch_size, (number + 1) * config.batch_size)):
                _, group, index = pictures.place(position, TUNE)
                draw = np.random.default_rng([config.seed, TUNE, position, which])
                views.append(view(pictures.groups[group].pictures[index], config.jitter, config.mirror, draw))
        shown = torch.from_numpy(np.stack(views)) if views else made.damaged[:0]
        return Tuned(made.damaged, made.mask.squeeze(1), shown)

    def _image(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] of pictures (B, H, W, 3) uint8."""
        return pictures.to(self.device).permute(0, 3, 1, 2).float() / 255

    def _held(self, groups: Sequence[Group], others: Sequence[Group]) -> Held:
        """What weights are judged on: held-out good pictures, as they are and damaged by each of the generators."""
        config = replace(self.config, mirror=False)
        made = []
        for kind in GENERATORS:
            judging = replace(config, generator=kind).damaging(others, config.seed)
            made.append(judging.batch(0, VALIDATED, VALIDATE, 0.0))
        known, good = (config.damaging(own, config.seed) for own in (groups, others))
        return Held(
            known.some(KNOWN),
            good.some(VALIDATED * len(GENERATORS)),
            torch.cat([batch.damaged for batch in made]),
            torch.cat([batch.mask for batch in made]).squeeze(1),
        )

    def _judge_marks(self, network: Mirror, held: Held) -> float:
        """AP of pixels that the discriminative network marks, on good pictures with and without made defects."""
        shown = torch.cat([held.good, held.damaged])
        size = held.mask.shape[-2:]
        logits = torch.cat([network(self.see(self._image(part)), size) for part in shown.split(8)])
        return average_precision(logits.flatten(), self._positive(held).flatten())

    def _judge(self, tuning: Tuning, held: Held) -> float:
        """Mean of the AP of pixels and of pictures by a small memory bank; `LOST` where features have collapsed."""
        if self._collapsed(tuning, held.known):
            return LOST
        with torch.inference_mode(mode=False), torch.no_grad():
            self._know(held)
            shown = torch.cat([held.good, held.damaged])
            found = [self.compare(self.see(self._image(part)), held.mask.shape[-2:]) for part in shown.split(8)]
            anomaly_map, score = (torch.cat(parts) for parts in zip(*found, strict=True))
            positive = self._positive(held)
            by_pixel = average_precision(anomaly_map.flatten(), positive.flatten())
            return (by_pixel + average_precision(score, positive.flatten(1).any(1))) / 2

    def _positive(self, held: Held) -> Tensor:
        """(N, H, W) bool, where the good and then the damaged pictures are damaged."""
        clean = torch.zeros(len(held.good), *held.mask.shape[1:], dtype=torch.bool)
        return torch.cat([clean, held.mask]).to(self.device)

    def _know(self, held: Held) -> None:
        """Fills a small memory bank from the good pictures that are learned from."""
        patches = torch.cat([self.patches(self._image(part)).flatten(0, 1) for part in held.known.split(8)])
        chosen = torch.randperm(len(patches), generator=generator(self.config.seed, TUNE))[:CANDIDATES]
        self.remember(patches[chosen.to(self.device)], min(ENTRIES, self.config.coreset_size))

    def _compare(self, held: Held | None) -> None:
        """Learns how much memory bank and discriminative network say of good pictures that neither has seen."""
        if held is None or self.fusion is None:
            raise DatasetError(
                f"--fuse is {self.config.fuse:g}, and no good picture is left to see how much each map says of it; "
                "expected at least 3 good training pictures that can be read, or --fuse 0."
            )
        with torch.no_grad():
            self._know(held)
            parts = []
            for part in held.good.split(8):
                features = self.see(self._image(part))
                parts.append(self._opinions(features, self.compare(features, held.mask.shape[-2:])))
            self.fusion.learn(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))

    def _collapsed(self, tuning: Tuning, known: Tensor) -> dict[int, float]:
        """Strides whose embeddings have become alike, and what share of their spread they kept."""
        some = known[:: -(-len(known) // COMPARED)]
        shares = tuning.kept([self._image(part) for part in some.split(8)])
        lost = {stride: share for stride, share in shares.items() if not share >= COLLAPSED}  # so that NaN is lost, too
        return lost if len(some) > 1 else {}

    def _say_collapse(self, tuning: Tuning, known: Tensor, outcome: Outcome) -> None:
        lost = next((step for step, score in outcome.scores if score == LOST), None)
        shares = self._collapsed(tuning, known)
        if lost is None and not shares:
            return
        each = ", ".join(f"{share:.0%} at stride {stride}" for stride, share in shares.items())
        how = f"to {each} of the spread they had" if shares else f"by batch {lost}; other weights are kept"
        note(
            f"Stage II has collapsed: embeddings of different good pictures have become alike, {how}. "
            "Try a larger --guide or --distill, or a lower --tuning-rate."
        )


def check_mirrored(config: ToCoADConfig) -> None:
    """Nothing, if a discriminative network can mirror the stages of the backbone.

    Raises:
        ConfigError: it can't, or there is no such backbone.
    """
    name, wanted = config.backbone, config.all_strides
    available = strides_of(name)
    hint = (
        "expected a network of convolutions whose stages halve the size, such as tf_efficientnet_lite0, resnet18, "
        "resnet34, resnet50, wide_resnet50_2 or convnext_tiny."
    )
    if missing := sorted(set(wanted) - set(available)):
        raise ConfigError(
            f"backbone {name} has feature maps at the strides {list(available)} and none at {missing[0]}, so that the "
            f"discriminative network can't mirror it with --strides {config.strides}, --mirrored {config.mirrored}, "
            f"--layers {config.layers} and --tuned {config.tuned}; {hint}"
        )
    if not is_pyramid(name, tuple(wanted)):
        raise ConfigError(f"backbone {name} can't be mirrored by the discriminative network; {hint}")


DETECTOR = ToCoAD
