"""Reports on miniature trees, scored by a predictor that takes bright pixels for defects."""

import base64
import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from blemish import report as reports
from blemish.artifact import Header, Predictor
from blemish.dataset import open_dataset
from blemish.errors import ConfigError, OutputError
from blemish.judging import Scored
from blemish.metric import all_metrics
from blemish.report import page, plots, summary
from blemish.scoring import Report, score
from blemish.types import Calibration, Choice, Decider, Failure, Fitted, Outcome, Policy, Prediction, Preprocessing
from trees import BAD, GOOD, MASK, grow, mvtec, some

Pages = Callable[[Report, Predictor], "Page"]
SIZE = (40, 56)
SCORES = Calibration(tuple(0.4 + i / 1000 for i in range(99)), tuple(0.5 + i / 1000 for i in range(99)))
"""99 held-out good pictures; the darkest defect of a tree is far above them."""


def bright(images: np.ndarray) -> Prediction[np.ndarray]:
    maps = images.mean(axis=1)
    return Prediction(maps, maps.reshape(len(maps), -1).max(axis=1))


def predictor(
    *categories: str, run=bright, calibration: Calibration = SCORES, policy: Policy | None = None
) -> Predictor:
    fitted = Fitted(Preprocessing(SIZE), dict.fromkeys(categories, calibration), policy or Policy(), ("a", "b"))
    return Predictor(Header("brightness", {"image_size": SIZE, "seed": 7}, fitted, {"blemish": "0.1.0"}), run)


def scored(root: Path, files: Mapping[str, str], **changes) -> tuple[Report, Predictor]:
    data = open_dataset("auto", grow(root, files))
    chosen = predictor(*data.categories, **changes)
    return score(chosen, data), chosen


