"""What `blemish predict` leaves behind: JSON lines, overlays, raw maps."""

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import numpy as np
from rich.table import Table
from rich.text import Text

from blemish import files, images
from blemish.artifact import Predictor
from blemish.dataset import MASK_FOLDERS
from blemish.errors import ConfigError, DatasetError
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
    if not places:
        raise DatasetError("no pictures are named; expected some, or folders of them: blemish predict part.blemish new")
    found: list[Path] = []
    for place in places:
        if is_address(place):
            raise ConfigError(f"{name_of(place)} is in an object store, which --engine ray reads; add that.")
        if not place.exists():
            raise DatasetError(f"{place} does not exist; expected pictures, or folders of pictures.")
        if place.suffix.lower() in LISTS and place.is_file():
            found += listed(place)
        else:
            found += _below(place, out_dir) if place.is_dir() else [place]
    if not found:
        names = ", ".join(str(place) for place in places)
        raise DatasetError(
            f"{names}: no pictures there; expected files ending in {', '.join(sorted(images.SUFFIXES))}."
        )
    once: dict[str, Path] = {}
    for path in found:
        once.setdefault(os.path.abspath(path), path)  # noqa: PTH100 (dots are taken out, links are kept)
    return list(once.values())


def listed(manifest: Path) -> list[Path]:
    """The pictures that a manifest names.

    Raises:
        DatasetError: it can't be read, or a picture is not where it says.
    """
    find = Finder(manifest.parent)
    return [find(row.get("path", ""), place) for place, row in read_rows(manifest, PICTURE)]


def samples_of(pictures: Sequence[Path], category: str = "", views: Views | None = None) -> list[Sample]:
    """Pictures without labels, joined to parts.

    Raises:
        DatasetError: they can't be joined like that.
    """
    samples = [Sample(path=path, category=category, split="test", is_anomalous=None) for path in pictures]
    return (views or Views()).join(samples)


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
    samples = samples_of(pictures, category, views)
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


def summary(scored: Sequence[Scored | ScoredPart], noun: str = "pictures") -> str:
    """How many pictures, or parts, were decided how.

    >>> summary([])
    '0 pictures: 0 defective, 0 good.'
    """
    return counted(Counter(row.decision for row in scored), noun)


def counted(counts: "Counter[Decision]", noun: str = "pictures") -> str:
    """How many of how many were decided how."""
    total = counts.total()
    review = f"{counts['review']} to review, " if counts["review"] else ""
    hidden = f" The {ROWS} highest scores are shown." if total > ROWS else ""
    return f"{total} {noun}: {counts['defective']} defective, {review}{counts['good']} good.{hidden}"


def _below(folder: Path, out_dir: Path | None) -> list[Path]:
    """The pictures in a folder and its folders, links followed, without masks and without what we wrote ourselves.

    Hidden folders are passed over. One that can't be opened is an error, or its pictures would be missed unnoticed.
    """
    own = None if out_dir is None else out_dir.resolve()
    if own is not None and folder.resolve().is_relative_to(own):
        own /= OVERLAYS  # it is written to where the pictures are
    found: list[Path] = []
    been: set[Path] = set()
    for here, inside, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = Path(here).resolve()
        if real in been or (own is not None and real.is_relative_to(own)):
            inside.clear()
            continue
        been.add(real)
        inside[:] = sorted(name for name in inside if name.lower() not in MASK_FOLDERS and not name.startswith("."))
        found += [path for name in names if images.is_picture(path := Path(here, name))]
    return sorted(found)


def _refuse(error: OSError) -> NoReturn:
    raise DatasetError(f"{error.filename} can't be opened ({error.strerror}); expected a folder to read.") from error


def free_name(path: Path, taken: set[Path]) -> Path:
    """The picture's path without its suffix, or with it where another one has the same."""
    name = path.with_name(path.stem)
    while name in taken:
        name = name.with_name(f"{name.name}-{path.suffix[1:]}")
    taken.add(name)
    return name
