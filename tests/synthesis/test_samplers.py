import math

import pytest
import torch
from torch import Tensor

from blemish.errors import ConfigError
from blemish.synthesis.diffusion import estimate, noise_schedule, solver_schedule
from blemish.synthesis.samplers import SOLVERS, Denoiser, ancestral, ddim, dpm, invert
from waves import check, wave

SHORT = noise_schedule(20)
SHAPE = (1, 3, 4, 4)
X, Z = wave(*SHAPE, offset=5.0), wave(*SHAPE, offset=8.0)
CONSTANT = Denoiser(lambda x, time: torch.cat([wave(*SHAPE, offset=6.0), wave(*SHAPE, offset=7.0)], dim=1))
NONE, SOME = torch.zeros(1), torch.tensor([0.2])


@pytest.mark.parametrize(
    ("solver", "strength", "total", "absolute", "entry"),
    [
        ("ancestral", 0.0, -15.002, 47.002, 1),
        ("ancestral", 0.1, -14.8917, 47.019, 1),
        ("ancestral", 0.2, -14.4936, 47.4129, 1),
        ("ddim", 0.0, 2, 48, -1),
        ("ddim", 0.1, -14.4282, 44.7791, 1),
        ("ddim", 0.2, -14.5548, 45.8535, 1),
    ],
)
def test_whole_loops_of_the_reference(solver, strength, total, absolute, entry):
    made = SOLVERS[solver](CONSTANT, X, SHORT, torch.tensor([strength]), lambda: Z)
    check(made, total=total, absolute=absolute, at={(0, 0, 0, 0): entry, (0, 1, 1, 2): -1}, within=1e-4)


def test_strength_0_is_ordinary_sampling_to_the_bit():
    """Written anew, without any inflation."""
    noises = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step)) for step in range(20)]
    given = iter(noises)
    output = torch.cat([wave(2, 3, 8, 8, offset=6.0), wave(2, 3, 8, 8, offset=7.0)], dim=1)
    start = wave(2, 3, 8, 8, offset=1.0)
    made = ancestral(Denoiser(lambda x, time: output * x.mean()), start, SHORT, torch.zeros(2), lambda: next(given))
    x, remaining = start, iter(noises)
    for step in reversed(range(20)):
        found = estimate(SHORT, torch.tensor([step, step]), x, output * x.mean())
        x = found.mean + (torch.exp(0.5 * found.log_variance) * next(remaining) if step else 0)
    assert torch.equal(made, x)


def test_the_last_step_adds_no_noise():
    draws = []

    def noise() -> Tensor:
        draws.append(1)
        return Z

    ancestral(CONSTANT, X, SHORT, SOME, noise)
    assert len(draws) == 19
    one = [ancestral(CONSTANT, X, SHORT.first(1), torch.tensor([s]), noise) for s in (0.0, 0.4)]
    assert torch.equal(*one)


def test_networks_are_told_the_original_times():
    told = []

    def output(x: Tensor, time: Tensor) -> Tensor:
        told.append(int(time[0]))
        return torch.zeros(1, 6, 4, 4)

    for solver in SOLVERS.values():
        solver(Denoiser(output), X, SHORT, NONE, lambda: Z)
    assert told == 3 * list(range(950, -1, -50))


@pytest.mark.parametrize("solver", SOLVERS)
def test_guidance_moves_the_images_where_it_says(solver):
    free = SOLVERS[solver](Denoiser(lambda x, time: _of_normal(x, time, 0.1)), X, SHORT, NONE, lambda: Z)
    to_white = Denoiser(lambda x, time: _of_normal(x, time, 0.1), lambda x, time: torch.full_like(x, 0.5))
    assert (SOLVERS[solver](to_white, X, SHORT, NONE, lambda: Z) > free).all()


def _of_normal(x: Tensor, time: Tensor, deviation: float) -> Tensor:
    """What a perfect network says if the images are normal values of that deviation around 0."""
    kept = noise_schedule().alphas_cumprod[time].float()[:, None, None, None]
    variance = kept * deviation**2 + 1 - kept
    return torch.cat([(1 - kept).sqrt() / variance * x, -torch.ones_like(x)], dim=1)


def test_the_quick_solver_is_of_second_order():
    """For normal values, the way from noise to image is known: the deviation shrinks, and nothing else."""
    start, deviation = wave(1, 3, 4, 4, offset=2.0), 0.4
    perfect = Denoiser(lambda x, time: _of_normal(x, time, deviation))

    def error(solver, steps: int) -> float:
        schedule = solver_schedule(steps)
        kept = float(schedule.alphas_cumprod[-1])
        exact = start * deviation / math.sqrt(kept * deviation**2 + 1 - kept)
        return float((solver(perfect, start, schedule, NONE, lambda: Z) - exact).abs().max())

    assert error(dpm, 20) < error(ddim, 20) / 5
    assert error(dpm, 50) < error(dpm, 20) / 2.5**2
    assert error(ddim, 50) > error(ddim, 20) / 3  # first order


def test_the_quick_solver_refuses_strength():
    with pytest.raises(ConfigError, match="--solver dpm draws no noise"):
        dpm(CONSTANT, X, SHORT, SOME, lambda: Z)


def test_an_inverted_image_comes_back():
    image, deviation = 0.5 * wave(1, 3, 4, 4, offset=3.0), 0.4
    perfect = Denoiser(lambda x, time: _of_normal(x, time, deviation))

    def error(steps: int) -> float:
        schedule = noise_schedule(steps)
        again = ddim(perfect, invert(perfect, image, schedule), schedule, NONE, lambda: Z)
        return float((again - image).abs().max())

    assert error(500) < 0.008
    assert error(500) < error(200) / 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_images_do_not_depend_on_their_batch(solver):
    strengths = torch.tensor([0.0, 0.0, 0.0] if solver == "dpm" else [0.0, 0.1, 0.3])
    start, noise = wave(3, 3, 4, 4, offset=1.0), wave(3, 3, 4, 4, offset=4.0)
    perfect = Denoiser(lambda x, time: _of_normal(x, time, 0.5))
    together = SOLVERS[solver](perfect, start, SHORT, strengths, lambda: noise)
    alone = [
        SOLVERS[solver](perfect, start[i : i + 1], SHORT, strengths[i : i + 1], lambda i=i: noise[i : i + 1])
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
