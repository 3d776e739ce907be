"""Inspectors: an artifact at work in the server, from the bytes of a picture to a row of the record."""

import asyncio
import base64
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from blemish import images
from blemish.appearance import appearance
from blemish.artifact import Predictor
from blemish.errors import BlemishError, DatasetError, RequestError, not_among
from blemish.files import write_bytes
from blemish.images import Floats
from blemish.judging import Judged, decide_parts, finite, judge_one
from blemish.rows import Finder
from blemish.server.batcher import Batcher, Room
from blemish.server.gate import Counters, Limits
from blemish.server.record import Inspection, Record
from blemish.types import Policy, Prediction, Sample

BATCH = 8
"""Pictures that are computed together, at most."""
ROWS_TOGETHER = 64
"""Rows that one transaction writes, at most."""
NAME_LENGTH = 300


@dataclass(frozen=True)
class Artifact:
    """An artifact that is served."""

    name: str
    predictor: Predictor
    digest: str
    """SHA-256 of its file."""
    policy: Policy
    """How strict it is here."""

    def plain(self) -> dict[str, Any]:
        """What `GET /model` says of it."""
        header = self.predictor.header
        deciders = {category: self.predictor.decider(category, self.policy) for category in self.predictor.categories}
        return {
            "name": self.name,
            "model": header.model,
            "model_hash": self.digest,
            "config": dict(header.config),
            "image_size": list(header.fitted.preprocessing.image_size),
            "learned_from": len(header.fitted.learned_from),
            "versions": dict(header.versions),
            "categories": {
                category: {
                    "threshold": decider.reject.value,
                    "review_threshold": decider.review and decider.review.value,
                    "pixel_threshold": decider.pixel,
                    "part_threshold": decider.of_parts().reject.value if decider.calibration.parts else None,
                    "sentences": decider.of_parts().sentences(),
                    "good_scores": list(decider.calibration.image_scores),
                }
                for category, decider in deciders.items()
            },
        }


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a caller says of a picture, and what it wants to get back."""

    category: str = ""
    """Whose threshold decides; the artifact's own if it has one only."""
    part: str = ""
    file: str = ""
    heatmap: bool = False
    """Whether the answer brings the heatmap (PNG)."""
    picture: bool = False
    """Whether it brings the picture (JPEG) as the detector saw it."""

    def __post_init__(self) -> None:
        for name in ("part", "file"):
            text = getattr(self, name)
            if len(text) > NAME_LENGTH or not all(map(_is_plain, text)):
                raise RequestError(
                    f"{name} is {text[:50]!r}; expected at most {NAME_LENGTH} characters that can be printed.", 422
                )


@dataclass
class Desk:
    """What the inspectors of a server share."""

    limits: Limits
    counters: Counters
    record: Record | None
    keep: Path | None = None
    """Folder for the inspected pictures, each named by its hash."""
    watch: Path | None = None
    """Folder whose pictures are inspected, and can be looked at again there."""
    room: Room = field(init=False)
    decoders: ThreadPoolExecutor = field(init=False)
    write: "Batcher[Inspection, int] | None" = field(init=False, default=None)
    trouble: str = field(init=False, default="")
    """Why the last row could not be written; empty after one that could."""

    def __post_init__(self) -> None:
        self.room = Room(self.limits.waiting, "pictures")
        self.counters.working.set_function(lambda: self.room.taken)
        # Two, because a decoder holds a whole picture in memory, and resizing uses all cores anyway.
        self.decoders = ThreadPoolExecutor(2, "decode")
        if self.record is not None:
            self.write = Batcher(self.record.add, ROWS_TOGETHER, "record")

    def kept(self, row: Inspection) -> Path | None:
        """The file of an inspected picture, if pictures are kept."""
        return None if self.keep is None else self.keep / row.picture_hash[:2] / row.picture_hash

    def content(self, row: Inspection) -> bytes | None:
        """An inspected picture, if it is still there: kept, or in the watched folder and unchanged."""
        place = self.kept(row)
        if place is not None and place.is_file():
            return place.read_bytes()
        if self.watch is None:
            return None
        try:
            # The name is what some caller said: it must not lead out of the folder.
            content = Finder(self.watch)(row.file, "record").read_bytes()
        except (DatasetError, OSError):
            return None
        return content if hashlib.sha256(content).hexdigest() == row.picture_hash else None


