"""The paper's supervised classifier g beside the maps: a forest that also knows how defective the whole picture looks.

Source: Baitieva et al., arXiv 2405.04953, section 3.2 and appendix: g is one of the forest's features where there
are hundreds of labelled defects. There it is a WideResNet-50 trained whole; how is not published. Here it is a
linear head on the pooled last feature map of a frozen backbone. The paper trains g on pictures that the forest then
learns from, too; here the forest sees scores by heads that have not learned from the picture.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from blemish.images import Bools, Floats
from blemish.nn.backbone import frozen
from blemish.nn.forest import Forest, ForestConfig
from blemish.nn.logistic import logistic

STRIDE = 32
"""Of the feature map whose mean the head looks at."""
DECAY = 1e-2
"""What the squared length of the head's direction costs."""
FOLDS = 5
"""Heads that score what they have not learned from, so that the forest sees honest scores."""


class Gist(nn.Module):
    """The frozen backbone of the classifier."""

    def __init__(self, backbone: str, weights: str) -> None:
        """Builds the network.

        Args:
            backbone: timm's name.
            weights: As of `Backbone`.
        """
        super().__init__()
        self.backbone = frozen(backbone, (STRIDE,), weights)

    @property
    def width(self) -> int:
        """Figures of a picture."""
        return self.backbone.channels[-1]

    def forward(self, image: Tensor) -> Tensor:
        """The mean of the last feature map (B, D) of images (B, 3, H, W) in [0, 1]."""
        features: Tensor = self.backbone(image)[-1]
        return features.mean((2, 3))


class InformedForest(nn.Module):
    """A forest on rows (B, F + D): F features of the maps, and D of the whole picture, which g makes one of."""

    def __init__(self, width: int) -> None:
        """An empty one.

        Args:
            width: D.
        """
        super().__init__()
        self.width = width
        self.span: Tensor
        """(2, D) mean and deviation of the figures of good pictures."""
        self.direction: Tensor
        """(D,) of the head."""
        self.register_buffer("span", torch.zeros(2, width))
        self.register_buffer("direction", torch.zeros(width))
        self.forest = Forest()

    @classmethod
    def grown(cls, table: Floats, is_defective: Bools, width: int, grown: tuple[float, int, ForestConfig]) -> Self:
        """What tells good rows from defective ones.

        Args:
            table: (N, F + D).
            is_defective: (N,), good ones first.
            width: D.
            grown: Weight of a defective row, seed and configuration, as of `Forest.grown`.
        """
        found, rows = cls(width), torch.from_numpy(np.asarray(table, np.float32))
        scores = torch.zeros(len(rows))
        fold = np.zeros(len(rows), int)
        for kind in (False, True):
            own = np.flatnonzero(is_defective == kind)
            fold[np.random.default_rng([grown[1], int(kind)]).permutation(own)] = np.arange(len(own)) % FOLDS
        for number in range(FOLDS):
            learn = fold != number
            if is_defective[learn].any() and not is_defective[learn].all():
                head = cls(width).learn_head(rows[torch.from_numpy(learn)], is_defective[learn])
                scores[torch.from_numpy(~learn)] = head.score(rows[torch.from_numpy(~learn)])
        found.learn_head(rows, is_defective)
        features = torch.cat([rows[:, :-width], scores[:, None]], 1).numpy()
        found.forest = Forest.grown(features, is_defective, *grown)
        return found

    def learn_head(self, rows: Tensor, is_defective: Bools) -> Self:
        """Itself, after the head has learned from rows."""
        seen = rows[:, -self.width :]
        bad, good = seen[torch.from_numpy(is_defective)], seen[torch.from_numpy(~is_defective)]
        self.span = torch.stack([good.mean(0), good.std(0, correction=0).clamp(min=1e-6)])
        self.direction = logistic((bad - self.span[0]) / self.span[1], (good - self.span[0]) / self.span[1], DECAY)
        return self

    @property
    def gain(self) -> Tensor:
        """(F + 1,) as of the forest; that of g is the last."""
        return self.forest.gain

    def check(self, width: int) -> None:
        """Sees whether the trees fit so many features, g's score among them.

        Raises:
            ValueError: they do not.
        """
        self.forest.check(width)

    def score(self, rows: Tensor) -> Tensor:
        """How defective the whole picture looks, (B,), of rows (B, F + D)."""
        return ((rows[:, -self.width :] - self.span[0]) / self.span[1]) @ self.direction

    def forward(self, rows: Tensor) -> Tensor:
        """Log-odds (B,) of being defective, of rows (B, F + D)."""
        found: Tensor = self.forest(self._informed(rows))
        return found

    def contributions(self, rows: Tensor) -> Tensor:
        """What each feature adds to the margin, (B, F + 1), as of the forest."""
        return self.forest.contributions(self._informed(rows))

    def _informed(self, rows: Tensor) -> Tensor:
        return torch.cat([rows[:, : -self.width], self.score(rows)[:, None]], 1)
