"""score part.blemish DATA: predict a labelled test set, all metrics, a report."""

from dataclasses import dataclass
from pathlib import Path

from blemish.command import DataOptions, DetectorOptions, MetricOptions, report_failures, say


@dataclass(frozen=True)
class Score:
    """Predict a labelled test set and measure everything."""

    detector: DetectorOptions
    data: DataOptions
    metrics: MetricOptions
    json: Path | None = None
    """File for all metrics and settings."""
    csv: Path | None = None
    """File for a line for each picture."""
    html: Path | None = None
    """File for a report to show: curves, mistakes, finds; self-contained."""

    def __call__(self) -> int:
        """Scores, writes, prints."""
        from blemish import report, scoring
        from blemish.files import check_writable

        for file in filter(None, (self.json, self.csv, self.html)):
            check_writable(file)
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
        say(report.table(found.results))
        say("\n".join(report.notes(found)))
        report.write(found, predictor, json_file=self.json, csv_file=self.csv, html_file=self.html)
        scoring.forget(found)
        for file in filter(None, (self.json, self.csv, self.html)):
            say(f"Written: {file}")
        return report_failures(found.failures)


COMMAND = Score
