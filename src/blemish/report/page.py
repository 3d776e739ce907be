"""The report as one HTML page that needs nothing else."""

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from blemish import images
from blemish.artifact import Predictor
from blemish.errors import ImageError
from blemish.judging import Judged, Scored, ScoredPart, judge
from blemish.label_gain import sentences
from blemish.metric import all_metrics
from blemish.parts import part_of
from blemish.reading import read_mask
from blemish.report.plots import Plot, plots
from blemish.report.summary import (
    COLUMNS,
    Tally,
    by_category,
    columns,
    floors,
    headline,
    is_broken,
    number,
    parts_by_category,
    printable,
    promise,
    promised,
    remarks,
    sample_of,
    share,
    sorted_failures,
    tally,
    thresholds,
)
from blemish.scoring import Report
from blemish.types import Decider, Failure, one_in

if TYPE_CHECKING:
    from jinja2 import Environment

Row: TypeAlias = Scored | ScoredPart
GALLERY = 8
"""Pictures that a gallery shows, at most; fewer when there are many categories."""

_GALLERY_PICTURES = 64  # in all galleries of one kind
_BYTES, _ALL_BYTES = 2_200_000, 14_000_000  # of pictures: for one category, for all
_DEFECT_COLUMNS = ("image_auroc", "fpr_at_95_tpr", "pixel_auroc", "aupro")
_DECIDING = 12  # things that decide, which the page names
_MASK, _PREDICTED = (255, 255, 255), (255, 0, 220)


@dataclass(frozen=True)
class Shot:
    """A picture of a gallery, with what is written below it."""

    scored: Scored
    name: str
    picture: str = ""
    """Data URI; empty when the picture can't be read any more."""
    overlay: str = ""
    """The same with heatmap, mask and predicted region."""
    aspect: str = "1 / 1"
    """Width / height of the picture's file."""
    reason: str = ""
    """What decided, where the model can say."""


@dataclass(frozen=True)
class PartShot:
    """A part of a gallery, its views side by side."""

    scored: ScoredPart
    name: str
    defect: str
    """The kinds of defects that its views show, as the dataset names them."""
    views: tuple[Shot, ...]


@dataclass(frozen=True)
class Gallery:
    """Some pictures, or parts seen in several, and what they have in common."""

    title: str
    about: str
    shots: tuple[Shot, ...] = ()
    parts: tuple[PartShot, ...] = ()


@dataclass(frozen=True)
class Parts:
    """What the page says of the parts of one category that are seen in several views."""

    good: Tally
    defective: Tally
    promise: str


@dataclass(frozen=True)
class Section:
    """What the page says of one category."""

    category: str
    good: Tally
    defective: Tally
    promise: str
    plots: tuple[Plot, ...]
    defects: tuple[tuple[str, Tally, Mapping[str, float]], ...]
    """Kind of defect, how its pictures were decided, its metrics against all good pictures."""
    galleries: tuple[Gallery, ...]
    has_review: bool
    is_broken: bool
    """Whether the promise of the threshold does not hold."""
    parts: Parts | None
    """None where each picture is a part of its own."""


def to_html(report: Report, predictor: Predictor) -> str:
    """The report as one page with its pictures and drawings inside; it loads nothing from anywhere.

    The same report gives the same page, byte for byte.

    Args:
        report: From `blemish.score`.
        predictor: What was scored; the pictures of the galleries go through it again.
    """
    unread, unmasked = sorted_failures(report)
    by_defect = [values for kinds in report.results.by_defect.values() for values in kinds.values()]
    sections = _sections(report, predictor)
    page = (
        environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            headline=headline(report),
            promised=promised(report),
            notes=remarks(report),
            columns=columns(report.results),
            floors={name: value for name, value in floors(report.results.mean).items() if name in COLUMNS},
            defect_columns=[name for name in _DEFECT_COLUMNS if any(name in values for values in by_defect)],
            metrics=all_metrics(),
            sections=sections,
            broken=[section for section in sections if section.is_broken],
            good=tally(report.scored, False),
            defective=tally(report.scored, True),
            decisions={"good": "passed", "review": "to a person", "defective": "rejected"},
            thresholds=thresholds(report),
            unread=unread,
            unmasked=unmasked,
            root=_root(report.scored),
            gain=sentences(report.header.fitted.gain) if report.header.fitted.gain else [],
            importance=dict(list(report.header.fitted.importance.items())[:_DECIDING]),
        )
    )
    return printable(page)


