import json
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import blemish
import textures
import together
from blemish import distributed
from blemish.errors import ConfigError

JOBS = ("network", "realnet", "invad", "mvad", "tocoad", "diffusion")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two categories; a picture of the first can't be read."""
    root = tmp_path_factory.mktemp("data")
    textures.write(root, "cloth", train=12, test=1)
    textures.write(root, "felt", train=6, test=1)
    (root / "cloth" / "train" / "good" / "003.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory, data) -> Path:
    """What two processes have learned together; they go on where one was killed, too."""
    out = tmp_path_factory.mktemp("made")
    with pytest.raises(KeyboardInterrupt):
        together.fit_network(stop=5, unfinished=out / "resumed.state")
    words = [str(Path(together.__file__)), str(out), str(data), *JOBS, "killed", "resumed", "minutes", "killed_realnet"]
    for process in together.start(words, 2, out):
        assert process.returncode == 0, process.stderr
    return out


def weights(file: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    with safe_open(file, "pt") as opened:
        known = json.loads(opened.metadata()["known"])
        return {name: opened.get_tensor(name) for name in opened.keys()}, known  # noqa: SIM118 - not a mapping


def check_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=10 * atol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_two_processes_learn_what_one_does(made):
    check_same(weights(made / "network.safetensors")[0], together.fit_network(), 1e-8)


def test_two_processes_learn_to_draw_what_one_does(made, data):
    check_same(weights(made / "diffusion.safetensors")[0], together.fit("diffusion", made, data))


@pytest.mark.parametrize("job", ["realnet", "invad", "mvad", "tocoad"])
def test_two_processes_fit_what_one_does(made, data, job):
    found, known = weights(made / f"{job}.safetensors")
    alone = together.fit_detector(job, data)
    check_same(found, alone.state_dict())
    begun = blemish.create(job, preset="tiny", config=together.CONFIGS[job], device="cpu").state_dict()
    moved = [
        (found[name] - value).abs().max() for name, value in begun.items() if name.startswith(("network.", "backbone."))
    ]
    assert max(moved) > 1e-3
    assert known[0] == known[1]  # each process has what the first one has found out
    assert [failure.path.name for failure in alone.failures] == ["003.png"]


def test_a_training_killed_in_two_processes_goes_on_in_one(made):
    check_same(together.fit_network(unfinished=made / "killed.state"), together.fit_network(), 1e-8)


def test_a_training_killed_in_one_process_goes_on_in_two(made):
    check_same(weights(made / "resumed.safetensors")[0], together.fit_network(), 1e-8)


def test_a_detector_killed_in_two_processes_goes_on_in_one(made, data, monkeypatch):
    taken, loss = [], together.RealNet.loss

    def counted(self, batch):
        taken.append(batch)
        return loss(self, batch)

    monkeypatch.setattr(together.RealNet, "loss", counted)
    resumed = together.fit_detector("realnet", data, made / "realnet.state")
    assert len(taken) == 2  # of four
    check_same(resumed.state_dict(), weights(made / "realnet.safetensors")[0])


def test_a_budget_of_time_ends_for_all_at_the_same_step(made):
    steps = weights(made / "minutes.safetensors")[0]["steps"].tolist()
    assert len(steps) == 2
    assert steps[0] == steps[1] > 0


@pytest.fixture
def sent(monkeypatch) -> list[str]:
    """This process is one of two that have the same gradients; grows by what is sent and what comes."""
    log: list[str] = []

    class Sending:
        def wait(self) -> None:
            log.append("waited")

    def all_reduce(value, group=None, async_op=False):
        value.mul_(2)
        log.append("sent" if async_op else "told")
        return Sending()

    monkeypatch.setattr(distributed, "_joined", [distributed._Place(0, 2)])
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "new_group", lambda: None)
    one_each = distributed._buckets
    monkeypatch.setattr(distributed, "_buckets", lambda tensors: one_each(tensors, 1))
    return log


def test_gradients_are_sent_while_earlier_layers_are_computed(sent):
    module = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(3)))
    for place, layer in enumerate(module):
        layer.weight.register_post_accumulate_grad_hook(lambda _, place=place: sent.append(f"layer {place}"))
    averaging = distributed.Averaging(list(module.parameters()))
    picture = torch.ones(1, 4)
    with averaging.during(is_last=False):
        module(picture).sum().backward()
    assert sent == ["layer 2", "layer 1", "layer 0"]
    alone = [parameter.grad.clone() for parameter in module.parameters()]
    del sent[:]
    with averaging.during():
        module(picture).sum().backward()
    assert sent == ["layer 2", "sent", "layer 1", "sent", "layer 0", "sent", "told", "waited", "waited", "waited"]
    for parameter, expected in zip(module.parameters(), alone, strict=True):
        assert torch.equal(parameter.grad, 2 * expected)  # of two batches that add up


