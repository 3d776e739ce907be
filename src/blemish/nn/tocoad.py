"""ToCoAD's own parts: the discriminative network, contrastive heads, losses, and the two stages of training.

Of ToCoAD only the outline is known (see `models/tocoad.py`); where the sources are silent, the choice is ours.

Source: Liang et al., arXiv 2407.01312; SimSiam: arXiv 2011.10566; BYOL: arXiv 2006.07733; focal loss:
arXiv 1708.02002; the mirrored decoder: arXiv 2201.10703.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.nn.backbone import Backbone
from blemish.nn.norm import BatchNorm1d, BatchNorm2d
from blemish.nn.residual import growing

Contrast = Literal["simsiam", "byol", "none"]
DECAY = 0.996
"""Of the moving average that is BYOL's target."""
COLLAPSED = 0.3
"""Share of their former spread that embeddings must keep, not to count as collapsed."""


class Mirror(nn.Module):
    """The discriminative network: the backbone's stages turned round, each beside the feature map it mirrors."""

    def __init__(self, channels: Mapping[int, int], depths: Sequence[int], *, deep: bool) -> None:
        """Draws the weights.

        Args:
            channels: Of the feature maps that it looks at, by stride, finest first; each map has half the sides
                of the one before.
            depths: Blocks for each doubling, coarsest first: one number fewer than maps.
            deep: Whether blocks have three convolutions, as in a Wide ResNet-50-2, or two.
        """
        super().__init__()
        self.strides = tuple(channels)
        self.norms = nn.ModuleList(BatchNorm2d(wide) for wide in channels.values())
        down = list(channels.values())[::-1]
        # What was made comes in beside the map that it mirrors, which is as wide.
        before = [down[0], *(2 * wide for wide in down[1:-1])]
        self.stages = nn.ModuleList(
            growing(come, go, depth, deep=deep) for come, go, depth in zip(before, down[1:], depths, strict=True)
        )
        finest = down[-1]
        self.head = nn.Sequential(
            *(nn.Conv2d(2 * finest, finest, 3, padding=1, bias=False), BatchNorm2d(finest), nn.ReLU()),
            nn.Conv2d(finest, 1, 1),
        )

    def forward(self, features: Mapping[int, Tensor], size: Sequence[int]) -> Tensor:
        """Logits (B, *size), higher = more surely damaged, of feature maps (B, C, h, w) by stride."""
        normal = [norm(features[stride]) for norm, stride in zip(self.norms, self.strides, strict=True)]
        made = normal[-1]
        for stage, beside in zip(self.stages, normal[-2::-1], strict=True):
            height, width = beside.shape[-2:]  # an odd side was rounded up on the way down
            made = torch.cat([stage(made)[..., :height, :width], beside], dim=1)
        logits = F.interpolate(self.head(made).float(), size=list(size), mode="bilinear", align_corners=False)
        return logits.squeeze(1)


class Head(nn.Module):
    """Projector and predictor of one stage: what the contrastive loss compares.

    Source: arXiv 2011.10566, section 3 (three layers and two, all but the last normalised, and the
    projector's last one, too; the predictor is a bottleneck of a quarter).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            *(nn.Linear(channels, width, bias=False), BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, width, bias=False), BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, width, bias=False), BatchNorm1d(width, affine=False)),
        )
        self.predictor = nn.Sequential(
            *(nn.Linear(width, width // 4, bias=False), BatchNorm1d(width // 4), nn.ReLU()),
            nn.Linear(width // 4, width),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Embeddings (B, width) of a feature map (B, C, h, w): its mean over all places, projected."""
        embedding: Tensor = self.projector(feature.mean((2, 3)))
        return embedding


class Tuned(NamedTuple):
    """A batch of stage II."""

    damaged: Tensor
    """(B, 3, H, W) in [0, 1], some of them as they were."""
    mask: Tensor
    """(B, H, W) bool, True where damaged."""
    views: Tensor
    """(2 B, 3, H, W): one view of each good picture, then the other of each."""


class Weights(NamedTuple):
    """How much the parts of stage II's loss count; 0 leaves a part out."""

    guide: float
    """What the frozen discriminative network says of made defects."""
    distill: float
    """Distance to the features that there were before."""
    alpha: float = 0.5
    """Of the focal loss; see `focal_loss`."""
    gamma: float = 2.0
    """The same; 0 for plain cross-entropy."""


