"""What a report says in words and figures: table, headline, notes, JSON, CSV."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from blemish.errors import count_of
from blemish.judging import Scored, ScoredPart
from blemish.metric import Results
from blemish.objects import name_of
from blemish.scoring import Report
from blemish.types import Decision, Failure, Sample, Threshold, one_in

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "part_auroc",
    "pixel_auroc",
    "pixel_ap",
    "aupro",
    "false_reject_rate",
    "miss_rate",
)
"""The metrics that tables show."""
CSV_COLUMNS = (
    "path",
    "category",
    "is_anomalous",
    "defect",
    "image_score",
    "calibrated_score",
    "decision",
    "regions",
    "largest_area",
    "peak",
)
"""What is known of a picture, in the order of `to_csv`."""

_CHANCE = "_chance"  # ends the names of metrics that are floors of others
_FLOORS = {"image_auroc": 0.5, "pixel_auroc": 0.5}  # those that no data changes
_HARDLY = 0.02  # share of the way from its floor to 1 below which a figure shows no skill
_CATEGORIES = 4  # that the full table shows beside their mean
_NAMED = 3  # unreadable pictures that a note names
_NONE = "–"  # noqa: RUF001 - an en dash is what tables have where nothing is
_SURPRISING = 0.01  # chance below which a broken promise is no accident


@dataclass(frozen=True)
class Tally:
    """How the pictures, or parts, of one kind were decided."""

    total: int
    passed: int
    review: int
    rejected: int

    @classmethod
    def of(cls, scored: Iterable[Scored | ScoredPart]) -> "Tally":
        """The counts of these pictures, or parts."""
        return cls.counted(Counter(row.decision for row in scored))

    @classmethod
    def counted(cls, counts: "Mapping[Decision, int]") -> "Tally":
        """The same of counts."""
        passed, review, rejected = (counts.get(decision, 0) for decision in get_args(Decision))
        return cls(sum(counts.values()), passed, review, rejected)


def table(results: Results) -> "Table":
    """The metrics people look at first: a row for each category, and their mean if there are several."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("category", overflow="fold")
    names = columns(results)
    for name in names:  # in lines, so that all fit into 80 characters
        shown.add_column(name.replace("_", "_\n").replace("f1_\n", "f1_"), justify="right", no_wrap=True)
    rows = list(results.metrics.items())
    for category, values in rows:
        shown.add_row(Text(printable(category)), *(number(values.get(name)) for name in names))
    if len(rows) > 1:
        shown.add_section()
        shown.add_row(Text("mean"), *(number(results.mean.get(name)) for name in names))
    if found := floors(results.mean):
        shown.add_row("no skill", *(number(found.get(name)) for name in names), style="dim")
    return shown


