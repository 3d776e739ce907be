"""Batch normalisation over all processes that share a batch, on every kind of device."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from blemish import distributed


class _BatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the base of all has no public name
    """torch's, with the mean and the variance of the whole batch where several processes share it.

    Shares may differ in size. In one process, and outside training, it is torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """The same shape (B, C, ...), normalised."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        own = torch.tensor(float(input.numel() // input.shape[1]), dtype=wide.dtype, device=input.device)
        count = distributed.total(own)
        others, shape = [0, *range(2, input.dim())], (-1, *[1] * (input.dim() - 2))
        mean = summed(wide.sum(others)) / count
        centred = wide - mean.view(shape)
        variance = summed(centred.square().sum(others)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics."""
        self.get_buffer("num_batches_tracked").add_(1)
        self.get_buffer("running_mean").lerp_(mean, self.momentum or 0.0)
        self.get_buffer("running_var").lerp_(variance, self.momentum or 0.0)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Of embeddings (B, C)."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Of feature maps (B, C, h, w)."""


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 - torch's interface
        return distributed.total(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        # What one process has put in changes the loss of each.
        return distributed.total(gradients[0])


def summed(value: Tensor) -> Tensor:
    """The sum over all processes, through which gradients go to each of them."""
    return cast(Tensor, _Sum.apply(value))
