"""Sine-filled tensors: the inputs and weights of the goldens of RealNet and MVAD."""

import numpy as np
import torch
from torch import Tensor, nn


def wave(*shape: int, offset: float) -> Tensor:
    """s(j, c) = sin(0.1 (j + 1) + c), j row-major."""
    numbers = np.arange(1, np.prod(shape) + 1, dtype=np.float64)
    return torch.from_numpy(np.sin(0.1 * numbers + offset).astype(np.float32)).view(*shape)


def fill(module: nn.Module, amplitude: float) -> nn.Module:
    """Sets parameter number i to waves of offset 0.1 i: scales of norms around 1, biases and all else around 0."""
    norms = (nn.GroupNorm, nn.BatchNorm2d, nn.LayerNorm)
    scales = {id(child.weight) for child in module.modules() if isinstance(child, norms) and child.weight is not None}
    with torch.no_grad():
        for number, (name, parameter) in enumerate(module.named_parameters()):
            values = wave(*parameter.shape, offset=0.1 * number)
            if id(parameter) in scales:
                values = 1 + 0.1 * values
            else:
                values = (0.1 if name.endswith("bias") else amplitude) * values
            parameter.copy_(values)
    return module


def check(tensor: Tensor, *, total: float, absolute: float, at: dict[tuple[int, ...], float], within: float) -> None:
    """Compares sum, sum of absolute values, and some entries, with 6 digits given."""
    values = tensor.detach().double()
    assert abs(values.abs().sum() - absolute) <= 2e-5 * absolute, values.abs().sum()
    assert abs(values.sum() - total) <= 2e-5 * absolute, values.sum()
    for place, expected in at.items():
        assert abs(values[place] - expected) <= within + 1e-5 * abs(expected), (place, values[place])
