"""What ten labelled defects bring: image AUROC and FPR at 95 % TPR of bases alone, and with SegAD's two decisions.

    python benchmarks/segad.py DATA --bases DIR [--categories a,b] [--components none,foreground,cluster:4]
        [--decisions peaks,forest] [--masks] [--recommend] [--labelled 10] [--seeds 333,576,...]
        [--trees 200] [--out-of-fold 3] [--json FILE]

DIR/CATEGORY/*.blemish are the bases of a category. The protocol is the paper's (arXiv 2405.04953, for
VisA): the forest learns from the good pictures for training that no base has learned from, and from defects
drawn of the test set, which leave it; also a base alone is judged on what is left. Mean and deviation are over
the seeds. Each picture is looked at once: maps are the same for all seeds and components. With --out-of-fold,
the bases are fitted anew (PatchCore: quick; trained ones: not) and the forest learns from all good pictures for
training, and from defects as those fits see them, as `blemish fit MODEL DATA --defects DIR` does.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import blemish
from blemish import folds
from blemish.artifact import Predictor
from blemish.bases import Bases, Looked, heat_of
from blemish.components import Components
from blemish.dataset import Dataset
from blemish.defects import mask_of
from blemish.detector import DetectorConfig
from blemish.images import Bools, Floats
from blemish.label_gain import held_out, label_gain, quality
from blemish.models.segad import REPEATS, SEEDS, draw_defects
from blemish.nn import peaks
from blemish.nn.forest import Forest, ForestConfig
from blemish.nn.map_features import STATISTICS, Labels, features
from blemish.nn.peaks import Eye, Layout, Peaks, layout
from blemish.parts import part_of
from blemish.reading import digest, read_parts
from blemish.types import Failure, Preprocessing, Sample

BATCH = 4
Some = tuple[int, ...]
"""Numbers of the bases that decide together."""


@dataclass
class Known:
    """What is known of the pictures of a category, good ones to learn from first."""

    kinds: list[str] = field(default_factory=list)
    """new (good, to learn from), good and bad (to test on), taught (bad, as folds see them)."""
    paths: list[Path] = field(default_factory=list)
    scores: list[Floats] = field(default_factory=list)
    """Of each base."""
    rows: dict[str, list[Floats]] = field(default_factory=dict)
    """{components: statistics of the maps, for the forest}."""
    peaks: dict[tuple[str, Some], list[Floats]] = field(default_factory=dict)
    """{(components, numbers of bases): rows for the decision by peaks}."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """{what: of each picture}."""
    channels: tuple[int, ...] = ()
    """Of the backbone, by stride."""
    size: tuple[int, int] = (0, 0)
    """Of the images."""
    components: dict[str, int] = field(default_factory=dict)
    """{components: how many there are}."""

    def layout(self, kind: str, bases: int) -> Layout:
        """That of the rows for the decision by peaks."""
        return layout(self.channels, bases, self.components[kind], self.size)


@dataclass
class Means:
    """What pictures are looked at with."""

    pieces: dict[str, Components]
    eye: Eye | None
    """None where no decision is by peaks."""


def together(count: int) -> list[Some]:
    """Each base alone, and all."""
    return [(number,) for number in range(count)] + ([tuple(range(count))] if count > 1 else [])


def look(found: Known, bases: Sequence[Predictor], samples: dict[str, list[Sample]], means: Means) -> None:
    """Adds what there is to know of some pictures."""
    failures: list[Failure] = []
    order = [(name, sample) for name, own in samples.items() for sample in own]
    name_of = {sample.path: name for name, sample in order}
    together_bases = Bases(bases, means.eye, seen_by(bases).image_size)
    for batch in read_parts([sample for _, sample in order], seen_by(bases), BATCH, failures):
        looked = together_bases.look(batch.images, [part_of(one) for one in batch.samples])
        predicted = looked.found
        labels: dict[str, list[Labels]] = {kind: [] for kind in means.pieces}
        for place, (sample, image) in enumerate(zip(batch.samples, batch.images, strict=True)):
            found.kinds.append(name_of[sample.path])
            found.paths.append(sample.path)
            found.scores.append(np.array([each.image_score[place] for each in predicted]))
            maps = [each.anomaly_map[place] for each in predicted]
            for kind, own in means.pieces.items():
                start = time.perf_counter()
                labels[kind].append(own.labels(image, sample.path))
                middle = time.perf_counter()
                found.rows.setdefault(kind, []).append(features(maps, labels[kind][-1], own.count))
                found.seconds.setdefault(f"find {kind}", []).append(middle - start)
                found.seconds.setdefault(f"features {kind}", []).append((time.perf_counter() - middle) / len(maps))
        if looked.patches is not None:
            look_at_peaks(found, bases, looked, labels, [mask_of(sample) for sample in batch.samples])
    for failure in failures:
        print(f"not used: {failure.reason}", flush=True)


def look_at_peaks(
    found: Known, bases: Sequence[Predictor], looked: Looked, labels: dict[str, list[Labels]], masks: list[Bools]
) -> None:
    """Adds the rows for the decision by peaks of a batch, also as what is learned from where there are masks."""
    size = looked.heat.shape[1:]
    for kind, own in labels.items():
        count = found.components[kind]
        for some in together(len(bases)):
            start = time.perf_counter()
            predicted = [looked.found[number] for number in some]
            heat = heat_of(predicted, [bases[number] for number in some], size)
            levels = peaks.levels_of(predicted, own, count)
            rows = peaks.rows(levels, looked.patches, heat, own, masks)
            found.peaks.setdefault((kind, some), []).extend(rows)
            spent = (time.perf_counter() - start) / len(rows)
            found.seconds.setdefault(f"peaks {kind}, {len(some)} bases", []).extend([spent] * len(rows))


def seen_by(bases: Sequence[Predictor]) -> Preprocessing:
    """What pictures are brought to: the largest size that a base looks at."""
    sizes = [base.preprocessing.image_size for base in bases]
    size = max(height for height, _ in sizes), max(width for _, width in sizes)
    return Preprocessing(size, bases[0].preprocessing.intensity)


def look_at_all(bases: Sequence[Predictor], data: Dataset, options: argparse.Namespace) -> Known:
    """All pictures of a category."""
    known = {picture for base in bases for picture in base.header.fitted.learned_from}
    good = data.train + data.validation
    fresh = [sample for sample in good if digest(sample.path) not in known]
    bad = [sample for sample in data.test if sample.is_anomalous]
    pieces = {kind: Components(kind, DetectorConfig().backbone, "default").eval() for kind in options.components}
    for own in pieces.values():
        own.learn(good, seen_by(bases), BATCH, torch.Generator().manual_seed(0))
    eye = Eye(DetectorConfig().backbone, "default").eval().to(options.device) if "peaks" in options.decisions else None
    means = Means(pieces, eye)
    found = Known(channels=tuple(eye.backbone.channels) if eye else (), size=seen_by(bases).image_size)
    found.components = {kind: own.count for kind, own in pieces.items()}
    tested = [sample for sample in data.test if sample.is_anomalous is False]
    look(found, bases, {"new": fresh, "good": tested, "bad": bad}, means)
    if options.out_of_fold:
        seen = [sample for sample in good if digest(sample.path) in known]
        fold = folds.assign(seen, options.out_of_fold, 0)
        device = torch.device(options.device)
        for number in range(options.out_of_fold):
            inside = [sample for sample, own in zip(seen, fold, strict=True) if own == number]
            as_learned = [replace(sample, split="train") for sample in seen]
            held_out = [replace(sample, split="validation") for sample in fresh]
            others = folds.without(replace(data, samples=(*as_learned, *held_out)), inside)
            fits = [folds.refit(base.header, others, device, "default", None) for base in bases]
            look(found, fits, {"new": inside, "taught": bad[number :: options.out_of_fold]}, means)
    return found


def columns(parts: int, bases: int, wanted: Sequence[int]) -> list[int]:
    """The places, among the features of all bases, of the features of some of them."""
    width = len(STATISTICS)
    inside = [
        (part * bases + base) * width + number for part in range(parts) for base in wanted for number in range(width)
    ]
    return inside + [parts * bases * width + base for base in wanted]


def measure(looked: Known, names: Sequence[str], options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """{what: (AUROC, FPR at 95 % TPR) for each seed}."""
    kinds = np.array(looked.kinds)
    new, good, bad = (np.flatnonzero(kinds == name) for name in ("new", "good", "bad"))
    scores = np.array(looked.scores, np.float32)
    taught = {looked.paths[row]: row for row in np.flatnonzero(kinds == "taught")}
    shown = np.array([taught.get(looked.paths[row], row) for row in bad])
    found: dict[str, list[tuple[float, float]]] = {}
    advice: dict[str, list[bool]] = {}

    def note(what: str, values: Floats, defective: Bools) -> None:
        result = quality(values, defective, 0.01)
        found.setdefault(what, []).append((result.auroc, result.fpr_at_95_tpr))

    for seed in options.seeds:
        drawn = draw_defects(len(bad), options.labelled, seed)
        left = np.setdiff1d(np.arange(len(bad)), drawn)
        test = np.concatenate([good, bad[left]])
        defective = np.arange(len(test)) >= len(good)
        learn = np.concatenate([new, shown[drawn]])
        labels = np.arange(len(learn)) >= len(new)
        for number, name in enumerate(names):
            note(f"{name} alone", scores[test, number], defective)
        for kind, some in looked.peaks:
            table = np.array(looked.peaks[kind, some], np.float32)
            shape = looked.layout(kind, len(some))
            what = " + ".join(names[one] for one in some)
            for marked in (False, True) if options.masks else (False,):
                own = table[learn] if marked else shape.unmarked(table[learn])
                decision = Peaks.learned(own, labels, shape, seed)
                values = decision(torch.from_numpy(table[test])).detach().numpy()
                name = f"{what} + {'marked ' * marked}peaks, {kind}"
                note(name, values, defective)
                if options.recommend:
                    margins = [
                        held_out(own, labels, judge(shape, seed), (seed, number))[0] for number in range(REPEATS)
                    ]
                    said = label_gain({names[one]: scores[learn, one] for one in some}, margins, labels, 0.01)
                    advice.setdefault(name, []).append(said.is_recommended)
        for kind, rows in looked.rows.items() if "forest" in options.decisions else ():
            table = np.array(rows, np.float32)
            for some in together(len(names)):
                part = table[:, columns(looked.components[kind], len(names), some)]
                weight = len(new) / options.labelled
                forest = Forest.grown(part[learn], labels, weight, seed, ForestConfig(trees=options.trees))
                margins = forest(torch.from_numpy(np.ascontiguousarray(part[test]))).numpy()
                note(f"{' + '.join(names[one] for one in some)} + forest, {kind}", margins, defective)
    for what, said in advice.items():
        print(f"{what}: labels are recommended for {sum(said)} of {len(said)} draws", flush=True)
    return found


def judge(shape: Layout, seed: int) -> Callable[[Floats, Bools], Callable[[Floats], Floats]]:
    """What learns the decision by peaks from rows, for `held_out`."""

    def learn(table: Floats, labels: Bools) -> Callable[[Floats], Floats]:
        decision = Peaks.learned(table, labels, shape, seed)
        return lambda rows: decision(torch.from_numpy(rows)).numpy()

    return learn


def main() -> None:
    """Goes through the categories and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--bases", type=Path, required=True, help="folder with CATEGORY/*.blemish")
    parser.add_argument("--categories", default="")
    parser.add_argument("--components", type=lambda text: text.split(","), default=["none", "foreground", "cluster:4"])
    parser.add_argument("--decisions", type=lambda text: text.split(","), default=["peaks", "forest"])
    parser.add_argument("--masks", action="store_true", help="also learn from the masks of labelled defects")
    parser.add_argument("--recommend", action="store_true", help="also cross-validate, and say what is recommended")
    parser.add_argument("--labelled", type=int, default=10)
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=list(SEEDS))
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--out-of-fold", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    there = sorted(folder.name for folder in options.bases.iterdir() if any(folder.glob("*.blemish")))
    everything: dict[str, dict[str, list[tuple[float, float]]]] = {}
    seconds: dict[str, list[float]] = {}
    for category in options.categories.split(",") if options.categories else there:
        start = time.perf_counter()
        files = sorted((options.bases / category).glob("*.blemish"))
        bases = [blemish.load(file, device=options.device) for file in files]
        data = blemish.open_dataset("auto", options.data, category=category)
        looked = look_at_all(bases, data, options)
        for what, own in looked.seconds.items():
            seconds.setdefault(what, []).extend(own)
        looking = time.perf_counter() - start
        everything[category] = measure(looked, [file.stem for file in files], options)
        counts = ", ".join(f"{number} {name}" for name, number in Counter(looked.kinds).items())
        print(f"\n{category}: {counts} pictures; {looking:.0f} s to look, {time.perf_counter() - start:.0f} s in all")
        show(everything[category])
    for what in sorted(set.intersection(*(set(found) for found in everything.values()))) if len(everything) > 1 else []:
        means = [np.mean(found[what], 0) for found in everything.values()]
        print(f"mean of {len(means)}: {what}: AUROC {np.mean(means, 0)[0]:.4f}, FPR {np.mean(means, 0)[1]:.4f}")
    for what, own in seconds.items():
        print(f"{what}: {1000 * np.mean(own):.2f} ms a picture{' and base' if what.startswith('features') else ''}")
    if options.json:
        options.json.write_text(
            json.dumps({"results": everything, "ms": {k: 1000 * np.mean(v) for k, v in seconds.items()}})
        )


def show(found: dict[str, list[tuple[float, float]]]) -> None:
    """Prints the table of a category."""
    print("| what | image_auroc | fpr_at_95_tpr |\n|---|---|---|")
    for what, results in found.items():
        (auroc, fpr), (auroc_off, fpr_off) = np.mean(results, 0), np.std(results, 0)
        print(f"| {what} | {auroc:.4f} ± {auroc_off:.4f} | {fpr:.4f} ± {fpr_off:.4f} |", flush=True)


if __name__ == "__main__":
    main()
