"""predict part.blemish PICTURE...: score pictures; heatmaps, JSON lines."""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from blemish.command import DetectorOptions, EngineOptions, report_failures, say
from blemish.errors import ConfigError, DatasetError, count_of, not_among
from blemish.parts import MissingViews, Views
from blemish.types import Decision, Failure

if TYPE_CHECKING:
    from blemish.artifact import Predictor
    from blemish.blocks import Place
    from blemish.judging import Scored


@dataclass(frozen=True)
class PictureOptions:
    """What is shown to it."""

    pictures: Annotated[Positional[tuple[Path, ...]], arg(metavar="PICTURE...")]
    """Pictures, folders of pictures, or manifests (.csv, .jsonl, .parquet); with Ray also addresses like s3://..."""
    category: str = ""
    """Whose threshold decides, where the artifact knows several."""
    view_pattern: str = ""
    """Regular expression that joins pictures to parts by their names, such as (?P<part>.+)_C(?P<view>\\d+)."""
    missing_views: MissingViews = "keep"
    """Keep parts that lack views, drop them, or stop with an error."""


@dataclass(frozen=True)
class Predict:
    """Score pictures with a trained detector: good, to review, or defective, and where."""

    detector: DetectorOptions
    shown: PictureOptions
    where: EngineOptions = field(default_factory=EngineOptions)
    out_dir: Path | None = None
    """Folder for predictions.jsonl and an overlay of each picture and its anomaly map."""
    json_lines: Path | None = None
    """File for one JSON object a picture: score, decision, regions with box, area and peak."""
    maps: bool = False
    """Write raw anomaly maps (.npy) to --out-dir, too."""

    def __call__(self) -> int:
        """Predicts, writes, prints."""
        from blemish import predictions
        from blemish.files import check_writable

        if self.maps and self.out_dir is None:
            raise ConfigError("--maps needs a folder to write to; name one with --out-dir.")
        for file in self._lines:
            check_writable(file)
        place = self.where.place(self.detector.device)
        if place is not None:
            return self._on_ray(place)
        pictures = predictions.find_pictures(self.shown.pictures, self.out_dir)
        predictor = self.detector.load()
        category = self._category(predictor)
        policy = self.detector.policy(predictor.policy)
        failures: list[Failure] = []
        views = Views(self.shown.view_pattern, self.shown.missing_views)
        judged = predictions.predict(predictor, pictures, failures, category=category, policy=policy, views=views)
        scored = predictions.write(judged, pictures, json_lines=self.json_lines, out_dir=self.out_dir, maps=self.maps)
        if not scored:
            raise DatasetError(f"none of {count_of(len(pictures), 'picture')} can be read; {failures[0].reason}")
        self._say(predictor, scored, Counter(row.decision for row in scored))
        return report_failures(failures)

    @property
    def _lines(self) -> list[Path]:
        """The files that get a JSON object a picture."""
        named = (self.json_lines, self.out_dir and self.out_dir / "predictions.jsonl")
        return [file for file in named if file is not None]

    def _on_ray(self, place: "Place") -> int:
        """The same, done by actors."""
        from blemish import artifact, blocks, predictions
        from blemish.packed import packed_samples

        pictures, root = blocks.pictures_of(self.shown.pictures, self.out_dir)
        predictor = artifact.deciding(self.detector.artifact)
        policy = self.detector.policy(predictor.policy)
        views = Views(self.shown.view_pattern, self.shown.missing_views)
        samples = packed_samples(predictions.samples_of(pictures, self._category(predictor), views))
        if not samples:
            raise predictions.nothing_in(self.shown.pictures)
        order = blocks.Order(
            self.detector.artifact,
            self.detector.device,
            policy,
            overlays=self.out_dir is not None,
            maps=self.maps,
            root=root,
        )
        done = blocks.predict(order, samples, place, self.out_dir)
        # No more than the table shows, however many there are; of parts, all views, but not where each is abnormal.
        has_parts = any(sample.part for sample in samples)
        found = done.gather(_without_regions if has_parts else _highest, self._lines)
        if not found.scored:
            raise DatasetError(f"none of {count_of(len(samples), 'picture')} can be read; {found.failures[0].reason}")
        self._say(predictor, found.scored, found.counts)
        done.forget()
        return report_failures(found.failures)

    def _category(self, predictor: "Predictor") -> str:
        return self.shown.category or (predictor.categories[0] if len(predictor.categories) == 1 else "")

    def _say(self, predictor: "Predictor", scored: "Sequence[Scored]", counts: "Counter[Decision]") -> None:
        """Writes the parts that pictures are views of, and prints what was found and what is promised."""
        from blemish import judging, predictions

        policy, category = self.detector.policy(predictor.policy), self._category(predictor)
        parts = judging.decide_parts(predictor, scored, policy)
        if self.out_dir is not None and parts:
            predictions.write_parts(parts, self.out_dir)
        say(predictions.part_table(parts) if parts else predictions.table(scored))
        say(predictions.summary(parts, "part") if parts else predictions.counted(counts))
        is_known = category in predictor.categories
        decider = predictor.decider(category, policy)
        if parts and not decider.calibration.parts:
            say("The artifact was not calibrated on parts, so what is promised is for one picture, not for a part.")
        for sentence in (decider.of_parts() if parts else decider).sentences():
            say(f"{category if is_known else 'All categories'}: {sentence}")
        if not is_known:
            why = not_among("category", category, predictor.categories) if category else "no category was named."
            say(
                f"{why[:1].upper()}{why[1:]} So the threshold is that of all categories together, and its promise "
                "holds for their mix; see --category."
            )


def _highest(scored: "Iterable[Scored]") -> "list[Scored]":
    from blemish import predictions

    return heapq.nlargest(predictions.ROWS, scored, key=lambda row: row.image_score)


def _without_regions(scored: "Iterable[Scored]") -> "list[Scored]":
    return [replace(row, regions=()) for row in scored]


COMMAND = Predict
