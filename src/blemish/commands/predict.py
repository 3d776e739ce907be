"""predict part.blemish PICTURE...: score pictures; heatmaps, JSON lines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from blemish.command import DetectorOptions, report_failures, say
from blemish.errors import ConfigError, DatasetError, not_among
from blemish.parts import MissingViews, Views
from blemish.types import Failure


@dataclass(frozen=True)
class PictureOptions:
    """What is shown to it."""

    pictures: Annotated[Positional[tuple[Path, ...]], arg(metavar="PICTURE...")]
    """Pictures, or folders of pictures."""
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
    out_dir: Path | None = None
    """Folder for predictions.jsonl and an overlay of each picture and its anomaly map."""
    json_lines: Path | None = None
    """File for one JSON object a picture: score, decision, regions with box, area and peak."""
    maps: bool = False
    """Write raw anomaly maps (.npy) to --out-dir, too."""

    def __call__(self) -> int:
        """Predicts, writes, prints."""
        from blemish import judging, predictions
        from blemish.files import check_writable

        if self.maps and self.out_dir is None:
            raise ConfigError("--maps needs a folder to write to; name one with --out-dir.")
        for file in (self.json_lines, self.out_dir and self.out_dir / "predictions.jsonl"):
            if file is not None:
                check_writable(file)
        pictures = predictions.find_pictures(self.shown.pictures, self.out_dir)
        predictor = self.detector.load()
        category = self.shown.category or (predictor.categories[0] if len(predictor.categories) == 1 else "")
        policy = self.detector.policy(predictor.policy)
        failures: list[Failure] = []
        views = Views(self.shown.view_pattern, self.shown.missing_views)
        judged = predictions.predict(predictor, pictures, failures, category=category, policy=policy, views=views)
        scored = predictions.write(judged, pictures, json_lines=self.json_lines, out_dir=self.out_dir, maps=self.maps)
        if not scored:
            raise DatasetError(f"none of the {len(pictures)} pictures can be read; {failures[0].reason}")
        parts = judging.decide_parts(predictor, scored, policy)
        if self.out_dir is not None and parts:
            predictions.write_parts(parts, self.out_dir)
        say(predictions.part_table(parts) if parts else predictions.table(scored))
        say(predictions.summary(parts, "parts") if parts else predictions.summary(scored))
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
        return report_failures(failures)


COMMAND = Predict