def environment() -> "Environment":
    """What makes pages of templates: names are escaped, and a template of this folder can be included."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    found = Environment(
        loader=FunctionLoader(lambda name: resources.files("blemish.report").joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "number": number,
        "one_in": one_in,
        "share": share,
        "plain": _plain,
        "drawing": Markup,  # made of figures only; names never come into a drawing
    }
    return found


def _sections(report: Report, predictor: Predictor) -> list[Section]:
    found = by_category(report)
    parts = parts_by_category(report)
    size = _gallery_size(len(found))
    # Views that look at one another are looked at together again, so parts are shown whole.
    chosen = {
        name: _choose(parts[name], max(1, size // 2)) if name in parts else _choose(rows, size)
        for name, rows in found.items()
    }
    pictures = [[path for row in rows for path in _paths(row)] for own in chosen.values() for *_, rows in own]
    wanted = {path for gallery in pictures for path in gallery}
    rows = [row for row in report.scored if row.path in wanted]
    shots = _shots(report, predictor, rows, _limit(len(found), max([size, *map(len, pictures)])))
    sections = []
    for category, rows in found.items():
        decider, good = report.deciders.get(category), tally(rows, False)
        sections.append(
            Section(
                category=category,
                good=good,
                defective=tally(rows, True),
                promise=_capital(promise(report, category, good)),
                plots=plots(category, rows, decider),
                defects=_defects(report, category, rows),
                galleries=tuple(_gallery(title, about, own, shots) for title, about, own in chosen[category]),
                has_review=decider is not None and decider.review is not None,
                is_broken=is_broken(report, category, good),
                parts=_parts(parts[category], decider) if category in parts else None,
            )
        )
    return sections


def _defects(
    report: Report, category: str, rows: Sequence[Scored]
) -> tuple[tuple[str, Tally, Mapping[str, float]], ...]:
    values = report.results.by_defect.get(category, {})
    kinds: dict[str, list[Scored]] = {}
    for row in rows:
        if row.is_anomalous:
            kinds.setdefault(row.defect or "defective", []).append(row)
    return tuple((kind, Tally.of(own), values.get(kind, {})) for kind, own in sorted(kinds.items()))


def _parts(rows: Sequence[ScoredPart], decider: Decider | None) -> Parts:
    good, defective = (Tally.of(row for row in rows if row.is_anomalous is kind) for kind in (False, True))
    return Parts(good, defective, _capital(" ".join(decider.of_parts().sentences())) if decider else "")


def _gallery(title: str, about: str, rows: Sequence[Row], shots: Mapping[str, Shot]) -> Gallery:
    """These pictures, or these parts with all their views."""
    parts = tuple(_part_shot(row, shots) for row in rows if isinstance(row, ScoredPart))
    return Gallery(title, about, tuple(shots[row.path] for row in rows if isinstance(row, Scored)), parts)


def _part_shot(row: ScoredPart, shots: Mapping[str, Shot]) -> PartShot:
    views = tuple(shots[path] for path in row.views)
    defects = dict.fromkeys(shot.scored.defect for shot in views if shot.scored.defect)
    name = views[0].name if row.part == views[0].scored.path else row.part
    return PartShot(row, name, ", ".join(defects), views)


def _paths(row: Row) -> Sequence[str]:
    """The pictures that it is of."""
    return tuple(row.views) if isinstance(row, ScoredPart) else (row.path,)


def _choose(rows: Sequence[Row], size: int) -> list[tuple[str, str, list[Row]]]:
    """Title, explanation and pictures (or parts) of each gallery: mistakes, worst first; then finds."""
    noun = "part" if rows and isinstance(rows[0], ScoredPart) else "picture"
    good = sorted((row for row in rows if not row.is_anomalous), key=lambda row: -_rank(row))
    bad = sorted((row for row in rows if row.is_anomalous), key=_rank)
    missed = [row for row in bad if row.decision != "defective"]
    stopped = [row for row in good if row.decision != "good"]
    found = [row for row in reversed(bad) if row.decision == "defective"]
    galleries, few = [], max(1, size // 2)
    if missed:
        galleries.append(("Defective, not rejected", "The lowest scores first.", missed))
    elif bad:
        about = f"Every defective {noun} was rejected. These came closest to being missed."
        galleries.append((f"No defective {noun} was missed", about, bad[:few]))
    if stopped:
        galleries.append(("Good, but stopped", "The highest scores first.", stopped))
    elif good:
        about = f"Every good {noun} passed. These came closest to being stopped."
        galleries.append((f"No good {noun} was stopped", about, good[:few]))
    if found:
        galleries.append(("Best finds", "Defective and rejected, the highest scores first.", found))
    return [(title, about, own[:size]) for title, about, own in galleries]


def _shots(report: Report, predictor: Predictor, rows: Sequence[Scored], limit: int) -> dict[str, Shot]:
    """{path: what a gallery shows of it}, of `limit` bytes; the pictures go through the predictor again."""
    roots = {category: _root(own) for category, own in by_category(report).items()}
    shots = {row.path: Shot(row, os.path.relpath(row.path, roots[sample_of(report, row).category])) for row in rows}
    policy = next((decider.policy for decider in report.deciders.values()), None)
    unread: list[Failure] = []  # their shots have no picture, and say so
    for judged in judge(predictor, [sample_of(report, row) for row in rows], unread, policy):
        path = judged.scored.path
        picture, overlay = (_uri(drawn, limit) for drawn in _drawn(judged))
        height, width = images.read_size(judged.sample.path)
        (reason,) = predictor.explain(judged.image[None], [part_of(judged.sample)])
        shown = replace(shots[path], picture=picture, overlay=overlay, aspect=f"{width} / {height}", reason=reason)
        shots[path] = shown
    return shots


def _drawn(judged: Judged) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture as the detector saw it, and the same with heatmap and outlines, as (H, W, 3)."""
    decider = judged.decider
    outlines = [(judged.anomaly_map > decider.pixel, _PREDICTED)]
    try:
        mask = read_mask(judged.sample, (judged.anomaly_map.shape[0], judged.anomaly_map.shape[1]))
    except ImageError:
        mask = None  # said among the failures
    if mask is not None:
        outlines.insert(0, (mask, _MASK))
    overlay = images.overlay(judged.image, judged.anomaly_map, decider.heat_span, outlines)
    return images.to_picture(judged.image), overlay


