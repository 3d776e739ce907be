"""From maps to decisions: image scores, two maps in one, and how well a map ranks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

_LEAST = 1e-3  # what counts as nothing, so that it has a logarithm
_CHANCE = 0.2  # spread of logarithms that few pictures may lack by chance


class Fusion(nn.Module):
    """Two opinions in one: say, what discriminators find, and how badly features were restored.

    A discriminator knows made defects, a residual or a memory bank none; which tells more differs from
    product to product. So each is measured by what it says of good pictures: maps in their standard deviations,
    image scores as standardised logarithms.
    """

    def __init__(self, weight: float, score_weight: float = 1.0) -> None:
        """Before anything is learned, both count as they are.

        Args:
            weight: Of the second opinion in the map, beside 1 of the first.
            score_weight: The same in the image score.
        """
        super().__init__()
        self.weight, self.score_weight = weight, score_weight
        self.register_buffer("spread", torch.ones(2))
        self.register_buffer("middle", torch.zeros(2))
        self.register_buffer("scale", torch.ones(2))

    def learn(self, maps: Tensor, scores: Tensor) -> None:
        """Takes note of what good pictures look like: maps (2, B, H, W) and image scores (2, B) of the two opinions."""
        levels = self._levels(scores)
        self.get_buffer("spread").copy_(maps.flatten(1).std(1).clamp(min=_LEAST))
        self.get_buffer("middle").copy_(levels.mean(1))
        # Few pictures may lie close together by chance.
        self.get_buffer("scale").copy_((levels.var(1, correction=0) + _CHANCE**2).sqrt())

    def forward(self, maps: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly map (B, H, W) and image score (B,) of maps (2, B, H, W) and image scores (2, B), 0 or more."""
        first, second = maps / self.get_buffer("spread")[:, None, None, None]
        one, other = (self._levels(scores) - self.get_buffer("middle")[:, None]) / self.get_buffer("scale")[:, None]
        return first + self.weight * second, one + self.score_weight * other

    def _levels(self, scores: Tensor) -> Tensor:
        return scores.clamp(min=_LEAST).log()


def image_score(anomaly_map: Tensor, window: int) -> Tensor:
    """The highest mean (B,) of maps (B, H, W) over a square of side `window`.

    >>> image_score(torch.ones(1, 20, 20), 16).tolist()
    [1.0]
    """
    return F.avg_pool2d(anomaly_map.unsqueeze(1), window, stride=1).amax((1, 2, 3))


def image_scores(maps: Tensor, window: int) -> Tensor:
    """The same (N, B) for each of N opinions: maps (N, B, H, W)."""
    return torch.stack([image_score(each, window) for each in maps])


def window(side: int, maps: Tensor) -> int:
    """The side, in pixels of maps (..., H, W), of a square that has `side` pixels on a picture of 256."""
    return max(1, round(side * min(maps.shape[-2], maps.shape[-1]) / 256))


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Mean precision at the scores of the positives; NaN if there are none.

    >>> average_precision(torch.tensor([0.9, 0.1, 0.8]), torch.tensor([True, True, False]))
    0.833...
    """
    hits = positive[scores.argsort(descending=True, stable=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
    return float((precision * hits).sum() / hits.sum())
