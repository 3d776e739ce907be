"""InvAD: restores features of any part from a learned constant; what it can't restore is abnormal. One for all parts.

Source: Zhang et al., "Learning Feature Inversion for Multi-class Anomaly Detection under
General-purpose COCO-AD Benchmark", arXiv 2404.10760.

A frozen backbone sees the picture, the fuser makes style maps of its features, and the decoder
restores the features, steered by the style maps alone. Trained on good pictures of all categories
together, without their names. Nothing is changed in a picture and the backbone learns nothing, so
its features can be computed once and kept (`feature_cache`).

Presets "paper" and "lite" are the reference's two models, down to what is odd in it; "small" uses
the embedded backbone, standardises features (so that no channel drowns the others), and trains in
minutes on a CPU.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.dataset import Dataset
from blemish.detector import Detector, DetectorConfig, TrainedConfig, to_tensor
from blemish.errors import ConfigError, DatasetError, bad_option
from blemish.feature_cache import FeatureCache, Features, origin, parse_size, place
from blemish.images import Floats
from blemish.nn.backbone import Backbone
from blemish.nn.blur import gaussian_blur
from blemish.nn.invad import Decoder, Fuser
from blemish.progress import note
from blemish.training import Plan, Precision, autocast, choose_precision, generator, optimise
from blemish.types import Prediction, Preprocessing

SHUFFLE = 3  # what the order of the pictures is drawn for


@dataclass(frozen=True, kw_only=True)
class InvADConfig(TrainedConfig):
    """What can be chosen for InvAD."""

    strides: tuple[int, ...] = (4, 8, 16)
    """Stages of the backbone that are restored, by their stride in pixels; each twice the one before."""
    depth: int = 2
    """Blocks of the decoder for each stage."""
    code_width: int = 64
    """Channels of what the fuser makes for each stage."""
    style_width: int = 16
    """Channels of the style maps, through which alone the decoder sees the picture."""
    up_rate: float = 1.0
    """Learning rate of the fuser's two convolutions that double the size, as a share of the others'."""
    standardise: bool = True
    """Give the features mean 0 and variance 1 on good pictures."""
    loss_weight: float = 1.0
    """Factor on the loss."""
    blur: float = 4.0
    """Standard deviation of the Gaussian that smooths the map, in pixels."""
    top_share: float = 0.0
    """Share of the map whose highest values are averaged for the image score; 0: the highest alone."""
    feature_cache: str = "0"
    """Disk space for features, such as 8G; 0: the backbone sees each picture each time."""
    feature_cache_dir: str = ""
    """Folder that keeps them for later trainings; without it they go when training is over."""
    feature_precision: Precision = "auto"
    """What features are kept in: float32, bfloat16, or (auto) what they are computed in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        doubled = all(fine * 2 == coarse for fine, coarse in zip(self.strides, self.strides[1:], strict=False))
        if not self.strides or not doubled:
            raise ConfigError(f"--strides is {self.strides}; expected each twice the one before, such as 4 8 16.")
        for name in ("depth", "code_width", "style_width", "up_rate", "loss_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise bad_option(name, getattr(self, name), "more than 0")
        if not 0 <= self.top_share <= 1:
            raise ConfigError(f"--top-share is {self.top_share}; expected a share between 0 and 1.")
        if not 0 <= self.blur < math.inf:
            raise ConfigError(f"--blur is {self.blur}; expected 0 (none) or more.")
        parse_size(self.feature_cache)

    def plan(self, pictures: int) -> Plan:
        """How to train on so many pictures; an epoch drops the last, incomplete batch."""
        return self.counted(max(1, pictures // self.batch_size))

    def padding(self) -> tuple[int, int, int, int]:
        """What to add left, right, above and below to a picture, so that all stages fit on one another."""
        height, width = self.image_size
        return 0, -width % self.strides[-1], 0, -height % self.strides[-1]

    def coarsest(self) -> tuple[int, int]:
        """(height, width) of the coarsest feature map."""
        _, right, _, below = self.padding()
        return (self.image_size[0] + below) // self.strides[-1], (self.image_size[1] + right) // self.strides[-1]


class Network(nn.Module):
    """What is trained: the fuser and the decoder."""

    def __init__(self, config: InvADConfig, channels: Sequence[int]) -> None:
        super().__init__()
        self.fuser = Fuser(channels, config.code_width, config.up_rate)
        self.decoder = Decoder(channels, config.coarsest(), config.depth, (config.code_width, config.style_width))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The features (B, C, h, w), finest first, restored."""
        restored: list[Tensor] = self.decoder(self.fuser(features))
        return restored


class InvAD(Detector):
    """The detector; see the module's docstring."""

    config: InvADConfig
    presets: ClassVar[Mapping[str, DetectorConfig]] = {
        "paper": InvADConfig(
            backbone="wide_resnet50_2.racm_in1k",
            up_rate=0.01,
            standardise=False,
            batch_size=32,
            epochs=300,
            learning_rate=0.004,
            schedule="step",
            betas=(0.0, 0.99),
            clip=5.0,
            precision="float32",
        ),
        "lite": InvADConfig(
            backbone="resnet34.bt_in1k",
            depth=4,
            up_rate=0.01,
            standardise=False,
            loss_weight=5.0,
            batch_size=32,
            epochs=300,
            learning_rate=0.004,
            schedule="step",
            betas=(0.0, 0.99),
            clip=5.0,
            precision="float32",
        ),
        "small": InvADConfig(
            steps=2500,
            learning_rate=0.004,
            schedule="cosine",
            clip=5.0,
            batch_size=16,
            feature_cache="4G",
        ),
        "tiny": InvADConfig(
            image_size=(64, 64),
            strides=(4, 8),
            code_width=16,
            steps=100,
            learning_rate=0.01,
            schedule="cosine",
            clip=5.0,
            blur=2.0,
            feature_cache="100M",
        ),
    }

    def __init__(self, config: InvADConfig, backbone_weights: str = "default") -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.strides, backbone_weights).requires_grad_(False)
        self.network = Network(config, self.backbone.channels)
        for number, channels in enumerate(self.backbone.channels):
            self.register_buffer(f"mean_{number}", torch.zeros(channels, 1, 1))
            self.register_buffer(f"deviation_{number}", torch.ones(channels, 1, 1))
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "InvAD":
        """Switches the trained part; the backbone stays as it is."""
        super().train(mode)
        self.backbone.eval()
        return self

    def learn(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Trains on `data.train`; the names of categories are not looked at."""
        config = self.config
        plan = config.plan(len(data.train))
        with place(config.feature_cache_dir, self.unfinished) as folder:
            features = self._features(data, preprocessing, folder)
            self._measure(features)
            if not len(features):
                raise DatasetError(f"{data.root}: no training picture can be read; {self.failures[0].reason}")
            batches = partial(self._batch, features)
            self.outcome = optimise(self._loss, self.network, batches, plan, None, self.state_of(data))

    def forward(self, image: Tensor) -> Prediction[Tensor]:
        """Angles between features and restored features as a smoothed map, and its highest values (section 3.4).

        Sides that are no multiple of the largest stride are padded by repeating the border; the map is cut back.
        """
        height, width = image.shape[-2:]
        padded = F.pad(image, self.config.padding(), mode="replicate")
        features = self._standardised(self.backbone(padded))
        distance = distance_map(features, self.network(features), padded.shape[-2:])
        anomaly_map = gaussian_blur(distance[:, :, :height, :width], self.config.blur, "mirror").squeeze(1)
        return Prediction(anomaly_map, top_mean(anomaly_map, self.config.top_share))

    def _features(self, data: Dataset, preprocessing: Preprocessing, folder: Path) -> Features:
        """The features of the training pictures, and said what the budget allows."""
        config, budget = self.config, parse_size(self.config.feature_cache)
        cache = None
        if budget:
            how = {
                "backbone": config.backbone,
                "strides": config.strides,
                "computed in": choose_precision(config.precision, self.device),
                "kept in": config.feature_precision,
            }
            about = origin(self.backbone, preprocessing, how)
            cache = FeatureCache(folder, about, budget, own=not config.feature_cache_dir)
        features = Features(self._see, data.train, preprocessing, config.batch_size, cache)
        if cache is not None:
            note(features.sentence())
        return features

    def _see(self, images: Floats) -> list[Tensor]:
        """The backbone's feature maps of images, without gradients, in the type they are kept in."""
        config = self.config
        with torch.no_grad(), autocast(self.device, choose_precision(config.precision, self.device)):
            features: list[Tensor] = self.backbone(F.pad(to_tensor(images, self), config.padding(), mode="replicate"))
        if config.feature_precision == "auto":
            return features
        return [feature.to(choose_precision(config.feature_precision, self.device)) for feature in features]

    def _measure(self, features: Features) -> None:
        """Goes through all pictures once: mean and deviation of each channel, if features are standardised."""
        count, totals = 0, [torch.zeros(2, channels, dtype=torch.double) for channels in self.backbone.channels]
        for batch in features.gather(self.failures):
            count += len(batch[0])
            for total, feature in zip(totals, batch, strict=True):
                each = feature.double().flatten(2)
                total.add_(torch.stack([each.mean(2).sum(0), each.square().mean(2).sum(0)]))
        if not self.config.standardise or not count:
            return
        for number, total in enumerate(totals):
            mean, square = total / count
            deviation = (square - mean.square()).clamp(min=0).sqrt().clamp(min=1e-3)
            self.get_buffer(f"mean_{number}").copy_(mean[:, None, None])
            self.get_buffer(f"deviation_{number}").copy_(deviation[:, None, None])

    def _standardised(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [
            (feature - self.get_buffer(f"mean_{number}")) / self.get_buffer(f"deviation_{number}")
            for number, feature in enumerate(features)
        ]

    def _batch(self, features: Features, step: int) -> list[Tensor]:
        """Features of the pictures of that step: each epoch has an order of its own, and drops an incomplete batch."""
        size = min(self.config.batch_size, len(features))
        epoch, number = divmod(step, len(features) // size)
        order = torch.randperm(len(features), generator=generator(self.config.seed, SHUFFLE, epoch))
        return features.batch(order[number * size : (number + 1) * size].tolist())

    def _loss(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Mean squared distance between features and restored features, summed over the scales (equation 5)."""
        features = self._standardised([feature.to(self.device).float() for feature in batch])
        distances = [
            F.mse_loss(made.float(), feature) for made, feature in zip(self.network(features), features, strict=True)
        ]
        return {"features": self.config.loss_weight * torch.stack(distances).sum()}


def distance_map(features: Sequence[Tensor], restored: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """1 - cosine (B, 1, *size) between features (B, C, h, w), finest first, and restored ones.

    All scales are brought to length 1 at each place, then to the size of the finest, and taken as one
    long vector, so that each has the same say (section 3.4).
    """
    finest = features[0].shape[-2:]
    product, *norms = torch.zeros(3, features[0].shape[0], *finest, device=features[0].device)
    for pair in zip(features, restored, strict=True):
        one, other = (_resized(F.normalize(side, dim=1, eps=1e-12), finest) for side in pair)
        product = product + (one * other).sum(1)
        norms = [norm + side.square().sum(1) for norm, side in zip(norms, (one, other), strict=True)]
    cosine = product / (norms[0] * norms[1]).sqrt().clamp(min=1e-8)
    return _resized(1 - cosine.unsqueeze(1), size)


def top_mean(anomaly_map: Tensor, share: float) -> Tensor:
    """The mean (B,) of the highest values of maps (B, H, W): of that share of them, of one at least.

    >>> top_mean(torch.arange(8.0).view(1, 2, 4), 0.25), top_mean(torch.arange(8.0).view(1, 2, 4), 0.0)
    (tensor([6.5000]), tensor([7.]))
    """
    values = anomaly_map.flatten(1)
    return values.topk(max(1, round(share * values.shape[1])), dim=1).values.mean(1)


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    if image.shape[-2:] == torch.Size(size):
        return image
    return F.interpolate(image, size=list(size), mode="bilinear", align_corners=True)


DETECTOR = InvAD
