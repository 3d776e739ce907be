"""Logistic regression of a few kinds of rows against many ordinary ones."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

STEPS = 25
"""Of L-BFGS, at most."""


def logistic(defective: Tensor, good: Tensor, decay: float) -> Tensor:
    """The direction (D,) that tells rows apart best; both kinds count one half, however many there are.

    Args:
        defective: (P, D) rows, of columns whose deviations are alike.
        good: (N, D).
        decay: What the squared length of the direction costs: the more, the nearer it is to the difference of means.
    """
    rows = torch.cat([defective, good])
    sign = torch.ones(len(rows), device=rows.device)
    sign[: len(defective)] = -1
    share = torch.full((len(rows),), 0.5 / len(good), device=rows.device)
    share[: len(defective)] = 0.5 / len(defective)
    direction = torch.zeros(rows.shape[1], device=rows.device, requires_grad=True)
    offset = torch.zeros(1, device=rows.device, requires_grad=True)
    solver = torch.optim.LBFGS([direction, offset], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = (share * F.softplus(sign * (rows @ direction + offset))).sum() + decay * direction.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    return direction.detach()
