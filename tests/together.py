"""Trainings that one process does, or several together: `python together.py OUT DATA JOB...` is one of several.

What the first process has learned is written to OUT/JOB.safetensors.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import blemish
import learning
from blemish import detector, distributed
from blemish.models.realnet import RealNet
from blemish.nn.backbone import Backbone
from blemish.nn.norm import BatchNorm2d
from blemish.synthesis import sdas, sdas_training
from blemish.training import TrainingConfig, Unfinished

LIGHT = {"steps": 4, "batch_size": 4, "precision": "float32", "seed": 1, "learning_rate": 0.1, "schedule": "constant"}
CONFIGS = {
    "realnet": {**LIGHT, "evaluations": 1, "afs_batches": 3, "sources": "procedural"},
    "invad": {**LIGHT, "learning_rate": 0.005},  # with more, its plain descent is unstable
    "mvad": {**LIGHT, "batch_size": 6},
    "tocoad": {
        **LIGHT,
        "learning_rate": 0.02,
        "tuning_rate": 0.004,
        "evaluations": 1,
        "sources": "procedural",
        "select": "last",
    },
}


def descent(groups: list[dict], lr: float, **_: object) -> torch.optim.Optimizer:
    """Plain descent in place of Adam, which makes steps as large of a gradient that is nothing but rounding errors."""
    return torch.optim.SGD([{**group, "weight_decay": 0.0} for group in groups], lr=lr)


plainly = partial(patch.object, torch.optim, "AdamW", descent)


def network() -> nn.Module:
    """In double precision: what rounding errors leave is far below what Adam notices."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    return layers.double()


def pictures(step: int) -> Tensor:
    return torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.double)


def fit_network(stop: int | None = None, unfinished: Path | None = None, **budget: float) -> dict[str, Tensor]:
    """The weights of a small network, perhaps stopped before a step."""
    module = network()

    def batch(step: int) -> Tensor:
        return pictures(step)[list(distributed.share(range(12)))]

    config = TrainingConfig(**({"steps": 12} | budget), learning_rate=1e-2, clip=1.0, average=0.5, precision="float32")
    state = unfinished and Unfinished(unfinished, "one", save_every=0)
    outcome, _ = learning.train(module, batch, pictures(999), config.counted(1), state, stop)
    return {
        **module.state_dict(),
        "step": torch.tensor(outcome.step),
        "scores": torch.tensor(outcome.scores, dtype=torch.double),
    }


def fit(job: str, out: Path, data: Path) -> dict[str, Tensor]:
    """The weights that a job comes to."""
    if job == "network":
        return fit_network()
    if job == "killed":
        try:
            fit_network(stop=7, unfinished=out / "killed.state")
        except KeyboardInterrupt:
            return {}
    if job == "resumed":
        return fit_network(unfinished=out / "resumed.state")
    if job == "minutes":
        found = fit_network(minutes=0.01, steps=10**6)
        return {"steps": torch.tensor([int(text) for text in distributed.gathered(str(int(found["step"])))])}
    if job == "diffusion":
        config = replace(
            sdas.PRESETS["tiny"],
            steps=3,
            classifier_steps=2,
            batch_size=4,
            classifier_batch_size=4,
            evaluations=1,
            precision="float32",
            learning_rate=0.1,
        )
        with plainly():
            model = sdas_training.fit(blemish.open_dataset("auto", data), config, "cpu").model
        return dict(model.state_dict())
    raise ValueError(job)


def fit_detector(job: str, data: Path, unfinished: Path | None = None) -> detector.Detector:
    opened = blemish.open_dataset("auto", data, category="cloth")
    if job == "mvad":  # three views a part, but for the last
        numbers = [int(sample.path.stem) for sample in opened.samples]
        joined = zip(opened.samples, numbers, strict=True)
        parts = (
            replace(each, part=f"{each.path.parent}/{number // 3}", view=str(number % 3)) for each, number in joined
        )
        opened = replace(opened, samples=tuple(parts))
    learner = detector.create(job, preset="tiny", config=CONFIGS[job], device="cpu")
    learner.unfinished = unfinished
    # Where norms are folded, one picture alone is rounded otherwise than in a batch, and these few steps of plain
    # descent make a thousand times as much of such errors.
    with plainly(), patch.object(Backbone, "folds", False):
        return learner.fit(opened)


def main() -> None:
    out, data = map(Path, sys.argv[1:3])
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        for job in sys.argv[3:]:
            if job == "killed_realnet":
                kill_realnet(out, data)
                continue
            if job in CONFIGS:
                learner = fit_detector(job, data)
                state, known = learner.state_dict(), repr(learner.fitted)
            else:
                state, known = fit(job, out, data), ""
            about = {"known": json.dumps(distributed.gathered(known))}
            if distributed.is_first():
                save_file(
                    {name: value.contiguous().clone() for name, value in state.items()},
                    out / f"{job}.safetensors",
                    about,
                )


def kill_realnet(out: Path, data: Path) -> None:
    state_of, loss, taken = RealNet.state_of, RealNet.loss, []

    def dying(self: RealNet, batch: object) -> dict[str, Tensor]:
        taken.append(batch)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return loss(self, batch)

    RealNet.loss = dying
    RealNet.state_of = lambda self, data: replace(state_of(self, data), save_every=0.0)
    try:
        fit_detector("realnet", data, out / "realnet.state")
    except KeyboardInterrupt:
        RealNet.loss, RealNet.state_of = loss, state_of


def start(words: list[str], count: int, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """The same program in several processes, as torchrun would start them."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    running = [
        subprocess.Popen(
            [sys.executable, *words],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=1800) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(words, process.returncode, *both)
        for process, both in zip(running, said, strict=True)
    ]


if __name__ == "__main__":
    main()
