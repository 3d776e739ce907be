import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import learning
from blemish import training
from blemish.errors import ConfigError, TrainingError
from blemish.training import Plan, TrainingConfig, Unfinished, choose_precision, optimise


def plan_of(**fields: object) -> Plan:
    return TrainingConfig(**{"precision": "float32", **fields}).counted(5)


PLAN = plan_of(steps=20, learning_rate=1e-2, schedule="cosine", evaluations=4)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    return layers.to(memory_format=torch.channels_last)


def batch(step: int) -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def fit(module: nn.Module, unfinished: Unfinished | None = None, stop: int | None = None, plan: Plan = PLAN):
    return learning.train(module, batch, batch(999), plan, unfinished, stop)


def test_the_loss_falls_and_the_best_weights_are_left():
    module = network()
    outcome, _ = fit(module)
    assert outcome.step == 20
    assert [step for step, _ in outcome.scores] == [5, 10, 15, 20]
    assert outcome.losses[-1][1]["square"] < outcome.losses[0][1]["square"] / 2
    assert outcome.best is not None
    module.eval()
    with torch.inference_mode():
        again = -float((module(batch(999)) - batch(999).mean(1, keepdim=True)).square().mean())
    assert again == pytest.approx(outcome.best[1])


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path):
    whole, resumed = network(), network()
    fit(whole)
    unfinished = Unfinished(tmp_path / "state", "one", save_every=0)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(resumed, unfinished, stop=7)
        resumed = network()
    outcome, taken = fit(resumed, unfinished)
    assert taken == 6
    assert outcome.step == 20
    assert len(outcome.scores) == 4
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_the_state_of_another_training_is_not_taken_up(tmp_path: Path):
    fit(network(), Unfinished(tmp_path / "state", "one", save_every=0))
    assert fit(network(), Unfinished(tmp_path / "state", "one", save_every=0))[1] == 0
    assert fit(network(), Unfinished(tmp_path / "state", "another", save_every=0))[1] == 20


def test_a_damaged_state_is_named(tmp_path: Path):
    state = tmp_path / "state"
    fit(network(), Unfinished(state, "one", save_every=0))
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(TrainingError, match="damaged .*; delete it to begin anew"):
        fit(network(), Unfinished(state, "one"))


def test_saving_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock, saved = [0.0], []

    def slow(*_: object) -> None:
        saved.append(clock[0])
        clock[0] += 2.0  # so the next is 15 (1 + 2 / 3) seconds later at the earliest

    def loss(images: Tensor) -> dict[str, Tensor]:
        clock[0] += 10.0
        return {"square": module(images).square().mean()}

    module = network()
    monkeypatch.setattr(training, "save_file", slow)
    monkeypatch.setattr(training, "replacing", nullcontext)
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    optimise(loss, module, batch, PLAN, None, Unfinished(tmp_path / "state", "one", save_every=15))
    assert saved == [20.0, 52.0, 84.0, 116.0, 148.0, 180.0, 212.0, 214.0]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_with_the_weights_from_before(tmp_path: Path, kind: str):
    module = network()
    before: list[dict[str, Tensor]] = []

    def loss(images: Tensor) -> dict[str, Tensor]:
        before.append({name: value.clone() for name, value in module.state_dict().items()})
        if len(before) == 4 and kind == "loss":
            images = images * math.nan
        made = module(images)
        return {
            "size": made.square().mean() if len(before) < 4 or kind == "loss" else made.sub(made).abs().sqrt().sum()
        }

    unfinished = Unfinished(tmp_path / "state", "one", save_every=0)
    with pytest.raises(
        TrainingError, match=rf"the {kind} of step 4 is not a finite number.*--learning-rate below 0.01"
    ):
        optimise(loss, module, batch, PLAN, None, unfinished)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[-1][name], rtol=0, atol=0)
    again = network()
    with pytest.raises(KeyboardInterrupt):
        fit(again, unfinished, stop=0)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, before[-1][name], rtol=0, atol=0)


def test_time_is_a_budget():
    outcome, _ = fit(network(), plan=plan_of(minutes=0.01, evaluations=2))
    assert 0.6 <= outcome.seconds < 5
    assert len(outcome.scores) == 2


def test_a_batch_that_can_not_be_made_stops_it():
    def broken(step: int) -> Tensor:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        optimise(lambda images: {"x": images.sum()}, network(), broken, PLAN)


def test_half_precision_learns_too():
    outcome, _ = fit(network(), plan=plan_of(steps=20, learning_rate=1e-2, precision="bfloat16"))
    assert outcome.losses[-1][1]["square"] < outcome.losses[0][1]["square"]
    assert choose_precision("auto", torch.device("cpu")) in {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has no end"),
        ({"steps": 0}, "--steps is 0"),
        ({"minutes": -1.0}, "--minutes is -1"),
        ({"steps": 1, "betas": (0.9, 1.0)}, "--betas is"),
        ({"steps": 1, "weight_decay": -0.1}, "--weight-decay is -0.1"),
        ({"steps": 1, "average": 1.0}, "--average is 1.0"),
        ({"steps": 1, "accumulate": 0}, "--accumulate is 0"),
    ],
)
def test_plans_without_sense_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**fields).counted(5)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [({"epochs": 2.5}, 13), ({"epochs": 0.01}, 1), ({"epochs": 9.0, "steps": 7}, 7), ({"minutes": 1.0}, None)],
)
def test_epochs_are_counted_in_batches(fields, steps):
    assert plan_of(**fields).steps == steps