class Page(HTMLParser):
    """What a page shows: its text, its pictures, and whatever it would load."""

    VOID = frozenset({"meta", "img", "br", "wbr", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.texts: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [given[name] for name in ("src", "srcset", "data", "poster", "action") if name in given]
        self.loads += [given["href"]] if tag == "link" else []
        self.links += [given["href"]] if tag == "a" else []
        self.ids += [given["id"]] if "id" in given and tag != "path" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "every element is closed"

    def handle_data(self, text):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def galleries(self) -> dict[str, list[str]]:
        """{title: names of its pictures, in order}"""
        found = {}
        for part in re.split(r"<h3>", self.html)[1:]:
            names = re.findall(r'<div class="name" title="[^"]*">([^<]*)</div>', part)
            if names:
                found[part.partition("<")[0]] = names
        return found


def page_of(report: Report, chosen: Predictor) -> Page:
    made = Page(reports.to_html(report, chosen))
    assert made.open == []
    assert all(load.startswith("data:image/jpeg;base64,") for load in made.loads)
    assert all(link.startswith("#") and link[1:] in made.ids for link in made.links)
    assert len(made.ids) == len(set(made.ids))
    outside = re.sub(r'"data:[^"]*"', "", made.html)
    assert "http" not in outside
    assert not re.search(r"@import|url\((?!#)", outside)
    return made


def paint(path: Path, brightest: int) -> None:
    """A flat picture with one square; `brightest` decides its score."""
    picture = np.full((*SIZE, 3), 60, np.uint8)
    picture[10:22, 30:42] = brightest
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture
def mixed(tmp_path) -> tuple[Report, Predictor]:
    """A category with mistakes of both kinds: threshold 0.497, that is 126.7 of 255."""
    root = grow(tmp_path, mvtec("part", good=0, bad=0))
    for name, brightest in {"g0": 80, "g1": 100, "g2": 140, "g3": 150}.items():
        paint(root / f"part/test/good/{name}.png", brightest)
    for name, brightest in {"d0": 90, "d1": 110, "d2": 200}.items():
        paint(root / f"part/test/dent/{name}.png", brightest)
        Image.fromarray(np.pad(np.full((12, 12), 255, np.uint8), ((10, 18), (30, 14)))).save(
            (root / "part/ground_truth/dent").mkdir(parents=True, exist_ok=True)
            or root / f"part/ground_truth/dent/{name}_mask.png"
        )
    paint(root / "part/test/rust/r0.png", 250)
    chosen = predictor("part")
    return score(chosen, open_dataset("auto", root)), chosen


def cells_of(report: Report) -> list[list[str]]:
    return [[str(cell) for cell in column.cells] for column in reports.table(report.results).columns]


def rendered(report: Report, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(reports.table(report.results))
    return console.file.getvalue()


def test_table_has_the_numbers_of_the_results(mixed):
    report, _ = mixed
    values = report.results.metrics["part"]
    floors = summary.floors(report.results.mean)
    assert cells_of(report) == [
        ["part", "no skill"],
        *([f"{values[name]:.4f}", summary.number(floors.get(name))] for name in summary.columns(report.results)),
    ]
    assert summary.columns(report.results) == [name for name in summary.COLUMNS if name != "part_auroc"]
    assert [column.header.replace("\n", "") for column in reports.table(report.results).columns] == [
        "category",
        *summary.columns(report.results),
    ]


def test_table_fits_into_80_characters_and_ends_with_the_mean(tmp_path):
    report, _ = scored(tmp_path, {**mvtec("bottle"), **mvtec("cable [red]")})
    lines = rendered(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert "cable [red]" in rendered(report, 120), "names are no markup"
    assert cells_of(report)[0] == ["bottle", "cable [red]", "mean", "no skill"]
    assert cells_of(report)[1][-2] == f"{report.results.mean['image_auroc']:.4f}"


def test_floors_are_those_of_marking_everything(mixed):
    """Of 8 pictures 4 are defective; three of the masks cover 144 of 2240 pixels each."""
    report, chosen = mixed
    values = report.results.metrics["part"]
    share = values["pixel_ap_chance"]
    assert summary.floors(values) == {
        "image_auroc": 0.5,
        "pixel_auroc": 0.5,
        "image_ap": 0.5,
        "image_f1_max": pytest.approx(2 / 3),
        "pixel_ap": share,
        "pixel_f1_max": pytest.approx(2 * share / (1 + share)),
        "pixel_iou_max": share,
    }
    assert 0 < share < 144 / 2240
    assert f"no skill {summary.number(0.5)}" in page_of(report, chosen).text


def test_figures_without_skill_are_named(tmp_path):
    """A constant map says nothing; marking everything gives an IoU that looks like something."""
    report, _ = scored(tmp_path, mvtec("part"))
    metrics = {"part": {"pixel_iou_max": 0.17, "pixel_iou_max_chance": 0.161, "image_auroc": 0.52, "image_ap": 0.9}}
    results = replace(report.results, metrics=metrics, mean=metrics["part"])
    (line,) = [line for line in summary.caveats(results) if "skill" in line]
    assert line == "part: hardly above what takes no skill (in brackets): pixel_iou_max 0.1700 (0.1610)."


def test_table_drops_columns_that_nobody_has_and_shows_a_dash_for_the_rest(tmp_path):
    files = {
        **mvtec("bottle"),
        **some("tube/train/good/{}.png", 4, GOOD),
        **some("tube/test/good/{}.png", 2, GOOD),
        **some("tube/test/dent/{}.png", 2, BAD),
    }
    report, _ = scored(tmp_path / "both", files)
    assert cells_of(report)[summary.columns(report.results).index("aupro") + 1][1] == summary.number(None)
    report, chosen = scored(tmp_path / "one", {key: value for key, value in files.items() if key.startswith("tube")})
    assert not {"aupro", "pixel_ap", "pixel_auroc"} & set(summary.columns(report.results))
    assert any(
        "tube: pixel_auroc, pixel_ap, aupro and" in note and "without a mask: 2" in note
        for note in reports.notes(report)
    )
    assert "aupro" in page_of(report, chosen).text


def test_notes_hold_the_promise_against_what_was_seen(mixed):
    report, _ = mixed
    first = reports.notes(report)[0]
    assert first.startswith("part: threshold 0.498: at most 1 in 100 good parts is expected above it (99 good")
    assert "Seen: 2 of 4 (50.0 %) good rejected." in first
    assert "more than chance explains" in first
    assert "than chance explains , of part ." in page_of(*mixed).text
    assert reports.notes(report)[1].startswith('Metrics follow the protocol "default", from all map values')


@pytest.mark.parametrize(("rate", "held_out", "seen", "tested"), [(0.01, 99, 1, 10), (0.2, 20, 3, 8), (0.01, 6, 2, 14)])
def test_chance_of_false_rejects_is_that_of_a_simulation(rate, held_out, seen, tested):
    random = np.random.default_rng(0)
    draws = np.sort(random.random((20000, held_out)), axis=1)
    threshold = Calibration(tuple(range(held_out)), (0.0,)).threshold(rate)
    values = draws[:, int(threshold.value)][:, None]
    often = np.mean((random.random((20000, tested)) > values).sum(axis=1) >= seen)
    assert summary._chance(seen, tested, threshold) == pytest.approx(often, abs=0.01)
    assert summary._chance(0, tested, threshold) == pytest.approx(1)


def test_headline_counts_decisions(mixed):
    report, _ = mixed
    assert reports.headline(report) == (
        "brightness was tested on 4 good and 4 defective pictures of part. At the threshold that is expected to stop "
        "at most 1 in 100 good parts, 2 of 4 (50.0 %) good pictures were stopped and 2 of 4 (50.0 %) defective ones "
        "were missed."
    )


def test_kept_promise_is_not_called_broken(tmp_path):
    report, chosen = scored(tmp_path, mvtec("part"), calibration=Calibration((0.7,) * 99, (0.7,) * 99))
    assert "Seen: 0 of 3 (0.0 %) good rejected." in reports.notes(report)[0]
    assert "chance explains" not in page_of(report, chosen).text


def test_grey_zone_is_counted_apart(tmp_path):
    report, chosen = scored(tmp_path, mvtec("part"), policy=Policy(0.01, 0.5))
    rows = [replace(row, decision="review") for row in report.scored[:2]] + report.scored[2:]
    report = replace(report, scored=rows)
    shown = page_of(report, chosen)
    assert "2 were sent to a person (2 good, 0 defective)." in reports.headline(report)
    assert "sent to a person" in shown.text
    assert "review above" in shown.text
    assert "miss_rate counts defective pictures sent to a person as passed." in reports.notes(report)
    assert f"{rows[0].defect or 'good'}/{Path(rows[0].path).name}" in shown.galleries()["Good, but stopped"]


def test_json_has_metrics_mean_and_no_nan(mixed):
    report, _ = mixed
    broken = replace(report, results=replace(report.results, mean={**report.results.mean, "aupro": math.nan}))
    values = json.loads(reports.to_json(broken), parse_constant=pytest.fail)
    assert values["metrics"] == report.results.metrics
    assert values["mean"]["aupro"] is None
    assert values["thresholds"]["part"]["reject"]["promised"] == 0.01
    assert reports.to_json(report) == reports.to_json(report)
    assert list(values)[:2] == ["metrics", "mean"]


def test_csv_has_a_line_for_each_picture(mixed):
    report, _ = mixed
    lines = list(csv.DictReader(io.StringIO(reports.to_csv(report))))
    assert len(lines) == len(report.scored)
    for line, row in zip(lines, report.scored, strict=True):
        assert (line["path"], line["decision"], line["category"]) == (row.path, row.decision, "part")
        assert float(line["image_score"]) == row.image_score
        assert float(line["calibrated_score"]) == row.calibrated_score
        assert line["is_anomalous"] == str(row.is_anomalous).lower()
        assert line["defect"] == row.defect
        assert int(line["regions"]) == len(row.regions)
        areas = [region.area for region in row.regions]
        assert line["largest_area"] == (str(max(areas)) if areas else "")
        assert line["peak"] == (repr(row.regions[0].peak) if areas else "")


def test_galleries_show_the_right_pictures_in_the_right_order(mixed):
    report, chosen = mixed
    shown = page_of(report, chosen)
    assert shown.galleries() == {
        "Defective, not rejected": ["dent/d0.png", "dent/d1.png"],
        "Good, but stopped": ["good/g3.png", "good/g2.png"],
        "Best finds": ["rust/r0.png", "dent/d2.png"],
    }
    for name, load in zip(
        [name for names in shown.galleries().values() for name in names], shown.loads[::2], strict=True
    ):
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(load.partition(",")[2]))), int)
        meant = np.asarray(Image.open(report.scored[0].path.replace("dent/d0.png", name)), int)
        assert np.abs(seen - meant).mean() < 8, name


def test_overlay_outlines_mask_and_predicted_region(mixed):
    report, chosen = mixed
    row = next(row for row in report.scored if row.path.endswith("d2.png"))
    (judged,) = reports.page.judge(chosen, [report.samples[row.path]], [])
    _, overlay = page._drawn(judged)
    assert (overlay == page._PREDICTED).all(axis=2).sum() > 20, "drawn last, over the same mask"
    missed = next(row for row in report.scored if row.path.endswith("d0.png"))
    (judged,) = reports.page.judge(chosen, [report.samples[missed.path]], [])
    _, overlay = page._drawn(judged)
    ys, xs = np.nonzero((overlay == page._MASK).all(axis=2))
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (10, 21, 30, 41)
    assert not (overlay == page._PREDICTED).all(axis=2).any()


def test_page_shows_the_numbers_of_the_results(mixed):
    report, chosen = mixed
    shown = page_of(report, chosen)
    for name, value in report.results.metrics["part"].items():
        assert f"{value:.4f}" in shown.text
        assert all_metrics()[name].description in shown.text
    for kind in ("dent", "rust"):
        assert f"{report.results.by_defect['part'][kind]['image_auroc']:.4f}" in shown.text
    assert "dent 3 2 of 3 (66.7 %)" in shown.text
    assert "rust 1 0 of 1 (0.0 %)" in shown.text
    assert "good 4 2 of 4 (50.0 %) 2 of 4 (50.0 %)" in shown.text
    assert reports.headline(report) in shown.text
    for fact in ("Learned from 2 good pictures", "seed 7", "blemish 0.1.0", 'protocol "default"'):
        assert fact in shown.text
    assert report.sentences[0] in shown.text


@pytest.fixture
def viewed(tmp_path) -> tuple[Report, Predictor]:
    """Parts in two views; threshold of parts 0.497, that is 126.7 of 255. Three are defective, one is missed."""
    brightest = {"g0": (80, 90), "g1": (100, 140), "b0": (90, 250), "b1": (200, 100), "b2": (110, 90)}
    lines = ["path,split,label,defect,part,view"]
    for part, values in brightest.items():
        for view, value in zip(("left", "top"), values, strict=True):
            paint(tmp_path / f"{part}/{view}.png", value)
            bad = part.startswith("b") and (value > 180 or part == "b2")
            lines.append(f"{part}/{view}.png,test,{'bad,dent' if bad else 'good,'},{part},{view}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    data = open_dataset("manifest", tmp_path)
    chosen = predictor(
        *data.categories, calibration=replace(SCORES, parts=tuple((s, 0.1) for s in SCORES.image_scores))
    )
    return score(chosen, data), chosen


def test_views_of_a_part_are_side_by_side_with_its_decision(viewed):
    report, chosen = viewed
    shown = page_of(report, chosen)
    assert shown.galleries() == {
        "Defective, not rejected": ["b2"],
        "Good, but stopped": ["g1"],
        "Best finds": ["b0", "b1"],
    }
    figures = [text.partition("</figure>")[0] for text in shown.html.split('<figure class="card shot part">')[1:]]
    for name, figure, decision in zip(
        ("b2", "g1", "b0", "b1"), figures, ("passed", "rejected", "rejected", "rejected"), strict=True
    ):
        assert '--views: 2"' in figure
        assert re.findall(r"<b>(\w+)</b>", figure) == ["left", "top"]
        loads = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', figure)
        assert len(loads) == 4, "each view and its map"
        for view, load in zip(("left", "top"), loads[::2], strict=True):
            seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(load))), int)
            root = Path(report.scored[0].path).parents[1]
            assert np.abs(seen - np.asarray(Image.open(root / name / f"{view}.png"), int)).mean() < 8
        assert f">{decision}</span>" in figure
        (part,) = (part for part in report.parts if part.part == name)
        assert f"part score {part.part_score:.5g}" in figure
    assert "defect: dent" in figures[0]
    assert "good part" in figures[1]


