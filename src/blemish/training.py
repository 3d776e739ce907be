"""Training: the only loop that changes weights. Resumable, and the same after a kill as without one.

A model gives three functions: what a batch is (by its number, so that nothing of the data's state
has to be kept), what its loss is, and how good the weights are now. Everything else is here:
precision, clipping, the learning rate, budgets, progress, saving.

Where several processes share the work (`distributed`), each takes its part of a batch in `batches`,
gradients are averaged as they come, and the first one judges, keeps time and saves; all weights stay
the same. A state can be taken up by any number of processes.
"""

import itertools
import json
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from blemish import distributed, headers
from blemish.errors import ConfigError, TrainingError, bad_option
from blemish.files import replacing
from blemish.progress import Bar, bar
from blemish.types import Outcome

SLOW = 3.0
"""Seconds of saving the unfinished state that double the time to the next one, and so on: large states
take less than a twentieth of a training."""
Data = TypeVar("Data")
Precision = Literal["auto", "float32", "bfloat16"]
Schedule = Literal["constant", "cosine", "step"]
SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda spent: (1 + math.cos(math.pi * spent)) / 2,
    "step": lambda spent: 1.0 if spent < 0.8 else 0.1,
}
"""Factor on the learning rate by the share of the budget that is spent."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long to train, and how."""

    steps: int | None = None
    """Changes of the weights, at most; each learns from a batch."""
    epochs: float | None = None
    """Times to see each picture, at most."""
    minutes: float | None = None
    """Time to learn for, at most."""
    learning_rate: float = 1e-4
    """Of Adam."""
    schedule: Schedule = "constant"
    """Keep the learning rate; or let it fall to 0 (cosine), or to a tenth for the last fifth (step)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How much Adam remembers of earlier gradients and of their squares."""
    weight_decay: float = 0.0
    """Share of the learning rate by which weights (not biases and norms) shrink at each step, as in AdamW."""
    clip: float | None = None
    """Largest norm that gradients may have; longer ones are shortened to it."""
    accumulate: int = 1
    """Batches whose gradients are averaged for each step: as one batch so many times as large, in less memory."""
    average: float = 0.0
    """Decay of a moving average of the weights, which is what is judged and kept; 0 for the weights themselves.
    It is warmed up: after n steps it is at most (1 + n) / (10 + n)."""
    precision: Precision = "auto"
    """float32 or bfloat16; auto: bfloat16 where the processor is made for it."""
    evaluations: int = 10
    """How often the weights are judged on pictures that were held out, evenly over the budget."""

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "minutes", "learning_rate", "clip", "accumulate", "evaluations"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise bad_option(name, value, "a number above 0")
        if not 0 <= min(self.betas) <= max(self.betas) < 1:
            raise bad_option("betas", self.betas, "two numbers from 0 to below 1")
        if not 0 <= self.average < 1:
            raise bad_option("average", self.average, "0 (off) to below 1, for example 0.999")
        if not 0 <= self.weight_decay < math.inf:
            raise bad_option("weight_decay", self.weight_decay, "0 or more")

    def counted(self, batches: float) -> "Plan":
        """The same for so many batches an epoch.

        Raises:
            ConfigError: no budget was given.
        """
        by_epochs = None if self.epochs is None else max(1, math.ceil(self.epochs * batches / self.accumulate))
        return Plan(self, min((steps for steps in (self.steps, by_epochs) if steps is not None), default=None))


@dataclass(frozen=True)
class Plan:
    """A training whose length is known: epochs are counted in batches."""

    config: TrainingConfig
    """How."""
    steps: int | None
    """Changes of the weights, at most."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factors on the learning rate of parameters whose names begin so; 1 for all others."""
    judge_first: bool = False
    """Judge the weights that training begins with, too: they are kept if nothing better comes."""

    def __post_init__(self) -> None:
        if self.steps is None and self.config.minutes is None:
            raise ConfigError("training has no end: give a budget with --steps, --epochs or --minutes.")

    def rate(self, name: str) -> float:
        """The factor on the learning rate of that parameter."""
        return next((factor for beginning, factor in self.rates.items() if name.startswith(beginning)), 1.0)

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is spent; at 1 it is over."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(1.0, max(by_steps, by_time))