def without_norm() -> nn.Module:
    """A network all of whose parameters have gradients that are more than rounding."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))


def test_the_schedule_and_the_optimiser_are_those_of_torch():
    own, theirs = without_norm(), without_norm()
    fit(own, plan=plan_of(steps=10, learning_rate=0.02, schedule="step", betas=(0.0, 0.99), weight_decay=0.1, clip=0.5))
    parameters = list(theirs.parameters())
    groups = [{"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for p in parameters]
    optimiser = torch.optim.AdamW(groups, lr=0.02, betas=(0.0, 0.99))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [8], 0.1)
    chosen, best = {}, -math.inf
    for step in range(10):
        images = batch(step)
        optimiser.zero_grad()
        (theirs.train()(images) - images.mean(1, keepdim=True)).square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimiser.step()
        schedule.step()
        with torch.inference_mode():
            score = -float((theirs.eval()(batch(999)) - batch(999).mean(1, keepdim=True)).square().mean())
        if score >= best:
            chosen, best = {name: value.clone() for name, value in theirs.state_dict().items()}, score
    for name, value in chosen.items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def plain() -> nn.Module:
    """A network whose batches can be added up: nothing in it depends on who is beside it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1))


def learn(module: nn.Module, plan: Plan, size: int, unfinished: Unfinished | None = None, stop: int | None = None):
    """Trains on one endless row of pictures, `size` at a time."""
    taken = []

    def batches(number: int) -> Tensor:
        return torch.cat([batch(item)[:1] for item in range(number * size, (number + 1) * size)])

    def loss(images: Tensor) -> dict[str, Tensor]:
        if len(taken) == stop:
            raise KeyboardInterrupt
        taken.append(images)
        return {"square": (module(images) - images.mean(1, keepdim=True)).square().mean()}

    return optimise(loss, module, batches, plan, None, unfinished)


def test_batches_that_are_added_up_are_one_large_batch():
    whole, parts = plain(), plain()
    fields = {"steps": 5, "learning_rate": 1e-2, "clip": 0.1}
    one = learn(whole, plan_of(**fields), 6)
    three = learn(parts, plan_of(**fields, accumulate=3), 2)
    assert three.step == one.step == 5
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_the_average_is_warmed_up_and_left():
    """Compared with the same sum written out over the weights of each step."""
    weights = []
    for steps in range(1, 9):
        module = plain()
        learn(module, plan_of(steps=steps, learning_rate=1e-2), 2)
        weights.append(module.state_dict())
    expected = plain().state_dict()
    for number, state in enumerate(weights, start=1):
        decay = min(0.6, (1 + number) / (10 + number))
        expected = {name: decay * value + (1 - decay) * state[name] for name, value in expected.items()}
    averaged = plain()
    learn(averaged, plan_of(steps=8, learning_rate=1e-2, average=0.6), 2)
    for name, value in expected.items():
        torch.testing.assert_close(averaged.state_dict()[name], value)


def test_average_and_added_batches_survive_a_kill(tmp_path: Path):
    plan = plan_of(steps=6, learning_rate=1e-2, average=0.9, accumulate=2)
    whole, resumed = plain(), plain()
    learn(whole, plan, 2)
    with pytest.raises(KeyboardInterrupt):
        learn(resumed, plan, 2, Unfinished(tmp_path / "state", "one", save_every=0), stop=7)
    resumed = plain()
    learn(resumed, plan, 2, Unfinished(tmp_path / "state", "one", save_every=0))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_what_is_judged_is_the_average_and_what_learns_is_not():
    seen, module = [], plain()

    def validate() -> float:
        seen.append({name: value.clone() for name, value in module.state_dict().items()})
        return float(len(seen))

    def loss(images: Tensor) -> dict[str, Tensor]:
        return {"square": (module(images) - images.mean(1, keepdim=True)).square().mean()}

    plan = plan_of(steps=6, learning_rate=1e-2, average=0.9, evaluations=3)
    optimise(loss, module, batch, plan, validate)
    undisturbed = plain()
    optimise(
        lambda images: {"square": (undisturbed(images) - images.mean(1, keepdim=True)).square().mean()},
        undisturbed,
        batch,
        plan,
    )
    for name, value in undisturbed.state_dict().items():
        torch.testing.assert_close(seen[-1][name], value, rtol=0, atol=0)
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)


def test_parameters_may_have_a_rate_of_their_own():
    module, before = network(), network().state_dict()
    fit(module, plan=replace(plan_of(steps=1, learning_rate=1e-2), rates={"0.": 0.1, "3.bias": 0.0}))
    moved = {name: (value - before[name]).abs().max().item() for name, value in module.named_parameters()}
    # Adam's first step is as long as the rate. (The bias before the normalisation has no gradient.)
    del moved["0.bias"]
    expected = {"0.weight": 1e-3, "1.weight": 1e-2, "1.bias": 1e-2, "3.weight": 1e-2, "3.bias": 0.0}
    assert moved == pytest.approx(expected, rel=1e-2, abs=1e-7)


def test_the_weights_that_training_begins_with_may_be_the_best():
    module, before = network(), network().state_dict()
    ruinous = plan_of(steps=4, learning_rate=1e3, evaluations=2)
    outcome, _ = fit(module, plan=replace(ruinous, judge_first=True))
    assert [step for step, _ in outcome.scores] == [0, 2, 4]
    assert outcome.best[0] == 0
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_stages_share_a_file_and_do_not_take_up_each_other(tmp_path: Path):
    first, second = (Unfinished(tmp_path / "state", "same").stage(name) for name in ("I", "II"))
    assert not first.is_there
    fit(network(), first, plan=plan_of(steps=2))
    assert first.is_there
    assert not second.is_there
    module, untouched = network(), network()
    outcome, taken = fit(module, second, plan=plan_of(steps=3))
    assert (outcome.step, taken) == (3, 3)
    assert second.is_there
    assert not first.is_there
    assert not torch.equal(module[0].weight, untouched[0].weight)