def test_parts_are_counted_and_their_promise_is_said(viewed):
    shown = page_of(*viewed)
    assert "at most 1 in 100 good parts is expected above it (99 good parts held out of training)" in shown.text
    assert "the part is parts passed rejected good 2 1 of 2 (50.0 %) 1 of 2 (50.0 %)" in shown.text
    assert "defective 3 1 of 3 (33.3 %) 2 of 3 (66.7 %)" in shown.text
    assert f"{viewed[0].results.metrics[viewed[0].parts[0].category]['part_auroc']:.4f}" in shown.text


def test_pictures_that_are_their_own_parts_are_shown_as_before(mixed):
    shown = page_of(*mixed)
    assert "Parts seen in several views" not in shown.text
    assert 'class="views"' not in shown.html


def test_parts_of_one_name_in_two_unknown_categories_are_two(tmp_path):
    lines = ["path,split,label,category,part,view"]
    for category, value in (("nut", 80), ("bolt", 250)):
        for view in ("left", "top"):
            paint(tmp_path / category / f"{view}.png", value)
            lines.append(f"{category}/{view}.png,test,{'bad' if value > 180 else 'good'},{category},p1,{view}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    report = score(predictor("washer"), open_dataset("manifest", tmp_path))
    assert sorted((len(part.views), part.is_anomalous) for part in report.parts) == [(2, False), (2, True)]


def test_no_mistakes_show_what_came_closest(tmp_path):
    report, chosen = scored(tmp_path, mvtec("part", good=6, bad=5), calibration=Calibration((0.7,) * 99, (0.7,) * 99))
    shown = page_of(report, chosen)
    good = sorted((row for row in report.scored if not row.is_anomalous), key=lambda row: -row.image_score)
    assert [name.split("/")[-1] for name in shown.galleries()["No good picture was stopped"]] == [
        Path(row.path).name for row in good[:4]
    ]
    assert "No defective picture was missed" in shown.galleries()
    assert "Every defective picture was rejected" in shown.text


@pytest.mark.parametrize(
    ("good", "bad", "lack"), [(3, 0, "defective"), (0, 3, "good")], ids=["only good", "only defective"]
)
def test_one_kind_only_says_what_is_missing_and_reports_the_rest(tmp_path, good, bad, lack):
    report, chosen = scored(tmp_path, mvtec("part", good=good, bad=bad))
    shown = page_of(report, chosen)
    assert f"There were no {lack} pictures." in reports.headline(report)
    assert any(f"there are no {lack} pictures" in note for note in reports.notes(report))
    assert f"there are no {lack} pictures" in shown.text
    assert "image_auroc" not in summary.columns(report.results)
    outcome = "3 of 3 (100.0 %) good pictures were stopped." if good else "0 of 3 (0.0 %) defective ones were missed."
    assert outcome in reports.headline(report)
    assert rendered(report)
    assert len(list(csv.reader(io.StringIO(reports.to_csv(report))))) == 4


def test_single_picture_without_any_mask(tmp_path):
    report, chosen = scored(tmp_path, {**some("p/train/good/{}.png", 3, GOOD), "p/test/dent/0.png": BAD})
    report = replace(report, scored=[row for row in report.scored if row.is_anomalous])
    assert len(page_of(report, chosen).loads) == 4, "the same picture is the closest call and the best find"


def test_scores_that_are_not_numbers(tmp_path):
    def half(images):
        prediction = bright(images)
        prediction.image_score[prediction.image_score > 0.8] = np.nan
        prediction.anomaly_map[prediction.image_score != prediction.image_score] = np.nan
        return prediction

    report, chosen = scored(tmp_path, mvtec("part"), run=half)
    shown = page_of(report, chosen)
    assert "3 without a number for a score are left out." in shown.text
    assert "is not finite (3 of 6 pictures)" in shown.text
    assert shown.galleries()["Best finds"][0].startswith("scratch/")
    assert "NaN" not in reports.to_json(report)
    assert sum(line["image_score"] == "" for line in csv.DictReader(io.StringIO(reports.to_csv(report)))) == 3
    nothing = replace(report, scored=[replace(row, image_score=math.nan) for row in report.scored])
    assert "no picture has a score that is a number" in page_of(nothing, chosen).text


def test_unreadable_pictures_and_masks_are_counted_and_named(tmp_path):
    files = {**mvtec("part", good=6), **{f"part/test/good/x{i}.png": "no picture" for i in range(5)}}
    files["part/ground_truth/scratch/001_mask.png"] = "no mask"
    report, chosen = scored(tmp_path, files)
    (unread,) = (note for note in reports.notes(report) if "could not be used:" in note and "of 14" in note)
    assert unread.startswith("5 of 14 pictures could not be used: ")
    assert unread.endswith("x2.png and 2 more.")
    assert any(note.startswith("1 scored without all that belongs to it: ") for note in reports.notes(report))
    shown = page_of(report, chosen)
    for failure in report.failures:
        assert failure.reason in shown.text
    assert "Pictures left out (5)" in shown.text


def test_pictures_that_vanished_leave_the_rest(mixed):
    report, chosen = mixed
    Path(report.scored[0].path).unlink()
    shown = page_of(report, chosen)
    assert "This picture can't be read any more." in shown.text
    assert len(shown.loads) == 2 * (6 - 1)


def test_names_are_escaped(tmp_path):
    category, defect, name = "a <em>strong</em> 'part'".replace("/", "_"), "d<em>nt", "<script>alert('x')\"&.png"
    root = grow(tmp_path, mvtec(category, bad=0))
    paint(root / category / "test" / defect / name, 250)
    chosen = predictor(category)
    shown = page_of(score(chosen, open_dataset("auto", root)), chosen)
    assert shown.tags.count("script") == 1
    assert "em" not in shown.tags
    for text in (category, defect, f"{defect}/{name}"):
        assert text in shown.text


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_names_that_are_not_text_can_be_written(mixed, tmp_path):
    report, chosen = mixed
    rows = [replace(report.scored[0], path=os.fsdecode(b"/x/\xff.png")), *report.scored[1:]]
    report = replace(report, scored=rows, failures=[Failure(Path(os.fsdecode(b"/x/\xfe.png")), "gone.")])
    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "csv", "html")}
    reports.write(report, chosen, json_file=files["json"], csv_file=files["csv"], html_file=files["html"])
    assert "\\udcff.png" in files["csv"].read_text("utf-8")
    assert all(note.encode() for note in reports.notes(report))


