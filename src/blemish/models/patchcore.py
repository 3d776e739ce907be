"""PatchCore: a memory bank of patch features of good pictures; far from all of them = abnormal.

Source: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", arXiv 2106.08265.
Learns in one pass and without gradients, which makes it the baseline everybody compares with.
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
from blemish.nn.backbone import Backbone
from blemish.nn.blur import gaussian_blur
from blemish.progress import Bar, bar
from blemish.reading import read_batches
from blemish.training import generator
from blemish.types import Prediction, Preprocessing

POOL = 1024
"""Farthest points that the coreset is chosen among before all are looked at again."""


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig(DetectorConfig):
    """What can be chosen for PatchCore."""

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


class PatchCore(Detector):
    """The detector; see the module's docstring."""

    config: PatchCoreConfig
    # "paper" keeps as many entries as 10 % of the patches of some 200 pictures (section 4.2).
    presets: ClassVar[Mapping[str, DetectorConfig]] = {
        "paper": PatchCoreConfig(
            backbone="wide_resnet50_2.tv_in1k", image_size=(224, 224), strides=(8, 16), coreset_size=16_384
        ),
        "small": PatchCoreConfig(),
        "tiny": PatchCoreConfig(image_size=(64, 64), coreset_size=64, candidates=2_000, projection=16, blur=2.0),
    }

    def __init__(self, config: PatchCoreConfig, backbone_weights: str = "default") -> None:
        super().__init__(config)
        backbone = Backbone(config.backbone, config.strides, backbone_weights).requires_grad_(False)
        self.backbone = backbone.to(memory_format=torch.channels_last)  # 1.7 times as fast on a CPU
        width = sum(self.backbone.channels)
        self.memory_bank: Tensor
        """(M, D) patch features, less `centre`."""
        self.centre: Tensor
        """(D,) mean of the memory bank; distances lose fewer digits around it."""
        self.neighbour_index: Tensor
        """(M, b) each entry's nearest entries, itself first."""
        self.register_buffer("memory_bank", torch.zeros(0, width))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("neighbour_index", torch.zeros(0, 0, dtype=torch.long))

    def learn(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Fills the memory bank with a coreset of the training patches."""
        patches = self._collect(data, preprocessing)
        with bar("Choose the coreset", min(self.config.coreset_size, len(patches))) as drawn:
            projected = project(patches, self.config.projection, generator(self.config.seed, 0))
            chosen = greedy_coreset(projected, self.config.coreset_size, generator(self.config.seed, 1), drawn)
        bank = patches[chosen]
        self.centre = bank.mean(0)
        self.memory_bank = bank - self.centre
        count = min(self.config.neighbours, len(bank))
        blocks = [
            block.topk(count, largest=False).indices for block in map(self._distances, self.memory_bank.split(512))
        ]
        self.neighbour_index = torch.cat(blocks)

    def forward(self, image: Tensor) -> Prediction[Tensor]:
        """Distances to the memory bank, as a smoothed map, and the re-weighted largest one (equations 5 to 7)."""
        embedding = self.embed(image)
        height, width = embedding.shape[-2:]
        patches = embedding.flatten(2).transpose(1, 2) - self.centre  # (B, h·w, D)
        distance = self._nearest(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        image_score = self._image_score(patches, distance)
        grid = distance.unflatten(1, (height, width)).unsqueeze(1)
        scaled = F.interpolate(grid, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return Prediction(gaussian_blur(scaled, self.config.blur).squeeze(1), image_score)

    def embed(self, image: Tensor) -> Tensor:
        """Locally aware patch features (B, D, h, w), `patch_stride` pixels apart (equations 1 to 3).

        The average counts the zeros outside of the picture, as the reference does: it damps patches
        at the border, where the backbone's own padding makes good pictures differ most.
        """
        side, spacing = self.config.neighbourhood, self.config.patch_stride
        features = {
            stride: F.avg_pool2d(feature, side, stride=1, padding=side // 2)
            for stride, feature in zip(self.backbone.strides, self.backbone(image), strict=True)
        }
        size = features[spacing].shape[-2:]
        return torch.cat([_on_grid(feature, spacing / stride, size) for stride, feature in features.items()], dim=1)

    def _collect(self, data: Dataset, preprocessing: Preprocessing) -> Tensor:
        """Patch features (N, D) of the training pictures, drawn evenly if there are too many."""
        samples = data.train
        quota = -(-self.config.candidates // len(samples))
        item = {sample.path: number for number, sample in enumerate(samples)}
        kept: list[Tensor] = []
        with torch.inference_mode(), bar("Read and embed", len(samples)) as drawn:
            for batch in read_batches(samples, preprocessing, self.config.batch_size, self.failures):
                embedding = self.embed(to_tensor(batch.images, self)).flatten(2).transpose(1, 2)
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


def _on_grid(feature: Tensor, ratio: float, size: Sequence[int]) -> Tensor:
    """A feature map with `size` positions: averaged when it has `ratio` > 1 times as many a side, else interpolated."""
    if ratio > 1:
        return F.avg_pool2d(feature, int(ratio), ceil_mode=True, count_include_pad=False)
    return feature if ratio == 1 else F.interpolate(feature, size=size, mode="bilinear", align_corners=False)


def squared_distances(points: Tensor, entries: Tensor) -> Tensor:
    """Squared Euclidean distances (N, M) between points (N, D) and entries (M, D); rounding may leave them below 0."""
    norms = points.square().sum(1, keepdim=True) + entries.square().sum(1)
    distances: Tensor = torch.addmm(norms, points, entries.T, alpha=-2)
    return distances


def project(patches: Tensor, width: int, draw: torch.Generator) -> Tensor:
    """Patches (N, D) in a random subspace (N, `width`) that nearly keeps distances; as they are if D is no larger."""
    if width >= patches.shape[1]:
        return patches
    directions = torch.randn(patches.shape[1], width, generator=draw) / width**0.5
    projected: Tensor = patches @ directions.to(patches)
    return projected


def greedy_coreset(points: Tensor, size: int, draw: torch.Generator, drawn: Bar | None = None) -> Tensor:
    """Indices (`size`,) of points (N, D) chosen greedily: each is the farthest from those before it.

    The result is that of the plain greedy k-center algorithm, which goes through all N points for
    each choice. Here only a pool of the farthest points is gone through: their distances are kept
    exact, those of the others can only have shrunk since the pool was made, so as long as the
    farthest in the pool is farther than any other was then, it is the farthest of all. When it no
    longer is, the choices made are applied to all points in one matrix product and a new pool is
    made. Fewer are chosen when all that is left are copies of chosen ones.

    Source: arXiv 2106.08265, algorithm 1; Gonzalez 1985.
    """
    size = min(size, len(points))
    points = points - points.mean(0)
    first = int(torch.randint(len(points), (1,), generator=draw))
    chosen = [first]
    nearest = squared_distances(points, points[first : first + 1]).squeeze(1)
    nearest[first] = 0
    while len(chosen) < size:
        far, index = nearest.topk(min(POOL, len(points)))
        picks = _greedy_in_pool(points[index], far, size - len(chosen))
        if not len(picks):
            break
        picked = index[picks]
        for block, rows in zip(nearest.split(16_384), points.split(16_384), strict=True):
            torch.minimum(block, squared_distances(rows, points[picked]).amin(1), out=block)
        nearest[picked] = 0
        chosen += picked.tolist()
        if drawn is not None:
            drawn.advance(len(picked))
    return torch.tensor(chosen, device=points.device)


def _greedy_in_pool(pool: Tensor, far: Tensor, count: int) -> Tensor:
    """Positions in the pool of at most `count` choices that are the farthest of all points, too.

    Args:
        pool: (P, D) the farthest points.
        far: (P,) their squared distances to what is chosen, descending.
        count: The number of choices still to make.
    """
    outside = far[-1] if count else far[0]
    norms = pool.square().sum(1)
    far = far.clone()
    smallest = norms.max() * 1e-6  # below the rounding of the distances: a copy
    picks: list[Tensor] = []
    while len(picks) < count:
        value, where = far.max(0)
        if value <= smallest or (picks and value < outside):
            break
        picks.append(where)
        to_pick = norms + norms[where] - 2 * (pool @ pool[where])
        far = torch.minimum(far, to_pick)
        far[where] = 0
    return torch.stack(picks) if picks else torch.zeros(0, dtype=torch.long, device=pool.device)


DETECTOR = PatchCore
