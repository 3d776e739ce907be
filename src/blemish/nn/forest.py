"""The boosted random forest: gradient boosting whose every round is a random forest.

XGBoost grows it. What it grew is kept as tensors and evaluated by torch: artifacts need no XGBoost to
run, and hold nothing but numbers (XGBoost ends the process when its own files are damaged).

Source: arXiv 2405.04953, section 3.3 and appendix A.1.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blemish.errors import ConfigError, bad_option
from blemish.images import Bools, Floats


@dataclass(frozen=True, kw_only=True)
class ForestConfig:
    """How a boosted random forest is grown; the defaults are the paper's."""

    rounds: int = 10
    """Rounds of boosting."""
    trees: int = 200
    """Trees grown in each round; their average is what the round adds."""
    depth: int = 5
    """Splits from the root to a leaf, at most."""
    shrinkage: float = 0.3
    """Learning rate of the boosting."""
    share: float = 0.6
    """Share of the rows and of the columns that each tree sees, and again of the columns at each split."""
    sparsity: float = 1.0
    """L1 penalty on the values of leaves."""

    def __post_init__(self) -> None:
        for name in ("rounds", "trees", "depth"):
            if getattr(self, name) < 1:
                raise bad_option(name, getattr(self, name), "1 or more")
        if self.depth > 12:
            raise bad_option("depth", self.depth, "12 at most: each level doubles a tree")
        for name in ("shrinkage", "share"):
            if not 0 < getattr(self, name) <= 1:
                raise bad_option(name, getattr(self, name), "more than 0, and at most 1")
        if not self.sparsity >= 0:
            raise bad_option("sparsity", self.sparsity, "0 or more")