@dataclass(frozen=True)
class Unfinished:
    """Where a killed training goes on from."""

    path: Path
    """A file that is written from time to time."""
    fingerprint: str
    """What the training depends on; the file of another training is not taken up."""
    save_every: float = 60.0
    """Seconds between two savings, if these are quick; see `SLOW`."""

    def stage(self, name: str) -> "Unfinished":
        """That of one of several trainings after each other, which share the file: each takes it over in its turn."""
        return replace(self, fingerprint=f"{self.fingerprint} {name}")

    @property
    def is_there(self) -> bool:
        """Whether the first process finds the state of this training there; damage is told of when it is resumed."""
        found = distributed.is_first() and headers.read(self.path, "fingerprint") == self.fingerprint
        return bool(distributed.number_of_first(float(found)))


def optimise(
    loss: Callable[[Data], Mapping[str, Tensor]],
    module: nn.Module,
    batches: Callable[[int], Data],
    plan: Plan,
    validate: Callable[[], float] | None = None,
    unfinished: Unfinished | None = None,
) -> Outcome:
    """What training came to; `module` is left with the best weights, or the last if nothing validates.

    Args:
        loss: The parts of the loss of a batch, by name; their sum is made smaller.
        module: Its parameters that require gradients are trained; its whole state is saved. It is
            in training mode while it learns.
        batches: Batch of a number, always the same; asked ahead, from another thread.
        plan: How long, and how; see `TrainingConfig.counted`.
        validate: How good the module is now, higher = better; it is in evaluation mode then.
        unfinished: Where to go on from and to save to; None to save nothing.

    Raises:
        TrainingError: the loss or its gradient is not a finite number. `module` then has, and the
            unfinished state keeps, the weights from before that step. Or the state is damaged.
    """
    run = _Run(module, plan, unfinished)
    run.resume()
    total = plan.steps or round(60 * (plan.config.minutes or 0))
    batches_ahead = _ahead(batches, run.outcome.step * plan.config.accumulate)
    try:
        with bar("Train", total) as drawn:
            drawn.advance(run.drawn(total))
            if validate is not None and plan.judge_first and not run.outcome.scores:
                run.validate(validate)
            while run.progress < 1:
                before, drawn_before = run.progress, run.drawn(total)
                run.take(loss, batches_ahead, drawn)
                drawn.advance(run.drawn(total) - drawn_before)
                due = int(run.progress * run.config.evaluations) > int(before * run.config.evaluations)
                if validate is not None and due:
                    run.validate(validate)
                run.save_if_due()
    finally:
        batches_ahead.close()
    run.finish()
    return run.outcome


