"""Drawing from a diffusion model: pictures of a wanted strength, and where the strength changed them.

Picture number i draws everything from (seed, i): its strength, where it starts, the noise of each
step. Beside each picture of a strength above 0 runs its twin, from the same start and with the same
noise, but of strength 0; where the two differ, the strength has changed the part.

Source: RealNet, arXiv 2403.05897, section 3.1; starts from real pictures: SDEdit, arXiv 2108.01073.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from blemish.errors import ConfigError, bad_option, not_among
from blemish.images import Bools, Floats, Picture
from blemish.synthesis.diffusion import TIMES, NoiseSchedule, diffused, noise_schedule, solver_schedule
from blemish.synthesis.samplers import SOLVERS, invert
from blemish.synthesis.sdas import DiffusionModel, to_image, to_pictures
from blemish.training import Precision, generator

STRENGTHS = {"ancestral": (0.1, 0.2), "ddim": (0.01, 0.03), "dpm": (0.0, 0.0)}
"""What is recommended for each solver; those of the paper are the first."""
ABSURD = 4.0
"""A strength above it leaves nothing of the part."""
LADDER = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Strengths that are shown below each other."""
AT_ONCE = 8
"""Pictures that are computed together, with as many twins."""
SMOOTHING = 1 / 128
"""Of differences, as a share of the shorter side: a changed place is more than a pixel."""
Begin = Callable[[int], Picture]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures are drawn. The pictures of one set all have the same."""

    strength: tuple[float, float] | None = None
    """Between what values each picture's strength is drawn; the solver's recommended ones if not given."""
    solver: str = "ancestral"
    """ancestral, ddim or dpm."""
    steps: int = 20
    """Of the 1000 times, how many are visited."""
    guidance: float = 0.0
    """Scale of the classifier's gradient."""
    depth: float = 0.5
    """Share of the way to pure noise that real pictures are sent, where they are started from."""
    least_change: int = 16
    """Grey levels by which a pixel must differ from the twin's to count as changed."""
    precision: Precision = "auto"
    """float32 or bfloat16; auto: bfloat16 where the processor is made for it."""
    seed: int = 0
    """Picture i draws from (seed, i)."""

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ConfigError(not_among("solver", self.solver, SOLVERS))
        low, high = self.span
        if not 0 <= low <= high <= ABSURD:
            raise ConfigError(
                f"--strength is {low:g}:{high:g}; expected LOW:HIGH between 0 (good pictures) and {ABSURD:g} "
                f"(nothing is left of the part); the paper has 0.1:0.2."
            )
        if not 0 < self.depth <= 1:
            raise ConfigError(f"--depth is {self.depth:g}; expected above 0 (the picture itself) to 1 (pure noise).")
        if not self.guidance >= 0:
            raise ConfigError(f"--guidance is {self.guidance:g}; expected 0 (none) or more; the paper has 1.")
        if not 0 < self.least_change < 256:
            raise bad_option("least_change", self.least_change, "1 to 255 grey levels")
        if self.seed < 0:
            raise bad_option("seed", self.seed, "0 or more")
        if not 0 < self.steps <= TIMES:
            raise bad_option("steps", self.steps, f"1 to {TIMES}; the paper has 20")
        self.schedule()

    @property
    def span(self) -> tuple[float, float]:
        """Least and greatest strength."""
        return STRENGTHS[self.solver] if self.strength is None else self.strength

    def schedule(self, depth: float = 1.0) -> NoiseSchedule:
        """The steps, or those of the first part of the way; one at least."""
        whole = solver_schedule(self.steps) if self.solver == "dpm" else noise_schedule(self.steps)
        return whole.first(max(1, int((whole.times < depth * TIMES).sum())))


class Drawn(NamedTuple):
    """One picture that was drawn."""

    picture: Picture
    """(H, W, 3) uint8."""
    strength: float
    confidence: Floats
    """(H, W) in [0, 1): how surely the strength changed it there; 0.5 where it changed by `least_change`."""

    @property
    def mask(self) -> Bools:
        """Where the strength changed it (H, W)."""
        return self.confidence >= 0.5

    @property
    def surety(self) -> float:
        """How sure the mask is: the mean confidence inside it, 0 if it is empty."""
        return float(self.confidence[self.mask].mean()) if self.mask.any() else 0.0


def parse_strength(text: str) -> tuple[float, float]:
    """The span in "0.1:0.2", or in "0.1" alone.

    Raises:
        ConfigError: it is neither.

    >>> parse_strength("0.1:0.2"), parse_strength("0")
    ((0.1, 0.2), (0.0, 0.0))
    """
    low, _, high = text.partition(":")
    try:
        return float(low), float(high or low)
    except ValueError as error:
        raise ConfigError(f'--strength is "{text}"; expected a number, or LOW:HIGH such as 0.1:0.2.') from error


