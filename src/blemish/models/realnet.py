"""RealNet: reconstructs features of damaged pictures and learns where the residuals show damage.

Source: Zhang et al., "RealNet: A Feature Selection Network with Realistic Synthetic Anomaly for
Anomaly Detection", arXiv 2403.05897.

Good pictures are damaged (`synthesis/`), a frozen backbone sees them, AFS keeps the channels that
show the damage best, one reconstruction network for each block restores the good features, RRS
picks the residuals that stand out, and a discriminator marks damaged pixels.

Preset "paper" is the reference, down to what is odd in it; "small" differs where that is better:
standardised features (so that no stage drowns the others), a falling learning rate, running means
that remember more than one batch, empty masks drawn anew. In both, the weights are chosen on
held-out good pictures with made defects; the reference chooses them on the test set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish import distributed
from blemish.dataset import Dataset
from blemish.detector import Detector, DetectorConfig, TrainedConfig
from blemish.errors import ConfigError, bad_option
from blemish.nn.backbone import Backbone
from blemish.nn.fusion import Fusion, average_precision, image_score, image_scores, window
from blemish.nn.realnet import (
    Discriminator,
    FeatureSelection,
    Network,
    ResidualSelection,
    Simple,
    segmentation_loss,
    selection_losses,
)
from blemish.nn.unet import GROUPS, HEAD_WIDTH, UNet
from blemish.progress import bar
from blemish.synthesis.pictures import CHOOSE, VALIDATE, DamageConfig, Damaged, Group, Pictures, read_groups
from blemish.training import autocast, choose_precision, optimise
from blemish.types import Choice, Prediction, Preprocessing

REMEMBERED_BYTES = 2e9
"""Features of good pictures are kept in memory up to this size, so that each is seen by the backbone once."""


VALIDATED = 32
"""Damaged pictures that weights are judged on, however few were held out: three would be a lottery."""


@dataclass(frozen=True, kw_only=True)
class RealNetConfig(TrainedConfig, DamageConfig):
    """What can be chosen for RealNet."""

    strides: tuple[int, ...] = (4, 8, 16)
    """Stages of the backbone that are used, by their stride in pixels."""
    planes: tuple[int, ...] = (24, 40, 64)
    """Channels kept of each stage (AFS)."""
    blocks: tuple[int, ...] = (8, 8, 16)
    """Stride of the block that each stage goes to; stages of one block are reconstructed together."""
    reconstruction: Literal["unet", "simple"] = "unet"
    """simple: the variant for one model of many categories."""
    width: float = 0.5
    """Channels of a reconstruction network at full size, as a share of its block's."""
    multipliers: tuple[int, ...] = (1, 2)
    """Its width at each level, in multiples; each level halves the size."""
    attention: tuple[int, ...] = ()
    """Its levels with attention, by the factor that they are smaller; the middle always has it."""
    residuals: Literal["picked", "all", "both"] = "both"
    """What a discriminator sees: what RRS picks, in the order of its scores, as in the paper; all residuals, each in
    its own place; or both, with a discriminator for each, whose logits are averaged."""
    maxima: int = 32
    """Residual channels picked by their maximum (RRS)."""
    means: int = 32
    """Residual channels picked by their mean (RRS)."""
    discriminator: tuple[int, int, int, int] = (64, 32, 32, 16)
    """Channels between the layers of the discriminator."""
    momentum: float = 0.1
    """Weight of a new batch in the running statistics that RRS ranks with."""
    standardise: bool = True
    """Give the kept channels mean 0 and variance 1 on good pictures."""
    afs_batches: int = 16
    """Batches of damaged pictures that AFS looks at."""
    focal: float = 0.0
    """Exponent of the focal loss; 0 for plain cross-entropy."""
    detach: bool = False
    """Keep the segmentation loss from changing the reconstruction."""
    map_values: Literal["probability", "surprise"] = "probability"
    """Of damage, p; or -log(1 - p), which ranks alike but tells apart what is nearly certain."""
    residual_weight: float = 0.0
    """How much the residuals themselves count in the map, beside what the discriminators say, each in its spread
    on good pictures; the image score then counts both alike. 0: they don't."""
    score_window: int = 16
    """Side of the square whose highest mean is the image score, in pixels of a picture of 256."""

    def __post_init__(self) -> None:
        super().__post_init__()
        DamageConfig.__post_init__(self)
        if not len(self.strides) == len(self.planes) == len(self.blocks) > 0:
            raise ConfigError(
                f"--strides {self.strides}, --planes {self.planes} and --blocks {self.blocks} differ in number; "
                "expected one of each for each stage."
            )
        if max(self.maxima, self.means) > sum(self.planes) or min(self.maxima, self.means) < 0:
            raise ConfigError(
                f"--maxima is {self.maxima} and --means {self.means}; expected at most the {sum(self.planes)} "
                "channels that --planes keeps."
            )
        if self.residuals != "all" and not self.maxima + self.means:
            raise ConfigError("--maxima and --means are both 0; expected at least one residual channel to look at.")
        if self.residuals == "all" and self.residual_weight:
            raise ConfigError(
                f"--residual-weight is {self.residual_weight}; expected 0 with --residuals all: RRS is off."
            )
        if self.reconstruction == "unet":
            bad = [factor for factor in self.attention if factor not in (2**n for n in range(len(self.multipliers)))]
            if bad or not self.multipliers:
                raise ConfigError(
                    f"--attention is {self.attention}; expected factors among the levels of --multipliers, "
                    f"{tuple(2**n for n in range(len(self.multipliers)))}."
                )
        for name in ("score_window", "afs_batches"):
            if not getattr(self, name):
                raise bad_option(name, repr(getattr(self, name)), "more than nothing")

    def padding(self, size: Sequence[int]) -> tuple[int, int, int, int]:
        """What to add left, right, above and below to a picture of `size`, so that all maps can be halved evenly."""
        halvings = 2 if self.reconstruction == "simple" else len(self.multipliers) - 1
        multiple = math.lcm(*self.strides, *(block * 2**halvings for block in self.blocks))
        return 0, -size[1] % multiple, 0, -size[0] % multiple


