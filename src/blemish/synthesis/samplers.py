"""Solvers: from noise to images, one function each, with the schedule passed in.

All take a denoiser, where to start (B, 3, H, W), the schedule, a strength for each image and a
function that gives the noise of the next step. They are independent of the batch: each image's
result depends on its own start, strength and noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from blemish.errors import ConfigError
from blemish.synthesis.diffusion import (
    Estimate,
    NoiseSchedule,
    ancestral_step,
    ddim_inverse_step,
    ddim_step,
    estimate,
    guided,
    guided_x0,
    solver_step,
)

Noise = Callable[[], Tensor]
"""Gives (B, 3, H, W) standard normal values, the next ones at each call."""


class Denoiser(NamedTuple):
    """What the solvers see of networks; both take images (B, 3, H, W) and times (B,)."""

    output: Callable[[Tensor, Tensor], Tensor]
    """The U-Net's output (B, 6, H, W)."""
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    """What guides it to a class (B, 3, H, W), if anything."""


Solver = Callable[[Denoiser, Tensor, NoiseSchedule, Tensor, Noise], Tensor]


def ancestral(denoiser: Denoiser, start: Tensor, schedule: NoiseSchedule, strength: Tensor, noise: Noise) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1]: each step is drawn from N(mean, (1 + strength) variance).

    With strength 0 this is ordinary sampling (arXiv 2006.11239, algorithm 2). The last step adds no noise.

    Source: RealNet, arXiv 2403.05897, section 3.1.
    """
    x = start
    for step in reversed(range(len(schedule.times))):
        found, gradient = _look(denoiser, schedule, step, x)
        found = found if gradient is None else guided(found, gradient)
        x = ancestral_step(found, strength, noise()) if step else found.mean
    return x


def ddim(denoiser: Denoiser, start: Tensor, schedule: NoiseSchedule, strength: Tensor, noise: Noise) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1]: nothing random but √strength times the learned deviation at each step.

    Strengths of 0.01 to 0.03 are what 0.1 to 0.2 are to `ancestral`.

    Source: arXiv 2010.02502 with eta 0; the strength as in the reference of RealNet.
    """
    x, spread = start, strength.sqrt()[:, None, None, None]
    for step in reversed(range(len(schedule.times))):
        found, gradient = _look(denoiser, schedule, step, x)
        steps = _steps(step, x)
        x0 = found.x0 if gradient is None else guided_x0(schedule, steps, x, found.x0, gradient)
        mean, _ = ddim_step(schedule, steps, x, x0)
        x = mean + spread * (0.5 * found.log_variance).exp() * noise() if step else mean
    return x


def dpm(denoiser: Denoiser, start: Tensor, schedule: NoiseSchedule, strength: Tensor, noise: Noise) -> Tensor:  # noqa: ARG001 - draws none
    """Images (B, 3, H, W) in [-1, 1] in few steps: DPM-Solver++ of second order, without randomness.

    Source: arXiv 2211.01095, algorithm 2.

    Raises:
        ConfigError: a strength is not 0.
    """
    if strength.any():
        raise ConfigError(
            "--solver dpm draws no noise whose strength could change; expected --strength 0, or ancestral."
        )
    x, before = start, None
    for step in reversed(range(len(schedule.times))):
        found, gradient = _look(denoiser, schedule, step, x)
        x0 = found.x0 if gradient is None else guided_x0(schedule, _steps(step, x), x, found.x0, gradient)
        x, before = solver_step(schedule, step, x, x0, before), x0
    return x


SOLVERS: dict[str, Solver] = {"ancestral": ancestral, "ddim": ddim, "dpm": dpm}
"""Name → solver."""


def invert(denoiser: Denoiser, image: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Where `ddim` with strength 0 must start to come (nearly) back to images (B, 3, H, W).

    Source: arXiv 2010.02502, section 4.3.
    """
    x = image
    for step in range(len(schedule.times) - 1):
        found, _ = _look(denoiser, schedule, step, x)
        x = ddim_inverse_step(schedule, _steps(step, x), x, found.x0)
    return x


def _look(denoiser: Denoiser, schedule: NoiseSchedule, step: int, x: Tensor) -> tuple[Estimate, Tensor | None]:
    """What the networks make of x at a step."""
    steps = _steps(step, x)
    times = schedule.times[steps]
    gradient = None if denoiser.gradient is None else denoiser.gradient(x, times)
    return estimate(schedule, steps, x, denoiser.output(x, times)), gradient


def _steps(step: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), step, device=x.device)
