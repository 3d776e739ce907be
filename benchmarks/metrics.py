"""Time and memory of Blemish's metrics beside scikit-learn, the reference protocol, ADEval and torchmetrics.

    python benchmarks/metrics.py                      # all; about half an hour
    python benchmarks/metrics.py --sizes 200          # one size
    python benchmarks/metrics.py --full 115000        # the size of Real-IAD, on two processes

Maps are 256x256 float32, made on the fly from smooth noise and blurred masks; masks are those of
real pictures in ../shared/data where it lies beside the project, drawn blobs elsewhere. Every
measurement is a process of its own, bound to one core. Its time is processor time, without making
the pictures; its memory is the peak above what it needs with everything imported, and with the
pictures where a method must have all at once. Needs the `dev`
dependencies, and `pip install adeval torchmetrics`.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from numpy.typing import NDArray

from blemish.metric import Evaluation, Options
from blemish.types import Sample

SIZE = 256
POOL = 61
DATA = Path(__file__).parents[2] / "shared" / "data"
LIMITS = {"reference protocol": 100, "scikit-learn": 1000, "torchmetrics, 200 bins": 1000}
"""Pictures that a slow or hungry method is run on at most; its time is then scaled, its memory not."""
Item = tuple[Sample, NDArray[np.float32], NDArray[np.bool_]]


def masks() -> list[NDArray[np.bool_]]:
    """Masks of defective pictures."""
    paths = sorted(path for name in ("magnetic_tile", "wood_surface", "mvtec_bottle") for path in _masks_of(name))
    chosen = paths[:: max(1, len(paths) // POOL)]
    read = [cv2.resize(cv2.imread(str(path), 0), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST) > 0 for path in chosen]
    return [mask for mask in read if mask.any()] or _blobs()


def _masks_of(category: str) -> Iterator[Path]:
    return (DATA / category / "ground_truth").rglob("*_mask.png")


def _blobs() -> list[NDArray[np.bool_]]:
    generator = np.random.default_rng(0)
    blobs = []
    for _ in range(POOL):
        blob = np.zeros((SIZE, SIZE), np.uint8)
        for _ in range(generator.integers(1, 4)):
            centre, axes = generator.integers(20, SIZE - 20, 2), generator.integers(3, 20, 2)
            cv2.ellipse(blob, tuple(map(int, centre)), tuple(map(int, axes)), 30.0, 0, 360, 1, -1)
        blobs.append(blob > 0)
    return blobs


def pictures(number: int, *, start: int = 0, total: int | None = None) -> Iterator[Item]:
    """Pictures start .. start + number of a set of `total`; the same ones in every process."""
    generator = np.random.default_rng(0)
    grids = [generator.normal(size=(POOL, SIZE // step, SIZE // step)) for step in (4, 16, 64)]
    noises = [
        sum(cv2.resize(grid[index], (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for grid in grids).astype(np.float32)
        for index in range(POOL)
    ]
    pool = [(mask, cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3)) for mask in masks()]
    empty = np.zeros((SIZE, SIZE), bool)
    total = total or number
    for index in range(start, start + number):
        # Categories one after the other, as in a dataset; three of ten pictures are defective.
        category, is_anomalous = f"{index * 30 // total:02d}" if total > 5000 else "all", index % 10 < 3
        draw = (index * 2654435761) % 2**32 / 2**32
        values = np.roll(noises[index % POOL], index * 977 % SIZE, axis=0) * np.float32(0.15 + 0.1 * draw)
        mask = empty
        if is_anomalous:
            mask, blurred = pool[index // 10 % len(pool)]
            values += blurred * np.float32(0.3 + 1.5 * draw)
        defect = f"kind {index % 4}" if is_anomalous else ""
        sample = Sample(
            path=Path(f"{index}.png"), category=category, split="test", is_anomalous=is_anomalous, defect=defect
        )
        yield sample, np.exp(values - np.float32(2)), mask


class Clock:
    """Adds up the processor time spent in its blocks, which others on the machine disturb least."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._start


def blemish(mode: Any, *, kinds: bool = True) -> Callable[[Iterator[Item], Clock], dict[str, float]]:
    """All metrics, of all defects together and, with `kinds`, of each kind, which the others don't tell apart."""

    def run(items: Iterator[Item], clock: Clock) -> dict[str, float]:
        evaluation = Evaluation(mode)
        for each, values, mask in items:
            sample = each if kinds else replace(each, defect="defect" if each.is_anomalous else "")
            with clock:
                evaluation.add(sample, float(values.max()), values, mask)
        with clock:
            return evaluation.compute().mean

    return run