def _uri(picture: NDArray[np.uint8], limit: int) -> str:
    """A picture (H, W, 3) as a data URI of a JPEG of at most `limit` bytes, coarser if need be."""
    while True:
        for quality in (88, 75, 60, 40):
            content = images.encode(picture, "JPEG", quality)
            if len(content) <= limit or max(picture.shape) <= 32:
                return "data:image/jpeg;base64," + base64.b64encode(content).decode()
        picture = images.resize(picture, (-(-picture.shape[0] // 2), -(-picture.shape[1] // 2)))


def _gallery_size(categories: int) -> int:
    return max(1, min(GALLERY, _GALLERY_PICTURES // categories))


def _limit(categories: int, pictures: int) -> int:
    """Bytes that one of so many pictures in a gallery may take, so that all together stay within bounds."""
    in_base64 = min(_BYTES * categories, _ALL_BYTES) // (6 * categories * pictures)
    return in_base64 * 3 // 4


def _root(rows: Sequence[Scored]) -> str:
    """The folder that all these pictures share."""
    return os.path.commonpath([Path(row.path).parent for row in rows]) if rows else "."


def _rank(row: Row) -> float:
    """The score to sort by; one that is not a number is rejected, so it is the highest."""
    score = row.part_score if isinstance(row, ScoredPart) else row.image_score
    return math.inf if math.isnan(score) else score


def _plain(value: Any) -> str:
    """A setting as the page shows it."""
    return (
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, Mapping | list | tuple) else str(value)
    )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
