"""Scoring: a predictor judges labelled pictures, and every metric is measured; a killed run goes on."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from blemish import __version__
from blemish.artifact import Header, Predictor
from blemish.dataset import Dataset
from blemish.errors import BlemishError, DatasetError, ImageError, MetricError, OutputError, count_of
from blemish.files import write_text
from blemish.judging import Judged, Scored, ScoredPart, decide_parts, finite, from_line, judge
from blemish.metric import Evaluation, Mode, Options, Results
from blemish.objects import name_of
from blemish.parts import part_of, places_of_parts
from blemish.progress import bar
from blemish.reading import digest, read_mask
from blemish.types import Decider, Failure, Policy, Sample

_LOG = logging.getLogger(__name__)
SAVE_EVERY = 20.0
"""Seconds between two savings of what was scored so far."""


@dataclass(frozen=True)
class Report:
    """What a predictor makes of a labelled test set."""

    header: Header
    """The artifact's."""
    sentences: list[str]
    """What was tested on."""
    deciders: dict[str, Decider]
    """{category: what decided}."""
    results: Results
    """All metrics."""
    scored: Sequence[Scored]
    """Every picture that could be read."""
    failures: list[Failure]
    """Every picture or mask that could not be used."""
    samples: Mapping[str, Sample] = field(default_factory=dict)
    """{path: sample}; quick where asked for in the order of `scored`."""
    learned: tuple[str, ...] = ()
    """Good test pictures that the detector has learned from, so that it knows them."""
    parts: list[ScoredPart] = field(default_factory=list)
    """Every part that pictures are said to be views of."""
    progress: Path | None = None
    """Where the scores are kept until `forget`, so that a report that can't be written loses none."""

    def plain(self) -> dict[str, Any]:
        """The report as values that JSON knows, with the names of the metrics."""
        results = asdict(self.results)
        return {
            "metrics": results.pop("metrics"),
            "mean": results.pop("mean"),
            **results,
            "model": self.header.model,
            "config": dict(self.header.config),
            "training": self.header.fitted.training and asdict(self.header.fitted.training),
            "tested_on": self.sentences,
            "thresholds": {category: _thresholds(decider) for category, decider in self.deciders.items()},
            "pictures": len(self.scored),
            "parts": [finite(asdict(part)) for part in self.parts],
            "learned_from": list(self.learned),
            "failures": [{"path": str(failure.path), "reason": failure.reason} for failure in self.failures],
        }


def score(
    predictor: Predictor,
    data: Dataset,
    *,
    policy: Policy | None = None,
    options: Options | None = None,
    mode: Mode = "auto",
    resume: bool = False,
) -> Report:
    """What the predictor makes of the labelled test pictures of a dataset: every metric, every score.

    Args:
        predictor: A loaded artifact.
        data: Its test pictures are used, and nothing is learned from them: thresholds are the artifact's.
            Good ones that the detector was trained on are counted in the report.
        policy: Another false-reject rate than the artifact's own.
        options: How metrics are computed; its thresholds are those of the policy.
        mode: Whether map values are all kept or counted in bounded memory.
        resume: Whether to go on where an earlier call with the same arguments was killed; call
            `forget(report)` once the report is where it should be.

    Raises:
        DatasetError: there are no labelled test pictures, or none that can be read.
    """
    tested, options = Tested.of(data), options or Options()
    samples = tested.samples
    intervals = options.resamples > 0
    work = _Work(_progress_folder(predictor, samples, (policy, mode, intervals)) if resume else None, mode, intervals)
    done = work.done
    # A part that was half done is looked at whole again, because its views may look at one another.
    unfinished = {part_of(sample) for sample in samples if str(sample.path) not in done}
    left = [sample for sample in samples if part_of(sample) in unfinished]
    with bar("Score", len(samples)) as drawn:
        drawn.advance(len(samples) - len(left))
        for judged in judge(predictor, left, work.failures, policy):
            if str(judged.sample.path) not in done:
                work.add(judged)
            drawn.advance()
    work.save()
    read = [sample for sample in samples if str(sample.path) in work.rows]
    scored = [work.rows[str(sample.path)] for sample in read]
    found = Found(work.evaluation, scored, work.failures, learned(predictor.header, read))
    return replace(report(predictor, tested, found, policy, options), progress=work.folder)


