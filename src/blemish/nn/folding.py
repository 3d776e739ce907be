"""Networks whose normalisations are folded into the convolutions before them: the same function, computed quicker."""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import nn
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
    """A copy of a network, for inference alone, without those batch norms that can be folded.

    Values differ by what rounding in another order does.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        found = deepcopy(network).eval().requires_grad_(False)
        _fold(found)
    return found


def _fold(module: nn.Module) -> None:
    children = list(module.named_children())
    for (before, convolution), (name, norm) in pairwise(children):
        if (
            type(module).__name__ in IN_ORDER
            and isinstance(convolution, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
        ):
            setattr(module, before, fuse_conv_bn_eval(convolution, norm))
            setattr(module, name, getattr(norm, "act", nn.Identity()))  # timm's norms activate, too
    for _, child in children:
        _fold(child)
