"""Denoising diffusion: the schedule of noise, the loss, and single steps back; functions of tensors alone.

Images are (B, 3, H, W) in [-1, 1]. A network's output (B, 6, H, W) is the noise it sees, and where in
[-1, 1] the log variance of the step lies between its bounds.

Source: Ho et al., arXiv 2006.11239; Nichol and Dhariwal, arXiv 2102.09672 (learned variance,
respacing, hybrid loss); Song et al., arXiv 2010.02502 (DDIM); Lu et al., arXiv 2211.01095
(DPM-Solver++); Zhang et al. (RealNet), arXiv 2403.05897, section 3.1 (strength).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.errors import ConfigError

TIMES = 1000
"""Times that a network is trained for, 0 to 999."""
HALF_BIN, LEAST_PROBABILITY, EDGE = 1 / 255, 1e-12, 0.999
"""Half of the distance of two grey levels; least probability counted; values beyond are the last bin."""


class NoiseSchedule(NamedTuple):
    """The coefficients of a process, each (S,) float64 (`times` int64), from the least noise to the most."""

    times: Tensor
    """What the network is told at each step."""
    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    """One step nearer to the image."""
    alphas_cumprod_next: Tensor
    """One step further from it; 0 after the last."""
    posterior_variance: Tensor
    """Least variance of a step back."""
    posterior_log_variance: Tensor
    """Its logarithm; that of the first step, which would be infinite, is the second's."""
    posterior_mean_coef1: Tensor
    """Weight of the image in the mean of a step back."""
    posterior_mean_coef2: Tensor
    """Weight of the noisy image."""
    log_betas: Tensor
    """Logarithm of the greatest variance."""

    def first(self, steps: int) -> "NoiseSchedule":
        """The steps nearest to the image."""
        return NoiseSchedule(*(values[:steps] for values in self))

    def to(self, device: torch.device) -> "NoiseSchedule":
        """The same on a device."""
        return NoiseSchedule(*(values.to(device) for values in self))


class Estimate(NamedTuple):
    """What the network makes of a noisy image (B, 3, H, W)."""

    x0: Tensor
    """The image without noise."""
    mean: Tensor
    """Where one step back leads on average."""
    log_variance: Tensor
    """How far around it."""


def linear_betas(times: int = TIMES) -> Tensor:
    """Variances (times,) added at each time: from 0.0001 to 0.02 for 1000 of them."""
    return torch.linspace(0.1 / times, 20 / times, times, dtype=torch.float64)


def noise_schedule(steps: int = TIMES, betas: Tensor | None = None) -> NoiseSchedule:
    """The process of `steps` steps that are evenly spaced among the times of `betas`.

    Args:
        steps: How many; the first whole stride that gives exactly so many is taken.
        betas: (T,) float64; linear ones for 1000 times if not given.

    Raises:
        ConfigError: no whole stride gives so many steps.
    """
    betas = linear_betas() if betas is None else betas
    total = len(betas)
    strides = [stride for stride in range(1, total + 1) if len(range(0, total, stride)) == steps]
    if not strides:
        raise ConfigError(
            f"--steps is {steps}, which no whole stride through {total} times gives; try 10, 20, 50, 100."
        )
    return respaced(betas, torch.arange(0, total, strides[0]))


def solver_schedule(steps: int) -> NoiseSchedule:
    """The process of about `steps` steps at even distances of the logarithm of signal to noise.

    Source: arXiv 2206.00927, section 3.4: what solvers of higher order want.
    """
    betas = linear_betas()
    ratios = (1 - betas).cumprod(0).logit() / 2
    wanted = torch.linspace(float(ratios[0]), float(ratios[-1]), max(steps, 2), dtype=torch.float64)
    return respaced(betas, (ratios[None] - wanted[:, None]).abs().argmin(1).unique())


