"""Judging in blocks: pictures are shared out to actors (`engine`), and what they found is put together again.

Blocks are made of the batches that one process would make, so that every score is the same to the
last digit, and metric states add up in any order.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from blemish import __version__, artifact, engine, files, images, predictions
from blemish.artifact import BATCH, Predictor
from blemish.dataset import MASK_FOLDERS, Dataset
from blemish.engine import Cluster, Files, Work
from blemish.errors import ConfigError, DatasetError, MetricError, OutputError
from blemish.jobs import ROWS, STATE, Job, fingerprint, pack
from blemish.judging import Judged, Scored, from_line, judge
from blemish.metric import Evaluation, Mode, Options
from blemish.objects import Store, is_address, name_of, open_store, shadow, unreachable
from blemish.packed import Packed, sample_from, sample_line
from blemish.parts import whole_parts
from blemish.progress import Bar, bar
from blemish.rows import LISTS, PICTURE, read_rows
from blemish.scoring import Found, Tested, learned, report, take_in
from blemish.scoring import Report as Scores
from blemish.types import Failure, Policy, Sample


@dataclass(frozen=True)
class Order:
    """What is done with every picture."""

    artifact: Path
    """The detector's file."""
    device: str = "auto"
    """What it computes on."""
    policy: Policy | None = None
    """Another one than the artifact's own."""
    mode: Mode | None = None
    """How metrics are collected; None for no metrics."""
    intervals: bool = False
    """Whether metrics keep what intervals need."""
    overlays: bool = False
    """Whether to draw each picture with its heatmap."""
    maps: bool = False
    """Whether to give raw maps, too."""
    root: str = ""
    """Address of the object store that pictures are in; empty for files that all machines see."""


@dataclass(frozen=True)
class Place:
    """Where the work is done, and where its parts are kept."""

    cluster: Cluster = field(default_factory=Cluster)
    block: int = 256
    """Pictures in a block, about."""
    parts: Path | None = None
    """Folder that keeps the parts; one in the cache, until the work is done, if not given."""


def pictures_of(places: Sequence[Path], out_dir: Path | None = None) -> tuple[Iterator[Path], str]:
    """The pictures among `places` like `predictions.find_pictures`, object stores too; and the address of their store.

    They are looked for as they are asked for, so that none has to be kept.

    Raises:
        DatasetError: a place does not exist or can't be read.
        ConfigError: there is more than one, and one of them is an address.
    """
    if not any(map(is_address, places)):
        return predictions.look_through(places, out_dir), ""
    if len(places) > 1:
        raise ConfigError(
            f"{name_of(places[0])} and {len(places) - 1} more: expected one place where it is an address."
        )
    store = open_store(places[0])
    is_list = Path(store.base).suffix.lower() in LISTS
    return predictions.once(_listed(store)) if is_list else _stored(store), store.address


def _stored(store: Store) -> Iterator[Path]:
    """The pictures at an address."""
    for path, _ in store.list():
        inside = Path(path).relative_to(store.base).parts[:-1]
        if images.is_picture(Path(path)) and not MASK_FOLDERS & {part.lower() for part in inside}:
            yield Path(store.named(path))


def _listed(store: Store) -> Iterator[Path]:
    """The pictures that a manifest in an object store names, in its folder."""
    folder = Path(store.base).parent
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / Path(store.base).name
        try:
            copy.write_bytes(store.read(store.base))
        except OSError as error:
            raise unreachable(store.address, error) from error
        for place, row in read_rows(copy, PICTURE):
            name = row.get("path", "")
            path = Path(os.path.normpath(folder / name))
            if not path.is_relative_to(folder):
                raise DatasetError(
                    f'{place}: "{name}" leads out of {store.named(str(folder))}; expected a path inside it.'
                )
            yield Path(store.named(str(path)))