def scikit_learn(items: Iterator[Item], clock: Clock) -> dict[str, float]:
    """The four it has: image and pixel AUROC and AP, and F1-max from its curve."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    maps, truth, labels = _all(items)
    with clock:
        scores = maps.max(axis=(1, 2))
        result = {}
        for level, one, two in (("image", labels, scores), ("pixel", truth.ravel(), maps.ravel())):
            precision, recall, _ = precision_recall_curve(one, two)
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            result |= {
                f"{level}_auroc": roc_auc_score(one, two),
                f"{level}_ap": average_precision_score(one, two),
                f"{level}_f1_max": f1.max(),
            }
    return result


def reference_protocol(items: Iterator[Item], clock: Clock) -> dict[str, float]:
    """All metrics of the tables, the plain way: int64 masks, counted and labelled again at each threshold."""
    from skimage.measure import label, regionprops

    maps, masks_of_all, labels = _all(items)
    result = scikit_learn(zip(labels, maps, masks_of_all, strict=True), clock)  # type: ignore[arg-type]
    truth = masks_of_all.astype(np.int64)  # as it holds them
    with clock:
        scaled = (maps - maps.min()) / (maps.max() - maps.min())
        seven, grid = [step / 10 for step in range(2, 9)], [step / 20 for step in range(21)]
        for name, thresholds, summary in (
            ("pixel_f1_02_08", seven, np.mean),
            ("pixel_acc_02_08", seven, np.mean),
            ("pixel_iou_02_08", seven, np.mean),
            ("pixel_f1_max", grid, np.max),
            ("pixel_iou_max", grid, np.max),
        ):
            result[name] = float(summary([_at(name, scaled > threshold, truth) for threshold in thresholds]))
        points = []
        for threshold in np.linspace(maps.min(), maps.max(), 101):
            called = maps > threshold
            overlaps = []
            for one, mask in zip(called, truth, strict=True):
                for region in regionprops(label(mask)):
                    rows, columns = region.coords.T
                    overlaps.append(one[rows, columns].sum() / region.area)
            normal = 1 - truth
            points.append((np.logical_and(normal, called).sum() / normal.sum(), np.mean(overlaps)))
        false, overlap = np.array(points)[::-1].T
        inside = false < 0.3
        false = false[inside]
        result["aupro"] = np.trapezoid(overlap[inside], (false - false.min()) / (false.max() - false.min()))
    return result


def _at(name: str, called: NDArray[np.bool_], truth: NDArray[np.int64]) -> float:
    """F1, recall or IoU of one binary prediction of all pixels."""
    found = np.sum(called & (truth > 0))
    whole = {"f1": (called.sum() + truth.sum()) / 2, "acc": truth.sum(), "iou": np.sum(called | (truth > 0))}
    return float(found / whole[name.split("_")[1]])


def adeval(items: Iterator[Item], clock: Clock) -> dict[str, float]:
    """AUROC, AP and AUPRO from 1000 strips, whose range it must be told beforehand."""
    from adeval import EvalAccumulator

    np.trapz = np.trapezoid  # type: ignore[attr-defined]  # noqa: NPY201 - it still calls it by its old name
    accumulator = EvalAccumulator(0.0, 3.0)
    for sample, values, mask in items:
        with clock:
            accumulator.add_anomap(values, mask.astype(np.uint8))
            accumulator.add_image(float(values.max()), int(bool(sample.is_anomalous)))
    with clock:
        found = accumulator.summary()
    return {"pixel_auroc": found["p_auroc"], "pixel_ap": found["p_aupr"], "aupro": found["p_aupro"]}


def torchmetrics(items: Iterator[Item], clock: Clock) -> dict[str, float]:
    """Pixel AUROC and AP from 200 equal bins in [0, 1]."""
    import torch
    from torchmetrics import MetricCollection
    from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

    torch.set_num_threads(1)
    both = MetricCollection({"auroc": BinaryAUROC(thresholds=200), "ap": BinaryAveragePrecision(thresholds=200)})
    for _, values, mask in items:
        with clock:
            both.update(torch.from_numpy(values).clamp(0, 1).ravel(), torch.from_numpy(mask).ravel().long())
    with clock:
        found = both.compute()
    return {"pixel_auroc": float(found["auroc"]), "pixel_ap": float(found["ap"])}


def _all(items: Iterator[Item]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    kept = list(items)
    maps, truth = np.stack([item[1] for item in kept]), np.stack([item[2] for item in kept])
    return maps, truth, truth.any(axis=(1, 2))


METHODS: dict[str, Callable[[Iterator[Item], Clock], dict[str, float]]] = {
    "Blemish, streaming": blemish("streaming"),
    "Blemish, streaming, no kinds": blemish("streaming", kinds=False),
    "Blemish, exact": blemish("exact"),
    "scikit-learn": scikit_learn,
    "reference protocol": reference_protocol,
    "ADEval, 1000 strips": adeval,
    "torchmetrics, 200 bins": torchmetrics,
}


def measure(method: str, number: int) -> dict[str, Any]:
    """One method on `number` pictures, in this process."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    METHODS[method](pictures(10), Clock())  # so that everything is imported and warm
    _reset_peak()
    before = psutil.Process().memory_info().rss
    clock = Clock()
    values = METHODS[method](pictures(number), clock)
    return {"seconds": clock.seconds, "megabytes": (_peak() - before) / 1e6, "values": values}


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def shard(start: int, number: int, total: int, path: str) -> dict[str, Any]:
    """A part of a large evaluation, saved to `path`, and how its memory grew."""
    cv2.setNumThreads(1)
    evaluation = Evaluation("streaming")
    before, memory, clock = psutil.Process().memory_info().rss, [], Clock()
    for index, (sample, values, mask) in enumerate(pictures(number, start=start, total=total), 1):
        with clock:
            evaluation.add(sample, float(values.max()), values, mask)
        if index % max(1, number // 8) == 0:
            memory.append(round((psutil.Process().memory_info().rss - before) / 1e6))
    evaluation.save(path)
    return {"seconds": clock.seconds, "megabytes": (_peak() - before) / 1e6, "memory": memory}


def child(*arguments: object) -> "subprocess.Popen[str]":
    """This file, running one measurement."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result(process: "subprocess.Popen[str]") -> dict[str, Any] | None:
    """What a measurement found, or None if it failed."""
    output, _ = process.communicate()
    return None if process.returncode else json.loads(output)


def compare(sizes: list[int]) -> None:
    """The table of all methods at all sizes."""
    shown = ("pixel_auroc", "pixel_ap", "aupro")
    head = ("maps", "method", "ms a map", "peak MB", *shown)
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for number, method in itertools.product(sizes, METHODS):
        run = min(number, LIMITS.get(method, number))
        found = result(child("measure", method, run))
        if found is None:
            print(f"| {number:,} | {method} | failed | | | | |", flush=True)
            continue
        values = [f"{found['values'][name]:.5f}" if name in found["values"] else "" for name in shown]
        note = "" if run == number else f" (run on {run})"
        cells = [f"{number:,}", method + note, f"{found['seconds'] / run * 1e3:.2f}", f"{found['megabytes']:.0f}"]
        print("| " + " | ".join([*cells, *values]) + " |", flush=True)


def full(number: int) -> None:
    """A run of the size of Real-IAD: two processes, each with half of the pictures, then merged."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        half = number // 2
        paths = [f"{folder}/{index}.safetensors" for index in (0, 1)]
        processes = [
            child("shard", 0, half, number, paths[0]),
            child("shard", half, number - half, number, paths[1]),
        ]
        found = [result(process) for process in processes]
        seen = time.perf_counter()
        merged = Evaluation.load(paths[0]) + Evaluation.load(paths[1])
        results = merged.compute(Options())
        end = time.perf_counter()
        sizes = [f"{Path(path).stat().st_size / 1e6:.0f} MB" for path in paths]
    print(f"\n{number:,} maps, {len(results.metrics)} categories, two processes: {end - start:.0f} s in all,")
    print(f"of which {seen - start:.0f} s making and adding maps, {end - seen:.1f} s merging and computing")
    for one in filter(None, found):
        print(f"  adding: {one['seconds']:.0f} s; memory above import after each eighth: {one['memory']} MB", end="")
        print(f", peak {one['megabytes']:.0f} MB")
    print(f"  saved states: {', '.join(sizes)}; {results.mode}; mean pixel AUROC {results.mean['pixel_auroc']:.5f}")


def main() -> None:
    """Everything that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[200, 1000, 5000])
    parser.add_argument("--full", type=int, default=115_000, help="number of maps in the large run; 0 for none")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task, *arguments = json.loads(options.child)
        print(json.dumps({"measure": measure, "shard": shard}[task](*arguments), default=float))
        return
    print(f"NumPy {np.__version__}, OpenCV {cv2.__version__}, {os.cpu_count()} cores, {SIZE}x{SIZE} float32 maps\n")
    compare(options.sizes)
    if options.full:
        full(options.full)


if __name__ == "__main__":
    main()
