"""The table of a benchmark: means over seeds with their intervals, for people and for machines."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING

from blemish.benchmark.grid import DEFAULT, Grid
from blemish.benchmark.published import Published, published
from blemish.benchmark.run import Outcome
from blemish.errors import count_of
from blemish.files import write_text
from blemish.metric import all_metrics
from blemish.report import environment, number, printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

METRICS = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro",
    "pixel_iou_max",
    "mad",
)
"""The columns of files, where none are asked for; a terminal shows `_SHOWN` of them."""
_SHOWN = ("image_auroc", "pixel_ap", "aupro", "mad", "fit_s", "ms_per_picture")
COSTS = {
    "fit_s": "seconds to learn and calibrate",
    "ms_per_picture": "milliseconds to read, predict and decide one picture",
    "peak_gb": "largest memory of fit and score, in GB",
    "gpu_gb": "largest memory of the fit on the GPU, in GB",
    "artifact_mb": "size of the artifact, in MB",
}
"""What a cell took."""
MEAN = "mean"
_T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Figure:
    """A mean over seeds."""

    mean: float
    interval: float | None = None
    """Half the width of its 95 % interval; None for a single seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """The mean and its interval by Student's t, for seeds as draws from all that there could be."""
        if len(values) == 1:
            return cls(values[0])
        return cls(fmean(values), t_975(len(values) - 1) * stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    data: str
    model: str
    setting: str
    category: str
    """A category, or "mean"; with how many of how many where some failed."""
    seeds: int
    """How many there are values of."""
    values: dict[str, Figure]
    """{metric or cost: figure}, only what is known."""


@dataclass(frozen=True)
class Table:
    """What a benchmark came to."""

    grid: Grid
    outcomes: tuple[Outcome, ...]
    """In the order of the cells."""

    @property
    def failed(self) -> list[Outcome]:
        """Cells that came to nothing."""
        return [outcome for outcome in self.outcomes if outcome.scores is None]

    @property
    def categories(self) -> list[str]:
        """All categories of all data."""
        return list(dict.fromkeys(name for outcome in self.outcomes for name in outcome.cell.categories))

    def rows(self) -> list[Row]:
        """A row for each category of each data, model and setting, and their mean behind."""
        groups: dict[tuple[str, str, str], list[Outcome]] = {}
        for outcome in self.outcomes:
            cell = outcome.cell
            groups.setdefault((cell.data, cell.model, cell.setting), []).append(outcome)
        rows = []
        for (data, model, setting), group in groups.items():
            about = Row(Path(data).name, model, setting, "", 0, {})
            names = sorted({name for outcome in group for name in outcome.cell.categories})
            own = {name: list(_of_category(group, name, self.grid.together)) for name in names}
            rows += [_over_seeds(replace(about, category=name), list(found)) for name, found in own.items()]
            if len(names) > 1:
                rows.append(_mean_row(about, own, group, self.grid.together))
        return rows

    def columns(self) -> list[str]:
        """The metrics that have a value somewhere, of those asked for."""
        known = {name for outcome in self.outcomes if outcome.scores for name in _means(outcome)}
        return [name for name in self.grid.metrics or METRICS if name in known]

    def costs(self) -> list[str]:
        """What is known of the effort."""
        known = {name for outcome in self.outcomes if outcome.scores for name in _cost(outcome)}
        return [name for name in COSTS if name in known]

    def beside(self) -> list[Published]:
        """Published figures, if they are to be shown."""
        return published(self.grid.beside, self.categories) if self.grid.beside else []

    def notes(self) -> list[str]:
        """What to know of the table."""
        seeds = len(self.grid.seeds)
        lines = [f'Metrics follow the protocol "{self.grid.protocol}".']
        if self.grid.together:
            lines.append("One model was made for all categories of a folder; what it took is in the row of their mean.")
        if seeds > 1:
            lines.append(f"Each figure is the mean over {seeds} seeds, with half its 95 % interval by Student's t.")
        lines += [f"{outcome.cell.name} failed: {outcome.reason}" for outcome in self.failed]
        for outcome in self.outcomes:
            unused = [
                *(outcome.fit.failures if outcome.fit else ()),
                *(outcome.scores.failures if outcome.scores else ()),
            ]
            if unused:
                lines.append(
                    f"{outcome.cell.name}: {count_of(len(unused), 'picture')} could not be used, first: {unused[0]}"
                )
        lines += dict.fromkeys(note for outcome in self.outcomes if outcome.scores for note in outcome.scores.notes)
        if self.grid.beside:
            lines.append(
                f"Figures published of {self.grid.beside} ({count_of(len(self.beside()), 'row')} in the files) were "
                "not measured here; preprocessing, protocol and choice of epoch differ as their sources say."
            )
        return [printable(line) for line in lines]


def t_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; beyond 10 degrees of freedom by its expansion, to 2e-4.

    >>> round(t_975(2), 2), round(t_975(30), 3)
    (4.3, 2.042)
    """
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def _of_category(group: Iterable[Outcome], category: str, together: bool) -> Iterator[dict[str, float]]:
    """The figures of one category, a dictionary for each seed."""
    for outcome in group:
        if outcome.scores is not None and category in outcome.cell.categories:
            yield outcome.scores.metrics.get(category, {}) | ({} if together else _cost(outcome))


def _over_seeds(row: Row, found: Sequence[dict[str, float]]) -> Row:
    names = dict.fromkeys(name for values in found for name in values)
    figures = {name: Figure.of([values[name] for values in found if name in values]) for name in names}
    return replace(row, seeds=len(found), values=figures)


def _mean_row(about: Row, own: dict[str, list[dict[str, float]]], group: Sequence[Outcome], together: bool) -> Row:
    """The mean over the categories where a metric is defined, of each seed that has them all; then over seeds."""
    scored = [outcome for outcome in group if outcome.scores is not None]
    there = [name for name, found in own.items() if found]
    # A seed that lacks a category is left out of the mean, because it would be another mean.
    by_seed: dict[int, list[Outcome]] = {}
    for outcome in scored:
        by_seed.setdefault(outcome.cell.seed, []).append(outcome)
    found = []
    for outcomes in by_seed.values():
        metrics = {
            name: values for outcome in outcomes if outcome.scores for name, values in outcome.scores.metrics.items()
        }
        if {*there} <= {name for outcome in outcomes for name in outcome.cell.categories}:
            costs = [_cost(outcome) for outcome in outcomes]
            found.append(_mean([metrics.get(name, {}) for name in there]) | (costs[0] if together else _mean(costs)))
    label = MEAN if len(there) == len(own) else f"{MEAN} of {len(there)} of {len(own)}"
    return _over_seeds(replace(about, category=label), found)


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for values in rows for name in values)
    return {name: fmean(values[name] for values in rows if name in values) for name in names}


def _means(outcome: Outcome) -> dict[str, float]:
    return _mean(list(outcome.scores.metrics.values())) if outcome.scores else {}


def _cost(outcome: Outcome) -> dict[str, float]:
    fit, scores = outcome.fit, outcome.scores
    if fit is None or scores is None:
        return {}
    found = {
        "fit_s": fit.seconds,
        "ms_per_picture": 1000 * scores.seconds_per_picture,
        "peak_gb": max(fit.memory, scores.memory) / 1e9,
        "gpu_gb": fit.gpu_memory / 1e9,
        "artifact_mb": fit.size / 1e6,
    }
    return {name: value for name, value in found.items() if value}


def cell_text(figure: Figure | None, name: str, separator: str = " ") -> str:
    """A figure as tables show it.

    >>> cell_text(Figure(0.98765, 0.0123), "image_auroc")
    '0.9877 ±0.0123'
    """
    if figure is None or not math.isfinite(figure.mean):
        return number(None)
    digits = 4 if name not in COSTS else 1
    interval = "" if figure.interval is None else f"{separator}±{figure.interval:.{digits}f}"
    return f"{figure.mean:.{digits}f}{interval}"


def terminal_table(table: Table) -> "RichTable":
    """The table for a terminal: few metrics, the interval below its mean; published figures of the same models."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = table.rows()
    names = [name for name in table.columns() if table.grid.metrics or name in _SHOWN]
    columns = [*names, *(name for name in table.costs() if name in _SHOWN)]
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    about = _about(rows)
    for name in about:
        shown.add_column(name, overflow="fold", min_width=8)
    for name in columns:
        shown.add_column(name.replace("_", "_\n").replace("f1_\n", "f1_"), justify="right", no_wrap=True)
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and _key(before) != _key(row):
            shown.add_section()
        texts = (cell_text(row.values.get(name), name, "\n") for name in columns)
        shown.add_row(*(Text(printable(getattr(row, name))) for name in about), *texts)
    own = tuple(name.lower() for name in table.grid.models)
    for item in (item for item in table.beside() if item.method.lower().startswith(own)):
        values = (number(item.values.get(name)) for name in names)
        who = {"model": f"{item.method} ({item.source})", "category": item.category or MEAN}
        shown.add_row(*(who.get(name, "") for name in about), *values, style="dim")
    return shown


def _key(row: Row) -> tuple[str, str, str]:
    return row.data, row.model, row.setting


def _about(rows: Sequence[Row]) -> list[str]:
    """What tells the rows apart: always model and category, data and setting where there are several."""
    several_data = len({row.data for row in rows}) > 1
    has_settings = any(row.setting != DEFAULT for row in rows)
    return [*(["data"] * several_data), "model", *(["setting"] * has_settings), "category"]


def write(table: Table, out: Path) -> list[Path]:
    """The files that were written: the table as CSV, Markdown and one HTML page, and all cells as CSV."""
    texts = {"table.csv": to_csv, "table.md": to_markdown, "table.html": to_html, "cells.csv": cells_to_csv}
    for name, make in texts.items():
        write_text(out / name, printable(make(table)))
    return [out / name for name in texts]


def to_csv(table: Table) -> str:
    """The table, a line for each row; each figure has a column for its interval behind it."""
    columns = [*table.columns(), *table.costs()]
    lines: list[list[object]] = [
        [
            "data",
            "model",
            "setting",
            "category",
            "seeds",
            "source",
            *(f"{name}{end}" for name in columns for end in ("", "_interval")),
        ]
    ]
    for row in table.rows():
        figures = [row.values.get(name) for name in columns]
        values = [value for figure in figures for value in ((figure.mean, figure.interval) if figure else (None, None))]
        lines.append([row.data, row.model, row.setting, row.category, row.seeds, "", *map(_plain, values)])
    for item in table.beside():
        values = [value for name in columns for value in (item.values.get(name), None)]
        lines.append(
            [item.dataset, item.method, item.setting, item.category or MEAN, "", item.source, *map(_plain, values)]
        )
    return _csv(lines)


def cells_to_csv(table: Table) -> str:
    """Every category of every cell with all its metrics: what the table was made of."""
    known = {
        name
        for outcome in table.outcomes
        if outcome.scores
        for values in outcome.scores.metrics.values()
        for name in values
    }
    names = [name for name in all_metrics() if name in known]
    about = ["data", "model", "setting", "category", "seed", "together", "protocol", "folder", "reason"]
    lines: list[list[object]] = [[*about, *COSTS, *names]]
    for outcome in table.outcomes:
        cell, costs = outcome.cell, _cost(outcome)
        for category in cell.categories:
            values = outcome.scores.metrics.get(category, {}) if outcome.scores else {}
            known_of = [cell.data, cell.model, cell.setting, category, cell.seed, cell.together, cell.protocol]
            figures = [*(costs.get(name) for name in COSTS), *(values.get(name) for name in names)]
            lines.append([*known_of, outcome.folder.name, outcome.reason, *map(_plain, figures)])
    return _csv(lines)


def to_markdown(table: Table) -> str:
    """The table in Markdown, with its notes."""
    rows, columns = table.rows(), [*table.columns(), *table.costs()]
    about = _about(rows)
    lines = [_line([*about, *columns]), "|" + "---|" * len(about) + "---:|" * len(columns)]
    for row in rows:
        figures = [cell_text(row.values.get(name), name) for name in columns]
        texts = [getattr(row, name) for name in about] + figures
        lines.append(_line([f"**{text}**" for text in texts] if row.category.startswith(MEAN) else texts))
    if beside := table.beside():
        head = ["published", "category", "setting", "epochs", *table.columns(), "source"]
        lines += ["", _line(head), "|" + "---|" * 4 + "---:|" * len(table.columns()) + "---|"]
        for item in beside:
            values = [number(item.values.get(name)) for name in table.columns()]
            lines.append(_line([item.method, item.category or MEAN, item.setting, item.epochs, *values, item.source]))
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes())]) + "\n"


def to_html(table: Table) -> str:
    """The table as one page that loads nothing from anywhere."""
    rows, columns = table.rows(), [*table.columns(), *table.costs()]
    template = resources.files("blemish.benchmark").joinpath("table.html.jinja").read_text("utf-8")
    described = COSTS | {name: metric.description for name, metric in all_metrics().items()}
    return (
        environment()
        .from_string(template)
        .render(
            grid=asdict(table.grid),
            about=_about(rows),
            columns=columns,
            described=described,
            rows=[(row, [cell_text(row.values.get(name), name) for name in columns]) for row in rows],
            mean=MEAN,
            metrics=table.columns(),
            beside=table.beside(),
            notes=table.notes(),
            failed=table.failed,
            cells=len(table.outcomes),
        )
    )


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _plain(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(round(value, 9))


def _csv(lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
