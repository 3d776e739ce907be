"""Whether looking at views together helps: MVAD with all views of a part, with each alone, and other models.

    python benchmarks/multiview.py OUT [--parts 60] [--steps 300] [--seeds 0,1,2] [--size 64] [--ways together,…]

Renders boxes that are seen from above and from four sides, one set of parts for each seed. They come in six
variants that differ in colours and pattern; parts also differ in which of nine dots are
printed on the top and which of three on each side, in light and in pose. All of that is the same in all views
of a part. Defects show in some views only:

- scratch: a bright line on a side, or on the top where it glints in two views;
- dent: on the top, just like one more printed dot, but the light shows it in one view only;
- panel: a side is another variant's;
- film: from one direction the whole part looks like another variant, so that this view alone is like a good one.

A scratch can be told in the picture that shows it. A panel can be told there too, beside the top that is right,
but more easily beside the other views. Of a dent and a film only the other views tell.

Each way learns from the same pictures for as many batches of as many pictures, a fifth of them held out, and
a part's score is the highest of its views'. What is done lies in OUT and is not done again. The last table is
of a training step: the windows of MVAD beside attention to all tokens of the other views, each in a process
of its own.
"""

import argparse
import csv
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

VIEWS = ("C1", "C2", "C3", "C4", "C5")
KINDS = ("scratch", "dent", "panel", "film")
WAYS = {
    "together": ("mvad", "MVAD, views together"),
    "equal": ("mvad", "the same, own view as heavy as what it sees"),
    "alone": ("mvad", "MVAD, each view alone"),
    "patchcore": ("patchcore", "PatchCore, maximum"),
}
"""What is compared: model, and its name in the table."""
ATTENTIONS = {"windows": "MVAD's windows", "all": "all tokens, fused", "plain": "all tokens, plain"}
VARIANTS = 6  # of parts, in the same numbers
TEXTURE = 112  # pixels on a side of a face
HALF = np.float32([1.0, 1.0, 0.7])  # of the box, in its own lengths
TOP = 0
TOP_DOTS = [(row, column) for row in (0.25, 0.5, 0.75) for column in (0.25, 0.5, 0.75)]
SIDE_DOTS = [(0.5, column) for column in (0.25, 0.5, 0.75)]
"""(down, right) of where dots may be, in sides of a face."""
EVERYWHERE = np.ones((TEXTURE, TEXTURE), np.float32)
FACES = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ((0, -1, 0), (0, 0, -1), (-1, 0, 0)),
    ((1, 0, 0), (0, 0, -1), (0, -1, 0)),
)
"""Right, down and outward of each face: the top, and the side that each of C2 to C5 sees."""


@dataclass(frozen=True)
class Look:
    """What parts of a variant are made of: two colours in a pattern, and the colour of what is printed."""

    variant: int
    body: Floats
    second: Floats
    pattern: Floats
    """(TEXTURE, TEXTURE): where the second colour is."""
    ink: Floats

    def on(self, printed: Floats) -> Floats:
        """A face (TEXTURE, TEXTURE, 3) with ink where it is printed (TEXTURE, TEXTURE)."""
        body = _blended(np.broadcast_to(self.body, (TEXTURE, TEXTURE, 3)), self.second, self.pattern)
        return _blended(body, self.ink, printed)


@dataclass(frozen=True)
class Part:
    """A part: what its faces show, and where which view sees a defect."""

    textures: list[Floats]
    """(TEXTURE, TEXTURE, 3) for each face."""
    marks: dict[int, dict[int, tuple[Floats, Floats]]]
    """{view: {face: what it shows there instead, and mask}} of views that see the defect."""
    turn: float
    shift: Floats
    light: Floats