def respaced(betas: Tensor, times: Tensor) -> NoiseSchedule:
    """The process that stops only at `times` (S,), ascending, of the one with `betas` (T,)."""
    alphas_cumprod = (1 - betas).cumprod(0)[times]
    previous = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    following = torch.cat([alphas_cumprod[1:], alphas_cumprod.new_zeros(1)])
    betas = 1 - alphas_cumprod / previous
    variance = betas * (1 - previous) / (1 - alphas_cumprod)
    # The first step back has none; it counts as the second's, or where there is no second, as the greatest.
    least = variance[1:2] if len(times) > 1 else betas
    return NoiseSchedule(
        times=times,
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        alphas_cumprod_prev=previous,
        alphas_cumprod_next=following,
        posterior_variance=variance,
        posterior_log_variance=torch.cat([least, variance[1:]]).log(),
        posterior_mean_coef1=betas * previous.sqrt() / (1 - alphas_cumprod),
        posterior_mean_coef2=(1 - previous) * (1 - betas).sqrt() / (1 - alphas_cumprod),
        log_betas=betas.log(),
    )


def at(values: Tensor, step: Tensor) -> Tensor:
    """Entries of a schedule (S,) at steps (B,), as (B, 1, 1, 1) float32."""
    return values[step].float()[:, None, None, None]


