"""Exports a model and measures how fast the exports are, beside torch and the bare network.

    python benchmarks/deploy.py [--models patchcore,realnet,invad] [--preset small] [--threads 2] [--pictures 64]

Weights are those of a fit too short to find anything: speed does not depend on them. Prints, for each
model, pictures per second end to end from JPEG files of 512x512 pixels (reading, network, decision,
regions) by torch, ONNX Runtime and OpenVINO, those of the bare OpenVINO loop on random input, and
what the proof found.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import blemish
from blemish import artifact, images, judging
from blemish.artifact import BATCH, Predictor, read_header
from blemish.types import Sample

SHORT = {"patchcore": {}, "realnet": {"steps": 2, "evaluations": 1, "afs_batches": 1}, "invad": {"steps": 2}}
ROUNDS = 3
"""Each figure is the best of so many."""


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

    def once() -> float:
        start = time.perf_counter()
        judged = sum(1 for _ in judging.judge(predictor, samples, []))
        return judged / (time.perf_counter() - start)

    return max(once() for _ in range(ROUNDS))


def bare(file: Path, size: tuple[int, int], count: int) -> float:
    """Pictures per second of the network alone, one batch after the other, as OpenVINO runs it by itself."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(file, "CPU", hints)
    batch = np.random.default_rng(0).random((BATCH, 3, *size), np.float32)
    compiled(batch)

    def once() -> float:
        start = time.perf_counter()
        for _ in range(count // BATCH):
            compiled(batch)
        return count // BATCH * BATCH / (time.perf_counter() - start)

    return max(once() for _ in range(ROUNDS))


def main() -> None:
    """Fits, exports, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(SHORT))
    parser.add_argument("--preset", default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=64)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(Path(folder) / "parts/cloth/train/good", options.pictures)
        data = blemish.open_dataset("folder", files[0].parent)
        print("model      torch     onnx  openvino     bare  openvino/bare  openvino/torch  (pictures per second)")
        for model in options.models.split(","):
            detector = blemish.create(model, preset=options.preset, config=SHORT[model], device="cpu").fit(data)
            found, proofs = {}, []
            for suffix in (".blemish", ".onnx", ".xml"):
                file = Path(folder) / f"{model}{suffix}"
                artifact.save(detector, file)
                predictor = artifact.load(file, device="cpu")
                predictor.predict(files[:BATCH])
                found[suffix] = end_to_end(predictor, files)
                parity = read_header(file).parity
                proofs += [f"  {suffix}: {parity.sentence()}"] if parity else []
            alone = bare(Path(folder) / f"{model}.xml", detector.config.image_size, options.pictures)
            speeds = " ".join(f"{value:8.1f}" for value in (*found.values(), alone))
            print(f"{model:9} {speeds} {found['.xml'] / alone:14.2f} {found['.xml'] / found['.blemish']:15.2f}")
            print("\n".join(proofs), flush=True)


if __name__ == "__main__":
    main()