def labelled(data: Dataset) -> list[Sample]:
    """The test pictures of which it is known whether they are good.

    Raises:
        DatasetError: there are none.
    """
    samples = [sample for sample in data.test if sample.is_anomalous is not None]
    if not samples:
        raise DatasetError(
            f"{data.root} has no labelled test pictures; expected good and defective ones, for example in "
            "test/good and test/scratch. Use blemish predict for pictures without labels."
        )
    return samples


@dataclass(frozen=True)
class Tested:
    """What is known of the test pictures of a dataset before any is looked at."""

    root: Path
    """Of the dataset."""
    sentences: list[str]
    """What was found."""
    categories: list[str]
    """Of the dataset."""
    samples: Sequence[Sample]
    """The labelled test pictures; views of one part follow on one another."""

    @classmethod
    def of(cls, data: Dataset, keep: Callable[[Iterable[Sample]], Sequence[Sample]] = list) -> "Tested":
        """That of a dataset, of which nothing else is kept.

        Args:
            data: The dataset.
            keep: How to keep its test pictures.

        Raises:
            DatasetError: none is labelled.
        """
        samples = labelled(data)
        ordered = (samples[place] for part in places_of_parts(samples) for place in part)
        return cls(data.root, data.sentences(), data.categories, keep(ordered))


@dataclass(frozen=True)
class Found:
    """What was found out, whoever went through the pictures."""

    evaluation: Evaluation
    scored: Sequence[Scored]
    """Every picture that could be read, in the order of the samples."""
    failures: list[Failure]
    learned: tuple[str, ...]
    """Good pictures that the detector has learned from."""


