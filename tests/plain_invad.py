"""InvAD's decoder as the reference has it: what ours must equal, and what the benchmark compares with.

The constant is repeated for each picture, and so are the weights, in grouped convolutions; layer
normalisation; each factor where the paper has it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.nn.invad import Decoder, EqualConv, StyledBlock, StyledConv, UpConv


def plain_decoder(decoder: Decoder, codes: Sequence[Tensor]) -> list[Tensor]:
    """The feature maps, finest first, with the weights of `decoder`."""
    feature = _activated(decoder.constant.repeat(len(codes[0]), 1, 1, 1), decoder.first[0])
    made = []
    for stage, styles, code in zip(decoder.stages, decoder.styles, codes, strict=True):
        style = _activated(_activated(code, styles[0]), styles[1])
        for block in (stage.first, *stage.others):
            feature = _block(feature, block, style)
        made.append(feature)
    return made[::-1]


def _block(feature: Tensor, block: StyledBlock, style: Tensor) -> Tensor:
    if isinstance(block.skip, UpConv):
        weight = block.skip.weight * feature.shape[1] ** -0.5
        skip = _blur(F.conv_transpose2d(feature, weight.transpose(0, 1), stride=2), 2)
        inner = _grouped(F.layer_norm(feature, feature.shape[1:]), block.first[0])
    else:
        skip = _equal(feature, block.skip, 0)
        inner = _styled(feature, block.first, style)
    return (_styled(inner, block.second, style) + skip) / 2**0.5


def _styled(feature: Tensor, layer: StyledConv, style: Tensor) -> Tensor:
    normal = F.layer_norm(feature, feature.shape[1:])
    return _grouped(normal * _equal(style, layer.factor, 1) + _equal(style, layer.shift, 1), layer.convolution)


def _grouped(feature: Tensor, layer: EqualConv) -> Tensor:
    batch, (width, channels, *_) = len(feature), layer.weight.shape
    weight = (layer.weight / (9 * channels) ** 0.5).repeat(batch, 1, 1, 1, 1)
    together = feature.reshape(1, -1, *feature.shape[2:])
    if isinstance(layer, UpConv):
        weight = weight.transpose(1, 2).reshape(-1, width, 3, 3)
        made = F.conv_transpose2d(together, weight, stride=2, groups=batch)
        made = _blur(made.view(batch, width, *made.shape[2:]), 1)
    else:
        made = F.conv2d(together, weight.view(-1, channels, 3, 3), padding=1, groups=batch)
        made = made.view(batch, width, *made.shape[2:])
    return 2**0.5 * F.leaky_relu(made + layer.bias.view(-1, 1, 1), 0.2)


def _blur(feature: Tensor, pad: int) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    fir = (torch.outer(taps, taps) / 16).expand(feature.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(feature, (pad,) * 4), fir, groups=feature.shape[1])


def _equal(feature: Tensor, layer: EqualConv, pad: int) -> Tensor:
    return F.conv2d(feature, layer.weight * layer.weight[0].numel() ** -0.5, layer.bias, padding=pad)


def _activated(feature: Tensor, layer: EqualConv) -> Tensor:
    return 2**0.5 * F.leaky_relu(_equal(feature, layer, 1), 0.2)
