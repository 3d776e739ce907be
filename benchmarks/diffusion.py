"""Diffusion models: how fast they draw, and how far what they draw is from good pictures.

    python benchmarks/diffusion.py speed [--threads 2]
    python benchmarks/diffusion.py paper [--device cuda]
    python benchmarks/diffusion.py distance good.diffusion DATA [--category C] [--count 64]

`speed` compares the sampler of preset `small` with a plain loop: float32, the usual memory layout, attention written
out, the twin paths of a pair one after the other. `paper` takes one step of the 552.8 M U-Net at 256x256 (on a GPU in
several batch sizes), and projects what 10,000 pictures take. `distance` prints, for each strength, the mean distance of
drawn pictures to the nearest good training picture in the features of the embedded backbone, and the same of good
pictures that were not learned from; and what the solver and its steps do to it at strength 0.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from blemish.nn.diffusion import NoiseUNet
from blemish.synthesis import sampling, sdas
from blemish.synthesis.diffusion import ancestral_step, estimate, noise_schedule
from blemish.training import generator

STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
GPUS = {"A40": 149.7e12, "A100": 312e12, "H100 SXM": 989e12}
"""Dense bfloat16 operations a second, from the makers' data sheets."""
GOOD = (("ancestral", 50), ("ancestral", 100), ("ancestral", 250), ("dpm", 10), ("dpm", 20), ("dpm", 50))
"""Solvers and steps that strength 0 is also drawn with."""
BATCHES = {"cpu": (1,), "cuda": (1, 8, 32)}
"""Pictures at once in a step of the paper's network."""
REACHED = (0.2, 0.4)
"""Share of that which convolutional networks usually reach: the assumption of the projection."""


def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as it is written in textbooks."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


def plain(network: NoiseUNet, count: int, strength: float, steps: int) -> None:
    """Pairs of pictures, as one would write it first."""
    schedule = noise_schedule(steps)
    owns = [generator(0, number) for number in range(count)]
    height, width = sdas.PRESETS["small"].image_size
    label = torch.zeros(count, dtype=torch.int64)
    start = torch.stack([torch.randn(3, height, width, generator=own) for own in owns])
    noises = [torch.stack([torch.randn(3, height, width, generator=own) for own in owns]) for _ in range(steps - 1)]
    for inflation in (strength, 0.0):
        x = start
        for step in reversed(range(steps)):
            at = torch.full((count,), step)
            found = estimate(schedule, at, x, network(x, schedule.times[at], label))
            x = ancestral_step(found, torch.full((count,), inflation), noises[step - 1]) if step else found.mean


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The median time of some runs, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def speed(threads: int, count: int, repeats: int) -> None:
    """Prints pictures a second, ours and plainly."""
    torch.set_num_threads(threads)
    config = sdas.PRESETS["small"]
    model = sdas.DiffusionModel(sdas.Known(config, ("part",))).eval()
    network = NoiseUNet(config.width, config.multipliers, config.attention, 1, config.patch).eval()
    drawing = sampling.Drawing(strength=(0.1, 0.1))
    good = sampling.Drawing(strength=(0.0, 0.0), solver="dpm", steps=10)
    print(f"preset small: {config.image_size}, {threads} threads, {count} pictures with twins, {drawing.steps} steps")
    with torch.inference_mode(), mock.patch("torch.nn.functional.scaled_dot_product_attention", written_out):
        usual = seconds(lambda: plain(network, count, 0.1, drawing.steps), repeats)
    print(f"plain loop, float32            {count / usual:8.2f} pairs a second")
    ours = seconds(lambda: list(sampling.draw(model, 0, range(count), drawing)), repeats)
    print(f"ours                           {count / ours:8.2f} pairs a second, {usual / ours:.2f} times as many")
    quick = seconds(lambda: list(sampling.draw(model, 0, range(count), good)), repeats)
    print(f"ours, good ones, dpm, 10 steps {count / quick:8.2f} pictures a second")