def test_same_input_gives_the_same_bytes(mixed):
    assert reports.to_html(*mixed) == reports.to_html(*mixed)


def test_write_writes_what_is_named(mixed, tmp_path):
    report, chosen = mixed
    folder = tmp_path / "new"
    reports.write(report, chosen, json_file=folder / "a.json", html_file=folder / "a.html")
    assert sorted(path.name for path in folder.iterdir()) == ["a.html", "a.json"]
    assert (folder / "a.html").read_text("utf-8") == reports.to_html(report, chosen)
    with pytest.raises(OutputError, match="taken"):
        (tmp_path / "taken").mkdir()
        reports.write(report, chosen, csv_file=tmp_path / "taken")


def noise(tmp_path: Path, categories: int, size: int) -> tuple[Report, Predictor]:
    """Many pictures of the worst kind: noise does not compress."""
    tmp_path.mkdir()
    random = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8)).save(tmp_path / f"{i}.png")
    names = [f"c{i:02}" for i in range(categories)]
    lines = ["path,split,label,category"]
    for name in names:
        for kind, split, label in (("train", "train", "ok"), ("good", "test", "ok"), ("bad", "test", "ng")):
            lines += [f"{name}/{kind}{i}.png,{split},{label},{name}" for i in range(8)]
        (tmp_path / name).mkdir()
        for kind in ("train", "good", "bad"):
            for i in range(8):
                (tmp_path / name / f"{kind}{i}.png").symlink_to(tmp_path / f"{i}.png")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    data = open_dataset("manifest", tmp_path / "manifest.csv")
    fitted = Fitted(Preprocessing((size, size)), dict.fromkeys(names, replace(SCORES, map_maxima=(2.0,))), Policy(), ())
    chosen = Predictor(Header("noise", {}, fitted), bright)
    return score(chosen, data), chosen


