"""Models that restore the features of a frozen backbone: what can't be restored is abnormal.

The backbone learns nothing and pictures are not changed, so features can be computed once and kept
(`feature_cache`). What is trained, on which batches and with which loss is the model's own.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish import distributed
from blemish.dataset import Dataset
from blemish.detector import Detector, TrainedConfig, to_tensor
from blemish.errors import DatasetError, bad_option
from blemish.feature_cache import FeatureCache, Features, origin, parse_size, place
from blemish.images import Floats
from blemish.nn.backbone import Backbone
from blemish.progress import note
from blemish.training import Plan, Precision, autocast, choose_precision, generator, optimise
from blemish.types import Preprocessing, Sample

SHUFFLE = 3  # what the order of the pictures is drawn for


@dataclass(frozen=True, kw_only=True)
class RestoringConfig(TrainedConfig):
    """What can be chosen for every model that restores features."""

    strides: tuple[int, ...] = (4, 8, 16)
    """Stages of the backbone that are restored, by their stride in pixels; each twice the one before."""
    standardise: bool = True
    """Give the features mean 0 and variance 1 on good pictures."""
    loss: Literal["squares", "cosine"] = "squares"
    """Between features and restored features: mean squared difference, or 1 - cosine at each place, as in the map."""
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
            raise bad_option("strides", self.strides, "each twice the one before, such as 4 8 16")
        if not 0 < self.loss_weight < math.inf:
            raise bad_option("loss_weight", self.loss_weight, "more than 0")
        if not 0 <= self.blur < math.inf:
            raise bad_option("blur", self.blur, "0 (none) or more")
        if not 0 <= self.top_share <= 1:
            raise bad_option("top_share", self.top_share, "a share between 0 and 1")
        parse_size(self.feature_cache)

    @property
    def unit(self) -> int:
        """What the sides of a picture must be multiples of, so that all feature maps fit on one another."""
        return self.strides[-1]

    def padding(self) -> tuple[int, int, int, int]:
        """What to add left, right, above and below to a picture, so that its sides are such multiples."""
        height, width = self.image_size
        return 0, -width % self.unit, 0, -height % self.unit


class Restorer(Detector):
    """A detector with a frozen backbone and a network that restores its features."""

    config: RestoringConfig
    network: nn.Module
    """What is trained."""

    def __init__(self, config: RestoringConfig, backbone_weights: str = "default") -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.strides, backbone_weights).requires_grad_(False)
        for number, channels in enumerate(self.backbone.channels):
            self.register_buffer(f"mean_{number}", torch.zeros(channels, 1, 1))
            self.register_buffer(f"deviation_{number}", torch.ones(channels, 1, 1))

    @abstractmethod
    def plan(self, samples: Sequence[Sample]) -> Plan:
        """How to train on these pictures."""

    @abstractmethod
    def batches(self, features: Features) -> Callable[[int], Any]:
        """The batch of each number, for the loss."""

    @abstractmethod
    def _loss(self, batch: Any) -> dict[str, Tensor]:
        """The parts of the loss of a batch."""

    def train(self, mode: bool = True) -> Self:
        """Switches the trained part; the backbone stays as it is."""
        super().train(mode)
        self.backbone.eval()
        return self

    def learn(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Trains on `data.train`; the names of categories are not looked at."""
        config = self.config
        plan = self.plan(data.train)
        with place(config.feature_cache_dir, self.unfinished) as folder:
            features = self._features(data, preprocessing, folder)
            self._measure(features)
            if not len(features):
                raise DatasetError(f"{data.root}: no training picture can be read; {self.failures[0].reason}")
            batches = self.batches(features)
            self.outcome = optimise(self._loss, self.network, batches, plan, None, self.state_of(data))
            self.finish(batches)

    def finish(self, batches: Callable[[int], Any]) -> None:
        """What is learned once the network is trained; nothing, unless a model has more parts."""

    def distance(self, restored: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """Between restored feature maps (B, C, h, w) and those seen: the mean over all places, summed, weighted."""
        pairs = [(made.float(), feature) for made, feature in zip(restored, features, strict=True)]
        if self.config.loss == "squares":
            each = [F.mse_loss(made, feature) for made, feature in pairs]
        else:
            each = [1 - F.cosine_similarity(made, feature).mean() for made, feature in pairs]
        return self.config.loss_weight * torch.stack(each).sum()

    def drawn(self, count: int, size: int, step: int) -> list[int]:
        """The numbers, of `count`, in the batch of that step: each epoch has an order of its own.

        An epoch drops the last batch if it is incomplete.
        """
        size = min(size, count)
        epoch, number = divmod(step, count // size)
        order = torch.randperm(count, generator=generator(self.config.seed, SHUFFLE, epoch))
        return order[number * size : (number + 1) * size].tolist()

    def see(self, image: Tensor) -> list[Tensor]:
        """The standardised feature maps (B, C, h, w), finest first, of padded images (B, 3, H, W) in [0, 1]."""
        return self._standardised(self.backbone(image))

    def padded(self, image: Tensor) -> Tensor:
        """Images whose sides are multiples of the unit: the border is repeated on the right and below."""
        return F.pad(image, self.config.padding(), mode="replicate")

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
            if config.unit != config.strides[-1]:  # pictures are padded otherwise than for most models
                how["padded to"] = config.unit
            about = origin(self.backbone, preprocessing, how)
            with distributed.in_turn():  # one makes the folder, the others find it
                cache = FeatureCache(folder, about, budget, own=not config.feature_cache_dir)
        features = Features(self._see, data.train, preprocessing, config.batch_size, cache)
        if cache is not None:
            note(features.sentence())
        return features

    def _see(self, images: Floats) -> list[Tensor]:
        """The backbone's feature maps of images, without gradients, in the type they are kept in."""
        config = self.config
        with torch.no_grad(), autocast(self.device, choose_precision(config.precision, self.device)):
            features: list[Tensor] = self.backbone(self.padded(to_tensor(images, self)))
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
        count = int(distributed.total(torch.tensor(count)))
        totals = [distributed.total(total) for total in totals]
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


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) brought to a (height, width); corners stay corners."""
    if image.shape[-2:] == torch.Size(size):
        return image
    return F.interpolate(image, size=list(size), mode="bilinear", align_corners=True)


def top_mean(anomaly_map: Tensor, share: float) -> Tensor:
    """The mean (B,) of the highest values of maps (B, H, W): of that share of them, of one at least.

    >>> top_mean(torch.arange(8.0).view(1, 2, 4), 0.25), top_mean(torch.arange(8.0).view(1, 2, 4), 0.0)
    (tensor([6.5000]), tensor([7.]))
    """
    values = anomaly_map.flatten(1)
    return values.topk(max(1, round(share * values.shape[1])), dim=1).values.mean(1)
