"""How fast InvAD trains: with kept features, without, and in a plain version; and how much memory each takes.

    python benchmarks/invad.py DATA [--steps 20] [--batch-size 4]

Each way learns the same pictures in a process of its own. The plain version has what the reference
has: the backbone in each step, weights repeated for each picture in grouped convolutions, the
constant repeated, everything in float32. Timed after the features were made and two steps gone.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where the plain decoder is, as a test compares with it

WAYS = {
    "kept features": {"feature_cache": "8G"},
    "no kept features": {"feature_cache": "0"},
    "kept features, float32": {"feature_cache": "8G", "precision": "float32"},
    "plain": {"feature_cache": "0", "precision": "float32"},
}
"""What is compared, and its configuration."""


def measure(way: str, data_root: str, steps: int, batch_size: int) -> dict[str, float]:
    """Learns one way in this process."""
    import torch

    import blemish
    from blemish import restoring
    from blemish.models import invad
    from blemish.nn.backbone import Backbone

    if way == "plain":
        from plain_invad import plain_decoder

        invad.Decoder.forward = plain_decoder
        Backbone.folds = False
    started: list[tuple[float, float]] = []
    optimise = restoring.optimise

    def timed(loss: Any, *others: Any) -> Any:
        def noted(batch: Any) -> Any:
            started.append((time.perf_counter(), time.process_time()))
            return loss(batch)

        return optimise(noted, *others)

    restoring.optimise = timed
    data = blemish.open_dataset("auto", data_root)
    with tempfile.TemporaryDirectory() as folder:
        changes = WAYS[way] | {"steps": steps + 2, "batch_size": batch_size, "feature_cache_dir": f"{folder}/features"}
        changes["expectation_steps"] = 0  # the network is what is timed
        detector = blemish.create("invad", preset="small", config=changes, device="cpu")
        detector.learn(data, blemish.types.Preprocessing(detector.config.image_size))
    wall, processor = time.perf_counter() - started[2][0], time.process_time() - started[2][1]
    pictures = steps * batch_size
    return {
        "pictures_per_s": pictures / wall,
        "pictures_per_cpu_s": pictures / processor,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measures all ways, one after another."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--way", choices=WAYS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.data, options.steps, options.batch_size)))
        return
    print(f"{'':24} pictures/s  pictures/CPU s  peak GB")
    for way in WAYS:
        command = [sys.executable, __file__, options.data, "--way", way]
        command += ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(
            f"{way:24} {found['pictures_per_s']:10.1f}  {found['pictures_per_cpu_s']:14.1f}  {found['peak_gb']:7.2f}"
            f"   ({found['threads']:.0f} threads)"
        )


if __name__ == "__main__":
    main()