def open_data(place: Path, open_folder: Callable[[Path], Dataset]) -> tuple[Dataset, str]:
    """The dataset at an address, whose samples have addresses, too; and the address of their store.

    Args:
        place: The address of a folder in any layout, or of a manifest.
        open_folder: Opens the same as a folder.
    """
    store, manifest = open_store(place), ""
    if Path(store.base).suffix.lower() in LISTS:
        manifest = Path(store.base).name
        store = replace(store, base=str(Path(store.base).parent))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / (Path(store.base).name or "data")
        address = {copy: Path(name) for copy, name in shadow(store, folder, images.SUFFIXES)}
        data = open_folder(folder / manifest)
        samples = tuple(
            replace(each, path=address[each.path], masks=tuple(address[mask] for mask in each.masks))
            for each in data.samples
        )
    return replace(data, samples=samples, root=Path(store.address)), store.address


def predict(order: Order, samples: Packed[Sample], place: Place, out_dir: Path | None = None) -> "Predicted":
    """What the predictor says of each picture; overlays and maps are in `out_dir` already.

    Raises:
        OutputError: what is written can't be, or parts of another job are in the way.
        ConfigError: the cluster can't be reached.
    """
    names: Sequence[str] = []
    if out_dir is not None:
        shared = reduce(lambda one, other: os.path.commonpath([one, other]), (_folder(each) for each in samples))
        taken: set[Path] = set()
        relative = (Path(os.path.relpath(_place(each), shared)) for each in samples)
        names = Packed((str(predictions.free_name(each, taken)) for each in relative), str, str)
    return _run(order, samples, place, (names, out_dir))


def _place(sample: Sample) -> str:
    """Where a picture is, whatever folder somebody is in."""
    return name_of(sample.path) if is_address(sample.path) else str(sample.path.absolute())


def _folder(sample: Sample) -> str:
    return os.path.dirname(_place(sample))  # noqa: PTH120


def score(order: Order, tested: Tested, place: Place, options: Options | None = None) -> tuple[Scores, "Predicted"]:
    """The report of `blemish.score`, and the work that it rests on; call its `forget` once the report is written.

    Args:
        order: What is done.
        tested: The pictures; packed, so that they take little memory.
        place: Where it is done.
        options: How metrics are computed.

    Raises:
        DatasetError: no picture can be read.
        OutputError: a part is damaged, or parts of another job are in the way.
        ConfigError: the cluster can't be reached.
    """
    done = _run(order, tested.samples, place, ([], None))
    gathered = done.gather(_packed)
    found = Found(done.evaluation(), gathered.scored, gathered.failures, tuple(gathered.learned))
    return report(artifact.deciding(order.artifact), tested, found, order.policy, options or Options()), done


def _packed(scored: Iterable[Scored]) -> Packed[Scored]:
    """The same in little memory; JSON knows no infinite scores, so that these stand beside it."""
    return Packed(
        scored,
        lambda row: json.dumps([row.image_score, row.calibrated_score, row.line()]),
        lambda line: _with_scores(*json.loads(line)),
    )


def _with_scores(image_score: float, calibrated_score: float, line: str) -> Scored:
    return replace(from_line(line), image_score=image_score, calibrated_score=calibrated_score)


@dataclass
class Gathered:
    """What came of all pictures."""

    scored: Sequence[Scored] = ()
    """What was kept of those that could be read."""
    counts: Counter[Any] = field(default_factory=Counter)
    """How many of them were decided how."""
    failures: list[Failure] = field(default_factory=list)
    """Every picture that could not be used."""
    learned: list[str] = field(default_factory=list)
    """Good pictures that the detector has learned from."""


