"""Drawings of a report: histogram of scores, ROC curve, precision and recall, as inline SVG."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.errors import ConfigError
from blemish.files import replacing
from blemish.judging import Scored
from blemish.metric import Curve, Evidence, Options, Undefined
from blemish.metric.evidence import Picture, State
from blemish.report.summary import tally
from blemish.types import Choice, Decider

_BINS = 40
_DRAWINGS = (".png", ".svg", ".pdf")
# Colours that matplotlib writes, and the variables of the page that stand for them.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--good)",
    "#040404": "var(--bad)",
}
_INK, _SOFT, _GOOD, _BAD = _COLOURS
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 11.0,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Plot:
    """A drawing, or why there is none."""

    title: str
    about: str
    svg: str = ""
    reason: str = ""


def plots(category: str, rows: Sequence[Scored], decider: Decider | None) -> tuple[Plot, ...]:
    """Histogram, ROC curve, precision and recall of the image scores of one category."""
    histogram = _histogram(category, rows, decider)
    roc, curve = "ROC curve", "Precision and recall"
    try:
        found = _curve(rows)
    except Undefined as reason:
        return histogram, Plot(roc, "", reason=f"None: {reason}."), Plot(curve, "", reason=f"None: {reason}.")
    false, true = found.line()
    good, bad = (tally(rows, is_anomalous) for is_anomalous in (False, True))
    recall = bad.rejected / bad.total
    precision = bad.rejected / (bad.rejected + good.rejected) if bad.rejected + good.rejected else None

    def draw_roc(axes: Any) -> None:
        axes.plot((0, 1), (0, 1), color=_SOFT, linewidth=1, linestyle=":")
        _draw_curve(axes, false, true, (good.rejected / good.total, recall))
        axes.set(xlabel="share of good pictures rejected", ylabel="share of defective rejected")

    def draw_precision(axes: Any) -> None:
        above = found.true + found.false
        some = above > 0
        share = found.true[some] / above[some]
        xs, ys = found.true[some] / found.true[-1], share
        _draw_curve(axes, np.append(0.0, xs), np.append(share[0], ys), precision and (recall, precision))
        axes.set(xlabel="recall: share of defective rejected", ylabel="precision")

    dot = "The dot is the threshold."
    return (
        histogram,
        Plot(roc, f"Towards the upper left is better. {dot}", _svg(f"{category} ROC", draw_roc)),
        Plot(curve, f"Towards the upper right is better. {dot}", _svg(f"{category} PR", draw_precision)),
    )


def draw_choices(choices: Mapping[str, Choice], path: Path) -> None:
    """Draws the losses of what a model has chosen from, sorted, what it kept and what it left, to a picture file.

    Args:
        choices: What was chosen from → what was kept of it; one at least.
        path: The file; its suffix says which kind: .png, .svg or .pdf.

    Raises:
        ConfigError: another suffix.
        OutputError: it can't be written.
    """
    draw_panels({name: partial(_draw_choice, choice) for name, choice in choices.items()}, path)


def draw_panels(panels: Mapping[str, Callable[[Any], None]], path: Path) -> None:
    """Draws panels, one below the other, to a picture file.

    Args:
        panels: Title → what draws on its axes; one at least.
        path: The file; its suffix says which kind: .png, .svg or .pdf.

    Raises:
        ConfigError: another suffix.
        OutputError: it can't be written.
    """
    from matplotlib.figure import Figure

    check_drawing(path)
    figure = Figure(figsize=(7, 2.4 * len(panels)), layout="constrained")
    for axes, (title, draw) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        draw(axes)
        axes.set_title(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=120)


def check_drawing(path: Path) -> None:
    """Nothing, if the suffix of `path` is that of a drawing.

    Raises:
        ConfigError: it is not.
    """
    if path.suffix not in _DRAWINGS:
        raise ConfigError(f"{path} is no picture that can be drawn; expected a name ending in {', '.join(_DRAWINGS)}.")


def _draw_choice(choice: Choice, axes: Any) -> None:
    losses, kept = np.array(choice.losses), np.isin(np.arange(len(choice.losses)), choice.kept)
    order = losses.argsort(kind="stable")
    ranks = np.arange(len(order))
    for what, some, colour in (("kept", kept[order], "tab:blue"), ("left out", ~kept[order], "tab:gray")):
        axes.plot(ranks[some], losses[order][some], ".", color=colour, label=f"{what} ({some.sum()})")
    axes.set(xlabel="rank", ylabel="loss")
    axes.legend(loc="upper left", frameon=False)


def _histogram(category: str, rows: Sequence[Scored], decider: Decider | None) -> Plot:
    """Image scores of good and defective pictures; far outliers are counted in the outermost bars."""
    title = "Image scores"
    kinds = [
        ("good", _GOOD, np.array([row.image_score for row in rows if not row.is_anomalous])),
        ("defective", _BAD, np.array([row.image_score for row in rows if row.is_anomalous])),
    ]
    finite = [(name, colour, scores[np.isfinite(scores)]) for name, colour, scores in kinds]
    present = [entry for entry in finite if entry[2].size]
    lines = [] if decider is None else [("reject above", decider.reject.value, "--")]
    if decider is not None and decider.review is not None:
        lines.append(("review above", decider.review.value, ":"))
    if not present:
        return Plot(title, "", reason="None: no picture has a score that is a number.")
    low, high = _range([scores for *_, scores in present], [value for _, value, _ in lines])

    def draw(axes: Any) -> None:
        for name, colour, scores in present:
            counts, edges = np.histogram(np.clip(scores, low, high), _BINS, (low, high))
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.45, linewidth=0)
            axes.stairs(counts, edges, color=colour, linewidth=1.2, label=f"{name} ({len(scores)})")
        for name, value, style in lines:
            axes.axvline(value, color=_INK, linestyle=style, linewidth=1.2, label=f"{name} {value:.4g}")
        axes.set(xlabel="image score", ylabel="pictures", xlim=(low, high))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.04, 1), ncols=2, fontsize=10)

    outside = sum(int(((scores < low) | (scores > high)).sum()) for *_, scores in present)
    unknown = len(rows) - sum(scores.size for *_, scores in present)
    about = "Overlap is where mistakes come from."
    about += f" {outside} further out are counted in the outermost bars." if outside else ""
    about += f" {unknown} without a number for a score are left out." if unknown else ""
    return Plot(title, about, _svg(f"{category} scores", draw, top=0.83))


def _range(kinds: Sequence[NDArray[np.float64]], thresholds: Sequence[float]) -> tuple[float, float]:
    """What an axis shows: the bulk of each kind with some room, and the thresholds."""
    ends = [value for value in thresholds if math.isfinite(value)]
    low_high = [
        (float(np.quantile(scores, 0.1, method="higher")), float(np.quantile(scores, 0.9, method="lower")))
        for scores in kinds
    ]
    middles = [*ends, *(float(np.median(scores)) for scores in kinds)]
    room = 2 * max(max(middles) - min(middles), *(high - low for low, high in low_high), 0.0)
    for scores, (low, high) in zip(kinds, low_high, strict=True):
        ends += [max(float(scores.min()), min(low, high) - room), min(float(scores.max()), max(low, high) + room)]
    # At least so wide that floating point can tell the bars apart.
    margin = max(0.04 * (max(ends) - min(ends)), 1e-6 * max(map(abs, ends))) or 0.5
    return min(ends) - margin, max(ends) + margin


def _curve(rows: Sequence[Scored]) -> Curve:
    """How many good and defective pictures are above each score; raises `Undefined` if one kind is missing."""
    good, bad = (
        State(
            {
                row.path: Picture(row.path, row.image_score, is_anomalous, "", -1, 0)
                for row in rows
                if row.is_anomalous is is_anomalous
            }
        )
        for is_anomalous in (False, True)
    )
    return Evidence((good,), (bad,), Options(), "").curve("image")


def _draw_curve(axes: Any, xs: Any, ys: Any, dot: Any) -> None:
    axes.plot(xs, ys, color=_GOOD, linewidth=1.8, clip_on=False)
    if dot:
        axes.plot(*dot, marker="o", markersize=6, color=_BAD, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _svg(name: str, draw: Callable[[Any], None], top: float = 0.97) -> str:
    """A drawing as an <svg> element that takes its colours and its font from the page.

    Args:
        name: Makes what it refers to inside unlike that of other drawings on the page.
        draw: Draws on axes.
        top: How high the axes reach, as a share; what is left is for a legend.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(4.6, 3.3))
        figure.subplots_adjust(left=0.14, right=0.96, bottom=0.16, top=top)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=about)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every drawing
    text = re.sub(r"font-family: [^;\"]*; ", "", text)
    text = re.sub("|".join(_COLOURS), lambda found: _COLOURS[found[0]], text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()