def paper(device: str, threads: int, repeats: int) -> None:
    """Prints what one step of the paper's network takes, and the projection."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(threads)
    config = sdas.PRESETS["paper"]
    with torch.device("meta"):
        network = NoiseUNet(config.width, config.multipliers, config.attention, 15)
    x, time_, label = torch.zeros(1, 3, 256, 256), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        network(x.to("meta"), time_.to("meta"), label.to("meta"))
    operations = counter.get_total_flops()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"paper: {parameters:,} parameters, {operations / 1e12:.3f} T operations for one picture and step")
    total = operations * 20 * 2 * 10_000
    print(f"10,000 pictures with twins: 10,000 x 2 x 20 steps x that = {total:.3g} operations; at a share of")
    for name, peak in GPUS.items():
        least, most = (total / (peak * share) / 3600 for share in reversed(REACHED))
        print(
            f"  {REACHED[1]:.0%} to {REACHED[0]:.0%} of {name}'s {peak / 1e12:.0f} T/s: {least:.1f} to {most:.1f} hours"
        )
    network = network.to_empty(device=device).to(torch.bfloat16).to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)

    def step(images: Tensor) -> None:
        count = len(images)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            network(images, time_.to(device).expand(count), label.to(device).expand(count))
        if device == "cuda":
            torch.cuda.synchronize()

    for count in BATCHES[device]:
        images = x.expand(count, -1, -1, -1).to(device, torch.bfloat16, memory_format=torch.channels_last)
        took = seconds(partial(step, images), repeats)
        print(
            f"one step here, {device}, batch {count}, bfloat16, {threads} threads: {took:.3f} s, "
            f"{count * operations / took / 1e12:.3f} T operations a second; 10,000 pictures with twins: "
            f"{10_000 * 2 * 20 * took / count / 3600:.1f} hours"
        )


def distance(file: Path, data: str, category: str, count: int) -> None:
    """Prints the table of distances."""
    import blemish
    from blemish.nn.backbone import Backbone
    from blemish.reading import read_batches
    from blemish.types import Preprocessing

    model = sdas.load(file)
    label = sampling.class_of(model, category)
    name = model.known.categories[label]
    opened = blemish.open_dataset("auto", data, category=name)
    backbone = Backbone().eval()

    def embed(image: Tensor) -> Tensor:
        """(B, D): features averaged over the fields of a grid of 4 x 4."""
        with torch.inference_mode():
            large = nn.functional.interpolate(image, size=(128, 128), mode="bilinear")
            maps = backbone(large)
            return torch.cat([nn.functional.adaptive_avg_pool2d(part, 4).flatten(1) for part in maps], dim=1)

    def read(samples: list[Any]) -> Tensor:
        rule = Preprocessing(model.known.config.image_size, model.known.intensity)
        return torch.cat([embed(torch.from_numpy(batch.images)) for batch in read_batches(samples, rule, 16, [])])

    good = [sample for sample in opened.test if sample.is_anomalous is False]
    train, held_out, unseen = read(opened.train), read(opened.validation), read(good)
    spread = train.std(0) + 1e-6

    def nearest(features: Tensor) -> float:
        return float(torch.cdist(features / spread, train / spread).amin(1).mean()) / spread.numel() ** 0.5

    bad = [sample for sample in opened.test if sample.is_anomalous]
    print(f"{name}: {len(train)} good pictures learned from; mean distance to the nearest of them")
    print(f"| good, held out ({len(held_out)}) | {nearest(held_out):.3f} |\n|---|---|")
    print(f"| good, of the test set ({len(unseen)}) | {nearest(unseen):.3f} |")
    print(f"| truly defective ({len(bad)}) | {nearest(read(bad)):.3f} |")

    def drawn(drawing: sampling.Drawing) -> tuple[float, float]:
        """The distance of drawn pictures, and the share that the strength has changed."""
        made = [one for _, one in sampling.draw(model, label, range(count), drawing)]
        images = torch.stack([torch.from_numpy(one.picture).permute(2, 0, 1).float() / 255 for one in made])
        return nearest(embed(images)), statistics.fmean(float(one.mask.mean()) for one in made)

    for strength in STRENGTHS:
        far, share = drawn(sampling.Drawing(strength=(strength, strength)))
        print(f"| strength {strength:g} ({count}) | {far:.3f} | mask {share:.1%} |", flush=True)
    for solver, steps in GOOD:
        far, _ = drawn(sampling.Drawing(strength=(0.0, 0.0), solver=solver, steps=steps))
        print(f"| strength 0, {solver}, {steps} steps ({count}) | {far:.3f} | |", flush=True)


def main() -> None:
    """Runs one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "paper", "distance"))
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--category", default="")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=BATCHES, default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.threads, given.count, given.repeats)
    elif given.what == "paper":
        paper(given.device, given.threads, given.repeats)
    else:
        distance(given.model, given.data, given.category, given.count)


if __name__ == "__main__":
    main()