@dataclass(frozen=True)
class Predicted:
    """A job that is done."""

    job: Job
    count: int
    """Blocks."""
    is_kept: bool
    """Whether the folder is the user's."""

    def gather(self, keep: Callable[[Iterable[Scored]], Sequence[Scored]], lines: Sequence[Path] = ()) -> Gathered:
        """What came of all pictures; the parts are gone through once, and no more of them is kept than asked.

        Args:
            keep: What to keep of the pictures that could be read, which come in order.
            lines: Files that get a JSON object for each of these.
        """
        found = Gathered()
        found.scored = keep(self._readable(found, lines))
        return found

    def _readable(self, found: Gathered, lines: Sequence[Path]) -> Iterator[Scored]:
        with ExitStack() as stack:
            writers = [stack.enter_context(files.growing(file)) for file in lines]
            for row in self.job.all_rows(self.count):
                if row["reason"]:
                    found.failures.append(Failure(Path(row["path"]), row["reason"]))
                if row["learned"]:
                    found.learned.append(row["path"])
                if row["line"]:
                    found.counts[row["decision"]] += 1
                    for write_line in writers:
                        write_line(row["line"])
                    yield _with_scores(row["image_score"], row["calibrated_score"], row["line"])

    def evaluation(self) -> Evaluation:
        """All metric states together: neighbours first, so that the work grows with their number and hardly more.

        Raises:
            OutputError: one is damaged; it is taken out, so that the same command makes it anew.
        """
        waiting: list[tuple[int, Evaluation]] = []
        for number in range(self.count):
            try:
                level, state = 0, Evaluation.load(self.job.state(number))
            except MetricError as error:
                self.job.drop(number)
                raise OutputError(f"{error} It was taken out: type the same command again to make it anew.") from error
            while waiting and waiting[-1][0] == level:
                level, state = level + 1, waiting.pop()[1] + state
            waiting.append((level, state))
        whole = waiting.pop()[1]
        while waiting:
            whole = waiting.pop()[1] + whole
        return whole

    def forget(self) -> None:
        """Removes the parts, unless the user has named a folder for them."""
        if not self.is_kept:
            shutil.rmtree(self.job.folder, ignore_errors=True)


def _run(
    order: Order, samples: Sequence[Sample], place: Place, drawn_to: tuple[Sequence[str], Path | None]
) -> Predicted:
    """The job, done."""
    shared = _contents(order.artifact)
    about = {
        "blemish": __version__,
        "artifact": hashlib.sha256(b"".join(shared.values())).hexdigest(),
        "options": repr((order.policy, order.mode, order.intervals, place.block, drawn_to[1], order.maps)),
        "pictures": fingerprint(map(sample_line, samples)),
    }
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = place.parts or cache / "blemish" / "jobs" / fingerprint(map(str, about.items()))
    names, out_dir = drawn_to
    with files.locked(folder), bar("Judge", len(samples)) as drawn:
        left = _Left(Job.open(folder, about), samples, names, place.block, drawn)
        make = partial(judging, replace(order, artifact=Path(order.artifact.name)))
        for number, contents in engine.spread(left.texts(), make, shared, place.cluster):
            for name, content in contents.items():
                if out_dir is not None and name not in (ROWS, STATE):
                    files.write_bytes(out_dir / name, content)
            left.job.write(number, contents)
            drawn.advance(left.sizes.pop(number))
    return Predicted(left.job, left.count, place.parts is not None)


@dataclass
class _Left:
    """The blocks that are not done yet, made one by one: only those in hand are in memory."""

    job: Job
    samples: Sequence[Sample]
    names: Sequence[str]
    """Of what is drawn of each; none where nothing is."""
    block: int
    drawn: Bar
    """Moves on by the blocks that were done before."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Pictures in each of the blocks in hand."""
    count: int = 0
    """Blocks, as soon as all were made."""

    def texts(self) -> Iterator[tuple[int, str]]:
        for number, block in enumerate(blocks_of(self.samples, self.block)):
            self.count = number + 1
            if self.job.has(number):
                self.drawn.advance(len(block))
                continue
            self.sizes[number] = len(block)
            yield number, _text([self.samples[at] for at in block], [self.names[at] for at in block if self.names])


