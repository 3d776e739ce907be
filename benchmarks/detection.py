"""A model on every category of a folder: accuracy, time and memory, one process a category.

    python benchmarks/detection.py DATA [--model patchcore] [--preset small] [--seed 0] [--categories a,b]
        [--config '{"minutes": 8}']

Prints a table: image AUROC, pixel AUROC, pixel AP, AUPRO, FPR at 95 % TPR, seconds to fit, milliseconds
a picture to score (reading, metrics and all), and peak memory of the whole process.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro", "fpr_at_95_tpr")


def measure(data_root: str, category: str, model: str, preset: str, config: dict[str, Any]) -> dict[str, float]:
    """Fits and scores one category in this process."""
    import tempfile

    import blemish

    data = blemish.open_dataset("auto", data_root, category=category, seed=config["seed"])
    start = time.perf_counter()
    detector = blemish.create(model, preset=preset, config=config).fit(data)
    fitted = time.perf_counter()
    fit_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        blemish.save(detector, f"{folder}/part.blemish")
        predictor = blemish.load(f"{folder}/part.blemish")
        loaded = time.perf_counter()
        report = blemish.score(predictor, data)
    scored = time.perf_counter()
    values = {name: value for name, value in report.results.metrics[category].items() if name in METRICS}
    return {
        **values,
        "fit_s": fitted - start,
        "ms_per_picture": (scored - loaded) / len(report.scored) * 1000,
        "fit_gb": fit_memory / 1e6,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    """Runs the categories one after the other and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="patchcore")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--categories", default="")
    parser.add_argument("--config", default="{}", help="fields in which the configuration differs, as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = {**json.loads(options.config), "seed": options.seed}
    if options.one:
        print(json.dumps(measure(options.data, options.one, options.model, options.preset, config)))
        return
    import blemish

    found = blemish.open_dataset("auto", options.data).categories
    names = options.categories.split(",") if options.categories else found
    columns = (*METRICS, "fit_s", "ms_per_picture", "fit_gb", "peak_gb")
    print(f"{options.model}, preset {options.preset}, seed {options.seed}")
    print("| category | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    rows: list[dict[str, float]] = []
    for name in names:
        command = [sys.executable, str(Path(__file__)), options.data, "--one", name]
        command += [
            "--model",
            options.model,
            "--preset",
            options.preset,
            "--seed",
            str(options.seed),
            "--config",
            options.config,
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"| {name} | " + " | ".join(_cell(rows[-1], column) for column in columns) + " |", flush=True)
    mean = {column: fmean(row[column] for row in rows if column in row) for column in columns}
    print("| **mean** | " + " | ".join(_cell(mean, column) for column in columns) + " |")


def _cell(row: dict[str, float], column: str) -> str:
    if column not in row:
        return "–"
    return f"{row[column]:.4f}" if column in METRICS else f"{row[column]:.1f}"


if __name__ == "__main__":
    main()
