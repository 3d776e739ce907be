"""The forest that knows the whole picture, too."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from blemish.nn.classifier import Gist, InformedForest
from blemish.nn.forest import Forest, ForestConfig

WIDTH = 40
CONFIG = ForestConfig(trees=20)


def rows(bad: int, good: int, seed: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Three features of the map that say little, and 40 figures of the picture, two of which say more."""
    draw = np.random.default_rng(seed)
    labels = np.arange(good + bad) >= good
    table = draw.normal(size=(good + bad, 3 + WIDTH)).astype(np.float32)
    table[labels, 0] += 1
    table[labels, 3:5] += apart
    return table, labels


def auroc(decision: torch.nn.Module, table: np.ndarray, labels: np.ndarray) -> float:
    return float(roc_auc_score(labels, decision(torch.from_numpy(table)).numpy()))


def test_it_helps_where_the_whole_picture_says_more_and_costs_little_where_not():
    for apart, gain in ((1.5, 0.1), (0.0, -0.08)):
        table, labels = rows(150, 300, 0, apart)
        new, truth = rows(300, 300, 1, apart)
        informed = InformedForest.grown(table, labels, WIDTH, (2.0, 0, CONFIG))
        alone = Forest.grown(table[:, :3], labels, 2.0, 0, CONFIG)
        assert auroc(informed, new, truth) > auroc(alone, new[:, :3].copy(), truth) + gain


def test_contributions_make_the_margin_and_the_head_is_the_last_feature():
    table, labels = rows(100, 200, 0, 2.0)
    found = InformedForest.grown(table, labels, WIDTH, (2.0, 0, CONFIG))
    assert len(found.gain) == 4
    assert int(found.gain.argmax()) == 3
    shares, margins = found.contributions(torch.from_numpy(table)), found(torch.from_numpy(table))
    assert shares.shape == (300, 4)
    assert (shares.sum(1) - margins).std() < 1e-4
    found.check(4)
    with pytest.raises(ValueError, match="a feature that there is not"):
        found.check(3)


def test_the_gist_is_the_mean_of_the_last_feature_map():
    gist = Gist("tf_efficientnet_lite0", "default").eval()
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = gist(image)
        np.testing.assert_allclose(found, gist.backbone(image)[-1].mean((2, 3)), rtol=1e-6)
    assert found.shape == (2, gist.width) == (2, 320)
