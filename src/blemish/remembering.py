"""Models that remember patch features of good pictures: what is far from all of them is abnormal.

The memory bank is a coreset of the patches. What the features are, and whether they are tuned before,
is the model's own.

Source: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", arXiv 2106.08265.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.dataset import Dataset
from blemish.detector import Detector, DetectorConfig, to_tensor
from blemish.errors import bad_option
from blemish.nn.backbone import ENTRY, frozen
from blemish.nn.blur import gaussian_blur
from blemish.nn.coreset import greedy_coreset, project, squared_distances
from blemish.nn.patches import patch_features
from blemish.progress import Bar, bar
from blemish.reading import read_batches
from blemish.training import generator
from blemish.types import Prediction, Preprocessing


@dataclass(frozen=True, kw_only=True)
class RememberingConfig(DetectorConfig):
    """What can be chosen for every model with a memory bank."""

    strides: tuple[int, ...] = (4, 8, 16)
    """Feature maps used, by their stride in pixels (section 3.1: the middle ones)."""
    patch_stride: int = 8
    """Distance of neighbouring patches in pixels, one of the strides: finer maps are averaged down
    to it, coarser ones interpolated."""
    neighbourhood: int = 3
    """Side of the square of features that is averaged into a patch feature (p in equation 2)."""
    coreset_size: int = 4000
    """Entries of the memory bank, at most."""
    candidates: int = 200_000
    """Patches that the coreset is chosen from, at most: bounds time and memory."""
    projection: int = 128
    """Width of the random projection in which the coreset is chosen (algorithm 1)."""
    neighbours: int = 9
    """Bank entries that the image score is weighted with (b in equation 7)."""
    blur: float = 4.0
    """Standard deviation of the Gaussian that smooths the map, in pixels (section 3.3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("neighbourhood", "coreset_size", "candidates", "projection", "neighbours"):
            if getattr(self, name) < 1:
                raise bad_option(name, getattr(self, name), "1 or more")
        if self.patch_stride not in self.strides:
            raise bad_option("patch_stride", self.patch_stride, f"one of --strides {self.strides}")
        if self.neighbourhood % 2 == 0:
            raise bad_option("neighbourhood", self.neighbourhood, "an odd number")
        if not 0 <= self.blur < math.inf:
            raise bad_option("blur", self.blur, "0 (none) or more")


class Rememberer(Detector):
    """A detector that compares patch features with a memory bank."""

    config: RememberingConfig
    # 8 bit in these few layers move distances by six times as much as in all others.
    sensitive: ClassVar[tuple[str, ...]] = tuple(f"backbone.{name}" for name in ENTRY)

    def __init__(
        self, config: RememberingConfig, backbone_weights: str = "default", others: Sequence[int] = ()
    ) -> None:
        """Builds it with an empty memory bank.

        Args:
            config: What was chosen.
            backbone_weights: As for `Backbone`.
            others: Strides that the model looks at besides those of the patches.
        """
        super().__init__(config)
        strides = sorted({*config.strides, *others})
        self.backbone = frozen(config.backbone, strides, backbone_weights)
        pairs = zip(self.backbone.strides, self.backbone.channels, strict=True)
        width = sum(channels for stride, channels in pairs if stride in config.strides)
        self.memory_bank: Tensor
        """(M, D) patch features, less `centre`."""
        self.centre: Tensor
        """(D,) mean of the memory bank; distances lose fewer digits around it."""
        self.neighbour_index: Tensor
        """(M, b) each entry's nearest entries, itself first."""
        self.register_buffer("memory_bank", torch.zeros(0, width))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("neighbour_index", torch.zeros(0, 0, dtype=torch.long))

    def memorise(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Fills the memory bank with a coreset of the training patches."""
        patches = self._collect(data, preprocessing)
        with bar("Choose the coreset", min(self.config.coreset_size, len(patches))) as drawn:
            self.remember(patches, self.config.coreset_size, drawn)

    def remember(self, patches: Tensor, size: int, drawn: Bar | None = None) -> None:
        """Fills the memory bank with a coreset of at most `size` of the patches (N, D)."""
        projected = project(patches, self.config.projection, generator(self.config.seed, 0))
        bank = patches[greedy_coreset(projected, size, generator(self.config.seed, 1), drawn)]
        self.centre = bank.mean(0)
        self.memory_bank = bank - self.centre
        count = min(self.config.neighbours, len(bank))
        blocks = [
            block.topk(count, largest=False).indices for block in map(self._distances, self.memory_bank.split(512))
        ]
        self.neighbour_index = torch.cat(blocks)

    def forward(self, image: Tensor) -> Prediction[Tensor]:
        """Distances to the memory bank, as a smoothed map, and the re-weighted largest one (equations 5 to 7)."""
        return self.compare(self.see(image), image.shape[-2:])

    def see(self, image: Tensor) -> dict[int, Tensor]:
        """The backbone's feature maps (B, C, h, w) of images (B, 3, H, W), by stride, finest first."""
        return dict(zip(self.backbone.strides, self.backbone(image), strict=True))

    def compare(self, features: Mapping[int, Tensor], size: Sequence[int]) -> Prediction[Tensor]:
        """What the memory bank says of feature maps; the anomaly map has `size`."""
        embedding = self.embed(features)
        height, width = embedding.shape[-2:]
        patches = embedding.flatten(2).transpose(1, 2) - self.centre  # (B, h·w, D)
        distance = self._nearest(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        image_score = self._image_score(patches, distance)
        grid = distance.unflatten(1, (height, width)).unsqueeze(1)
        scaled = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        return Prediction(gaussian_blur(scaled, self.config.blur).squeeze(1), image_score)

    def embed(self, features: Mapping[int, Tensor]) -> Tensor:
        """Locally aware patch features (B, D, h, w), `patch_stride` pixels apart (equations 1 to 3)."""
        return patch_features(features, self.config.strides, self.config.patch_stride, self.config.neighbourhood)

    def patches(self, image: Tensor) -> Tensor:
        """Patch features (B, h·w, D) of images (B, 3, H, W)."""
        return self.embed(self.see(image)).flatten(2).transpose(1, 2)

    def _collect(self, data: Dataset, preprocessing: Preprocessing) -> Tensor:
        """Patch features (N, D) of the training pictures, drawn evenly if there are too many."""
        unread = {failure.path for failure in self.failures}  # said already by a model that reads twice
        samples = [sample for sample in data.train if sample.path not in unread]
        quota = -(-self.config.candidates // len(samples))
        item = {sample.path: number for number, sample in enumerate(samples)}
        kept: list[Tensor] = []
        with torch.inference_mode(), bar("Read and embed", len(samples)) as drawn:
            for batch in read_batches(samples, preprocessing, self.config.batch_size, self.failures):
                embedding = self.patches(to_tensor(batch.images, self))
                for sample, patches in zip(batch.samples, embedding, strict=True):
                    draw = generator(self.config.seed, 2, item[sample.path])
                    kept.append(patches[torch.randperm(len(patches), generator=draw)[:quota].to(self.device)].clone())
                drawn.advance(len(batch.samples))
        return torch.cat(kept)

    def _distances(self, patches: Tensor) -> Tensor:
        """Euclidean distances (N, M) of centred patches (N, D) to the entries of the bank."""
        return squared_distances(patches, self.memory_bank).clamp(min=0).sqrt()

    def _nearest(self, patches: Tensor) -> Tensor:
        """Distance (N,) of each centred patch (N, D) to its nearest entry; the bank is taken in blocks.

        Blocks stay in the cache: for 4000 entries OpenVINO needs 9.8 ms a picture of 32x32 patches and
        core with blocks of 256, 14.1 ms with the bank as a whole; torch needs 15.0 ms with these blocks.
        """
        norms = patches.square().sum(1)
        blocks = [
            torch.addmm(block.square().sum(1), patches, block.T, alpha=-2).amin(1)
            for block in self.memory_bank.split(256)
        ]
        return (torch.stack(blocks).amin(0) + norms).clamp(min=0).sqrt()

    def _image_score(self, patches: Tensor, distance: Tensor) -> Tensor:
        """The largest patch distance (B,), less where its nearest entry's own neighbours are as near."""
        largest, where = distance.max(dim=1)
        patch = patches.gather(1, where[:, None, None].expand(-1, 1, patches.shape[-1])).squeeze(1)
        to_bank = self._distances(patch)  # (B, M)
        around = self.neighbour_index[to_bank.argmin(dim=1)]  # (B, b)
        weight = 1 - to_bank.gather(1, around).softmax(dim=1)[:, 0]
        return weight * largest