@pytest.mark.parametrize(("categories", "size", "limit"), [(1, 512, 3e6), (30, 96, 20e6)])
def test_size_stays_below_what_mail_takes(tmp_path, monkeypatch, categories, size, limit):
    if categories > 1:  # drawing them takes long
        monkeypatch.setattr(plots, "_svg", lambda *_, **__: f"<svg>{' ' * 20_000}</svg>")
    report, chosen = noise(tmp_path / "n", categories, size)
    shown = page_of(report, chosen)
    assert len(shown.html) < limit
    assert len(shown.loads) >= 4 * categories
    assert len({link for link in shown.links if link.startswith("#category-")}) == categories
    assert max(map(len, shown.galleries().values())) <= page.GALLERY


@pytest.mark.parametrize("categories", [1, 8, 30, 100, 1000])
def test_budget_of_pictures_is_never_exceeded(categories):
    each = page._limit(categories, page._gallery_size(categories))
    assert each * 4 / 3 * 6 * categories * page._gallery_size(categories) <= 15e6


def test_outliers_do_not_squash_the_histogram():
    good = np.array([1.0, 1.1, 1.2, 1.3, 1.25, 1.15, 1.05, 1.2, 1.1, 900.0])
    low, high = plots._range([good, np.array([2.0, 2.2, 2.5])], [1.5])
    assert low < 1.0
    assert 2.5 < high < 4
    rows = [Scored(str(i), value, 0.5, "good", (), is_anomalous=False) for i, value in enumerate(good)]
    found = plots.plots("part", rows, Decider(SCORES, Policy()))
    assert "1 further out" in found[0].about
    assert [bool(plot.svg) for plot in found] == [True, False, False]