class Tuning(nn.Module):
    """Stage II: backbone and heads learn, while the discriminative network and what was before stay as they are."""

    def __init__(
        self,
        backbone: Backbone,
        discriminator: Mirror,
        weights: Weights,
        contrast: Contrast,
        heads: Mapping[int, Head],
    ) -> None:
        """Joins the parts; which parameters of the backbone learn was said before.

        Args:
            backbone: F; feature maps at the strides of the heads and of the discriminator.
            discriminator: D, trained in stage I.
            weights: Of the parts of the loss.
            contrast: Which loss compares views.
            heads: By the stride of the feature map they look at.
        """
        super().__init__()
        self.weights, self.contrast = weights, contrast
        self.backbone = backbone
        self.discriminator = discriminator.requires_grad_(False)
        self.heads = nn.ModuleDict({str(stride): head for stride, head in heads.items()})
        self._before = [deepcopy(backbone).requires_grad_(False).eval()]  # in a list: not part of the state
        self.target: nn.ModuleDict | None = None
        if contrast == "byol":
            copies = {"backbone": backbone, "heads": self.heads}
            self.target = nn.ModuleDict({name: deepcopy(part).requires_grad_(False) for name, part in copies.items()})

    def train(self, mode: bool = True) -> Self:
        """Switches the heads; running means of backbone and discriminative network stay as they are."""
        super().train(mode)
        for part in (self.backbone, self.discriminator, *(self.target.values() if self.target is not None else ())):
            part.eval()
        return self

    def loss(self, batch: Tuned) -> dict[str, Tensor]:
        """The parts of the loss, by name; those that are left out are not computed."""
        parts: dict[str, Tensor] = {}
        if self.contrast != "none":
            parts["contrast"] = self._contrast(batch.views)
        if self.weights.guide or self.weights.distill:
            features = self._see(self.backbone, batch.damaged)
            if self.weights.guide:
                logits = self.discriminator(features, batch.mask.shape[-2:])
                found = focal_loss(logits, batch.mask, self.weights.alpha, self.weights.gamma)
                parts["guide"] = self.weights.guide * found
            if self.weights.distill:
                with torch.no_grad():
                    before = self._before[0](batch.damaged)
                parts["distill"] = self.weights.distill * distance(list(features.values()), before)
        return parts

    def _contrast(self, views: Tensor) -> Tensor:
        """Symmetric negative cosine between predictions of one view and embeddings of the other, over all heads."""
        features = self._see(self.backbone, views)
        online = [(head, head(features[int(stride)])) for stride, head in self._named()]
        wanted = [embedding for _, embedding in online]
        if self.target is not None:
            wanted = self._targets(views)
        losses = []
        for (head, embedding), target in zip(online, wanted, strict=True):
            losses.append(symmetric_loss(head.predictor(embedding), target))
        return torch.stack(losses).sum()

    def _targets(self, views: Tensor) -> list[Tensor]:
        """The embeddings of BYOL's target, after it has followed."""
        target = cast(nn.ModuleDict, self.target)
        with torch.no_grad():
            for name in target:
                online = cast(nn.Module, getattr(self, name))
                for theirs, ours in zip(target[name].parameters(), online.parameters(), strict=True):
                    theirs.lerp_(ours, 1 - DECAY)
            features = self._see(target["backbone"], views)
            heads = cast(nn.ModuleDict, target["heads"]).train()  # BYOL's target has batch statistics, too
            return [cast(Tensor, head(features[int(stride)])) for stride, head in heads.items()]

    def _see(self, backbone: nn.Module, image: Tensor) -> dict[int, Tensor]:
        return dict(zip(self.backbone.strides, backbone(image), strict=True))

    def _named(self) -> list[tuple[str, Head]]:
        return [(stride, cast(Head, head)) for stride, head in self.heads.items()]

    def kept(self, images: Sequence[Tensor]) -> dict[int, float]:
        """How far embeddings of good pictures lie apart, by stride, as a share of how far they did before.

        The embeddings are the means of the feature maps. Those behind the projector would not do: its last layer
        gives them variance 1, whatever comes in.

        Args:
            images: (B, 3, H, W) each, of different good pictures.
        """
        with torch.no_grad():
            now, before = ([_means(see(each)) for each in images] for see in (self.backbone, self._before[0]))
        spreads = [[spread(torch.cat(own)) for own in zip(*means, strict=True)] for means in (now, before)]
        shares = (float(one / other.clamp(min=1e-6)) for one, other in zip(*spreads, strict=True))
        return dict(zip(self.backbone.strides, shares, strict=True))


def _means(features: Sequence[Tensor]) -> list[Tensor]:
    return [feature.mean((2, 3)) for feature in features]


def symmetric_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean negative cosine of predictions (2B, D) with the targets (2B, D) of the other half, in -1 to 1.

    No gradient reaches the targets.

    Source: arXiv 2011.10566, equations 1, 3 and 4.
    """
    swapped = target.detach().roll(len(target) // 2, 0)
    cosine: Tensor = F.cosine_similarity(prediction.float(), swapped.float(), dim=1)
    return -cosine.mean()


def spread(embedding: Tensor) -> Tensor:
    """The standard deviation of embeddings (B, D) brought to length 1, times √D, averaged over the dimensions.

    About 1 where they point everywhere; 0 where all have become the same.

    Source: arXiv 2011.10566, section 4.1.
    """
    normal = F.normalize(embedding.float(), dim=1)
    deviation: Tensor = normal.std(0, correction=0).mean()
    return deviation * math.sqrt(normal.shape[1])


def focal_loss(logits: Tensor, mask: Tensor, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Mean of -alpha_t (1 - p_t)^gamma log p_t of logits against a mask of the same shape.

    Args:
        logits: Of damage.
        mask: True where damaged.
        alpha: Weight of damaged pixels; that of others is 1 - alpha.
        gamma: How much less easy pixels count; 0 for plain cross-entropy.

    Source: arXiv 1708.02002, equation 5.
    """
    label = mask.to(logits.dtype)
    surprise = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    weight = alpha * label + (1 - alpha) * (1 - label)
    if gamma:
        weight = weight * (1 - torch.exp(-surprise)) ** gamma
    return (weight * surprise).mean()


def distance(features: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of feature maps to those before, each map in the variance of its own values."""
    each = [
        F.mse_loss(now.float(), then.float()) / then.float().var().clamp(min=1e-6)
        for now, then in zip(features, before, strict=True)
    ]
    return torch.stack(each).mean()