def full_table(results: Results) -> "Table":
    """All metrics, a row for each; the categories are columns while they are few."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    categories = list(results.metrics) if 1 < len(results.metrics) <= _CATEGORIES else []
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("metric")
    for name in ("mean" if len(results.metrics) > 1 else next(iter(results.metrics)), *categories):
        shown.add_column(Text(printable(name)), justify="right", overflow="fold")
    for name, mean in results.mean.items():
        shown.add_row(name, number(mean), *(number(results.metrics[category].get(name)) for category in categories))
    return shown


def columns(results: Results) -> list[str]:
    """Which of `COLUMNS` have a value for some category."""
    return [name for name in COLUMNS if name in results.mean]


def floors(values: Mapping[str, float]) -> dict[str, float]:
    """What a detector without skill gets: at random for AUROC and AP, by marking everything for F1 and IoU."""
    found = {name: floor for name, floor in _FLOORS.items() if name in values}
    return found | {
        name.removesuffix(_CHANCE): floor
        for name, floor in values.items()
        if name.endswith(_CHANCE) and name.removesuffix(_CHANCE) in values
    }


def notes(report: Report) -> list[str]:
    """What a reader of the table should know: thresholds and what was seen of their promise, then `remarks`."""
    thresholds = [printable(f"{name}: {promise(report, name, good)}") for name, (good, _) in seen(report).items()]
    return thresholds + remarks(report)


def seen(report: Report) -> dict[str, tuple[Tally, Tally]]:
    """{category: how its good and its defective pictures were decided}, in the order of the results."""
    counts = {(category, kind): Counter[Decision]() for category in report.results.metrics for kind in (False, True)}
    for row in report.scored:
        if row.is_anomalous is not None:
            key = sample_of(report, row).category, row.is_anomalous
            counts.setdefault(key, Counter())[row.decision] += 1
    names = dict.fromkeys(category for category, _ in counts)
    return {
        name: (Tally.counted(counts.get((name, False), {})), Tally.counted(counts.get((name, True), {})))
        for name in names
    }


def remarks(report: Report) -> list[str]:
    """Why metrics have no value, how the values came about, and what could not be read, a sentence or two each."""
    lines = [*_one_model(report), *_learned(report), *caveats(report.results), *_failures(report)]
    if any(decider.review is not None for decider in report.deciders.values()) and "miss_rate" in report.results.mean:
        lines.append("miss_rate counts defective pictures sent to a person as passed.")
    return [printable(line) for line in lines]


def caveats(results: Results) -> list[str]:
    """How the values came about, and why some metrics have none."""
    mode = "all map values" if results.mode == "exact" else "map values counted in cells"
    return [
        f'Metrics follow the protocol "{results.protocol}", from {mode} (mode {results.mode}).',
        *_intervals(results),
        *_no_skill(results),
        *_undefined(results),
        *results.notes,
    ]


def _one_model(report: Report) -> list[str]:
    """That all categories share a detector, if they do."""
    known = sorted(report.header.fitted.calibrations)
    if len(known) == 1:
        return []
    return [
        f"One {report.header.model} model made all of this. It learned {len(known)} categories together "
        f"({', '.join(known)}) and is told none when it looks; only thresholds are set for each apart."
    ]


def _learned(report: Report) -> list[str]:
    """That the test set holds pictures of the training, if it does."""
    if not report.learned:
        return []
    names = ", ".join(report.learned[:_NAMED])
    return [
        f"{count_of(len(report.learned), 'good test picture')} {_were(len(report.learned))} learned from ({names}): "
        "the detector knows them, so what is said of good pictures here is too good. Test on others."
    ]


def _intervals(results: Results) -> list[str]:
    """Between which values 95 % of the resamples lie."""
    lines = []
    for category, found in results.intervals.items():
        texts = [f"{name} {number(found[name][0])} to {number(found[name][1])}" for name in COLUMNS if name in found]
        lines.append(f"{category}, 95 % intervals over pictures: {', '.join(texts)}.")
    return lines


def _no_skill(results: Results) -> list[str]:
    """Which figures are no better than what takes no skill."""
    lines = []
    for category, values in results.metrics.items():
        bad = [
            f"{name} {number(values[name])} ({number(floor)})"
            for name, floor in floors(values).items()
            if values[name] - floor < _HARDLY * (1 - floor)
        ]
        if bad:
            lines.append(f"{category}: hardly above what takes no skill (in brackets): {', '.join(bad)}.")
    return lines


def headline(report: Report) -> str:
    """What was tested on what, and what came of it, in two or three sentences."""
    good, defective = (tally(report.scored, is_anomalous) for is_anomalous in (False, True))
    categories = list(report.results.metrics)
    of = categories[0] if len(categories) == 1 else f"{len(categories)} categories"
    rate = promised(report)
    saying = f"At the threshold that is expected to stop at most {rate} good parts" if rate else "At the threshold"
    stopped = f"{share(good.rejected, good.total)} good pictures {_were(good.rejected)} stopped"
    missed = f"{share(defective.passed, defective.total)} defective ones {_were(defective.passed)} missed"
    outcome = " and ".join(text for row, text in ((good, stopped), (defective, missed)) if row.total)
    lack = "" if good.total and defective.total else f" There were no {'defective' if good.total else 'good'} pictures."
    review = good.review + defective.review
    person = f" {review} {_were(review)} sent to a person ({good.review} good, {defective.review} defective)."
    together = len(report.header.fitted.calibrations)
    model = report.header.model if together == 1 else f"One {report.header.model} model for {together} categories"
    return printable(
        f"{model} was tested on {good.total} good and {count_of(defective.total, 'defective picture')} of {of}. "
        f"{saying}, {outcome}.{person if review else ''}{lack}"
    )


def promised(report: Report) -> str:
    """The share of good parts that may be stopped, from the loosest to the strictest category; or nothing."""
    rates = sorted((threshold.promised for threshold in thresholds(report).values()), reverse=True)
    return " to ".join(dict.fromkeys(one_in(rate) for rate in (*rates[:1], *rates[-1:])))


def to_json(report: Report) -> str:
    """The report as one JSON object, indented; what is not a number is null."""
    # Written twice, because only reading has a hook for NaN and infinity.
    values = json.loads(json.dumps(report.plain()), parse_constant=lambda _: None)
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def to_csv(report: Report) -> str:
    """The scores, a line for each picture; what is not a number is empty."""
    return "".join(csv_lines(report))


def csv_lines(report: Report) -> Iterator[str]:
    """The same line by line."""
    yield _csv_line(CSV_COLUMNS)
    for row in report.scored:
        found = row.regions
        known = "" if row.is_anomalous is None else str(row.is_anomalous).lower()
        scores = [_cell(row.image_score), _cell(row.calibrated_score)]
        largest = [max(region.area for region in found), _cell(max(region.peak for region in found))] if found else []
        about = [row.path, sample_of(report, row).category, known, row.defect]
        yield _csv_line([*about, *scores, row.decision, len(found), *(largest or ["", ""])])


def _csv_line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return printable(text.getvalue())


def by_category(report: Report) -> dict[str, list[Scored]]:
    """{category: its pictures}, in the order of the results."""
    found: dict[str, list[Scored]] = {category: [] for category in report.results.metrics}
    for row in report.scored:
        found.setdefault(sample_of(report, row).category, []).append(row)
    return found


def parts_by_category(report: Report) -> dict[str, list[ScoredPart]]:
    """{category: its parts}, of those with parts that are seen in several views."""
    seen = {row.path: row for row in report.scored}
    found: dict[str, list[ScoredPart]] = {}
    for part in report.parts:
        found.setdefault(sample_of(report, seen[next(iter(part.views))]).category, []).append(part)
    return {category: parts for category, parts in found.items() if any(len(part.views) > 1 for part in parts)}


def sample_of(report: Report, row: Scored) -> Sample:
    """The sample that was scored, or what its scores tell of it."""
    unknown = Sample(
        path=Path(row.path), category=row.category, split="test", is_anomalous=row.is_anomalous, defect=row.defect
    )
    return report.samples.get(row.path, unknown)


def thresholds(report: Report) -> dict[str, Threshold]:
    """The threshold of each category that was tested."""
    return {name: report.deciders[name].reject for name in report.results.metrics if name in report.deciders}


def sorted_failures(report: Report) -> tuple[list[Failure], list[Failure]]:
    """Pictures that are left out, and those that were scored without their mask."""
    failed = {name_of(failure.path) for failure in report.failures}
    scored = {row.path for row in report.scored if row.path in failed} if failed else set()
    unread = [failure for failure in report.failures if name_of(failure.path) not in scored]
    return unread, [failure for failure in report.failures if name_of(failure.path) in scored]


def tally(scored: Iterable[Scored], is_anomalous: bool) -> Tally:
    """How the good pictures, or the defective ones, were decided."""
    return Tally.of(row for row in scored if row.is_anomalous is is_anomalous)


def promise(report: Report, category: str, good: Tally) -> str:
    """What is promised of a category's threshold, and what was seen of it on good pictures."""
    decider = report.deciders.get(category)
    if decider is None:
        return "there is no threshold."
    sentences = [decider.reject.sentence()]
    if decider.review is not None:
        sentences.append(f"To a person from {decider.review.sentence()}")
    if not good.total:
        return " ".join([*sentences, "There are no good test pictures to see whether that holds."])
    sentences.append(f"Seen: {share(good.rejected, good.total)} good rejected.")
    if decider.review is not None:
        sentences.append(f"Sent to a person: {share(good.review, good.total)} good.")
    if is_broken(report, category, good):
        sentences.append(
            "That is more than chance explains: the good test pictures are not like those that the threshold "
            "rests on. Calibrate on pictures as they come from the line."
        )
    return " ".join(sentences)


