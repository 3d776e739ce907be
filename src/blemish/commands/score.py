"""score part.blemish DATA: predict a labelled test set, all metrics, a report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.command import DataOptions, DetectorOptions, EngineOptions, MetricOptions, report_failures, say
from blemish.errors import ConfigError
from blemish.objects import is_address, name_of

if TYPE_CHECKING:
    from blemish.artifact import Predictor
    from blemish.blocks import Place
    from blemish.scoring import Report, Tested


@dataclass(frozen=True)
class Score:
    """Predict a labelled test set and measure everything."""

    detector: DetectorOptions
    data: DataOptions
    metrics: MetricOptions
    where: EngineOptions = field(default_factory=EngineOptions)
    json: Path | None = None
    """File for all metrics and settings."""
    csv: Path | None = None
    """File for a line for each picture."""
    html: Path | None = None
    """File for a report to show: curves, mistakes, finds; self-contained."""

    def __call__(self) -> int:
        """Scores, writes, prints."""
        from blemish import scoring
        from blemish.files import check_writable

        for file in filter(None, (self.json, self.csv, self.html)):
            check_writable(file)
        place = self.where.place(self.detector.device)
        if place is not None:
            return self._on_ray(place)
        if is_address(self.data.data):
            raise ConfigError(f"{name_of(self.data.data)} is in an object store, which --engine ray reads; add that.")
        predictor = self.detector.load()
        data = self.data.open(known=predictor.categories)
        found = scoring.score(
            predictor,
            data,
            policy=self.detector.policy(predictor.policy),
            options=self.metrics.how(),
            mode=self.metrics.mode,
            resume=True,
        )
        self._write(found, predictor)
        scoring.forget(found)
        return report_failures(found.failures)

    def _on_ray(self, place: "Place") -> int:
        """The same, done by actors."""
        from blemish import artifact, blocks

        if is_address(self.data.data) and self.html is not None:
            raise ConfigError("--html draws pictures, which are not on this machine; expected --json or --csv.")
        predictor = artifact.deciding(self.detector.artifact)
        known, policy, options = predictor.categories, self.detector.policy(predictor.policy), self.metrics.how()
        tested, root = self._open(known)
        order = blocks.Order(
            self.detector.artifact,
            self.detector.device,
            policy,
            mode=self.metrics.mode,
            intervals=options.resamples > 0,
            root=root,
        )
        found, job = blocks.score(order, tested, place, options)
        self._write(found, predictor if self.html is None else self.detector.load())
        job.forget()
        return report_failures(found.failures)

    def _open(self, known: "list[str]") -> "tuple[Tested, str]":
        """The test pictures, which is all that is kept of the dataset; and the address of their store."""
        from blemish.blocks import open_data
        from blemish.packed import packed_samples
        from blemish.scoring import Tested

        if not is_address(self.data.data):
            return Tested.of(self.data.open(known=known), packed_samples), ""
        data, root = open_data(self.data.data, lambda folder: self.data.open(known=known, root=folder))
        return Tested.of(data, packed_samples), root

    def _write(self, found: "Report", predictor: "Predictor") -> None:
        from blemish import report

        say(report.table(found.results))
        say("\n".join(report.notes(found)))
        report.write(found, predictor, json_file=self.json, csv_file=self.csv, html_file=self.html)
        for file in filter(None, (self.json, self.csv, self.html)):
            say(f"Written: {file}")


COMMAND = Score
