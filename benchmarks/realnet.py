"""Time of a training step of RealNet beside a plain version of the same network, in one run.

    python benchmarks/realnet.py DATA [--preset small] [--steps 30] [--config '{"batch_size": 2}']

The plain version is what one writes down first: float32, the default memory layout, one pass of the
backbone for the good and one for the damaged pictures, torch's own optimiser, batches made when
they are asked for. DATA is a folder of good pictures in a known layout; of the preset "paper" one
step takes minutes and 12 GB (`--preset paper --steps 1 --warm 0 --backbone-weights random
--config '{"batch_size": 1, "afs_batches": 1}'`).
"""

import argparse
import json
import resource
import time
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish import create, open_dataset
from blemish.models.realnet import RealNet
from blemish.nn.realnet import segmentation_loss
from blemish.synthesis.pictures import Pictures, read_groups
from blemish.training import optimise
from blemish.types import Preprocessing


def plain(detector: RealNet, pictures: Pictures, steps: int) -> tuple[float, float]:
    """Seconds a step, and the share of it that making the batch takes."""
    detector.to(memory_format=torch.contiguous_format)
    network, backbone, features = detector.network, deepcopy(detector.backbone), detector.features
    backbone.folds = False
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    network.train()
    making = 0.0
    start = time.perf_counter()
    for number in range(steps):
        asked = time.perf_counter()
        batch = pictures.batch(number, detector.config.batch_size)
        making += time.perf_counter() - asked
        good, damaged = (part.permute(0, 3, 1, 2).contiguous().float() / 255 for part in (batch.clean, batch.damaged))
        with torch.no_grad():
            wanted, seen = features(backbone(good)), features(backbone(damaged))
        logits, restored, _ = network(seen, good.shape[-2:])
        distances = [F.mse_loss(one, other) for one, other in zip(restored, wanted, strict=True)]
        shown = [segmentation_loss(each, batch.mask.squeeze(1)) for each in logits]
        loss = torch.stack(shown).sum() + torch.stack(distances).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    seconds = time.perf_counter() - start
    return seconds / steps, making / seconds


def blemish(detector: RealNet, pictures: Pictures, steps: int) -> tuple[float, float]:
    """Seconds a step, and the share of it that was spent on waiting for batches."""
    detector.to(memory_format=torch.channels_last)
    plan = replace(detector.config, steps=steps, minutes=None, epochs=None).plan(len(pictures))
    outcome = optimise(detector.loss, detector.network, partial(pictures.batch, size=detector.config.batch_size), plan)
    return outcome.seconds / steps, outcome.waited / outcome.seconds


def main() -> None:
    """Runs both and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--config", type=json.loads, default={})
    parser.add_argument("--backbone-weights", default="default")
    options = parser.parse_args()
    detector = create(
        "realnet", preset=options.preset, config=options.config, backbone_weights=options.backbone_weights
    )
    groups = read_groups(
        open_dataset("auto", options.data).train, Preprocessing(detector.config.image_size), "whole", []
    )
    pictures = detector.prepare(groups)
    trained = sum(parameter.numel() for parameter in detector.network.parameters())
    print(f"{trained:,} parameters, batches of {detector.config.batch_size}, {torch.get_num_threads()} threads")
    rates = {}
    for name, run in (("blemish", blemish), ("plain", plain)):
        if options.warm:
            run(detector, pictures, options.warm)
        rates[name], share = run(detector, pictures, options.steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:8} {rates[name]:8.3f} s a step, {share:6.1%} of it for the data, peak so far {peak:.1f} GB")
    print(f"plain / blemish: {rates['plain'] / rates['blemish']:.2f}")


if __name__ == "__main__":
    main()