def class_of(model: DiffusionModel, category: str) -> int:
    """The number of a category; it may be left out where there is one only.

    Raises:
        ConfigError: the model does not know it.
    """
    known = model.known.categories
    if not category and len(known) == 1:
        return 0
    if category not in known:
        raise ConfigError(f"this diffusion model: {not_among('category', category, known)}")
    return known.index(category)


def draw(
    model: DiffusionModel, label: int, numbers: Sequence[int], drawing: Drawing, begin: Begin | None = None
) -> Iterator[tuple[int, Drawn]]:
    """Pictures of some numbers, each with its number, in ascending order.

    They are computed in groups of `AT_ONCE` that always have the same members, wanted or not: arithmetic
    rounds otherwise for other sizes of a batch, and a picture must not depend on what else is drawn.

    Args:
        model: What draws.
        label: The class of all of them.
        numbers: Which pictures.
        drawing: How.
        begin: The real picture (H, W, 3) uint8 that a number is started from; pure noise if not given.
    """
    low, high = drawing.span
    wanted = set(numbers)
    for first in sorted({number - number % AT_ONCE for number in wanted}):
        group = range(first, first + AT_ONCE)
        owns = [generator(drawing.seed, number) for number in group]
        shares = torch.tensor([float(torch.rand((), generator=own)) for own in owns])
        real = None if begin is None else np.stack([begin(number) for number in group])
        found = _draw_group(model, label, owns, low + (high - low) * shares, drawing, real)
        yield from ((number, drawn) for number, drawn in zip(group, found, strict=True) if number in wanted)


def _draw_group(
    model: DiffusionModel,
    label: int,
    owns: Sequence[torch.Generator],
    strength: Tensor,
    drawing: Drawing,
    real: Picture | None = None,
) -> list[Drawn]:
    """A picture for each generator and strength (B,), perhaps started from real ones (B, H, W, 3) uint8."""
    size = model.known.config.image_size

    def fresh() -> Tensor:
        """Made on the CPU, so that it is the same on all devices."""
        return torch.stack([torch.randn(3, *size, generator=own) for own in owns]).to(model.device)

    paired = bool(strength.any())
    paths = 2 if paired else 1  # each picture, and its twin
    schedule = drawing.schedule(1.0 if real is None else drawing.depth).to(model.device)
    strengths = torch.cat([strength, torch.zeros_like(strength)])[: paths * len(owns)].to(model.device)
    with torch.no_grad():
        start = fresh()
        if real is not None:
            image = to_image(torch.from_numpy(real)).to(model.device)
            if drawing.solver == "ddim":
                start = invert(model.denoiser(label, precision=drawing.precision), image, schedule)
            else:
                step = torch.full((len(owns),), len(schedule.times) - 1, device=model.device)
                start = diffused(schedule, step, image, start)
        start = start.repeat(paths, 1, 1, 1).to(memory_format=torch.channels_last)
        denoiser = model.denoiser(label, drawing.guidance, drawing.precision)
        solve = SOLVERS[drawing.solver]
        made = solve(denoiser, start, schedule, strengths, lambda: fresh().repeat(paths, 1, 1, 1))
    if model.known.categories[label] in model.known.grey:
        made = made.mean(1, keepdim=True).expand_as(made)
    pictures = to_pictures(made)
    own, twins = pictures[: len(owns)], pictures[-len(owns) :]
    return [
        Drawn(picture, float(value), changed(picture, twin, drawing.least_change))
        for picture, twin, value in zip(own, twins, strength, strict=True)
    ]


def changed(picture: Picture, twin: Picture, least_change: int) -> Floats:
    """How surely a picture (H, W, 3) uint8 differs from its twin (H, W), in [0, 1): d / (d + least_change).

    d is the largest difference of the three channels, smoothed a little.
    """
    difference = cv2.absdiff(picture, twin).max(axis=2).astype(np.float32)
    smooth = cv2.GaussianBlur(difference, (0, 0), max(0.5, SMOOTHING * min(difference.shape)))
    return np.asarray(smooth / (smooth + np.float32(least_change)), np.float32)


def ladder(
    model: DiffusionModel,
    labels: Sequence[int],
    count: int,
    strengths: Sequence[float] = LADDER,
    drawing: Drawing | None = None,
) -> Picture:
    """One picture (H, W, 3) uint8: a row for each class and strength, a column for each of `count` numbers.

    In a column, start and noise are the same; only the strength grows from row to row.
    """
    drawing = drawing or Drawing()
    rows = []
    for label in labels:
        for value in strengths:
            owns = [generator(drawing.seed, number) for number in range(count)]
            for own in owns:
                torch.rand((), generator=own)  # where `draw` takes the strength from
            found = _draw_group(model, label, owns, torch.full((count,), value), drawing)
            rows.append(np.concatenate([drawn.picture for drawn in found], axis=1))
    return np.concatenate(rows)