class Inspector:
    """An artifact with its queue."""

    def __init__(self, artifact: Artifact, desk: Desk) -> None:
        self.artifact, self._desk = artifact, desk
        self.compute: Batcher[Floats, Prediction[Floats]] = Batcher(self._compute, BATCH, artifact.name)

    async def inspect(self, content: bytes, asked: Asked, recorded: bool = True) -> dict[str, Any]:
        """The answer for a picture: score, decision, regions, and what else was asked for.

        When it is there, the row is in the database; if that did not work, the answer says so under
        "error" and still holds the decision.

        Raises:
            ImageError: the picture can't be read, or is too large.
            RequestError: too much is being worked on (429), or it took too long (503).
        """
        (view,) = await self._see([(content, asked)])
        found = view.plain(self.artifact.name)
        return found | await self._record(view) if recorded else found

    async def inspect_part(self, pictures: Sequence[tuple[bytes, Asked]]) -> dict[str, Any]:
        """The answer for a part of which these are all views: they are looked at together, and so decided.

        Raises:
            ImageError, RequestError: as above; one view that can't be read is enough, since a part
                that was not seen is not good.
        """
        views = await self._see(pictures)
        (part,) = decide_parts(self.artifact.predictor, [view.judged.scored for view in views], self.artifact.policy)
        threshold = views[0].judged.decider.of_parts().reject.value
        whole = {"part_decision": part.decision, "part_threshold": threshold}
        written = await asyncio.gather(*(self._record(view, whole) for view in views))
        found = {
            "model": self.artifact.name,
            "part": part.part,
            "part_score": finite(part.part_score),
            "calibrated_score": finite(part.calibrated_score),
            "threshold": threshold,
            "decision": part.decision,
            "worst_view": part.worst_view,
            "pictures": [view.plain(self.artifact.name) | row for view, row in zip(views, written, strict=True)],
        }
        errors = [row["error"] for row in written if "error" in row]
        return found | ({"error": errors[0]} if errors else {})

    async def _see(self, pictures: Sequence[tuple[bytes, Asked]]) -> "list[_View]":
        """Pictures that are looked at together, each with what is found in it."""
        category = self._category(pictures[0][1].category)
        run = asyncio.get_running_loop().run_in_executor
        try:
            async with asyncio.timeout(self._desk.limits.timeout):
                seen = await asyncio.gather(
                    *(run(self._desk.decoders, self._decode, content, asked.file) for content, asked in pictures)
                )
                found = await self.compute(np.stack([image for image, _ in seen]))
        except TimeoutError as error:
            raise RequestError(
                f"the picture was not done within {self._desk.limits.timeout:g} seconds; try again later.", 503, 5
            ) from error
        predictor = self.artifact.predictor
        decider = predictor.decider(category, self.artifact.policy)
        views = []
        for (content, asked), one, anomaly_map, score in zip(pictures, seen, *found, strict=True):
            path = Path(asked.file or "picture")
            sample = Sample(path=path, category=category, split="test", is_anomalous=None, part=asked.part)
            judged = judge_one(predictor, decider, sample, Prediction(anomaly_map, float(score)), one)
            views.append(_View(content, asked, judged, one[1]))
        return views

    def _compute(self, parts: Sequence[Floats]) -> list[Prediction[Floats]]:
        """What is found in the views (V, 3, H, W) of each part."""
        counts = [len(views) for views in parts]
        self._desk.counters.batch.labels(self.artifact.name).observe(sum(counts))
        found = self.artifact.predictor.predict_parts(
            np.concatenate(parts), np.repeat(range(len(parts)), counts).tolist()
        )
        ends = np.cumsum(counts)[:-1]
        return [Prediction(*one) for one in zip(*(np.split(values, ends) for values in found), strict=True)]

    def _decode(self, content: bytes, name: str) -> tuple[Floats, tuple[int, int]]:
        name = name or "the picture"
        if content:
            images.check_pixels(content, self._desk.limits.max_pixels, name)
        picture = images.decode(content, name)
        return images.to_chw(picture, self.artifact.predictor.preprocessing, name), picture.shape[:2]

    def _category(self, asked: str) -> str:
        known = self.artifact.predictor.categories
        if asked and asked not in known:
            raise RequestError(not_among(f"category of {self.artifact.name}", asked[:100], known), 404)
        return asked or (known[0] if len(known) == 1 else "")

    async def _record(self, view: "_View", whole: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The number of the row, with what was decided of the `whole` part; or an "error"."""
        desk = self._desk
        desk.counters.pictures.labels(self.artifact.name, view.judged.scored.decision).inc()
        if desk.write is None:
            return {}
        row = view.row(self.artifact, whole or {})
        found: dict[str, Any] = {}
        try:
            place = desk.kept(row)
            if place is not None and not place.exists():
                await asyncio.get_running_loop().run_in_executor(desk.decoders, write_bytes, place, view.content)
        except BlemishError as error:  # the row is worth more than the picture
            found["error"] = f"the picture was not kept: {error}"
        try:
            # A caller who leaves now must not leave an inspection without its row.
            found["id"] = await asyncio.shield(desk.write(row))
        except BlemishError as error:
            desk.counters.unrecorded.inc()
            found["error"] = f"decided, but not recorded: {error}"
        desk.trouble = found.get("error", "")
        return found


@dataclass(frozen=True)
class _View:
    """A picture, what was asked about it, and what was found."""

    content: bytes
    asked: Asked
    judged: Judged
    size: tuple[int, int]
    """Height and width of its file."""

    def plain(self, model: str) -> dict[str, Any]:
        """As values that JSON knows."""
        judged, asked = self.judged, self.asked
        found = {
            "model": model,
            **judged.scored.plain(),
            "threshold": judged.decider.reject.value,
            "part": asked.part,
            "file": asked.file,
            "size": list(self.size),
        }
        found.pop("path")
        if asked.heatmap:
            values = np.nan_to_num(judged.anomaly_map, nan=judged.decider.heat_span[1])
            found["heatmap"] = _uri(images.heatmap(values, *judged.decider.heat_span), "PNG")
        if asked.picture:
            found["picture"] = _uri(images.to_picture(judged.image), "JPEG")
        return found

    def row(self, artifact: Artifact, whole: Mapping[str, Any]) -> Inspection:
        """As the record has it."""
        scored = self.judged.scored.plain()
        return Inspection(
            time=datetime.now(UTC),
            model=artifact.name,
            model_hash=artifact.digest,
            category=self.judged.scored.category,
            part=self.asked.part,
            file=self.asked.file,
            picture_hash=hashlib.sha256(self.content).hexdigest(),
            threshold=self.judged.decider.reject.value,
            image_score=scored["image_score"],
            calibrated_score=scored["calibrated_score"],
            map_maximum=finite(float(self.judged.anomaly_map.max())),
            appearance=appearance(self.judged.image),
            decision=self.judged.scored.decision,
            regions=scored["regions"],
            part_threshold=whole.get("part_threshold"),
            part_decision=whole.get("part_decision"),
        )


def by_name(inspectors: Mapping[str, Inspector], name: str) -> Inspector:
    """The inspector of that name; the only one, if none is named.

    Raises:
        RequestError: there is none, or several and none was named.
    """
    if not name and len(inspectors) == 1:
        return next(iter(inspectors.values()))
    if name not in inspectors:
        what = not_among("model", name[:100], inspectors) if name else "several models are served: say ?model=NAME."
        raise RequestError(what, 404)
    return inspectors[name]


def _is_plain(letter: str) -> bool:
    """Whether it can be printed in a line; cameras and screenshots write spaces of several kinds."""
    return letter.isprintable() or unicodedata.category(letter) == "Zs"


def _uri(picture: Any, kind: str) -> str:
    content = images.encode(picture, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