def test_gradients_are_sent_in_one_order_whatever_lacks(sent):
    layers = [torch.nn.Linear(2, 2, bias=False) for _ in range(3)]
    first, unused, last = (layer.weight for layer in layers)
    averaging = distributed.Averaging([first, unused, last])
    with averaging.during():
        layers[2](layers[0](torch.ones(1, 2))).sum().backward()
        assert sent == ["sent"]  # the first layer has to wait for one that may come in another process
    assert sent == ["sent", "sent", "sent", "told", "waited", "waited", "waited"]
    assert unused.grad is None  # no process has any
    assert first.grad is not None
    assert last.grad is not None


def test_a_batch_must_be_shared_evenly(monkeypatch):
    monkeypatch.setattr(distributed, "_joined", [distributed._Place(1, 4)])
    assert list(distributed.share(range(8))) == [1, 5]
    with pytest.raises(ConfigError, match=r"9 can't be shared evenly by 4 processes; .* a multiple of 4, .* 12"):
        distributed.share(range(9))


@pytest.mark.slow
def test_a_batch_that_can_not_be_shared_is_one_error(data, tmp_path):
    fit = ["fit", "invad", str(data / "cloth"), "--preset", "tiny", "--batch-size", "9", "--out", "part.blemish"]
    first, second = together.start(["-m", "blemish", *fit, "--device", "cpu"], 2, tmp_path)
    assert (first.returncode, second.returncode) == (2, 2)
    assert "a batch of 9 can't be shared evenly by 2 processes" in first.stderr
    assert "make a multiple of 2, for example 10" in first.stderr
    assert "shared" not in second.stderr + second.stdout
    assert not (tmp_path / "part.blemish").exists()


def test_a_command_that_can_not_be_shared_says_so(tmp_path, monkeypatch):
    from blemish import cli

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"blemish score runs in one process, and torchrun has started 2"):
        cli.run(["score", "part.blemish", "data"])
    with pytest.raises(ConfigError, match="--defects is learned from by one process"):
        cli.run(["fit", "invad", str(tmp_path), "--defects", str(tmp_path), "--out", str(tmp_path / "part.blemish")])


def test_who_is_alone_leaves_others_alone(monkeypatch):
    monkeypatch.setattr(distributed, "_joined", [distributed._Place(1, 4)])
    with ThreadPoolExecutor(1) as pool:
        with distributed.alone():
            inside = copy_context()
            assert (distributed.rank(), distributed.world_size()) == (0, 1)
            assert pool.submit(distributed.world_size).result() == 4  # such as what makes batches meanwhile
            assert pool.submit(inside.run, distributed.world_size).result() == 1
        assert distributed.world_size() == 4


def test_alone_everything_is_as_it_was():
    value = torch.tensor([1.0, 2.0])
    assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)
    assert distributed.total(value) is value
    assert distributed.gathered("text") == ["text"]
    assert distributed.from_first("text", {"a": value}) == ("text", {"a": value})
    assert distributed.number_of_first(0.5) == 0.5
    assert list(distributed.share(range(3))) == [0, 1, 2]
    with distributed.joined(), distributed.in_turn():
        distributed.wait()


@pytest.mark.slow
def test_torchrun_makes_an_artifact(data, tmp_path):
    fit = ["fit", "realnet", str(data / "felt"), "--preset", "tiny", "--steps", "4", "--out", "part.blemish"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "blemish", *fit]
    (done,) = together.start([*torchrun, "--device", "cpu"], 1, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written: part.blemish") == 1
    assert (tmp_path / "part.blemish").exists()
    assert not (tmp_path / "part.blemish.unfinished").exists()