class RealNet(Detector):
    """The detector; see the module's docstring."""

    config: RealNetConfig
    # What was restored badly is a small difference of features, squared: noise in the features adds to it. And the
    # discriminators see residuals of defects, which no good picture shows to what sets the ranges of 8 bit.
    sensitive: ClassVar[tuple[str, ...]] = ("backbone", "network.discriminators")
    presets: ClassVar[Mapping[str, DetectorConfig]] = {
        "paper": RealNetConfig(
            backbone="wide_resnet50_2.racm_in1k",
            strides=(4, 8, 16, 32),
            planes=(256, 512, 512, 256),
            blocks=(4, 8, 16, 32),
            multipliers=(1, 2, 4),
            attention=(2, 4),
            residuals="picked",
            maxima=256,
            means=256,
            discriminator=(128, 32, 8, 4),
            momentum=0.9,
            standardise=False,
            afs_batches=64,
            redraw_empty=False,
            few=0.0,
            soft=0.0,
            mirror=False,
            least_change=0,
            precision="float32",
            batch_size=16,
            epochs=1000,
            evaluations=200,
        ),
        "small": RealNetConfig(
            steps=1000,
            learning_rate=1e-3,
            schedule="cosine",
            clip=1.0,
            evaluations=5,
            map_values="surprise",
            residual_weight=0.3,
            score_window=8,
            width=1.0,
        ),
        "tiny": RealNetConfig(
            image_size=(64, 64),
            strides=(4, 8),
            planes=(24, 40),
            blocks=(4, 8),
            maxima=16,
            means=16,
            reconstruction="simple",
            clean_share=0.2,
            afs_batches=2,
            steps=100,
            evaluations=3,
            learning_rate=2e-3,
            schedule="cosine",
            clip=1.0,
            map_values="surprise",
        ),
    }

    def __init__(self, config: RealNetConfig, backbone_weights: str = "default") -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.strides, backbone_weights).requires_grad_(False)
        there = self.backbone.channels
        if not all(0 < kept <= available for kept, available in zip(config.planes, there, strict=True)):
            raise bad_option("planes", config.planes, f"at most what the backbone has: {there}")
        self.features = FeatureSelection(self.backbone.channels, config.strides, config.planes, config.blocks)
        self.network = _network(config, self.features.widths)
        self.fusion = Fusion(config.residual_weight) if config.residual_weight else None
        self.to(memory_format=torch.channels_last)
        self.good: list[Tensor] = []
        """Features of good pictures, while learning."""

    def train(self, mode: bool = True) -> "RealNet":
        """Switches the trained part; the backbone stays as it is."""
        super().train(mode)
        self.backbone.eval()
        return self

    def learn(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Chooses channels and trains on most of `data.train`; the rest chooses among the states of the training."""
        if self.choices:
            raise ConfigError("this RealNet is fitted, and has dropped what it did not choose; fit a new one.")
        groups, held_out = (
            read_groups(own, preprocessing, self.config.foreground, self.failures) for own in self.split(data)
        )
        pictures = self.prepare(groups)
        others = [self.config.damaging(held_out, self.config.seed)] if held_out else []
        validate = partial(self._validate, others[0]) if others else None
        plan, batches = self.config.plan(len(pictures)), partial(pictures.shared, size=self.config.batch_size)
        self.outcome = optimise(self.loss, self.network, batches, plan, validate, self.state_of(data))
        with torch.no_grad():
            self._compare([pictures, *others])
        self.good = []

    def prepare(self, groups: Sequence[Group]) -> Pictures:
        """What is learned from; channels are chosen by it, and the features of good pictures kept."""
        pictures = self.config.damaging(groups, self.config.seed)
        self._choose_features(pictures)
        self.good = self._remember(pictures)
        return pictures

    def forward(self, image: Tensor) -> Prediction[Tensor]:
        """How surely each pixel is damaged, and the highest mean of that over a square window (section 3.5)."""
        return self._judge(self._maps(image))

    def _maps(self, image: Tensor) -> Tensor:
        """(2, B, H, W): what the discriminators say of each pixel and, if it counts, how badly it was restored.

        Sides that the networks can't halve often enough are padded by repeating the border; the
        maps are cut back.
        """
        height, width = image.shape[-2:]
        padded = F.pad(image, self.config.padding((height, width)), mode="replicate")
        logits, _, residuals = self.network(self.features(self.backbone(padded)), padded.shape[-2:])
        mean = torch.stack(logits).mean(0)
        odds = mean[:, 1] - mean[:, 0]
        found = [odds.sigmoid() if self.config.map_values == "probability" else F.softplus(odds)]
        if self.fusion is not None:
            surprise = self.network.selection.surprise(residuals)
            whole = F.interpolate(surprise, size=padded.shape[-2:], mode="bilinear", align_corners=True)
            found.append(whole.squeeze(1))
        return torch.stack(found)[..., :height, :width]

    def _judge(self, maps: Tensor) -> Prediction[Tensor]:
        side = window(self.config.score_window, maps)
        if self.fusion is None:
            return Prediction(maps[0], image_score(maps[0], side))
        return Prediction(*self.fusion(maps, image_scores(maps, side)))

    def _see_maps(self, pictures: Tensor) -> Tensor:
        """The maps of pictures (B, H, W, 3) uint8, as many as there may be."""
        parts = [self._maps(part.to(self.device).permute(0, 3, 1, 2).float() / 255) for part in pictures.split(8)]
        return torch.cat(parts, dim=1)

    def _see(self, pictures: Tensor) -> list[Tensor]:
        """Features of pictures (B, H, W, 3) uint8, as the backbone gives them; without gradients."""
        image = pictures.to(self.device).permute(0, 3, 1, 2).float() / 255
        padded = F.pad(image, self.config.padding(image.shape[-2:]), mode="replicate")
        with torch.no_grad():
            features: list[Tensor] = self.backbone(padded)
        return features

    def _choose_features(self, pictures: Pictures) -> None:
        """AFS, in one pass over all stages; and what good features are like (section 3.2)."""
        features, count = self.features, self.config.afs_batches
        # A row for each batch, whichever process looks at it: losses, means, mean squares.
        rows = [torch.zeros(count, 3, wide, device=self.device) for wide in self.backbone.channels]
        precision = choose_precision(self.config.precision, self.device)
        with (
            torch.no_grad(),
            autocast(self.device, precision),
            bar("Choose features", count) as drawn,
        ):
            for number in range(distributed.rank(), count, distributed.world_size()):
                batch = pictures.batch(number, self.config.batch_size, CHOOSE, 0.0)
                clean = [part.float() for part in features.resample(self._see(batch.clean))]
                damaged = [part.float() for part in features.resample(self._see(batch.damaged))]
                mask = self._padded(batch.mask)
                for stage, (one, other) in enumerate(zip(damaged, clean, strict=True)):
                    found = selection_losses(one, other, mask), other.mean((0, 2, 3)), other.square().mean((0, 2, 3))
                    rows[stage][number] = torch.stack(found)
                drawn.advance(distributed.world_size())
        losses, *moments = zip(*(reduce(torch.add, distributed.total(each)) for each in rows), strict=True)
        features.choose(losses)
        for number, stride in enumerate(self.config.strides):
            mean_loss = features.get_buffer(f"loss_{number}") / count
            kept = features.get_buffer(f"index_{number}")
            self.choices[f"channels at stride {stride}"] = Choice(tuple(mean_loss.tolist()), tuple(kept.tolist()))
        if self.config.standardise:
            features.standardise([torch.stack(stage) / count for stage in zip(*moments, strict=True)])
        self._narrow()

    def _narrow(self) -> None:
        """Drops the channels of the last stage that were not chosen; those of others are needed by what follows."""
        kept = self.features.get_buffer(f"index_{len(self.config.planes) - 1}")
        if len(kept) < self.backbone.channels[-1] and self.backbone.narrow(kept):
            kept.copy_(torch.arange(len(kept)))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a saved `state_dict`, whose backbone lacks what was not chosen."""
        self._narrow()
        super().restore(state)

    def _remember(self, pictures: Pictures) -> list[Tensor]:
        """Each block's features of all good pictures (N, C, h, w), if they fit in memory; else nothing.

        They are computed in the same batches at each attempt, so that a resumed training sees the
        same digits.
        """
        precision = choose_precision(self.config.precision, self.device)
        parts: list[list[Tensor]] = []
        with autocast(self.device, precision), bar("Embed", len(pictures)) as drawn:
            for batch in pictures.clean(self.config.batch_size):
                parts.append(self.features(self._see(batch)))
                if sum(part.nbytes for part in parts[0]) * len(pictures) / len(parts[0][0]) > REMEMBERED_BYTES:
                    return []
                drawn.advance(len(batch))
        return [torch.cat(block) for block in zip(*parts, strict=True)]

    def _padded(self, mask: Tensor) -> Tensor:
        return F.pad(mask.to(self.device), self.config.padding(mask.shape[-2:]))

    def loss(self, batch: Damaged) -> dict[str, Tensor]:
        """Cross-entropy of damaged pixels, and distance of restored features from good ones (section 3.5)."""
        if self.good:
            good = [feature[batch.number].to(self.device) for feature in self.good]
        else:
            good = self.features(self._see(batch.clean))
        # A picture that was left as it is has the features of the good one, and needs no other pass.
        rows = batch.mask.flatten(1).any(1).nonzero().squeeze(1)
        damaged = good
        if len(rows):
            seen = self.features(self._see(batch.damaged[rows]))
            damaged = [one.index_copy(0, rows.to(self.device), other) for one, other in zip(good, seen, strict=True)]
        mask = self._padded(batch.mask)
        logits, restored, _ = self.network(damaged, mask.shape[-2:])
        distances = [F.mse_loss(made.float(), feature) for made, feature in zip(restored, good, strict=True)]
        shown = [segmentation_loss(each.float(), mask.squeeze(1), self.config.focal) for each in logits]
        return {"segmentation": torch.stack(shown).sum(), "features": torch.stack(distances).sum()}

    def _validate(self, pictures: Pictures) -> float:
        """Mean of the AP of pixels and the AP of pictures, on good pictures with and without made defects."""
        batches = [pictures.batch(number, 8, VALIDATE, 0.0) for number in range(VALIDATED // 8)]
        damaged, mask = torch.cat([each.damaged for each in batches]), torch.cat([each.mask for each in batches])
        good = self._compare([pictures])
        anomaly_map, score = self._judge(torch.cat([good, self._see_maps(damaged)], dim=1))
        positive = torch.zeros_like(anomaly_map, dtype=torch.bool)
        positive[good.shape[1] :] = mask.squeeze(1).to(self.device)
        by_pixel = average_precision(anomaly_map.flatten(), positive.flatten())
        return (by_pixel + average_precision(score, positive.flatten(1).any(1))) / 2

    def _compare(self, known: Sequence[Pictures]) -> Tensor:
        """The maps of good pictures, which say how much discriminators and residuals count from now on.

        In the end those learned from are among them: a discriminator that tells them from those held out
        has learned them by heart, and its scores spread widely.
        """
        good = self._see_maps(torch.cat([pictures.some(VALIDATED) for pictures in known]))
        if self.fusion is not None:
            self.fusion.learn(good, image_scores(good, window(self.config.score_window, good)))
        return good


def _network(config: RealNetConfig, widths: Sequence[int]) -> Network:
    seen = {"picked": config.maxima + config.means, "all": sum(widths)}
    ways = ("picked", "all") if config.residuals == "both" else (config.residuals,)
    return Network(
        [_reconstruction(config, width) for width in widths],
        ResidualSelection(sum(widths), config.maxima, config.means, config.momentum),
        {way: Discriminator(seen[way], config.discriminator) for way in ways},
        config.detach,
    )


def _reconstruction(config: RealNetConfig, channels: int) -> nn.Module:
    if config.reconstruction == "simple":
        return Simple(channels)
    attending = {*config.attention, 2 ** (len(config.multipliers) - 1)}  # the middle always does
    heads = [HEAD_WIDTH // math.gcd(HEAD_WIDTH, config.multipliers[factor.bit_length() - 1]) for factor in attending]
    needed = math.lcm(GROUPS, *heads)
    width = max(needed, round(config.width * channels / needed) * needed)
    return UNet(channels, width, config.multipliers, config.attention)


DETECTOR = RealNet