class _Run:
    """A training under way: weights, optimiser, best weights, and what came of it so far."""

    def __init__(self, module: nn.Module, plan: Plan, unfinished: Unfinished | None) -> None:
        self.module, self.plan, self.config, self.unfinished = module, plan, plan.config, unfinished
        kinds: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                kinds.setdefault((plan.rate(name), parameter.dim() > 1), []).append(parameter)
        # Those that shrink come first, as in unfinished states of old.
        groups = sorted(kinds.items(), key=lambda kind: not kind[0][1])
        self.parameters = [parameter for _, own in groups for parameter in own]
        self.averaging = distributed.Averaging([each for each in module.parameters() if each.requires_grad])
        # Without decay this is Adam, to the last digit.
        self.optimiser = torch.optim.AdamW(
            [
                {"params": own, "rate": rate, "weight_decay": self.config.weight_decay if shrinks else 0.0}
                for (rate, shrinks), own in groups
            ],
            lr=self.config.learning_rate,
            betas=self.config.betas,
            fused=True,
        )
        self.outcome = Outcome()
        self.best: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.device = self.parameters[0].device
        self.precision = choose_precision(self.config.precision, self.device)
        self.last_saved, self.saving = time.monotonic(), 0.0

    @property
    def progress(self) -> float:
        return self.plan.progress(self.outcome.step, self.outcome.seconds)

    def drawn(self, total: int) -> int:
        return round(self.progress * total)

    def take(self, loss: Callable[[Data], Mapping[str, Tensor]], batches: Iterator[Data], drawn: Bar) -> None:
        """Changes the weights once, after the gradients of `config.accumulate` batches."""
        start = time.monotonic()
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * group["rate"] * SCHEDULES[self.config.schedule](self.progress)
        self.module.train()
        buffers = [buffer.clone() for buffer in self.module.buffers()]  # a bad forward pass spoils running means
        values: dict[str, float] = {}
        self.optimiser.zero_grad(set_to_none=True)
        for number in range(1, self.config.accumulate + 1):
            asked = time.monotonic()
            batch = next(batches)
            self.outcome.waited += time.monotonic() - asked
            with autocast(self.device, self.precision):
                parts = loss(batch)
            means = distributed.total(torch.stack([part.detach().float() for part in parts.values()]))
            for name, mean in zip(parts, (means / distributed.world_size()).tolist(), strict=True):
                values[name] = values.get(name, 0.0) + mean / self.config.accumulate
            if not math.isfinite(sum(values.values())):
                self._stop("loss", values, buffers)
            with self.averaging.during(number == self.config.accumulate):
                (torch.stack([part.float() for part in parts.values()]).sum() / self.config.accumulate).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf)
        if not norm.isfinite():
            self._stop("gradient", values, buffers)
        self.optimiser.step()
        self.outcome.step += 1
        self._follow()
        self._spend(start)
        if self.outcome.step % max(1, (self.plan.steps or 1000) // 100) == 0:
            self.outcome.losses.append((self.outcome.step, values))
        drawn.describe("Train  " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def _spend(self, start: float) -> None:
        """Counts the time since then; all processes go by the clock of the first, so that all end together."""
        self.outcome.seconds = distributed.number_of_first(self.outcome.seconds + time.monotonic() - start)

    def _follow(self) -> None:
        """Moves the average towards the weights."""
        decay = min(self.config.average, (1 + self.outcome.step) / (10 + self.outcome.step))
        for name, value in self.module.state_dict().items() if self.average else ():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def validate(self, score: Callable[[], float]) -> None:
        """Asks how good the weights are, and keeps them if they are the best so far."""
        start = time.monotonic()
        live = _copy(self.module) if self.average else {}
        self._load(self.average)
        self.module.eval()
        is_judge = distributed.is_first()
        with torch.inference_mode(), distributed.alone():
            value = score() if is_judge else 0.0
        value = distributed.number_of_first(value)
        value = value if math.isfinite(value) else -math.inf
        self.outcome.scores.append((self.outcome.step, value))
        if self.outcome.best == self.outcome.scores[-1]:
            self.best = _copy(self.module)
        self._load(live)
        self._spend(start)

    def finish(self) -> None:
        """Leaves the best weights in the module; the unfinished state stays until its owner has saved them."""
        self._save()
        self._load(self.best or self.average)
        self.module.eval()

    def resume(self) -> None:
        """Goes on from the unfinished state, if there is one of this training."""
        text, tensors = distributed.from_first(*self._read())
        if tensors:
            self.module.load_state_dict(_below("module", tensors))
        if not text:
            self.average = _copy(self.module) if self.config.average else {}
            return
        outcome = json.loads(text)
        self.outcome = Outcome(
            outcome["step"],
            outcome["seconds"],
            [(step, score) for step, score in outcome["scores"]],
            [(step, values) for step, values in outcome["losses"]],
            outcome["waited"],
        )
        self.best = _below("best", tensors)
        self.average = {name: value.to(self.device) for name, value in _below("average", tensors).items()}
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimiser", tensors).items():
            number, _, key = name.partition(".")
            # In the parameter's own memory layout, as the optimiser would have made it.
            like = self.parameters[int(number)]
            own = torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value
            state.setdefault(int(number), {})[key] = own
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})

    def _read(self) -> tuple[str, dict[str, Tensor]]:
        """The outcome so far and the tensors of the unfinished state; where there is none, no outcome, and the weights.

        Only the first process looks: the others may be on machines that have no such file.
        """
        begun = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        if self.unfinished is None or not distributed.is_first() or not self.unfinished.path.is_file():
            return "", begun
        try:
            with safe_open(self.unfinished.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != self.unfinished.fingerprint:
                    return "", begun
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                return metadata["outcome"], tensors
        except SafetensorError as error:
            raise TrainingError(
                f"{self.unfinished.path}: the state of an unfinished training, which is damaged ({error}); "
                "delete it to begin anew."
            ) from error

    def save_if_due(self) -> None:
        """Saves the unfinished state, if that was long ago."""
        if self.unfinished is None:
            return
        if time.monotonic() - self.last_saved >= self.unfinished.save_every * (1 + self.saving / SLOW):
            self._save()

    def _save(self) -> None:
        if self.unfinished is None or not distributed.is_first():
            return
        start = time.monotonic()
        moments = self.optimiser.state_dict()["state"]
        groups = {
            "module": self.module.state_dict(),
            "best": self.best,
            "average": self.average,
            "optimiser": {f"{number}.{key}": value for number, own in moments.items() for key, value in own.items()},
        }
        tensors = {
            f"{group}.{name}": value.detach().cpu().contiguous().clone()
            for group, values in groups.items()
            for name, value in values.items()
        }
        metadata = {"fingerprint": self.unfinished.fingerprint, "outcome": json.dumps(asdict(self.outcome))}
        with replacing(self.unfinished.path) as temporary:
            save_file(tensors, temporary, metadata)
        self.last_saved = time.monotonic()
        self.saving = self.last_saved - start

    def _load(self, state: Mapping[str, Tensor]) -> None:
        """Gives the module these weights, if there are any."""
        if state:
            self.module.load_state_dict(state)

    def _stop(self, what: str, values: Mapping[str, float], buffers: list[Tensor]) -> NoReturn:
        """Puts back what the bad step has changed, saves, and says so."""
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self._save()
        kept = "" if self.unfinished is None else f" The weights from before it are in {self.unfinished.path}."
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise TrainingError(
            f"the {what} of step {self.outcome.step + 1} is not a finite number ({parts}).{kept} "
            f"Try a --learning-rate below {self.config.learning_rate:g}, --clip 1, or --precision float32."
        )


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f'--device is "{name}", which is not to be had here; expected auto, cpu or cuda.') from error
    return torch.device(name)


def generator(seed: int, *key: int) -> torch.Generator:
    """A generator for one item: the same whatever the batch size, the workers and the processes."""
    entropy = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))


def choose_precision(name: Precision, device: torch.device) -> torch.dtype:
    """What "auto" means on this device: bfloat16 where it has units for it, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        is_quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older versions of torch do not know, and compute in float32.
        capabilities: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        is_quick = device.type == "cpu" and bool(capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return torch.bfloat16 if is_quick else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Inside, convolutions and matrix products are computed in `precision`."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _below(group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{group}."): value for name, value in tensors.items() if name.startswith(f"{group}.")}


def _ahead(batches: Callable[[int], Data], start: int) -> Generator[Data]:
    """Batches number `start` and following, the next two of them always being made in another thread."""
    context = copy_context()  # which knows who shares the batches, whatever else goes on meanwhile
    with ThreadPoolExecutor(1) as pool:
        made = deque(pool.submit(context.run, batches, number) for number in (start, start + 1))
        try:
            for number in itertools.count(start + 2):
                first = made.popleft()
                made.append(pool.submit(context.run, batches, number))
                yield first.result()
        finally:
            for waiting in made:
                waiting.cancel()
