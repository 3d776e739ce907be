import math

import pytest
import torch

from blemish.errors import ConfigError
from blemish.synthesis import diffusion
from blemish.synthesis.diffusion import Estimate, NoiseSchedule, at, noise_schedule
from goldens_diffusion import PLACES, SCHEDULES, STEPS
from waves import check, wave

SHORT = noise_schedule(20)
SHAPE = (1, 3, 4, 4)
X, EPS, V, Z = (wave(*SHAPE, offset=offset) for offset in (5.0, 6.0, 7.0, 8.0))
GRADIENT = 0.5 * wave(*SHAPE, offset=9.0)
OUTPUT = torch.cat([EPS, V], dim=1)


@pytest.mark.parametrize("steps", SCHEDULES)
def test_the_schedule_of_the_reference(steps):
    schedule = noise_schedule(steps)
    derived = {
        "sqrt_recip_alphas_cumprod": (1 / schedule.alphas_cumprod).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / schedule.alphas_cumprod - 1).sqrt(),
        "posterior_log_variance_clipped": schedule.posterior_log_variance,
    }
    assert schedule.times.tolist() == list(range(0, 1000, 1000 // steps))
    for name, entries in SCHEDULES[steps].items():
        values = derived[name] if name in derived else getattr(schedule, name)
        assert len(values) == steps
        for place, expected in entries.items():
            assert float(values[place]) == pytest.approx(expected, rel=2e-7, abs=1e-15), (name, place)


def test_all_times_give_the_betas_back():
    torch.testing.assert_close(noise_schedule(1000).betas, diffusion.linear_betas(), rtol=1e-10, atol=1e-14)
    assert noise_schedule().betas.dtype == torch.float64


def test_steps_that_no_stride_gives_are_refused():
    with pytest.raises(ConfigError, match="--steps is 600, which no whole stride through 1000 times gives"):
        noise_schedule(600)


def quantity(name: str, step: torch.Tensor, strength: float) -> torch.Tensor:
    clipped = diffusion.estimate(SHORT, step, X, OUTPUT)
    free = diffusion.estimate(SHORT, step, X, OUTPUT, clip=False)
    moves = 0.0 if step == 0 else 1.0
    inflation = torch.tensor([strength])
    if name.startswith("ddim eta"):
        eta = float(name.partition("=")[2])
        mean, deviation = diffusion.ddim_step(SHORT, step, X, clipped.x0, eta)
        return mean + moves * (deviation + math.sqrt(strength) * (0.5 * clipped.log_variance).exp()) * Z
    return {
        "mean": lambda: clipped.mean,
        "log_variance": lambda: clipped.log_variance,
        "pred_xstart": lambda: clipped.x0,
        "unclipped_mean": lambda: free.mean,
        "unclipped_xstart": lambda: free.x0,
        "ancestral": lambda: diffusion.ancestral_step(clipped, inflation, moves * Z),
        "ancestral+guidance": lambda: diffusion.ancestral_step(
            diffusion.guided(clipped, GRADIENT), inflation, moves * Z
        ),
        "ddim invert": lambda: diffusion.ddim_inverse_step(SHORT, step, X, clipped.x0),
    }[name]()


@pytest.mark.parametrize("row", STEPS, ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
def test_one_step_of_the_reference(row):
    step, name, strength, total, absolute, *entries = row
    made = quantity(name, torch.tensor([step]), strength)
    check(made, total=total, absolute=absolute, at=dict(zip(PLACES, entries, strict=True)), within=1e-5)


def test_the_velocity_tells_the_noise():
    schedule, step = noise_schedule(), torch.tensor([0, 10, 500, 999])
    x0, noise = (wave(4, 3, 4, 4, offset=offset).double() for offset in (5.0, 6.0))
    kept = schedule.alphas_cumprod[step].view(-1, 1, 1, 1)
    x, velocity = kept.sqrt() * x0 + (1 - kept).sqrt() * noise, kept.sqrt() * noise - (1 - kept).sqrt() * x0
    torch.testing.assert_close(diffusion.noise_of_velocity(schedule, step, x, velocity), noise, rtol=0, atol=1e-6)


BATCH = (4, 3, 4, 4)
LOSSES = {
    "independent": (
        wave(*BATCH, offset=7.0),
        [0.5241675, 0.7700034, 0.5101551, 0.7760582],
        [1.521359, 0.5469181, 0.004056034, 0.01142514],
        [1.269711, 1.632875, 1.252577, 1.641634],
        [0.1108949, 0.1394118, 1.598785e-06, 4.099661e-09],
    ),
    "near": (
        1.3 * wave(*BATCH, offset=6.0) + 0.05 * wave(*BATCH, offset=7.0),
        [0.00150952, 0.0009967375, 0.001489249, 0.001032092],
        [1.300384, 0.08252571, 1.196922e-05, 1.522312e-05],
        [0.07239855, 0.05534866, 0.07180616, 0.05633063],
        [0.1754756, 0.09342426, 1.624097e-07, 5.499379e-12],
    ),
}


@pytest.mark.parametrize("case", LOSSES)
def test_the_loss_of_the_reference(case):
    seen, squared, bits, by_noise, by_variance = LOSSES[case]
    step = torch.tensor([0, 1, 500, 999])
    x0, noise = (1.1 * wave(*BATCH, offset=5.0)).clamp(-1, 1), 1.3 * wave(*BATCH, offset=6.0)
    seen, variance = seen.clone().requires_grad_(), wave(*BATCH, offset=8.0).requires_grad_()
    found = diffusion.losses(noise_schedule(), step, x0, noise, torch.cat([seen, variance], dim=1))
    torch.testing.assert_close(found[0].detach(), torch.tensor(squared), rtol=1e-5, atol=0)
    # What is left of numbers that nearly cancel has fewer digits.
    torch.testing.assert_close(found[1].detach(), torch.tensor(bits), rtol=2e-5, atol=1e-7)
    torch.stack(found).sum().backward()
    torch.testing.assert_close(seen.grad.abs().sum((1, 2, 3)), torch.tensor(by_noise), rtol=1e-5, atol=0)
    torch.testing.assert_close(variance.grad.abs().sum((1, 2, 3)), torch.tensor(by_variance), rtol=1e-3, atol=2e-9)


def test_noise_is_added_as_in_the_reference():
    x0, noise = (1.1 * wave(*BATCH, offset=5.0)).clamp(-1, 1), 1.3 * wave(*BATCH, offset=6.0)
    x = diffusion.diffused(noise_schedule(), torch.tensor([0, 1, 500, 999]), x0, noise)
    check(x[0], total=13.2621, absolute=29.8762, at={(0, 0, 0): -1.00232, (2, 3, 3): -0.415859}, within=1e-5)
    check(x[2], total=-15.9773, absolute=41.2032, at={(0, 0, 0): 0.269427, (2, 3, 3): 1.40863}, within=1e-5)
    check(x[3], total=-13.2881, absolute=38.8476, at={(0, 0, 0): 1.30008, (2, 3, 3): 0.0817555}, within=1e-5)


def test_the_bits_at_time_0_are_those_of_grey_levels():
    """All 256 levels together have probability 1, whatever the distribution."""
    levels = torch.linspace(-1, 1, 256).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    step = torch.zeros(1, dtype=torch.int64)
    found = Estimate(levels, torch.full_like(levels, 0.1), torch.full_like(levels, -2.0))
    probability = diffusion._log_probability(levels, found).exp()
    assert float(probability[0, 0].sum()) == pytest.approx(1, abs=1e-4)
    assert at(noise_schedule().betas, step).dtype == torch.float32


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.2, 1.0])
def test_the_variance_of_a_step_grows_by_the_strength(strength):
    """With a network that gives no noise and v = -1 the variance is (1 + s) times the posterior's."""
    generator = torch.Generator().manual_seed(0)
    step = torch.tensor([10])
    x = torch.zeros(1, 3, 256, 256)
    output = torch.cat([x, torch.full_like(x, -1.0)], dim=1)
    found = diffusion.estimate(SHORT, step, x, output)
    drawn = diffusion.ancestral_step(found, torch.tensor([strength]), torch.randn(x.shape, generator=generator))
    assert float((drawn - found.mean).var()) == pytest.approx(
        (1 + strength) * float(SHORT.posterior_variance[10]), rel=0.01
    )


def test_first_keeps_the_steps_nearest_to_the_image():
    assert isinstance(SHORT.first(5), NoiseSchedule)
    assert SHORT.first(5).times.tolist() == [0, 50, 100, 150, 200]


def test_one_step_alone_is_a_schedule_too():
    only = noise_schedule(1)
    assert only.times.tolist() == [0]
    assert all(len(values) == 1 and torch.isfinite(values).all() for values in only)
