"""MVAD: several views of one part, each restored with a look at the others; what can't be restored is abnormal.

Source: He et al., "Learning Multi-view Anomaly Detection with Efficient Adaptive Selection",
arXiv 2407.11935.

A frozen teacher sees each view, a bottleneck lets the views look at the most similar windows of one
another and makes one small code for each view, and a student restores the teacher's features from
it. Trained on good parts of all categories together. A part may have any number of views, and one
view alone is a model of reverse distillation.

Preset "paper" is the reference's model, down to what is odd in it; "small" uses the embedded
backbone, standardises features, is trained with the distance it judges by, and looks past padding.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish import distributed
from blemish.detector import DetectorConfig
from blemish.errors import ConfigError, bad_option
from blemish.feature_cache import Features
from blemish.nn.blur import gaussian_blur
from blemish.nn.mvad import Bottleneck, Dropout, Selecting, Student, others_of
from blemish.parts import places_of_parts
from blemish.restoring import Restorer, RestoringConfig, resized, top_mean
from blemish.training import Plan, generator
from blemish.types import Prediction, Sample

DROP = 4  # what dropout is drawn for


class Batch(NamedTuple):
    """What is learned from at a step: the share of this process, where several share the batch."""

    features: list[Tensor]
    """Feature maps of the views."""
    others: Tensor
    """Which of them belong together."""
    step: int
    among: tuple[int, Tensor] | None = None
    """Views in the whole batch, and which of them are here; None if all are."""

    @property
    def weight(self) -> float:
        """How much a mean over the views here counts in the mean over all, for processes that count alike."""
        return 1.0 if self.among is None else len(self.among[1]) * distributed.world_size() / self.among[0]


@dataclass(frozen=True, kw_only=True)
class MVADConfig(RestoringConfig):
    """What can be chosen for MVAD."""

    batch_size: int = 40
    """Pictures taken at a time; in training, so many parts as have no more views together (one at least)."""
    blocks: tuple[int, ...] = (1, 2, 4)
    """Times that views look at one another, for each stage."""
    depths: tuple[int, ...] = (6, 4, 3)
    """Blocks of the student, for each stage."""
    views: int = 5
    """Views that the number of windows is made for; parts may have fewer or more."""
    top_windows: int = 4
    """Windows of the other views that each window looks at."""
    heads: int = 8
    """Groups of channels that look apart."""
    mask_padding: bool = True
    """Look past what is added to fill the last windows."""
    per_head_scale: bool = True
    """Divide products in the attention by the root of a head's width, and not of all channels."""
    own: float = 1.0
    """Weight of a view itself beside what it sees in the others; the less, the more is restored from them alone."""
    dropout: float = 0.1
    """Share of values that is dropped in training, after each layer of the bottleneck's blocks."""
    drop_path: float = 0.1
    """Share of views that don't look at the others in a block in training."""
    loss: Literal["squares", "cosine"] = "cosine"
    """What is made small: the mean squared distance, or 1 - cosine, which judges."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("blocks", "depths"):
            value = getattr(self, name)
            least = int(name == "depths")
            if len(value) != len(self.strides) or min(value) < least:
                raise ConfigError(
                    f"--{name} is {value}; expected {len(self.strides)} numbers of at least {least}, one for each of "
                    f"--strides {self.strides}."
                )
        for name in ("views", "top_windows", "heads"):
            if getattr(self, name) < 1:
                raise bad_option(name, getattr(self, name), "1 or more")
        if not self.own > 0:
            raise bad_option("own", self.own, "more than 0")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise bad_option(name, getattr(self, name), "0 to below 1")

    @property
    def unit(self) -> int:
        """Twice the largest stride: the codes are half as large as the coarsest feature map."""
        return 2 * self.strides[-1]

    def padding(self) -> tuple[int, int, int, int]:
        """What to add to a picture; codes are at least 2 by 2, so that a batch of one can be normalised."""
        height, width = self.image_size
        high, wide = (max(2, -(-side // self.unit)) * self.unit for side in (height, width))
        return 0, wide - width, 0, high - height

    def selecting(self) -> Selecting:
        """How views look at one another."""
        return Selecting(
            top=self.top_windows,
            heads=self.heads,
            views=self.views,
            mask_padding=self.mask_padding,
            per_head_scale=self.per_head_scale,
            own=self.own,
        )


class Network(nn.Module):
    """What is trained: the bottleneck and the student."""

    def __init__(self, config: MVADConfig, channels: Sequence[int]) -> None:
        super().__init__()
        drop = (config.dropout, config.drop_path)
        self.bottleneck = Bottleneck(channels, config.blocks, config.selecting(), drop)
        self.student = Student(channels, config.depths, signed=config.standardise)

    def forward(self, features: Sequence[Tensor], others: Tensor) -> list[Tensor]:
        """The features (B, C, h, w), finest first, restored; `others` as from `others_of`."""
        restored: list[Tensor] = self.student(self.bottleneck(features, others))
        return restored


class MVAD(Restorer):
    """The detector; see the module's docstring."""

    config: MVADConfig
    presets: ClassVar[Mapping[str, DetectorConfig]] = {
        "paper": MVADConfig(
            backbone="resnet34.bt_in1k",
            standardise=False,
            mask_padding=False,
            per_head_scale=False,
            loss="squares",
            loss_weight=5.0,
            epochs=100,
            learning_rate=0.0125,
            schedule="step",
            weight_decay=1e-4,
            clip=5.0,
            precision="float32",
        ),
        "small": MVADConfig(
            depths=(2, 2, 2),
            blocks=(1, 1, 1),
            own=0.1,
            steps=1500,
            batch_size=20,
            learning_rate=0.002,
            schedule="cosine",
            weight_decay=1e-4,
            clip=5.0,
            feature_cache="4G",
        ),
        "tiny": MVADConfig(
            image_size=(64, 64),
            strides=(4, 8),
            depths=(1, 1),
            blocks=(1, 1),
            steps=50,
            batch_size=8,
            learning_rate=0.005,
            schedule="cosine",
            clip=5.0,
            blur=2.0,
            feature_cache="100M",
        ),
    }

    def __init__(self, config: MVADConfig, backbone_weights: str = "default") -> None:
        super().__init__(config, backbone_weights)
        for stride, channels in zip(config.strides, self.backbone.channels, strict=True):
            if channels % config.heads or channels % 4:
                raise ConfigError(
                    f"--heads is {config.heads}, but {config.backbone} has {channels} channels at stride {stride}; "
                    "expected a number that divides them, and channels in multiples of 4."
                )
        self.network = Network(config, self.backbone.channels)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor, others: Tensor | None = None) -> Prediction[Tensor]:
        """Angles between features and restored features, of all stages, as a smoothed map, and its highest values.

        Args:
            image: (B, 3, H, W) float32 RGB in [0, 1].
            others: The other views of each view's part, as `others_of` gives them; without it each
                picture is a part of its own.
        """
        height, width = image.shape[-2:]
        padded = self.padded(image)
        features = self.see(padded)
        if others is None:
            others = torch.empty(len(image), 0, dtype=torch.long, device=image.device)
        distance = distance_map(features, self.network(features, others), padded.shape[-2:])
        anomaly_map = gaussian_blur(distance[:, :, :height, :width], self.config.blur, "mirror").squeeze(1)
        return Prediction(anomaly_map, top_mean(anomaly_map, self.config.top_share))

    def look(self, image: Tensor, parts: Sequence[Hashable]) -> Prediction[Tensor]:
        """The same for images of which those with equal `parts` are views of one part."""
        return self(image, others_of(parts).to(image.device))  # type: ignore[no-any-return]

    def plan(self, samples: Sequence[Sample]) -> Plan:
        """How to train on these pictures; an epoch drops the last, incomplete batch."""
        parts = list(places_of_parts(samples))
        return self.config.counted(max(1, len(parts) // self._parts_at_once(parts)))

    def batches(self, features: Features) -> Callable[[int], Batch]:
        """The batch of each number: whole parts."""
        parts = list(places_of_parts(features.samples))
        size = self._parts_at_once(parts)

        def batch(step: int) -> Batch:
            drawn = self.drawn(len(parts), size, step)
            own = set(distributed.share(drawn))
            whole = [(number, place) for number in drawn for place in parts[number]]
            here = [row for row, (number, _) in enumerate(whole) if number in own]
            among = None if len(here) == len(whole) else (len(whole), torch.tensor(here))
            chosen = [whole[row] for row in here]
            others = others_of([part for part, _ in chosen])
            return Batch(features.batch([place for _, place in chosen]), others, step, among)

        return batch

    def _parts_at_once(self, parts: Sequence[Sequence[int]]) -> int:
        return max(1, self.config.batch_size // max(map(len, parts), default=1))

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        """The distance between features and restored features, summed over the stages (section 3.3)."""
        features = self._standardised([feature.to(self.device).float() for feature in batch.features])
        for module in self.network.modules():
            if isinstance(module, Dropout):
                module.among = batch.among
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # what is dropped depends on the step alone
            torch.manual_seed(generator(self.config.seed, DROP, batch.step).initial_seed())
            restored = self.network(features, batch.others.to(self.device))
        return {"features": batch.weight * self.distance(restored, features)}


def distance_map(features: Sequence[Tensor], restored: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """1 - cosine (B, 1, *size) between features (B, C, h, w) and restored ones, summed over n stages, over n squared.

    The reference divides the mean of the stages by their number once more; it does no harm.
    """
    distances = [
        resized(1 - F.cosine_similarity(one.float(), other.float()).unsqueeze(1), size)
        for one, other in zip(features, restored, strict=True)
    ]
    return torch.stack(distances).sum(0) / len(distances) ** 2


DETECTOR = MVAD
