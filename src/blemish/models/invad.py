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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish import distributed
from blemish.detector import DetectorConfig
from blemish.errors import bad_option
from blemish.feature_cache import Features
from blemish.nn.blur import gaussian_blur
from blemish.nn.invad import Decoder, Fuser
from blemish.restoring import Restorer, RestoringConfig, resized, top_mean
from blemish.training import Plan
from blemish.types import Prediction, Sample


@dataclass(frozen=True, kw_only=True)
class InvADConfig(RestoringConfig):
    """What can be chosen for InvAD."""

    depth: int = 2
    """Blocks of the decoder for each stage."""
    code_width: int = 64
    """Channels of what the fuser makes for each stage."""
    style_width: int = 16
    """Channels of the style maps, through which alone the decoder sees the picture."""
    up_rate: float = 1.0
    """Learning rate of the fuser's two convolutions that double the size, as a share of the others'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depth", "code_width", "style_width", "up_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise bad_option(name, getattr(self, name), "more than 0")

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


class InvAD(Restorer):
    """The detector; see the module's docstring."""

    config: InvADConfig
    # What can't be restored is a small difference of features: 8 bit in the backbone add three times as much to it
    # as in all else, and save least time.
    sensitive: ClassVar[tuple[str, ...]] = ("backbone",)
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
            loss="cosine",
            steps=5000,
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
        super().__init__(config, backbone_weights)
        self.network = Network(config, self.backbone.channels)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Prediction[Tensor]:
        """Angles between features and restored features as a smoothed map, and its highest values (section 3.4).

        Sides that are no multiple of the largest stride are padded by repeating the border; the map is cut back.
        """
        height, width = image.shape[-2:]
        padded = self.padded(image)
        features = self.see(padded)
        distance = distance_map(features, self.network(features), padded.shape[-2:])
        anomaly_map = gaussian_blur(distance[:, :, :height, :width], self.config.blur, "mirror").squeeze(1)
        return Prediction(anomaly_map, top_mean(anomaly_map, self.config.top_share))

    def plan(self, samples: Sequence[Sample]) -> Plan:
        """How to train on these pictures; an epoch drops the last, incomplete batch."""
        return self.config.counted(max(1, len(samples) // self.config.batch_size))

    def batches(self, features: Features) -> Callable[[int], list[Tensor]]:
        """The batch of each number: the features of some pictures."""
        return partial(self._batch, features)

    def _batch(self, features: Features, step: int) -> list[Tensor]:
        return features.batch(distributed.share(self.drawn(len(features), self.config.batch_size, step)))

    def _loss(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The distance between features and restored features, summed over the scales (equation 5)."""
        features = self._standardised([feature.to(self.device).float() for feature in batch])
        return {"features": self.distance(self.network(features), features)}


def distance_map(features: Sequence[Tensor], restored: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """1 - cosine (B, 1, *size) between features (B, C, h, w), finest first, and restored ones.

    All scales are brought to length 1 at each place, then to the size of the finest, and taken as one
    long vector, so that each has the same say (section 3.4).
    """
    finest = features[0].shape[-2:]
    product, *norms = torch.zeros(3, features[0].shape[0], *finest, device=features[0].device)
    for pair in zip(features, restored, strict=True):
        one, other = (resized(F.normalize(side, dim=1, eps=1e-12), finest) for side in pair)
        product = product + (one * other).sum(1)
        norms = [norm + side.square().sum(1) for norm, side in zip(norms, (one, other), strict=True)]
    cosine = product / (norms[0] * norms[1]).sqrt().clamp(min=1e-8)
    return resized(1 - cosine.unsqueeze(1), size)


DETECTOR = InvAD