def diffused(schedule: NoiseSchedule, step: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Images x0 with noise (B, 3, H, W), as noisy as after steps (B,)."""
    kept = schedule.alphas_cumprod
    return at(kept.sqrt(), step) * x0 + at((1 - kept).sqrt(), step) * noise


def estimate(schedule: NoiseSchedule, step: Tensor, x: Tensor, output: Tensor, clip: bool = True) -> Estimate:
    """What the network's output (B, 6, H, W) means for noisy images x (B, 3, H, W) at steps (B,).

    The log variance lies between those of the posterior and of the process (arXiv 2102.09672,
    equation 15).

    Args:
        schedule: Of the process.
        step: Where in it x is.
        x: The noisy images.
        output: Of the network.
        clip: Whether the image without noise is brought to [-1, 1].
    """
    noise, share = output.float().chunk(2, dim=1)
    kept = schedule.alphas_cumprod
    x0 = at((1 / kept).sqrt(), step) * x - at((1 / kept - 1).sqrt(), step) * noise
    x0 = x0.clamp(-1, 1) if clip else x0
    mean = at(schedule.posterior_mean_coef1, step) * x0 + at(schedule.posterior_mean_coef2, step) * x
    share = (share + 1) / 2
    log_variance = share * at(schedule.log_betas, step) + (1 - share) * at(schedule.posterior_log_variance, step)
    return Estimate(x0, mean, log_variance)


def losses(schedule: NoiseSchedule, step: Tensor, x0: Tensor, noise: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image, the squared error of the noise, and the bits that the step's distribution costs: both (B,).

    The second teaches the variance alone: the noise is taken as it is (arXiv 2102.09672, equation 16).

    Args:
        schedule: Of the process.
        step: (B,).
        x0: The images (B, 3, H, W).
        noise: What was added to them by `diffused`.
        output: What the network made of that.
    """
    output = output.float()
    squared = (noise - output[:, :3]).square().flatten(1).mean(1)
    x = diffused(schedule, step, x0, noise)
    found = estimate(schedule, step, x, torch.cat([output[:, :3].detach(), output[:, 3:]], dim=1), clip=False)
    mean = at(schedule.posterior_mean_coef1, step) * x0 + at(schedule.posterior_mean_coef2, step) * x
    log_variance = at(schedule.posterior_log_variance, step)
    divergence = 0.5 * (
        found.log_variance
        - log_variance
        - 1
        + (log_variance - found.log_variance).exp()
        + (mean - found.mean).square() * (-found.log_variance).exp()
    )
    nats = torch.where(step[:, None] == 0, -_log_probability(x0, found).flatten(1), divergence.flatten(1))
    return squared, nats.mean(1) / math.log(2)


def _log_probability(x0: Tensor, found: Estimate) -> Tensor:
    """Of the grey levels x0 under the normal distribution found."""
    centred, scale = x0 - found.mean, (-0.5 * found.log_variance).exp()
    upper, lower = _normal_cdf(scale * (centred + HALF_BIN)), _normal_cdf(scale * (centred - HALF_BIN))
    inside = (upper - lower).clamp(min=LEAST_PROBABILITY).log()
    last = (1 - lower).clamp(min=LEAST_PROBABILITY).log()
    first = upper.clamp(min=LEAST_PROBABILITY).log()
    return torch.where(x0 < -EDGE, first, torch.where(x0 > EDGE, last, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    """The usual approximation by tanh, which the reference has."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def noise_of(schedule: NoiseSchedule, step: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """The noise that makes x of x0; with a clipped x0 it is not the network's."""
    kept = schedule.alphas_cumprod
    return (at((1 / kept).sqrt(), step) * x - x0) / at((1 / kept - 1).sqrt(), step)


def noise_of_velocity(schedule: NoiseSchedule, step: Tensor, x: Tensor, velocity: Tensor) -> Tensor:
    """The noise in x, of which a network says √ᾱ noise - √(1 - ᾱ) image (arXiv 2202.00512, section 4)."""
    kept = schedule.alphas_cumprod
    return at((1 - kept).sqrt(), step) * x + at(kept.sqrt(), step) * velocity


def guided(found: Estimate, gradient: Tensor) -> Estimate:
    """The estimate moved to where a classifier is surer (arXiv 2105.05233, algorithm 1).

    Args:
        found: Without guidance.
        gradient: (B, 3, H, W) of the log probability of the class, times the scale of the guidance.
    """
    return found._replace(mean=found.mean + found.log_variance.exp() * gradient)


def ancestral_step(found: Estimate, strength: Tensor, noise: Tensor) -> Tensor:
    """One step back, drawn from N(mean, (1 + strength) variance) (RealNet, equation 4); strengths (B,)."""
    spread = (1 + strength).sqrt()[:, None, None, None]
    return found.mean + spread * (0.5 * found.log_variance).exp() * noise


def guided_x0(schedule: NoiseSchedule, step: Tensor, x: Tensor, x0: Tensor, gradient: Tensor) -> Tensor:
    """The image without noise moved to where a classifier is surer (arXiv 2105.05233, algorithm 2); not clipped."""
    kept = schedule.alphas_cumprod
    noise = noise_of(schedule, step, x, x0) - at((1 - kept).sqrt(), step) * gradient
    return at((1 / kept).sqrt(), step) * x - at((1 / kept - 1).sqrt(), step) * noise


def ddim_step(schedule: NoiseSchedule, step: Tensor, x: Tensor, x0: Tensor, eta: float = 0.0) -> tuple[Tensor, Tensor]:
    """The mean (B, 3, H, W) and the deviation (B, 1, 1, 1) of one DDIM step back (arXiv 2010.02502, equation 12)."""
    kept, previous = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    deviation = eta * ((1 - previous) / (1 - kept)).sqrt() * (1 - kept / previous).sqrt()
    noise = noise_of(schedule, step, x, x0)
    mean = at(previous.sqrt(), step) * x0 + at((1 - previous - deviation**2).clamp(min=0).sqrt(), step) * noise
    return mean, at(deviation, step)


def ddim_inverse_step(schedule: NoiseSchedule, step: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """One DDIM step away from the image: what a step back would have come from."""
    following = schedule.alphas_cumprod_next
    noise = noise_of(schedule, step, x, x0)
    return at(following.sqrt(), step) * x0 + at((1 - following).sqrt(), step) * noise


def solver_step(schedule: NoiseSchedule, step: int, x: Tensor, x0: Tensor, before: Tensor | None) -> Tensor:
    """One step back of DPM-Solver++ of second order, several steps wide (arXiv 2211.01095, algorithm 2).

    Args:
        schedule: Of the process.
        step: Where in it x is; the same for all images.
        x: Noisy images (B, 3, H, W).
        x0: The images without noise, as estimated there.
        before: The same one step earlier; None at the first, which is of first order.
    """
    if step == 0:
        return x0
    kept, previous = float(schedule.alphas_cumprod[step]), float(schedule.alphas_cumprod_prev[step])
    here = _half_log_snr(kept)
    width = _half_log_snr(previous) - here
    if before is not None:
        ratio = (here - _half_log_snr(float(schedule.alphas_cumprod_next[step]))) / width
        x0 = x0 + (x0 - before) / (2 * ratio)
    return math.sqrt((1 - previous) / (1 - kept)) * x - math.sqrt(previous) * math.expm1(-width) * x0


def _half_log_snr(kept: float) -> float:
    return 0.5 * math.log(kept / (1 - kept))


def classifier_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K) and classes (B,)."""
    return F.cross_entropy(logits.float(), label)
