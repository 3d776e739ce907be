"""What `blemish predict` leaves behind: JSON lines, overlays, raw maps."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from blemish import files, images
from blemish.artifact import Predictor
from blemish.dataset import MASK_FOLDERS
from blemish.errors import ConfigError, DatasetError, count_of
from blemish.judging import Judged, Scored, ScoredPart, judge
from blemish.objects import is_address, name_of
from blemish.parts import Views
from blemish.progress import track
from blemish.rows import LISTS, PICTURE, Finder, read_rows
from blemish.types import Decision, Failure, Policy, Sample

ROWS = 40
"""Pictures that the table shows, at most."""
OVERLAYS = "overlays"
"""Folder of --out-dir for pictures with their heatmaps."""
WHITE = (255, 255, 255)
_COLOURS = {"good": "green", "review": "yellow", "defective": "red"}


def find_pictures(places: Sequence[Path], out_dir: Path | None = None) -> list[Path]:
    """The pictures among `places`: files as they are, those in manifests, folders with all below them, sorted.

    Folders of masks, and `out_dir` with what an earlier run left in it, are passed over; what is there twice is
    taken once.

    Raises:
        DatasetError: a place does not exist or can't be opened, or there is no picture in any.
    """
    found = list(look_through(places, out_dir))
    if not found:
        raise nothing_in(places)
    return found


def nothing_in(places: Sequence[Path]) -> DatasetError:
    """What to say where no place has a picture."""
    names = ", ".join(map(name_of, places))
    return DatasetError(f"{names}: no pictures there; expected files ending in {', '.join(sorted(images.SUFFIXES))}.")


def look_through(places: Sequence[Path], out_dir: Path | None = None) -> Iterator[Path]:
    """The pictures of `find_pictures` as they are found, if there are any.

    Raises:
        DatasetError: no place is named, or one does not exist.
    """
    if not places:
        raise DatasetError("no pictures are named; expected some, or folders of them: blemish predict part.blemish new")
    for place in places:
        if is_address(place):
            raise ConfigError(f"{name_of(place)} is in an object store, which --engine ray reads; add that.")
        if not place.exists():
            raise DatasetError(f"{place} does not exist; expected pictures, or folders of pictures.")
    if len(places) == 1 and places[0].is_dir():
        return _below(places[0], out_dir)  # each once
    return once(path for place in places for path in _in(place, out_dir))


def _in(place: Path, out_dir: Path | None) -> Iterator[Path]:
    if place.suffix.lower() in LISTS and place.is_file():
        return listed(place)
    return _below(place, out_dir) if place.is_dir() else iter([place])


def once(paths: Iterable[Path]) -> Iterator[Path]:
    """The paths, each the first time that it comes; of each a hash is remembered."""
    seen: set[bytes] = set()
    for path in paths:
        place = os.path.abspath(path)  # noqa: PTH100 - dots are taken out, links are kept
        key = hashlib.blake2b(os.fsencode(place), digest_size=16).digest()
        if key not in seen:
            seen.add(key)
            yield path


def listed(manifest: Path) -> Iterator[Path]:
    """The pictures that a manifest names.

    Raises:
        DatasetError: it can't be read, or a picture is not where it says.
    """
    find = Finder(manifest.parent)
    return (find(row.get("path", ""), place) for place, row in read_rows(manifest, PICTURE))


def samples_of(pictures: Iterable[Path], category: str = "", views: Views | None = None) -> Iterable[Sample]:
    """Pictures without labels, joined to parts; as they are asked for, where nothing joins them.

    Raises:
        DatasetError: they can't be joined like that.
    """
    samples = (Sample(path=path, category=category, split="test", is_anomalous=None) for path in pictures)
    return views.join(list(samples)) if views is not None and views.pattern else samples


def predict(
    predictor: Predictor,
    pictures: Sequence[Path],
    failures: list[Failure],
    *,
    category: str = "",
    policy: Policy | None = None,
    views: Views | None = None,
) -> Iterator[Judged]:
    """Each picture with its map, score, decision and regions.

    Args:
        predictor: A loaded artifact.
        pictures: Files.
        failures: Grows by the pictures that could not be read.
        category: Whose threshold decides; that of all categories together when it is empty.
        policy: Another false-reject rate than the artifact's own.
        views: How pictures are joined to parts; each is a part of its own, if not given.

    Raises:
        DatasetError: they can't be joined like that.
    """
    samples = list(samples_of(pictures, category, views))
    return iter(track(judge(predictor, samples, failures, policy), "Predict", len(samples)))


def write(
    judged: Iterator[Judged],
    pictures: Sequence[Path],
    *,
    json_lines: Path | None = None,
    out_dir: Path | None = None,
    maps: bool = False,
) -> list[Scored]:
    """All that was scored, after writing it where asked.

    Args:
        judged: From `predict`; taken one at a time, so that memory does not grow with maps.
        pictures: All files; what is written is in folders like theirs, from the one they share on.
        json_lines: File for one JSON object a picture.
        out_dir: Folder for `predictions.jsonl` and, in `overlays`, each picture with its heatmap.
        maps: Whether to write each raw anomaly map to `maps` there, too, as float32 `.npy`.
    """
    scored: list[Scored] = []
    shared = os.path.commonpath([path.absolute().parent for path in pictures])
    taken: set[Path] = set()
    lines = [file for file in (json_lines, out_dir and out_dir / "predictions.jsonl") if file is not None]
    with ExitStack() as stack:
        writers = [stack.enter_context(files.growing(file)) for file in lines]
        for each in judged:
            scored.append(each.scored)
            for write_line in writers:
                write_line(each.scored.line())
            if out_dir is not None:
                name = free_name(Path(os.path.relpath(each.sample.path.absolute(), shared)), taken)
                for file, content in pictured(each, name, maps=maps).items():
                    files.write_bytes(out_dir / file, content)
    return scored


def pictured(each: Judged, name: str | Path, *, maps: bool) -> dict[str, bytes]:
    """The overlay of a picture and, if wanted, its raw map: contents by the names of their files."""
    outlines = [(each.anomaly_map > each.decider.pixel, WHITE)]
    drawn = images.overlay(each.image, each.anomaly_map, each.decider.heat_span, outlines)
    drawn = images.resize(drawn, images.in_shape_of(each.size, drawn.shape))
    found = {f"{OVERLAYS}/{name}.png": images.encode(drawn)}
    if maps:
        opened = io.BytesIO()
        np.save(opened, each.anomaly_map)
        found[f"maps/{name}.npy"] = opened.getvalue()
    return found


def table(scored: Sequence[Scored]) -> Table:
    """The pictures with the highest scores first."""
    shown = Table(title=None, show_edge=False)
    for name in ("picture", "image_score", "calibrated_score", "decision", "regions"):
        shown.add_column(name, justify="left" if name in ("picture", "decision") else "right", overflow="fold")
    for row in sorted(scored, key=lambda row: -row.image_score)[:ROWS]:
        numbers = f"{row.image_score:.5g}", f"{row.calibrated_score:.3f}"
        decision = Text(row.decision, style=_COLOURS[row.decision])
        shown.add_row(Path(row.path).name, *numbers, decision, str(len(row.regions)))
    return shown


def write_parts(parts: Sequence[ScoredPart], out_dir: Path) -> None:
    """Writes a JSON object for each part to `parts.jsonl` in that folder."""
    files.write_text(out_dir / "parts.jsonl", "".join(f"{part.line()}\n" for part in parts))


def part_table(parts: Sequence[ScoredPart]) -> Table:
    """The parts with the highest scores first, a line each."""
    shown = Table(title=None, show_edge=False)
    for name in ("part", "part_score", "calibrated_score", "decision", "worst_view", "views"):
        is_text = name in ("part", "decision", "worst_view")
        shown.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for row in sorted(parts, key=lambda row: -row.part_score)[:ROWS]:
        numbers = f"{row.part_score:.5g}", f"{row.calibrated_score:.3f}"
        decision = Text(row.decision, style=_COLOURS[row.decision])
        shown.add_row(row.part, *numbers, decision, row.worst_view, str(len(row.views)))
    return shown


def summary(scored: Sequence[Scored | ScoredPart], noun: str = "picture") -> str:
    """How many pictures, or parts, were decided how.

    >>> summary([])
    '0 pictures: 0 defective, 0 good.'
    """
    return counted(Counter(row.decision for row in scored), noun)


def counted(counts: "Counter[Decision]", noun: str = "picture") -> str:
    """How many of how many were decided how."""
    total = counts.total()
    review = f"{counts['review']} to review, " if counts["review"] else ""
    hidden = f" The {ROWS} highest scores are shown." if total > ROWS else ""
    return f"{count_of(total, noun)}: {counts['defective']} defective, {review}{counts['good']} good.{hidden}"


def _below(folder: Path, out_dir: Path | None) -> Iterator[Path]:
    """The pictures in a folder and its folders, links followed, without masks and without what we wrote ourselves.

    Hidden folders are passed over. One that can't be opened is an error, or its pictures would be missed unnoticed.
    """
    own = None if out_dir is None else out_dir.resolve()
    if own is not None and folder.resolve().is_relative_to(own):
        own /= OVERLAYS  # it is written to where the pictures are
    return _walk(folder, own, set())


def _walk(folder: Path, own: Path | None, been: set[Path]) -> Iterator[Path]:
    """The pictures below a folder in the order of their paths, without those in `own` and in folders where we were."""
    real = folder.resolve()
    if real in been or (own is not None and real.is_relative_to(own)):
        return
    been.add(real)
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise DatasetError(f"{folder} can't be opened ({error.strerror}); expected a folder to read.") from error
    for name, is_folder in names:
        path = folder / name
        if is_folder and name.lower() not in MASK_FOLDERS and not name.startswith("."):
            yield from _walk(path, own, been)
        elif not is_folder and images.is_picture(path):
            yield path


def free_name(path: Path, taken: set[Path]) -> Path:
    """The picture's path without its suffix, or with it where another one has the same."""
    name = path.with_name(path.stem)
    while name in taken:
        name = name.with_name(f"{name.name}-{path.suffix[1:]}")
    taken.add(name)
    return name
