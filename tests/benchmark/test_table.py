"""Tables: means over seeds and categories, intervals, and what is missing."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

import pytest
from rich.console import Console
from scipy import stats

from blemish.benchmark import Cell, Grid, Outcome, Table, table, terminal_table, write
from blemish.benchmark.cell import Fit, Scores

AUROC = {("bottle", 0): 0.9, ("bottle", 1): 0.92, ("bottle", 2): 0.97, ("cable", 0): 0.7, ("cable", 1): 0.8,
         ("cable", 2): 0.6}  # fmt: skip
CELL = Cell(
    model="patchcore", setting="default", config={}, data="/parts", layout="auto", categories=("bottle",),
    together=False, seed=0, device="cpu", backbone_weights="default", learned="", tested="", protocol="default",
    mode="auto",
)  # fmt: skip


def outcome(cell: Cell, metrics: dict[str, dict[str, float]], seconds: float = 10.0) -> Outcome:
    fit = Fit(seconds, 2e9, 0.0, 3e6, ())
    return Outcome(cell, Path(cell.folder), fit, Scores(metrics, 0.025, 1e9, 50, (), ("A note.",)))


def made(*without: tuple[str, int], model: str = "patchcore") -> Table:
    outcomes = []
    for (category, seed), value in AUROC.items():
        cell = replace(CELL, model=model, categories=(category,), seed=seed)
        metrics = {category: {"image_auroc": value, **({"aupro": value / 2} if category == "bottle" else {})}}
        found = outcome(cell, metrics, seconds=10.0 + seed)
        outcomes.append(Outcome(cell, found.folder, reason="fit: killed") if (category, seed) in without else found)
    return Table(Grid(seeds=(0, 1, 2), models=(model,)), tuple(outcomes))


def test_means_and_intervals_are_those_of_students_t():
    bottle, cable, mean = made().rows()
    own = [0.9, 0.92, 0.97]
    low, high = stats.t.interval(0.95, 2, fmean(own), stdev(own) / 3**0.5)
    assert (bottle.category, bottle.seeds) == ("bottle", 3)
    assert bottle.values["image_auroc"].mean == pytest.approx(fmean(own))
    assert bottle.values["image_auroc"].interval == pytest.approx((high - low) / 2, rel=1e-4)
    over = [(0.9 + 0.7) / 2, (0.92 + 0.8) / 2, (0.97 + 0.6) / 2]
    assert mean.category == "mean"
    assert mean.values["image_auroc"].mean == pytest.approx(fmean(over))
    low, high = stats.t.interval(0.95, 2, fmean(over), stdev(over) / 3**0.5)
    assert mean.values["image_auroc"].interval == pytest.approx((high - low) / 2, rel=1e-4)
    assert mean.values["aupro"].mean == pytest.approx(fmean(own) / 2), "where it is defined"
    assert mean.values["fit_s"].mean == 11.0
    assert "aupro" not in cable.values


@pytest.mark.parametrize("freedom", [1, 2, 9, 10, 11, 15, 40, 1000])
def test_quantiles(freedom):
    assert table.t_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-4)


def test_one_seed_has_no_interval():
    (row,) = Table(Grid(), (outcome(CELL, {"bottle": {"image_auroc": 0.9}}),)).rows()
    assert row.values["image_auroc"] == table.Figure(0.9, None)


def test_a_seed_that_lacks_a_category_is_not_in_the_mean():
    found = made(("cable", 1))
    bottle, cable, mean = found.rows()
    assert (bottle.seeds, cable.seeds, mean.seeds, mean.category) == (3, 2, 2, "mean")
    assert mean.values["image_auroc"].mean == pytest.approx((0.8 + 0.785) / 2)
    assert "patchcore, cable, seed 1 failed: fit: killed" in found.notes()


def test_a_category_that_failed_altogether_is_said_in_the_mean():
    rows = made(("cable", 0), ("cable", 1), ("cable", 2)).rows()
    assert [(row.category, row.seeds) for row in rows] == [("bottle", 3), ("cable", 0), ("mean of 1 of 2", 3)]
    assert rows[1].values == {}


def test_one_model_for_all_has_its_costs_in_the_row_of_the_mean():
    cell = replace(CELL, categories=("bottle", "cable"), together=True)
    found = Table(
        Grid(together=True), (outcome(cell, {"bottle": {"image_auroc": 0.9}, "cable": {"image_auroc": 0.7}}),)
    )
    bottle, _, mean = found.rows()
    assert "fit_s" not in bottle.values
    assert {name: figure.mean for name, figure in mean.values.items()} == pytest.approx(
        {"image_auroc": 0.8, "fit_s": 10.0, "ms_per_picture": 25.0, "peak_gb": 2.0, "artifact_mb": 3.0}
    )
    assert any("One model was made for all categories" in note for note in found.notes())


def rendered(found: Table, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(terminal_table(found))
    return console.file.getvalue()


def test_terminal_table_fits_into_80_characters():
    found = made()
    outcomes = [replace(item, cell=replace(item.cell, setting="broad")) for item in found.outcomes]
    text = rendered(replace(found, outcomes=(*found.outcomes, *outcomes)))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("patchcore", "bottle", "mean", "0.9300", "broad", "±0.0896"):
        assert word in text


def test_only_the_metrics_asked_for_are_shown():
    found = made()
    assert found.columns() == ["image_auroc", "aupro"]
    assert replace(found, grid=replace(found.grid, metrics=("aupro", "mad"))).columns() == ["aupro"]


def test_files(tmp_path):
    found = made(("cable", 1))
    found = replace(found, grid=replace(found.grid, beside="mvtec_ad"))
    assert [path.name for path in write(found, tmp_path)] == ["table.csv", "table.md", "table.html", "cells.csv"]
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert rows[0]["category"] == "bottle"
    assert float(rows[0]["image_auroc"]) == pytest.approx(0.93)
    assert float(rows[0]["image_auroc_interval"]) == pytest.approx(0.0896, abs=1e-4)
    (patchcore,) = [row for row in rows if row["model"] == "PatchCore" and row["image_auroc"] == "0.988"][:1]
    assert patchcore["source"].startswith("ADer")
    cells = list(csv.DictReader((tmp_path / "cells.csv").read_text().splitlines()))
    assert [(row["category"], row["seed"], row["image_auroc"]) for row in cells] == [
        (category, str(seed), "" if (category, seed) == ("cable", 1) else str(value))
        for (category, seed), value in AUROC.items()
    ]
    assert cells[4]["reason"] == "fit: killed"
    markdown = (tmp_path / "table.md").read_text().splitlines()
    assert markdown[0].startswith("| model | category | image_auroc | aupro | fit_s | ")
    assert markdown[2].startswith("| patchcore | bottle | 0.9300 ±0.0896 | 0.4650 ±0.0448 | 11.0 ±2.5 | 25.0 ±0.0 |")
    widths = {line.count("|") for line in markdown if line.startswith("|") and "published" not in line}
    assert widths == {markdown[0].count("|"), 8}


class Words(HTMLParser):
    """The words of a page, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def test_page_needs_nothing_else_and_escapes_names():
    found = made(("cable", 1), model="<b>core</b>")
    page = table.to_html(replace(found, grid=replace(found.grid, beside="visa")))
    read = Words(page)
    assert read.loads == []
    assert not re.search(r"@import|url\((?!#)|http", page)
    for word in ("0.9300", "±0.0896", "SegAD", "<b>core</b>", "killed"):
        assert word in " ".join(read.words), word
    assert page == table.to_html(replace(found, grid=replace(found.grid, beside="visa")))


def test_nothing_finished_is_a_table_all_the_same(tmp_path):
    found = made(*AUROC)
    assert found.columns() == []
    assert len(found.failed) == 6
    assert "cable" in rendered(found)
    write(found, tmp_path)