def blocks_of(samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """Places of samples, at least `size` together if there are as many: the batches that one process would make."""
    block: list[int] = []
    for batch in whole_parts(samples, BATCH):
        block += batch
        if len(block) >= size:
            yield block
            block = []
    if block:
        yield block


def judging(order: Order, shared: Files) -> Work:
    """What an actor does with a block, after it has loaded the detector."""
    with TemporaryDirectory() as folder:
        for name, content in shared.items():
            (Path(folder) / name).write_bytes(content)
        predictor = artifact.load(Path(folder) / order.artifact, device=order.device)
    return partial(_judge, order, predictor, open_store(order.root) if order.root else None)


def _judge(order: Order, predictor: Predictor, store: Store | None, text: str) -> Files:
    """The part that a block comes to, with overlays and maps by the names of their files."""
    samples, names = _samples(text)
    evaluation = None if order.mode is None else Evaluation(order.mode, intervals=order.intervals)
    rows: list[dict[str, Any]] = []
    found: dict[str, bytes] = {}
    failures: list[Failure] = []
    with TemporaryDirectory() as folder:
        copies = _fetched(samples, store, Path(folder), failures)
        of_copy = {copy.path: place for place, copy in copies.items()}
        for judged in judge(predictor, list(copies.values()), failures, order.policy):
            place = of_copy[judged.sample.path]
            if evaluation is not None and not take_in(evaluation, judged, failures, samples[place]):
                continue
            row = _row(judged, name_of(samples[place].path))
            row["learned"] = evaluation is not None and bool(learned(predictor.header, [judged.sample]))
            rows.append(row)
            if order.overlays:
                found |= predictions.pictured(judged, names[place], maps=order.maps)
        rows += [_failed(failure, samples, of_copy) for failure in failures]
        if evaluation is not None:
            state = Path(folder) / "state"
            evaluation.save(state)
            found[STATE] = state.read_bytes()
    return {**found, ROWS: pack(rows)}


def _fetched(
    samples: Sequence[Sample], store: Store | None, folder: Path, failures: list[Failure]
) -> dict[int, Sample]:
    """Each sample as it can be read on this machine, by its place; those that can't be had are failures."""
    if store is None:
        return dict(enumerate(samples))
    copies: dict[int, Sample] = {}
    for place, sample in enumerate(samples):
        targets = {
            address: folder / f"{place}-{number}{address.suffix}"
            for number, address in enumerate((sample.path, *sample.masks))
        }
        try:
            for address, target in targets.items():
                store.fetch(address, target)
        except OSError as error:
            reason = " ".join(str(error).split())
            failures.append(Failure(sample.path, f"{name_of(sample.path)} can't be read ({reason})."))
            continue
        masks = tuple(targets[mask] for mask in sample.masks)
        copies[place] = replace(sample, path=targets[sample.path], masks=masks)
    return copies


def _row(judged: Judged, name: str) -> dict[str, Any]:
    scored = replace(judged.scored, path=name)
    return {
        "path": name,
        "category": scored.category,
        "image_score": scored.image_score,
        "calibrated_score": scored.calibrated_score,
        "decision": scored.decision,
        "line": scored.line(),
    }


def _failed(failure: Failure, samples: Sequence[Sample], of_copy: Mapping[Path, int]) -> dict[str, Any]:
    """The row of a failure; it is called by its address, and not by that of a copy."""
    place = of_copy.get(failure.path)
    name = name_of(failure.path if place is None else samples[place].path)
    return {"path": name, "reason": failure.reason.replace(str(failure.path), name)}


def _text(samples: Sequence[Sample], names: Sequence[str]) -> str:
    return json.dumps({"samples": [sample_line(each) for each in samples], "names": names})


def _samples(text: str) -> tuple[list[Sample], list[str]]:
    read = json.loads(text)
    return [sample_from(line) for line in read["samples"]], read["names"]


def _contents(file: Path) -> Files:
    """The content of an artifact, and of the file of weights that goes with it."""
    artifact.read_header(file)
    beside = [file.with_suffix(".bin")] if file.suffix == ".xml" else []
    return {each.name: each.read_bytes() for each in (file, *beside)}
