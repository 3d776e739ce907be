"""Exports models in every format and precision, proves them, and measures how fast they are.

    python benchmarks/deploy.py [--models patchcore,realnet,invad] [--preset small] [--threads 2] [--pictures 64]
                                [--data DATA] [--folder FOLDER [--make]] [--anomalib-python PATH]

Weights are those of a fit too short to find anything: speed does not depend on them. They are learned
from made pictures or those of --data. --folder keeps the artifacts, and what is there already is not made
again; --make stops when all are made. Prints, for each model, what the proof found for each format and
precision, or why it was refused; pictures per second end to end from JPEG files of 512x512 pixels (reading,
network, decision, regions) by torch, ONNX Runtime and OpenVINO; and those of the bare OpenVINO loop on the
same network, threads and precision with random input, one batch after the other or several in flight,
whichever is faster. Beside PatchCore, where the Python of an environment with anomalib is given, the same
from the same files by anomalib's own inferencers (`anomalib_speed.py`). At last the size of what
`blemish[runtime]` installs, and the time until it has loaded an artifact.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distribution, requires
from pathlib import Path

import numpy as np
import openvino
from packaging.requirements import Requirement
from rate import per_second

import blemish
from blemish import artifact, exporting, images, judging
from blemish.artifact import BATCH, Export, Predictor
from blemish.dataset import Dataset
from blemish.errors import BlemishError
from blemish.parity import AskedPrecision
from blemish.types import Batch, Sample

SHORT = {"patchcore": {}, "realnet": {"steps": 2, "evaluations": 1, "afs_batches": 1}, "invad": {"steps": 2}}
ROUNDS = 3
"""Each figure is the best of so many."""
MADE: tuple[tuple[str, AskedPrecision], ...] = (
    (".onnx", "fp32"),
    (".xml", "fp32"),
    (".xml", "fp16"),
    (".xml", "bf16"),
    (".xml", "int8"),
)


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Soft random pictures of 512x512 as JPEG files."""
    folder.mkdir(parents=True)
    files = [folder / f"{number:03}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        field = images.resize(np.random.default_rng(number).random((40, 40, 3), np.float32), (512, 512))
        file.write_bytes(images.encode(np.asarray(field * 255, np.uint8), "JPEG"))
    return files


def end_to_end(predictor: Predictor, files: list[Path]) -> float:
    """Pictures per second from files to decisions."""
    samples = [Sample(path=file, category="", split="test", is_anomalous=None) for file in files]
    return per_second(lambda: sum(1 for _ in judging.judge(predictor, samples, [])), ROUNDS)


def bare(predictor: Predictor, count: int) -> float:
    """Pictures per second of the network alone on random input: one batch at a time or several, the better."""
    size = predictor.preprocessing.image_size
    batches = [Batch(np.random.default_rng(0).random((BATCH, 3, *size), np.float32), (), ())] * (count // BATCH)

    def one_by_one() -> int:
        return sum(len(predictor.predict(batch.images).image_score) for batch in batches)

    def in_flight() -> int:
        return sum(len(prediction.image_score) for _, prediction in predictor.stream(batches, []))

    return max(per_second(one_by_one, ROUNDS), per_second(in_flight, ROUNDS))


def runtime_size() -> int:
    """Bytes of all that `blemish[runtime]` installs, beside Blemish itself."""
    waiting = [Requirement(each) for each in requires("blemish") or []]
    waiting = [each for each in waiting if each.marker is None or each.marker.evaluate({"extra": "runtime"})]
    sizes: dict[str, int] = {}
    while waiting:
        name = waiting.pop().name
        if name not in sizes:
            found = distribution(name)
            files = [Path(str(file.locate())) for file in found.files or []]
            sizes[name] = sum(file.stat().st_size for file in files if file.is_file())
            further = [Requirement(each) for each in found.requires or []]
            waiting += [each for each in further if each.marker is None or each.marker.evaluate({"extra": ""})]
    return sum(sizes.values())


def seconds_to_load(file: Path) -> float:
    """Seconds from starting Python until an artifact is loaded."""

    def once() -> float:
        start = time.perf_counter()
        code = f"import blemish, sys; blemish.load({str(file)!r}); sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return min(once() for _ in range(ROUNDS))


def anomalib(python: str, pictures: Path, threads: int) -> None:
    """Prints what anomalib's inferencers take, with our embedded weights."""
    from safetensors.torch import save_file

    from blemish.nn.backbone import Backbone

    weights = pictures.parent / "backbone.safetensors"
    save_file(
        {name: each.contiguous() for name, each in Backbone(strides=(8, 16, 32)).network.state_dict().items()}, weights
    )
    script = Path(__file__).with_name("anomalib_speed.py")
    words = [python, str(script), str(pictures), str(weights), "--threads", str(threads), "--rounds", str(ROUNDS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("  anomalib")]  # others draw its progress
    print("\n".join(found) or f"  anomalib failed: {done.stderr.strip()[-500:]}", flush=True)


def export(source: Path, target: Path, precision: AskedPrecision, data: Dataset) -> bool:
    """Whether the export is there, made now or before; prints the line of the parity table."""
    start, refused = f"  {target.suffix:6}{precision:6}", target.with_suffix(f"{target.suffix}.refused")
    learned, held_out = ([sample.path for sample in part] for part in (data.train, data.validation))
    if not (target.exists() or refused.exists()):
        try:
            how = Export(precision, tuple(exporting.drawn(held_out, exporting.SHOWN)), tuple(learned))
            artifact.export(source, target, how)
        except BlemishError as error:
            refused.write_text(str(error))
    if refused.exists():
        print(f"{start}refused: {refused.read_text()}", flush=True)
        return False
    parity = artifact.read_header(target).parity
    print(f"{start}{parity.sentence() if parity else ''}", flush=True)
    return True


def make(model: str, preset: str, folder: Path, data: Dataset) -> dict[tuple[str, str], Path]:
    """The artifacts of a model, by format and precision."""
    source = folder / f"{model}.blemish"
    if not source.exists():
        detector = blemish.create(model, preset=preset, config=SHORT[model], device="cpu").fit(data)
        artifact.save(detector, source)
    made = {("torch", "fp32"): source}
    units = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for suffix, precision in MADE:
        if precision == "bf16" and "BF16" not in units:
            print(f"  {suffix:6}{precision:6}this processor has no units for it, and would run fp32")
            continue
        file = folder / f"{model}-{precision}{suffix}"
        if export(source, file, precision, data):
            made[suffix, precision] = file
    return made


def measure(made: dict[tuple[str, str], Path], files: list[Path]) -> None:
    """Prints how fast each is."""
    torch_speed = 0.0
    for (suffix, precision), file in made.items():
        predictor = artifact.load(file, device="cpu")
        speed = end_to_end(predictor, files)
        torch_speed = torch_speed or speed
        line = f"  {suffix:6}{precision:6}{speed:8.1f} pictures/s, {speed / torch_speed:.2f} of torch"
        if suffix == ".xml":
            alone = bare(predictor, len(files))
            line += f", {speed / alone:.2f} of the bare loop ({alone:.1f})"
        print(line, flush=True)


def main() -> None:
    """Fits, exports, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SHORT))
    parser.add_argument("--preset", default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--data", type=Path, help="dataset to learn from")
    parser.add_argument("--folder", type=Path, help="where artifacts are kept")
    parser.add_argument("--make", action="store_true", help="measure nothing")
    parser.add_argument("--anomalib-python", default="", help="Python of an environment that has anomalib")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        files = write_pictures(Path(temporary) / "parts/cloth/train/good", options.pictures)
        data = blemish.open_dataset("auto", options.data or files[0].parent)
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for model in options.models.split(","):
            print(f"{model} {options.preset}", flush=True)
            made = make(model, options.preset, folder, data)
            if options.make:
                continue
            measure(made, files)
            if model == "patchcore" and options.anomalib_python:
                anomalib(options.anomalib_python, files[0].parent, options.threads)
        if options.make:
            return
        print(f"blemish[runtime]: {runtime_size() / 1e6:.0f} MB installed beside Blemish itself")
        for file in made.values():
            if file.suffix != ".blemish":
                print(f"  {seconds_to_load(file):.2f} s from starting Python to {file.name} loaded")


if __name__ == "__main__":
    main()
