"""Networks whose normalisations are folded into the convolutions before them: the same function, computed quicker."""

from collections.abc import Container
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

IN_ORDER = {
    "BasicBlock",
    "Bottleneck",
    "DepthwiseSeparableConv",
    "EfficientNetFeatures",
    "FeatureListNet",
    "InvertedResidual",
    "Sequential",
}
"""Modules that run a normalisation right after the convolution that stands before it; of others that is not known."""


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network in use, without those batch norms that can be folded and that do not learn now.

    All other tensors are the network's own, not copies, so that what learns goes on learning. Values differ by what
    rounding in another order does.
    """
    own = [*network.parameters(), *network.buffers()]
    learning = {id(value) for value in own if learns(value)}
    found = deepcopy(network, {id(value): value for value in own}).eval()
    with torch.inference_mode(mode=False), torch.no_grad():
        _fold(found, learning)
    return found


def learns(value: Tensor) -> bool:
    """Whether a gradient of this weight may be asked for."""
    return torch.is_grad_enabled() and value.requires_grad


def _fold(module: nn.Module, learning: Container[int]) -> None:
    children = list(module.named_children())
    for (before, convolution), (name, norm) in pairwise(children if type(module).__name__ in IN_ORDER else []):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            if any(id(value) in learning for part in (convolution, norm) for value in part.parameters()):
                continue
            setattr(module, before, fuse_conv_bn_eval(convolution, norm).requires_grad_(False))
            setattr(module, name, getattr(norm, "act", nn.Identity()))  # timm's norms activate, too
    for _, child in children:
        _fold(child, learning)