class _Named(Mapping[str, Sample]):
    """Samples by their names, without keeping these: quick where asked for in order, for those that are there."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples, self._next = samples, 0

    def __getitem__(self, name: str) -> Sample:
        for place in chain(range(self._next, len(self)), range(self._next)):
            sample = self._samples[place]
            if name_of(sample.path) == name:
                self._next = place + 1
                return sample
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name_of(sample.path) for sample in self._samples)

    def __len__(self) -> int:
        return len(self._samples)


def report(predictor: Predictor, tested: Tested, found: Found, policy: Policy | None, options: Options) -> Report:
    """The report on what was found on the labelled test pictures of a dataset.

    Raises:
        DatasetError: none of them can be read.
    """
    if not found.scored:
        raise DatasetError(
            f"{tested.root}: none of {count_of(len(tested.samples), 'test picture')} can be read; "
            f"{found.failures[0].reason}"
        )
    deciders = {category: predictor.decider(category, policy) for category in tested.categories}
    thresholds = {category: decider.reject.value for category, decider in deciders.items()}
    options = replace(options, thresholds=thresholds, top_views=(policy or predictor.policy).top_views)
    samples = _Named(tested.samples)
    has_parts = any(sample.part for sample in tested.samples)
    categories = {name_of(sample.path): sample.category for sample in tested.samples if has_parts}
    return Report(
        header=predictor.header,
        sentences=tested.sentences,
        deciders=deciders,
        results=found.evaluation.compute(options),
        scored=found.scored,
        failures=found.failures,
        samples=samples,
        learned=found.learned,
        parts=decide_parts(predictor, found.scored, policy, categories) if has_parts else [],
    )


def learned(header: Header, samples: Iterable[Sample]) -> tuple[str, ...]:
    """The good pictures among the samples whose content the detector was trained on."""
    known = set(header.fitted.learned_from)
    good = (sample.path for sample in samples if not sample.is_anomalous)
    return tuple(str(path) for path in good if digest(path) in known)


def take_in(evaluation: Evaluation, judged: Judged, failures: list[Failure], sample: Sample | None = None) -> bool:
    """Whether a picture could be measured, together with its mask.

    Args:
        evaluation: Takes it in.
        judged: The picture.
        failures: Grows by what could not be used.
        sample: What it is called and belongs to, where it was read from a copy.
    """
    mask = None
    try:
        mask = read_mask(judged.sample, (judged.anomaly_map.shape[0], judged.anomaly_map.shape[1]))
    except ImageError as error:
        failures.append(Failure(judged.sample.path, f"scored without its mask: {error}"))
    try:
        evaluation.add(sample or judged.sample, judged.scored.image_score, judged.anomaly_map, mask)
    except MetricError as error:
        failures.append(Failure(judged.sample.path, str(error)))
        return False
    return True


def forget(report: Report) -> None:
    """Removes what `score` keeps to go on from, now that the report is written."""
    if report.progress is not None:
        shutil.rmtree(report.progress, ignore_errors=True)


class _Work:
    """What was scored so far, in memory and, if it is to be resumed, in a folder."""

    def __init__(self, folder: Path | None, mode: Mode, intervals: bool) -> None:
        self.folder = folder
        self._clear(mode, intervals)
        if folder is not None and (folder / "evaluation.safetensors").exists():
            try:
                self._load(folder)
            except (BlemishError, OSError, ValueError, KeyError, TypeError):
                _LOG.warning("The scores kept in %s can't be read; starting anew.", folder)
                self._clear(mode, intervals)

    def _clear(self, mode: Mode, intervals: bool) -> None:
        self.evaluation = Evaluation(mode, intervals=intervals)
        self.rows: dict[str, Scored] = {}
        self.failures: list[Failure] = []
        self._saved = time.monotonic()

    def _load(self, folder: Path) -> None:
        self.evaluation = Evaluation.load(folder / "evaluation.safetensors")
        # The evaluation is written last, so the others may hold pictures that it does not.
        lines = (folder / "scores.jsonl").read_text("utf-8").splitlines()
        found = [from_line(line) for line in lines]
        paths = self.evaluation.paths
        self.rows = {row.path: row for row in found if row.path in paths}
        reasons = json.loads((folder / "failures.json").read_text("utf-8"))
        self.failures = [Failure(Path(path), reason) for path, reason in reasons if path in self.rows]

    @property
    def done(self) -> set[str]:
        return set(self.rows)

    def add(self, judged: Judged) -> None:
        if not take_in(self.evaluation, judged, self.failures):
            return
        self.rows[judged.scored.path] = judged.scored
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        self._saved = time.monotonic()
        if self.folder is None:
            return
        reasons = [(str(failure.path), failure.reason) for failure in self.failures]
        try:
            write_text(self.folder / "scores.jsonl", "".join(f"{row.line()}\n" for row in self.rows.values()))
            write_text(self.folder / "failures.json", json.dumps(reasons))
            self.evaluation.save(self.folder / "evaluation.safetensors")
        except OutputError as error:
            _LOG.warning("Scores can't be kept on the way (%s); a killed run will start anew.", error)
            self.folder = None


def _progress_folder(predictor: Predictor, samples: Sequence[Sample], options: object) -> Path:
    """Where the work on exactly these pictures by exactly this artifact is kept while it lasts."""
    key = hashlib.sha256(f"{__version__} {predictor.header.to_json()}".encode())
    for sample in samples:
        status = sample.path.stat() if sample.path.exists() else None
        key.update(repr((sample, status and (status.st_size, status.st_mtime_ns))).encode())
    key.update(repr(options).encode())
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "blemish" / "score" / key.hexdigest()[:24]


def _thresholds(decider: Decider) -> dict[str, Any]:
    found: dict[str, Any] = {"reject": asdict(decider.reject), "pixel": decider.pixel}
    if decider.calibration.parts:
        found["part_reject"] = asdict(decider.of_parts().reject)
    return found if decider.review is None else found | {"review": asdict(decider.review)}