class Forest(nn.Module):
    """T complete binary trees: node n has the children 2n + 1 and 2n + 2; leaves repeat down to the last level."""

    def __init__(self) -> None:
        super().__init__()
        self.start: Tensor
        """(1,) margin before any tree."""
        self.feature: Tensor
        """(T, I) feature that each inner node asks for."""
        self.threshold: Tensor
        """(T, I) float32; rows below it go to the first child."""
        self.missing_first: Tensor
        """(T, I) bool: whether rows without that feature go to the first child."""
        self.value: Tensor
        """(T, 2I + 1) what a row adds that ends here: of inner nodes the mean over the rows grown from."""
        self.gain: Tensor
        """(D,) how much each feature lowered the loss in training; their sum is 1 unless no tree has a split."""
        self.register_buffer("start", torch.zeros(1))
        self.register_buffer("feature", torch.zeros(0, 0, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(0, 0))
        self.register_buffer("missing_first", torch.zeros(0, 0, dtype=torch.bool))
        self.register_buffer("value", torch.zeros(0, 0))
        self.register_buffer("gain", torch.zeros(0))

    @classmethod
    def grown(cls, features: Floats, is_defective: Bools, weight: float, seed: int, config: ForestConfig) -> Self:
        """The forest that tells good rows from defective ones.

        Args:
            features: (N, D); NaN is a missing value.
            is_defective: (N,); SegAD gives good rows first, because XGBoost leaves the first two in every tree.
            weight: Of each defective row; a good one weighs 1.
            seed: Of the rows and columns that the trees see.
            config: How.

        Raises:
            ConfigError: XGBoost is not installed.
        """
        try:
            import xgboost
        except ImportError as error:
            raise ConfigError("SegAD needs XGBoost, which is not installed: pip install 'blemish[segad]'") from error
        parameters = {
            "objective": "binary:logitraw",  # the score is the margin itself, not its sigmoid
            "num_parallel_tree": config.trees,
            "max_depth": config.depth,
            "learning_rate": config.shrinkage,
            "subsample": config.share,
            "colsample_bytree": config.share,
            "colsample_bynode": config.share,
            "reg_alpha": config.sparsity,
            "scale_pos_weight": weight,
            "seed": seed,
            "verbosity": 0,
        }
        rows = xgboost.DMatrix(np.asarray(features, np.float32), label=np.asarray(is_defective, np.float32))
        booster = xgboost.train(parameters, rows, num_boost_round=config.rounds)
        forest = cls()
        forest._take(json.loads(booster.save_raw("json")), features.shape[1], config.depth)
        return forest

    def check(self, width: int) -> None:
        """Sees whether the trees fit rows of that width.

        Raises:
            ValueError: they do not.
        """
        if self.feature.numel() and not 0 <= int(self.feature.min()) <= int(self.feature.max()) < width:
            raise ValueError("a tree asks for a feature that there is not")

    def forward(self, features: Tensor) -> Tensor:
        """Log-odds (B,) of being defective, of rows (B, D); NaN is a missing value."""
        node = self._path(features)[-1]
        trees = torch.arange(len(self.value), device=node.device)
        return self.start + self.value[trees, node].sum(1)

    def contributions(self, features: Tensor) -> Tensor:
        """What each feature adds to the margin, (B, D): their sum and `start` and the roots make the margin.

        A split adds the difference between the mean of the child that a row goes to and its own.
        """
        trees = torch.arange(len(self.value), device=features.device)
        path = self._path(features)
        found = torch.zeros_like(features)
        for parent, child in itertools.pairwise(path):
            change = self.value[trees, child] - self.value[trees, parent]
            found.scatter_add_(1, self.feature[trees, parent].long(), change)
        return found

    def _path(self, features: Tensor) -> list[Tensor]:
        """The nodes (B, T) that rows (B, D) go through in each tree, from the root to the last level."""
        trees = torch.arange(len(self.value), device=features.device)
        node = torch.zeros(len(features), len(self.value), dtype=torch.long, device=features.device)
        path = [node]
        for _ in range((self.feature.shape[1] + 1).bit_length() - 1):
            asked = features.gather(1, self.feature[trees, node].long())
            first = torch.where(asked.isnan(), self.missing_first[trees, node], asked < self.threshold[trees, node])
            node = 2 * node + 2 - first.long()
            path.append(node)
        return path

    def _take(self, model: Mapping[str, Any], width: int, depth: int) -> None:
        """Takes over the trees of XGBoost's JSON."""
        learner = model["learner"]
        grown = learner["gradient_booster"]["model"]["trees"]
        inner = 2**depth - 1
        feature = np.zeros((len(grown), inner), np.int32)
        threshold = np.zeros((len(grown), inner), np.float32)
        missing_first = np.zeros((len(grown), inner), bool)
        value = np.zeros((len(grown), 2 * inner + 1), np.float32)
        gain = np.zeros(width)
        for number, tree in enumerate(grown):
            means = _means(tree)
            waiting = [(0, 0)]
            while waiting:
                here, node = waiting.pop()
                value[number, here] = means[node]
                if here >= inner:
                    continue
                children = tree["left_children"][node], tree["right_children"][node]
                if children[0] >= 0:
                    feature[number, here] = tree["split_indices"][node]
                    threshold[number, here] = tree["split_conditions"][node]
                    missing_first[number, here] = tree["default_left"][node]
                    gain[tree["split_indices"][node]] += tree["loss_changes"][node]
                waiting += [(2 * here + way, child if child >= 0 else node) for way, child in enumerate(children, 1)]
        self.start = torch.tensor([float(learner["learner_model_param"]["base_score"].strip("[]"))])
        self.feature, self.threshold = torch.from_numpy(feature), torch.from_numpy(threshold)
        self.missing_first, self.value = torch.from_numpy(missing_first), torch.from_numpy(value)
        self.gain = torch.from_numpy(gain / (gain.sum() or 1)).float()


def _means(tree: Mapping[str, Any]) -> list[float]:
    """The value of each leaf, and of each other node the mean of its children's by their weight in training."""
    left, right, weight = tree["left_children"], tree["right_children"], tree["sum_hessian"]
    means: list[float] = list(tree["split_conditions"])
    for node in reversed(range(len(left))):  # children have higher numbers than their parent
        if (one := left[node]) >= 0:
            other = right[node]
            means[node] = (means[one] * weight[one] + means[other] * weight[other]) / (weight[one] + weight[other])
    return means


def platt(margins: Floats, is_defective: Bools) -> tuple[float, float]:
    """Slope and offset with which sigmoid(slope · margin + offset) is the probability of a defect.

    Targets are softened by the number of rows, so that margins that separate well make no endless
    slope. Where higher margins would mean fewer defects the slope is 0.

    Args:
        margins: (N,) of rows that the forest has not learned from.
        is_defective: (N,).

    Source: Platt 1999, "Probabilistic outputs for support vector machines", section 2.2.
    """
    bad, good = np.count_nonzero(is_defective), np.count_nonzero(~is_defective)
    target = np.where(is_defective, (bad + 1) / (bad + 2), 1 / (good + 2))
    columns = np.stack([margins, np.ones(len(margins))], 1).astype(np.float64)
    slope, offset = _logistic(columns, target)
    return (slope, offset) if slope >= 0 else (0.0, _logistic(columns[:, 1:], target)[0])


def _logistic(columns: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, ...]:
    """Coefficients of the logistic regression of `target` on `columns`, by damped Newton steps."""
    found = np.zeros(columns.shape[1])
    for _ in range(200):
        probability = 1 / (1 + np.exp(-columns @ found))
        hessian = (columns.T * (probability * (1 - probability))) @ columns + 1e-9 * np.eye(len(found))
        step = np.linalg.solve(hessian, columns.T @ (target - probability))
        found += step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    return tuple(float(value) for value in found)