def make_part(seed: int, number: int, kind: str) -> Part:
    """The part of that number; it is good if `kind` is empty."""
    random = np.random.default_rng([seed, number])
    look = look_of(int(random.integers(VARIANTS)))
    dots = [random.random(len(TOP_DOTS if face == TOP else SIDE_DOTS)) < 0.5 for face in range(len(FACES))]
    if kind == "dent" and dots[TOP].all():
        dots[TOP][random.integers(len(TOP_DOTS))] = False
    prints = [_print(face, dots[face]) for face in range(len(FACES))]
    textures = [look.on(printed) for printed in prints]
    turn, shift = random.uniform(-0.06, 0.06), np.float32([*random.uniform(-0.06, 0.06, 2), 0])
    angle = random.uniform(0, 2 * math.pi)
    light = np.float32([0.5 * math.cos(angle), 0.5 * math.sin(angle), 0.87])
    marks: dict[int, dict[int, tuple[Floats, Floats]]] = {}
    if kind == "film":
        view, other = int(random.integers(len(VIEWS))), _another(random, look)
        marks[view] = {number: (other.on(printed), EVERYWHERE) for number, printed in enumerate(prints)}
    elif kind:
        face, views = _where(random, kind)
        damage = {face: _damaged(random, kind, look, dots[face])}
        marks = dict.fromkeys(views, damage)
    return Part(textures, marks, turn, shift, light)


@cache
def look_of(variant: int) -> Look:
    """The look of a variant, the same for all seeds."""
    random = np.random.default_rng(variant)

    def colour(low: int, high: int) -> Floats:
        hsv = np.array([[[random.integers(0, 180), random.integers(60, 160), random.integers(low, high)]]], np.uint8)
        return np.float32(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]) / 255

    return Look(variant, colour(170, 220), colour(90, 130), _pattern(random, variant % 3), colour(20, 40))


def _another(random: np.random.Generator, look: Look) -> Look:
    """The look of another variant."""
    return look_of((look.variant + int(random.integers(1, VARIANTS))) % VARIANTS)


def _pattern(random: np.random.Generator, kind: int) -> Floats:
    """Stripes, checks or spots of any angle, period and share."""
    angle, period = random.uniform(0, math.pi), random.uniform(14, 30)
    limit = random.uniform(-0.4, 0.4)
    rows, columns = np.mgrid[:TEXTURE, :TEXTURE] * (2 * math.pi / period)
    along = np.sin(columns * math.cos(angle) + rows * math.sin(angle))
    across = np.sin(rows * math.cos(angle) - columns * math.sin(angle))
    wave = (along, along * across, (along + across) / 1.4)[kind]
    return np.asarray(np.clip(4 * (wave - limit) + 0.5, 0, 1), np.float32)


def _print(face: int, dots: NDArray[np.bool_]) -> Floats:
    """Where ink is on a face: a line on two edges, and the dots that it has."""
    ink = np.zeros((TEXTURE, TEXTURE), np.float32)
    ink[6:9, 6:-6] = ink[-9:-6, 6:-6] = 0.9
    for place in np.array(TOP_DOTS if face == TOP else SIDE_DOTS)[dots]:
        ink = np.maximum(ink, _dot(place))
    return ink


def _dot(place: NDArray[np.float64]) -> Floats:
    rows, columns = np.mgrid[:TEXTURE, :TEXTURE] + 0.5
    distance = np.hypot(rows - TEXTURE * place[0], columns - TEXTURE * place[1])
    return np.asarray(0.9 * np.clip(8 - distance, 0, 1), np.float32)


def _blended(texture: Floats, colour: Floats, opacity: Floats) -> Floats:
    return np.float32(texture * (1 - opacity[:, :, None]) + colour * opacity[:, :, None])


def _where(random: np.random.Generator, kind: str) -> tuple[int, list[int]]:
    """The face of the defect, and the views that see it."""
    if kind == "dent" or (kind == "scratch" and random.random() < 0.5):
        return TOP, random.permutation(len(VIEWS))[: 1 if kind == "dent" else 2].tolist()
    side = int(random.integers(1, len(FACES)))
    return side, [side]  # the view of that number sees it