@pytest.mark.parametrize(
    "values", [[7.0, 7.0], [0.0], [1.0, 1 + 2e-16], [-3e38, 3e38], [5.0, math.inf, math.nan], [1e-40, 2e-40]]
)
def test_histogram_takes_any_scores(values):
    rows = [Scored(str(i), value, 0.5, "good", (), is_anomalous=bool(i % 2)) for i, value in enumerate(values)]
    assert plots._histogram("part", rows, None).svg


def test_curves_are_those_of_scikit_learn(mixed):
    from sklearn.metrics import roc_curve

    report, _ = mixed
    scores = [row.image_score for row in report.scored]
    labels = [row.is_anomalous for row in report.scored]
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    xs, ys = plots._curve(report.scored).line()
    corners = set(zip(np.round(false, 9).tolist(), np.round(true, 9).tolist(), strict=True))
    assert set(zip(np.round(xs, 9).tolist(), np.round(ys, 9).tolist(), strict=True)) <= corners
    assert np.trapezoid(ys, xs) == pytest.approx(report.results.metrics["part"]["image_auroc"])


def test_masks_are_outlined_only_where_there_are_any(tmp_path):
    files = {**mvtec("part", bad=0), "part/test/dent/0.png": BAD, "part/ground_truth/dent/0_mask.png": MASK}
    report, chosen = scored(tmp_path, files)
    assert page_of(report, chosen).galleries()["Best finds"] == ["dent/0.png"]


