"""Reports: a scored test set as a table, notes, JSON, CSV, and one HTML page that needs nothing else.

All figures are those of `scoring.Report`; nothing is measured twice. The anomaly maps of the few
pictures that the page shows are computed again, because a report keeps none.
"""

from pathlib import Path

from blemish.artifact import Predictor
from blemish.files import replacing, write_text
from blemish.report.page import environment, to_html
from blemish.report.plots import check_drawing, draw_choices, draw_panels
from blemish.report.summary import (
    caveats,
    csv_lines,
    full_table,
    headline,
    notes,
    number,
    printable,
    table,
    to_csv,
    to_json,
)
from blemish.scoring import Report

__all__ = [
    "caveats",
    "check_drawing",
    "csv_lines",
    "draw_choices",
    "draw_panels",
    "environment",
    "full_table",
    "headline",
    "notes",
    "number",
    "printable",
    "table",
    "to_csv",
    "to_html",
    "to_json",
    "write",
]


def write(
    report: Report,
    predictor: Predictor,
    *,
    json_file: Path | None = None,
    csv_file: Path | None = None,
    html_file: Path | None = None,
) -> None:
    """Writes the report to the files that are named, each whole or not at all.

    Args:
        report: From `blemish.score`.
        predictor: What was scored; it draws the pictures of the page.
        json_file: See `to_json`.
        csv_file: See `to_csv`.
        html_file: See `to_html`.

    Raises:
        OutputError: a file can't be written.
    """
    if json_file is not None:
        write_text(json_file, to_json(report))
    if csv_file is not None:
        with replacing(csv_file) as temporary, temporary.open("w", encoding="utf-8") as opened:
            opened.writelines(csv_lines(report))
    if html_file is not None:
        write_text(html_file, to_html(report, predictor))
