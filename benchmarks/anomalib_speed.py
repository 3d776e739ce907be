"""How many pictures a second anomalib's own inferencers take, for `deploy.py --anomalib-python`.

    python benchmarks/anomalib_speed.py PICTURES WEIGHTS [--threads 2] [--rounds 3]

Runs in an environment that has anomalib and not Blemish. Fits anomalib's PatchCore on the JPEG files in
a folder, with weights (.safetensors) for its EfficientNet-Lite0, feature maps of strides 8 and 16 and
a coreset of about 4000 entries, as Blemish's PatchCore `small` has it; exports it, and prints for each
inferencer the pictures per second from files to predictions, one picture after the other, which is all
that the inferencers do. Where an export takes no single picture, it gets two at a time.
"""

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["TRUST_REMOTE_CODE"] = "1"  # anomalib's own pickle, made below
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from anomalib import __version__
from anomalib.data import Folder
from anomalib.data.utils import read_image
from anomalib.deploy import ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import Patchcore
from rate import per_second
from safetensors.torch import load_file

PATCHES = 1024
"""Of a picture of 256x256, at stride 8."""
ENTRIES = 4000


def fitted(pictures: Path, weights: Path, folder: Path) -> tuple[Engine, Patchcore]:
    """The engine, and PatchCore after its one epoch."""
    count = sum(1 for _ in pictures.iterdir())
    data = Folder(
        "parts",
        normal_dir=pictures,
        train_batch_size=8,
        eval_batch_size=8,
        num_workers=0,
        test_split_mode="synthetic",
        val_split_mode="same_as_test",
    )
    model = Patchcore(
        backbone="tf_efficientnet_lite0",
        layers=("blocks.2", "blocks.4"),
        pre_trained=False,
        coreset_sampling_ratio=min(0.1, ENTRIES / (PATCHES * count)),
        evaluator=False,
        visualizer=False,
    )
    network = model.model.feature_extractor.feature_extractor
    lacking = network.load_state_dict(load_file(weights), strict=False).missing_keys
    if lacking:
        raise SystemExit(f"the weights lack {lacking}")
    engine = Engine(max_epochs=1, accelerator="cpu", devices=1, logger=False, default_root_dir=folder)
    engine.fit(model, datamodule=data)
    return engine, model


def speed(predict: Callable[[object], object], files: list[Path], rounds: int) -> tuple[float, str]:
    """Pictures per second of an inferencer, and how it was asked."""

    def singly() -> int:
        for file in files:
            predict(str(file))
        return len(files)

    def in_pairs() -> int:
        for one, other in zip(files[::2], files[1::2], strict=True):
            predict(np.stack([read_image(one), read_image(other)]))
        return len(files)

    try:
        return per_second(singly, rounds), "one at a time"
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        return per_second(in_pairs, rounds), f"two at a time, because one is refused: {reason[:120]}"


def main() -> None:
    """Fits, exports, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    files = sorted(options.pictures.iterdir())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it leaves a cache where it works
        engine, model = fitted(options.pictures.absolute(), options.weights.absolute(), Path(folder))
        entries = len(model.model.memory_bank)
        for kind, make in ((ExportType.TORCH, TorchInferencer), (ExportType.OPENVINO, OpenVINOInferencer)):
            try:
                file = engine.export(model, kind, export_root=folder, input_size=(512, 512))
                found, how = speed(
                    make(file, device=("cpu" if make is TorchInferencer else "CPU")).predict, files, options.rounds
                )
            except Exception as error:
                print(f"  anomalib {__version__} {kind.value}: failed: {error}", flush=True)
                continue
            print(
                f"  anomalib {__version__} {kind.value:9}{found:8.1f} pictures/s, {entries} entries, {how}", flush=True
            )


if __name__ == "__main__":
    main()