def is_broken(report: Report, category: str, good: Tally) -> bool:
    """Whether more good pictures of a category were rejected than chance explains if its promise holds."""
    decider = report.deciders.get(category)
    return decider is not None and _chance(good.rejected, good.total, decider.reject) < _SURPRISING


def _chance(seen: int, tested: int, threshold: Threshold) -> float:
    """The probability that a kept promise shows `seen` or more rejected of `tested` good pictures.

    Of n held-out scores, a are at or above the threshold; as long as the test pictures are like
    those, the number above it is beta-binomial with parameters a and n + 1 - a.
    """
    n = threshold.good_pictures
    a = max(1, math.floor(round((n + 1) * threshold.promised, 9)))
    b = n + 1 - a

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    def log_choose(count: int) -> float:  # the number itself may have millions of digits
        return math.lgamma(tested + 1) - math.lgamma(count + 1) - math.lgamma(tested - count + 1)

    terms = (
        log_choose(count) + log_beta(count + a, tested - count + b) - log_beta(a, b)
        for count in range(seen, tested + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def _undefined(results: Results) -> list[str]:
    """Why metrics have no value, each reason once."""
    reasons: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for category, missing in results.undefined.items():
        for reason in dict.fromkeys(missing.values()):
            names = tuple(name for name in missing if missing[name] == reason)
            reasons.setdefault((reason, names), []).append(category)
    sentences = []
    for (reason, names), categories in reasons.items():
        shown = [name for name in names if name in COLUMNS] or list(names[:_NAMED])
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        verb = "has" if len(names) == 1 else "have"
        sentences.append(f"{', '.join(categories)}: {', '.join(shown)}{more} {verb} no value: {reason}.")
    return sentences


def _failures(report: Report) -> list[str]:
    unread, unmasked = sorted_failures(report)
    total = len(unread) + len(report.scored)
    cases = (
        (unread, f"of {count_of(total, 'picture')} could not be used"),
        (unmasked, "scored without all that belongs to it"),
    )
    lines = []
    for failures, what in cases:
        names = ", ".join(str(failure.path) for failure in failures[:_NAMED])
        more = f" and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        lines += [f"{len(failures)} {what}: {names}{more}."] if failures else []
    return lines


def number(value: float | None) -> str:
    """A metric with four decimals, or a dash.

    >>> number(0.98765)
    '0.9877'
    """
    return _NONE if value is None or not math.isfinite(value) else f"{value:.4f}"


def share(part: int, total: int) -> str:
    """Some of all, with the percentage.

    >>> share(2, 70)
    '2 of 70 (2.9 %)'
    """
    return f"{part} of {total} ({100 * part / total:.1f} %)" if total else _NONE


def printable(text: str) -> str:
    """The text with bytes of file names that are not text written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _cell(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""
