"""What `blemish predict` leaves behind: JSON lines, overlays, raw maps."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from blemish import files, images
from blemish.artifact import Predictor
from blemish.errors import DatasetError
from blemish.progress import track
from blemish.scoring import Judged, Scored, judge
from blemish.types import Failure, Policy, Sample

ROWS = 40
"""Pictures that the table shows, at most."""
WHITE = (255, 255, 255)


def find_pictures(places: Sequence[Path]) -> list[Path]:
    """The pictures among `places`: files as they are, folders with all pictures below them, sorted.

    Raises:
        DatasetError: a place does not exist, or there is no picture in any.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise DatasetError(f"{place} does not exist; expected pictures, or folders of pictures.")
        inside = sorted(path for path in place.rglob("*") if images.is_picture(path)) if place.is_dir() else [place]
        found += inside
    if not found:
        names = ", ".join(str(place) for place in places)
        raise DatasetError(
            f"{names}: no pictures there; expected files ending in {', '.join(sorted(images.SUFFIXES))}."
        )
    return list(dict.fromkeys(found))


def predict(
    predictor: Predictor,
    pictures: Sequence[Path],
    failures: list[Failure],
    *,
    category: str = "",
    policy: Policy | None = None,
) -> Iterator[Judged]:
    """Each picture with its map, score, decision and regions.

    Args:
        predictor: A loaded artifact.
        pictures: Files.
        failures: Grows by the pictures that could not be read.
        category: Whose threshold decides; that of all categories together when it is empty.
        policy: Another false-reject rate than the artifact's own.
    """
    samples = [Sample(path=path, category=category, split="test", is_anomalous=None) for path in pictures]
    return iter(track(judge(predictor, samples, failures, policy), "Predict", len(samples)))


def write(
    judged: Iterator[Judged],
    predictor: Predictor,
    *,
    json_lines: Path | None = None,
    out_dir: Path | None = None,
    maps: bool = False,
) -> list[Scored]:
    """All that was scored, after writing it where asked.

    Args:
        judged: From `predict`; taken one at a time, so that memory does not grow with maps.
        predictor: Whose pixel threshold colours the overlays.
        json_lines: File for one JSON object a picture.
        out_dir: Folder for `predictions.jsonl` and an overlay for each picture.
        maps: Whether to write each raw anomaly map there, too, as float32 `.npy`.
    """
    scored: list[Scored] = []
    taken: set[Path] = set()
    for each in judged:
        scored.append(each.scored)
        if out_dir is None:
            continue
        stem = _free_stem(out_dir, each.sample.path, taken)
        decider = predictor.decider(each.sample.category)
        outlines = [(each.anomaly_map > decider.pixel, WHITE)]
        drawn = images.overlay(each.image, each.anomaly_map, decider.heat_span, outlines)
        files.write_bytes(Path(f"{stem}.overlay.png"), images.encode(drawn))
        if maps:
            with files.replacing(Path(f"{stem}.npy")) as temporary:
                np.save(temporary, each.anomaly_map)
    lines = "".join(f"{row.line()}\n" for row in scored)
    for file in (json_lines, out_dir and out_dir / "predictions.jsonl"):
        if file is not None:
            files.write_text(file, lines)
    return scored


def table(scored: Sequence[Scored]) -> Table:
    """The pictures with the highest scores first."""
    shown = Table(title=None, show_edge=False)
    for name in ("picture", "image_score", "calibrated_score", "decision", "regions"):
        shown.add_column(name, justify="left" if name in ("picture", "decision") else "right", overflow="fold")
    colours = {"good": "green", "review": "yellow", "defective": "red"}
    for row in sorted(scored, key=lambda row: -row.image_score)[:ROWS]:
        numbers = f"{row.image_score:.5g}", f"{row.calibrated_score:.3f}"
        decision = Text(row.decision, style=colours[row.decision])
        shown.add_row(Path(row.path).name, *numbers, decision, str(len(row.regions)))
    return shown


def summary(scored: Sequence[Scored]) -> str:
    """How many pictures were decided how.

    >>> summary([])
    '0 pictures: 0 defective, 0 good.'
    """
    counts = Counter(row.decision for row in scored)
    review = f"{counts['review']} to review, " if counts["review"] else ""
    hidden = f" The {ROWS} highest scores are shown." if len(scored) > ROWS else ""
    return f"{len(scored)} pictures: {counts['defective']} defective, {review}{counts['good']} good.{hidden}"


def _free_stem(out_dir: Path, picture: Path, taken: set[Path]) -> Path:
    """Where this picture's files go: its name, after its folder's where another has the same name."""
    for name in (
        picture.stem,
        f"{picture.parent.name}-{picture.stem}",
        picture.as_posix().strip("/").replace("/", "-"),
    ):
        if out_dir / name not in taken:
            break
    taken.add(out_dir / name)
    return out_dir / name