def _damaged(random: np.random.Generator, kind: str, look: Look, dots: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The face with the defect, and where that is."""
    face = TOP if len(dots) == len(TOP_DOTS) else TOP + 1
    texture = look.on(_print(face, dots))
    if kind == "panel":
        return _another(random, look).on(_print(face, dots)), EVERYWHERE
    if kind == "dent":
        opacity = _dot(np.array(TOP_DOTS)[random.choice(np.flatnonzero(~dots))])
        return _blended(texture, look.ink, opacity), np.asarray(opacity > 0.3, np.float32)
    line = np.zeros(texture.shape[:2], np.uint8)
    start, angle = random.uniform(30, TEXTURE - 30, 2), random.uniform(0, math.pi)
    end = start + random.uniform(25, 45) * np.array([math.cos(angle), math.sin(angle)])
    cv2.line(line, start.round().astype(int).tolist(), end.round().astype(int).tolist(), 255, 3, cv2.LINE_AA)
    opacity = np.float32(line) / 255
    return _blended(texture, np.full(3, 0.95, np.float32), opacity), np.asarray(opacity > 0.3, np.float32)


def render(
    part: Part, view: int, size: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The picture (size, size, 3) and the mask (size, size) of one view, drawn at twice the size."""
    big = 2 * size
    picture = np.full((big, big, 3), 0.32, np.float32) + random.uniform(-0.03, 0.03)
    mask = np.zeros((big, big), np.float32)
    centre, axes = _camera(view, random)
    marks = part.marks.get(view, {})
    turned = np.float32(
        [[math.cos(part.turn), -math.sin(part.turn), 0], [math.sin(part.turn), math.cos(part.turn), 0], [0, 0, 1]]
    )
    for number, face in enumerate(np.float32(FACES)):
        right, down, out = face @ turned.T
        reach = np.abs(face) @ HALF
        middle = out * reach[2] + part.shift
        if out @ (centre - middle) <= 0.02:
            continue
        corners = np.stack(
            [middle + x * right * reach[0] + y * down * reach[1] for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        )
        inside = (corners - centre) @ axes.T
        points = np.float32(big / 2 + big * 1.9 * inside[:, :2] / inside[:, 2:])
        sides = np.float32([[0, 0], [TEXTURE, 0], [TEXTURE, TEXTURE], [0, TEXTURE]])
        warp = cv2.getPerspectiveTransform(sides, points)
        texture, where = marks.get(number, (part.textures[number], None))
        shade = 0.5 + 0.5 * max(0.0, float(out @ part.light))
        layers = np.dstack([texture * shade, np.ones((TEXTURE, TEXTURE), np.float32)])
        drawn = cv2.warpPerspective(layers, warp, (big, big), flags=cv2.INTER_LINEAR)
        cover = drawn[:, :, 3:]
        picture = picture * (1 - cover) + drawn[:, :, :3]
        if where is not None:
            mask = np.maximum(mask, cv2.warpPerspective(where, warp, (big, big), flags=cv2.INTER_NEAREST))
    small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    small = small * random.uniform(0.93, 1.07) + random.normal(0, 0.012, small.shape)
    found = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA) > 0.25
    return np.uint8(np.clip(small, 0, 1) * 255), np.uint8(found) * 255


def _camera(view: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Where it is, and its right, down and forward as rows."""
    height = math.pi / 2 if view == 0 else math.pi / 4
    around = (view - 1) * math.pi / 2 if view else 0.0
    height, around = height - abs(random.normal(0, 0.02)), around + random.normal(0, 0.02)
    back = np.float32([math.cos(height) * math.cos(around), math.cos(height) * math.sin(around), math.sin(height)])
    right = np.float32([-math.sin(around), math.cos(around), 0])
    return 6 * back, np.stack([right, np.cross(-back, right), -back])


def write_parts(folder: Path, seed: int, parts: int, size: int) -> None:
    """Writes `parts` good parts to learn from, and as many good and as many defective ones to test on."""
    rows = []
    for number in range(3 * parts):
        kind = KINDS[number % len(KINDS)] if number >= 2 * parts else ""
        part = make_part(seed, number, kind)
        for view, name in enumerate(VIEWS):
            picture, mask = render(part, view, size, np.random.default_rng([seed, number, view]))
            shots, masks = (folder / kind_of / f"{number:04}" / f"{name}.png" for kind_of in ("parts", "masks"))
            shots.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(shots), picture[:, :, ::-1])
            is_seen = bool(mask.any())
            if is_seen:
                masks.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(masks), mask)
            rows.append(
                {
                    "path": shots.relative_to(folder).as_posix(),
                    "split": "train" if number < parts else "test",
                    "label": "bad" if is_seen else "good",
                    "defect": kind if is_seen else "",
                    "mask": masks.relative_to(folder).as_posix() if is_seen else "",
                    "category": "box",
                    "part": f"{number:04}",
                    "view": name,
                }
            )
    temporary = folder / "manifest.tmp"
    with temporary.open("w", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    temporary.replace(folder / "manifest.csv")  # last, so that a killed run writes all again


def measure(way: str, folder: Path, seed: int, config: dict[str, Any]) -> dict[str, float]:
    """Fits one way, and scores the test parts, in this process."""
    from sklearn.metrics import roc_auc_score

    import blemish
    from blemish.judging import judge

    data = blemish.open_dataset("manifest", folder, seed=seed)
    known = {str(sample.path): sample for sample in data.samples}
    if way in ("alone", "patchcore"):
        # Each view is a part of its own; which view it is stays known.
        data = replace(data, samples=tuple(replace(one, part=f"{one.part}/{one.view}") for one in data.samples))
    start, cpu = time.perf_counter(), time.process_time()
    detector = blemish.create(WAYS[way][0], preset="small", config=config, device="cpu").fit(data)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    artifact = folder / f"{way}.blemish"
    blemish.save(detector, artifact)
    rows = [each.scored for each in judge(blemish.load(artifact, device="cpu"), data.test, [])]
    artifact.unlink()
    views: dict[str, float] = {}
    defects: dict[str, str] = {}
    for row in rows:
        part = known[row.path].part
        views[part] = max(row.image_score, views.get(part, -math.inf))
        defects[part] = known[row.path].defect or defects.get(part, "")
    good = [score for part, score in views.items() if not defects[part]]
    by_kind = {kind: [score for part, score in views.items() if defects[part] == kind] for kind in KINDS}

    def auroc(bad: Sequence[float]) -> float:
        return float(roc_auc_score([0] * len(good) + [1] * len(bad), [*good, *bad]))

    return {
        "part_auroc": auroc([score for own in by_kind.values() for score in own]),
        **{kind: auroc(own) for kind, own in by_kind.items()},
        "image_auroc": float(roc_auc_score([row.is_anomalous for row in rows], [row.image_score for row in rows])),
        "fit_s": wall,
        "fit_cpu_s": cpu,
    }


def look_at_all_tokens(*, is_plain: bool) -> None:
    """Lets MVAD look at every token of the other views in place of chosen windows; all views have to be there.

    Args:
        is_plain: Whether the whole matrix of weights is made, as in a textbook, or torch's fused attention is used.
    """
    import torch
    from torch.nn import functional

    from blemish.nn.mvad import Selector, Windows

    def cut(_: Selector, feature: torch.Tensor) -> Windows:
        """One window: the whole map."""
        tokens = feature.flatten(1, 2).unsqueeze(1)
        return Windows(tokens, tokens.mean(2), None)

    def forward(self: Selector, query: torch.Tensor, source: Windows, others: torch.Tensor) -> torch.Tensor:
        """The same attention, nothing chosen."""
        both = query.flatten(1, 2), source.tokens[others].flatten(1, 3)
        asking, seen = (tokens.unflatten(2, (self.how.heads, -1)).transpose(1, 2) for tokens in both)
        scale = asking.shape[3] ** -0.5
        if is_plain:
            found = (asking @ seen.transpose(2, 3) * scale).softmax(3) @ seen
        else:
            found = functional.scaled_dot_product_attention(asking, seen, seen, scale=scale)
        return found.transpose(1, 2).flatten(2).view_as(query)

    Selector.cut, Selector.forward = cut, forward


def measure_step(attention: str, size: int, batch: int) -> dict[str, float]:
    """Time and memory of training steps on features that are there already, in this process."""
    import torch
    from torch.nn import functional

    import blemish
    from blemish.nn.mvad import others_of

    detector = blemish.create("mvad", preset="small", config={"image_size": (size, size)}, device="cpu")
    if attention != "windows":
        look_at_all_tokens(is_plain=attention == "plain")
    random = torch.Generator().manual_seed(0)
    features = [
        feature.clone() for feature in detector.see(detector.padded(torch.rand(batch, 3, size, size, generator=random)))
    ]
    others = others_of([number // len(VIEWS) for number in range(batch)])
    network = detector.network.train()
    optimiser = torch.optim.AdamW(network.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = [], []
    for _ in range(7):
        started = time.perf_counter(), time.process_time()
        optimiser.zero_grad()
        restored = network(features, others)
        loss = sum(
            1 - functional.cosine_similarity(one, other).mean() for one, other in zip(restored, features, strict=True)
        )
        loss.backward()
        optimiser.step()
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "step_s": sorted(wall[2:])[2],
        "step_cpu_s": sorted(cpu[2:])[2],
        "grown_gb": (peak - before) / 1e6,
        "peak_gb": peak / 1e6,
    }


def _cell(file: Path, arguments: Sequence[str]) -> dict[str, float]:
    """What lies in the file; made in a process of its own if it is not there yet."""
    if not file.exists():
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(done.stdout.splitlines()[-1])
        temporary.replace(file)
    found: dict[str, float] = json.loads(file.read_text())
    return found


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    """Renders, runs what is not done yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", type=int, default=60, help="good parts to learn from")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--cost-sizes", default="128,256", help="sizes of the pictures of the last table; empty: none")
    parser.add_argument("--config", default="{}", help="fields of MVAD in which it differs from preset small, as JSON")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(_measured(options)))
        return
    seeds, ways = [int(seed) for seed in options.seeds.split(",")], options.ways.split(",")
    same = [str(options.out), *("--parts", str(options.parts)), *("--steps", str(options.steps))]
    same += [*("--size", str(options.size)), *("--config", options.config)]
    columns = ("part_auroc", *KINDS, "image_auroc", "fit_cpu_s")
    print(f"{options.parts} parts to learn from, {options.steps} batches, pictures of {options.size} pixels")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for seed, way in product(seeds, ways):
        folder = options.out / f"{options.size}x{options.parts}" / str(seed)
        if not (folder / "manifest.csv").exists():
            write_parts(folder, seed, options.parts, options.size)
        settings = "" if way == "patchcore" else f"_{options.steps}_{options.config}"
        name = "".join(letter if letter.isalnum() or letter in "_.-" else "" for letter in f"{way}{settings}")
        cell = _cell(folder / "cells" / f"{name}.json", [*same, "--cell", way, str(seed)])
        found[way].append(cell)
        print(f"seed {seed}, {way}: " + ", ".join(f"{column} {cell[column]:.3f}" for column in columns), flush=True)
    print("\n| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for way, cells in found.items():
        print(
            f"| {WAYS[way][1]} | " + " | ".join(_spread([cell[column] for cell in cells]) for column in columns) + " |"
        )
    if options.cost_sizes:
        _print_cost(options.out, [int(size) for size in options.cost_sizes.split(",")], same)


def _measured(options: argparse.Namespace) -> dict[str, float]:
    """What a process of its own was started for."""
    what, number = options.cell
    if what in ATTENTIONS:
        return measure_step(what, options.size, int(number))
    # Maps are smoothed alike on parts of any size in pixels.
    config: dict[str, Any] = {
        "image_size": (options.size, options.size),
        "seed": int(number),
        "blur": options.size / 64,
    }
    if what != "patchcore":
        config |= {"steps": options.steps, **json.loads(options.config)}
    if what == "equal":
        config["own"] = 1.0
    return measure(what, options.out / f"{options.size}x{options.parts}" / number, int(number), config)


def _print_cost(out: Path, sizes: Sequence[int], same: Sequence[str]) -> None:
    columns = ("step_s", "step_cpu_s", "grown_gb", "peak_gb")
    print(f"\nA training step of one part in {len(VIEWS)} views:\n")
    print("| pictures | attention | " + " | ".join(columns) + " |\n|---|---|---|---|---|---|")
    for size, (attention, name) in product(sizes, ATTENTIONS.items()):
        weights = len(VIEWS) * (len(VIEWS) - 1) * 8 * (size / 4) ** 4 * 4 / 1e9  # of 8 heads, in the finest map alone
        if attention == "plain" and weights > 2:
            print(f"| {size} | {name} | not run: {weights:.1f} GB for one matrix of weights |")
            continue
        cell = _cell(out / f"step_{size}_{attention}.json", [*same, "--size", str(size), "--cell", attention, "5"])
        print(f"| {size} | {name} | " + " | ".join(f"{cell[column]:.2f}" for column in columns) + " |", flush=True)


if __name__ == "__main__":
    main()