def test_one_model_for_several_categories_is_said_and_each_has_a_row(tmp_path, capsys):
    report, chosen = scored(tmp_path, mvtec("bolt") | mvtec("nut"))
    assert reports.headline(report).startswith("One brightness model for 2 categories was tested on ")
    sentence = "One brightness model made all of this. It learned 2 categories together (bolt, nut)"
    assert any(note.startswith(sentence) for note in reports.notes(report))
    assert sentence in Page(reports.to_html(report, chosen)).text
    Console(width=200).print(reports.table(report.results))
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [row for row in rows if row in ("bolt", "nut", "mean")] == ["bolt", "nut", "mean"]


def test_one_model_for_one_category_is_nothing_to_say(mixed):
    report, _ = mixed
    assert reports.headline(report).startswith("brightness was tested on ")
    assert not any("made all of this" in note for note in reports.notes(report))


def test_how_the_training_went_is_shown(tmp_path):
    found, chosen = scored(tmp_path, mvtec("bottle"))
    assert "Training" not in page.to_html(found, chosen)
    training = Outcome(20, 83.0, [(10, 0.75), (20, 0.5)], [(20, {"loss": 0.1})])
    fitted = replace(found.header.fitted, training=training)
    found = replace(found, header=replace(found.header, fitted=fitted))
    assert training.sentence() in page.to_html(found, chosen)
    assert json.loads(summary.to_json(found))["training"]["scores"] == [[10, 0.75], [20, 0.5]]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_what_was_chosen_is_drawn(tmp_path, suffix):
    choices = {"channels": Choice((0.5, 0.1, 0.3), (1, 2)), "others": Choice((0.2,), (0,))}
    file = tmp_path / f"chosen{suffix}"
    reports.draw_choices(choices, file)
    if suffix == ".png":
        with Image.open(file) as drawing:
            assert drawing.size == (840, 576)
    if suffix == ".svg":
        assert "<!-- kept (2) -->" in file.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]


def test_a_drawing_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a name ending in .png, .svg, .pdf"):
        reports.draw_choices({"channels": Choice((0.5,), (0,))}, tmp_path / "chosen.doc")
