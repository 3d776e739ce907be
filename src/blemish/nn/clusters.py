"""Parts of a picture without labels: places whose features resemble each other, the same in every picture."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.nn.backbone import Backbone

STRIDES = (8, 16)
PATCHES = 20_000
"""Features that the centres are found among, at most."""
ROUNDS = 50


class Clusters(nn.Module):
    """Nearest of a few centres, found by k-means once, so that part k of one picture is part k of all."""

    def __init__(self, backbone: str, weights: str, count: int) -> None:
        """Builds the network.

        Args:
            backbone: timm's name.
            weights: As of `Backbone`.
            count: The number of parts.
        """
        super().__init__()
        self.backbone = Backbone(backbone, STRIDES, weights).requires_grad_(False)
        self.centres: Tensor
        """(K, D), largest cluster first."""
        self.register_buffer("centres", torch.zeros(count, sum(self.backbone.channels)))

    def learn(self, batches: Iterable[Tensor], pictures: int, draw: torch.Generator) -> None:
        """Finds the centres in the features of images (B, 3, H, W), `pictures` of them in all."""
        quota = -(-PATCHES // pictures)
        kept = [
            patches[torch.randperm(len(patches), generator=draw)[:quota].to(patches.device)]
            for batch in batches
            for patches in self.embed(batch).flatten(2).transpose(1, 2)
        ]
        self.centres = k_means(torch.cat(kept), len(self.centres), draw)

    def forward(self, image: Tensor) -> Tensor:
        """The part (B, H, W) that each pixel of images (B, 3, H, W) belongs to, 0 to K - 1."""
        embedding = self.embed(image)
        norms = self.centres.square().sum(1)[:, None, None]
        distance = norms - 2 * torch.einsum("bdhw,kd->bkhw", embedding, self.centres)
        return F.interpolate(distance, size=image.shape[-2:], mode="bilinear", align_corners=False).argmin(1)

    def embed(self, image: Tensor) -> Tensor:
        """Smoothed features (B, D, h, w), those of each stride with length 1."""
        maps = [F.avg_pool2d(F.normalize(each), 3, 1, 1, count_include_pad=False) for each in self.backbone(image)]
        size = maps[0].shape[-2:]
        return torch.cat([F.interpolate(each, size=size, mode="bilinear", align_corners=False) for each in maps], 1)


def k_means(points: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Centres (K, D) of points (N, D), that of the most points first.

    Source: Lloyd 1982; the first centres as in Arthur and Vassilvitskii 2007 (k-means++).
    """
    first = torch.randint(len(points), (1,), generator=draw).to(points.device)
    centres = points[first]
    while len(centres) < count:
        nearest = torch.cdist(points, centres).amin(1).square().cpu() + 1e-12
        centres = torch.cat([centres, points[torch.multinomial(nearest, 1, generator=draw).to(points.device)]])
    own = torch.cdist(points, centres).argmin(1)
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres).index_add_(0, own, points)
        sizes = own.bincount(minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        before, own = own, torch.cdist(points, centres).argmin(1)
        if torch.equal(before, own):
            break
    return centres[own.bincount(minlength=count).argsort(descending=True, stable=True)]
