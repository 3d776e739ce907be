"""How fast and how large Blemish is on Ray and with several training processes, and whether results are the same.

    python benchmarks/scale.py part.blemish DATA [--pictures 2000,20000] [--actors 0,1,2] [--out scale]
    python benchmarks/scale.py --only train DATA [--processes 2] [--fit "--preset tiny --steps 40"]

DATA is a labelled dataset, whose test pictures are repeated by a manifest until there are enough. For
each number of pictures and each engine (0: local, or Ray with so many actors), prints pictures a second, the
largest memory of the driver and of the actors, and whether the report is that of the local engine;
then the rate and the driver's memory a picture without what a start takes, from the least and the most
pictures. Then: how long 100 metric states of the largest run take to merge; what becomes of a job whose
actor, and whose driver, is killed (kill -9) in the middle; and the time of a training step of one
process and of several that share its batches, with the largest difference of what they say of the test
pictures.

Memory is the largest resident set (VmHWM), which counts what processes share in each of them.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from safetensors import safe_open

from blemish import load, open_dataset
from blemish.blocks import Predicted
from blemish.jobs import Job
from blemish.types import Sample

BLOCK = 128


@dataclass
class Run:
    """What a process took."""

    seconds: float
    status: int
    driver: int
    """Largest memory, in bytes."""
    actor: int
    """Largest memory of an actor."""
    said: str


def repeated(data: Path, count: int, folder: Path) -> Path:
    """A folder with a manifest of `count` labelled pictures: links, so that each has a path of its own."""
    place = folder / f"pictures-{count}"
    if (place / "manifest.jsonl").exists():
        return place
    opened = open_dataset("auto", data)
    test = [sample for sample in opened.test if sample.is_anomalous is not None]
    (place / "links").mkdir(parents=True)
    rows = []
    for number in range(count):
        sample: Sample = test[number % len(test)]
        names = {}
        for what, path in (("path", sample.path), *(("mask", mask) for mask in sample.masks[:1])):
            link = place / "links" / f"{number:06}-{what}{path.suffix}"
            os.link(path.resolve(), link) if _same_disk(path, place) else shutil.copyfile(path, link)
            names[what] = link.relative_to(place).as_posix()
        label = "bad" if sample.is_anomalous else "good"
        rows.append({**names, "split": "test", "label": label, "category": sample.category})
    (place / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return place


def _same_disk(one: Path, other: Path) -> bool:
    return one.resolve().stat().st_dev == other.stat().st_dev


def run(words: Sequence[object], watch: Callable[[psutil.Process], bool] | None = None) -> Run:
    """`blemish` with these arguments; `watch` is called again and again until it says that it is done."""
    start, driver, actor, is_done = time.perf_counter(), 0, 0, watch is None
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen([sys.executable, "-m", "blemish", *map(str, words)], stdout=said, stderr=said)
        while process.poll() is None:
            driver = max(driver, peak_of(process.pid))
            with suppress(psutil.NoSuchProcess):
                actor = max([actor, *(peak_of(each.pid) for each in actors_of(process))])
                is_done = is_done or watch is None or watch(process)
            time.sleep(0.2)
        said.seek(0)
        return Run(time.perf_counter() - start, process.returncode, driver, actor, said.read())


def peak_of(process: int) -> int:
    """The largest memory of a process so far, in bytes; 0 if it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def actors_of(process: psutil.Process) -> list[psutil.Process]:
    """The actors that a driver has started."""
    found = []
    for child in process.children(recursive=True):
        try:
            if child.name().startswith("ray::MapWorker"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def score(artifact: Path, place: Path, out: Path, *more: object, watch: Callable | None = None) -> Run:
    """A scoring in streaming mode, whose report is written to `out`."""
    return run(("score", artifact, place, "--mode", "streaming", "--json", out, *more), watch)


def same_as(one: Path, other: Path) -> bool:
    """Whether two reports say the same: all metrics, thresholds, failures."""
    return json.loads(one.read_text()) == json.loads(other.read_text())


def rates(artifact: Path, data: Path, options: argparse.Namespace) -> None:
    """Prints a line for each number of pictures and engine."""
    say("| pictures | engine | seconds | pictures/s | driver MB | actor MB | metrics |\n|---|---|---|---|---|---|---|")
    runs: dict[str, dict[int, Run]] = {}
    for count in options.pictures:
        place, local = repeated(data, count, options.out), options.out / f"report-{count}-0.json"
        for actors in options.actors:
            file, parts = options.out / f"report-{count}-{actors}.json", parts_of(options, count, actors)
            shutil.rmtree(parts, ignore_errors=True)
            ray = ("--engine", "ray", "--actors", actors, "--block", BLOCK, "--parts", parts) if actors else ()
            took = score(artifact, place, file, *ray)
            if took.status:
                say(f"status {took.status}: {took.said}")
                continue
            same = "of no local run" if not local.exists() else "equal" if same_as(local, file) else "DIFFERENT"
            name = {0: "local", 1: "ray, 1 actor"}.get(actors, f"ray, {actors} actors")
            runs.setdefault(name, {})[count] = took
            megabytes = f"{took.driver / 1e6:.0f} | {took.actor / 1e6:.0f}"
            seconds = f"{took.seconds:.1f} | {count / took.seconds:.1f}"
            say(f"| {count} | {name} | {seconds} | {megabytes} | {same} |")
    for name, took_by in runs.items():
        (few, first), (many, last) = min(took_by.items()), max(took_by.items())
        if few < many and first.seconds < last.seconds:
            rate, growth = (many - few) / (last.seconds - first.seconds), (last.driver - first.driver) / (many - few)
            say(f"{name}: {rate:.1f} pictures/s without the start, {growth:.0f} bytes of the driver a picture")


def parts_of(options: argparse.Namespace, count: int, actors: int) -> Path:
    """Where the parts of a run are kept."""
    return Path(options.out / f"parts-{count}-{actors}")


def kills(artifact: Path, data: Path, options: argparse.Namespace) -> None:
    """Kills an actor, then the driver, in the middle, and compares what comes out."""
    place, parts = repeated(data, options.pictures[0], options.out), options.out / "parts"
    expected_file, file = options.out / f"report-{options.pictures[0]}-0.json", options.out / "report.json"
    if not expected_file.exists():
        score(artifact, place, expected_file)
    ray = ("--engine", "ray", "--actors", max(options.actors), "--block", BLOCK, "--parts", parts)

    def actor_of(process: psutil.Process) -> psutil.Process | None:
        return next(iter(actors_of(process)), None)

    for name, choose in (("actor", actor_of), ("driver", lambda process: process)):
        shutil.rmtree(parts, ignore_errors=True)
        there: dict[Path, int] = {}

        def kill(process: psutil.Process, choose: Callable = choose, there: dict[Path, int] = there) -> bool:
            found = {path: path.stat().st_mtime_ns for path in parts.glob("[0-9]*.parquet")}
            victim = choose(process) if len(found) >= options.pictures[0] // BLOCK // 2 else None
            if victim is None:
                return False
            victim.send_signal(signal.SIGKILL)
            there |= found
            return True

        took = score(artifact, place, file, *ray, watch=kill)
        if took.status:
            score(artifact, place, file, *ray)
        again = sum(path.stat().st_mtime_ns != when for path, when in there.items())
        same = "equal" if same_as(expected_file, file) else "DIFFERENT"
        said = f"{len(there)} parts were done, {again} of them again"
        say(f"kill -9 of the {name}: status {took.status}, {said}, metrics {same}")


def merging(options: argparse.Namespace, states: int = 100) -> None:
    """How long states of the largest run take to merge."""
    job = Job(parts_of(options, max(options.pictures), max(options.actors)))
    there = [number for number in range(states) if job.state(number).exists()]
    start = time.perf_counter()
    whole = Predicted(job, len(there), is_kept=True).evaluation()
    seconds = time.perf_counter() - start
    file = options.out / "whole.safetensors"
    whole.save(file)
    sizes = sum(job.state(number).stat().st_size for number in there) / 1e6, file.stat().st_size / 1e6
    say(
        f"{len(there)} states of {len(whole.paths)} pictures merged in {seconds:.2f} s, {sizes[0]:.2f} MB to "
        f"{sizes[1]:.2f} MB"
    )


def training(data: Path, options: argparse.Namespace) -> None:
    """Time of a step and equality: one process against several at the same global batch."""
    artifacts = []
    for count in (1, options.processes):
        out = options.out / f"trained-{count}.blemish"
        for old in options.out.glob(f"{out.name}*"):
            old.unlink()
        start = [sys.executable, "-m", "blemish"]
        if count > 1:
            start = [
                *start[:1],
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(count),
                *start[1:],
            ]
        words = [
            "fit",
            "realnet",
            data,
            "--device",
            "cpu",
            "--precision",
            "float32",
            *options.fit.split(),
            "--out",
            out,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
        subprocess.run([*start, *map(str, words)], check=True, capture_output=True, env=environment)
        with safe_open(out, "np") as file:
            header = json.loads(next(value for value in file.metadata().values() if '"blemish_artifact"' in value))
        trained = header["fitted"]["training"]
        say(f"{count} processes: {trained['seconds'] / trained['step']:.3f} s a step")
        artifacts.append(out)
    pictures = [sample.path for sample in open_dataset("auto", data).test][:16]
    one, other = (load(file, device="cpu").predict(pictures) for file in artifacts)
    scale = np.abs(one.anomaly_map).max()
    say(f"largest difference of maps: {np.abs(one.anomaly_map - other.anomaly_map).max() / scale:.2e} of their range")


def main() -> None:
    """Does what the arguments say."""
    parser = argparse.ArgumentParser(description=re.sub(r"\s+", " ", __doc__ or ""))
    parser.add_argument("places", nargs="+", type=Path, metavar="part.blemish DATA")
    parser.add_argument("--only", choices=("rates", "merge", "kills", "train"), action="append")
    parser.add_argument("--pictures", type=_numbers, default=[2000, 20000])
    parser.add_argument("--actors", type=_numbers, default=[0, 1, 2], help="0 for the local engine")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--fit", default="--steps 40", help="options of fit realnet")
    parser.add_argument("--out", type=Path, default=Path("scale"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted, data = options.only or ["rates", "merge", "kills", "train"], options.places[-1]
    jobs: dict[str, Callable[[], None]] = {
        "rates": lambda: rates(options.places[0], data, options),
        "merge": lambda: merging(options),
        "kills": lambda: kills(options.places[0], data, options),
        "train": lambda: training(data, options),
    }
    for name in wanted:
        jobs[name]()


def say(text: str) -> None:
    """Prints at once, for those who wait."""
    print(text, flush=True)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
