"""Drift: whether what a line shows a detector is still like what the detector was calibrated on.

Scores, map maxima and the appearance of pictures are compared one by one. The size of a change is
its population stability index, whether it could be chance is asked of the two-sample test of
Kolmogorov and Smirnov.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from blemish.appearance import NAMES
from blemish.artifact import Predictor
from blemish.report import draw_panels
from blemish.server.record import Inspection
from blemish.types import Calibration

State = Literal["stable", "shifted", "changed", "too few"]
LEAST = 20
"""Values on each side, below which nothing is said."""
SHIFTED, CHANGED = 0.1, 0.25
"""Population stability indices from which a change is usually called small, and large."""
CHANCE = 0.01
"""How often something is called shifted or changed in a category where nothing is, at most."""


@dataclass(frozen=True)
class Comparison:
    """A quantity at calibration and of late."""

    category: str
    """Empty: all together."""
    quantity: str
    reference: tuple[float, ...]
    """Values of the good pictures that calibrated the detector."""
    recent: tuple[float, ...]
    """Values of recent inspections."""
    psi: float
    """Population stability index over tenths of the reference; not a number where there are too few."""
    p_value: float
    """Of the two-sample test: how likely a distance like this is by chance."""
    state: State

    def plain(self) -> dict[str, Any]:
        """What was found, as values that JSON knows."""
        values = asdict(self)
        found = {key: values[key] for key in ("category", "quantity", "state")}
        sides = {"reference": self.reference, "recent": self.recent}
        middles = {f"{side}_median": float(np.median(have)) if have else None for side, have in sides.items()}
        counts = {f"{side}_count": len(have) for side, have in sides.items()}
        numbers = {key: None if np.isnan(values[key]) else values[key] for key in ("psi", "p_value")}
        return found | counts | middles | numbers


def compare(predictor: Predictor, rows: Sequence[Inspection]) -> list[Comparison]:
    """All quantities of all categories that occur in `rows`, compared with the predictor's calibration.

    Parts that a person has called defective are left out: the calibration knows good parts only.
    Defects that nobody has judged remain, so a rise of the scores alone may be a bad lot.
    """
    found = []
    for category in sorted({row.category for row in rows}):
        some = [row for row in rows if row.category == category and row.verdict != "defective"]
        found += _of_category(category, predictor.decider(category).calibration, some)
    return found


def _of_category(category: str, calibration: Calibration, rows: Sequence[Inspection]) -> list[Comparison]:
    looks = {name: [row.appearance.get(name) for row in rows] for name in NAMES if name in calibration.appearance}
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float | None]]] = {
        "image_score": (calibration.image_scores, [row.image_score for row in rows]),
        "map_maximum": (calibration.map_maxima, [row.map_maximum for row in rows]),
        **{name: (calibration.appearance[name], values) for name, values in looks.items()},
    }
    found = []
    for quantity, (reference, values) in pairs.items():
        recent = tuple(value for value in values if value is not None)
        psi, p_value, state = _judge(np.array(reference), np.array(recent), len(pairs))
        found.append(Comparison(category, quantity, tuple(reference), recent, psi, p_value, state))
    return found


def _judge(reference: NDArray[np.float64], recent: NDArray[np.float64], tests: int) -> tuple[float, float, State]:
    from scipy.stats import ks_2samp

    if min(len(reference), len(recent)) < LEAST:
        return float("nan"), float("nan"), "too few"
    psi = population_stability(reference, recent)
    p_value = float(ks_2samp(reference, recent).pvalue)
    # Several quantities are tested, so each must be that much less likely to be chance (Bonferroni).
    if p_value * tests > CHANCE or psi < SHIFTED:
        return psi, p_value, "stable"
    return psi, p_value, "changed" if psi >= CHANGED else "shifted"


def population_stability(reference: NDArray[np.float64], recent: NDArray[np.float64], bins: int = 10) -> float:
    """The population stability index: the sum of (p - q) ln(p / q) over tenths of the reference.

    p and q are the shares of recent and reference values in each tenth; half a value is added to
    each count, so that an empty one is no infinity. 0 where both are alike.

    >>> population_stability(np.arange(100.0), np.arange(100.0))
    0.0
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (recent, reference):
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) + 0.5
        shares.append(counts / counts.sum())
    p, q = shares
    return float(np.sum((p - q) * np.log(p / q)))


def table(comparisons: Sequence[Comparison]) -> Table:
    """A line for each comparison."""
    shown = Table(title=None, show_edge=False)
    for name in ("category", "quantity", "calibration", "recent", "PSI", "p", "state"):
        shown.add_column(name, justify="left" if name in ("category", "quantity", "state") else "right")
    colours: dict[State, str] = {"stable": "green", "shifted": "yellow", "changed": "red", "too few": "dim"}
    for one in comparisons:
        plain = one.plain()
        middles = (f"{_short(plain[f'{side}_median'])} ({plain[f'{side}_count']})" for side in ("reference", "recent"))
        shown.add_row(
            one.category or "all",
            one.quantity,
            *middles,
            _short(plain["psi"]),
            _short(plain["p_value"]),
            Text(one.state, colours[one.state]),
        )
    return shown


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draws both sides of each comparison as histograms, to a picture file.

    Raises:
        ConfigError: the suffix is not .png, .svg or .pdf.
        OutputError: it can't be written.
    """
    draw_panels(
        {f"{one.category or 'all'}: {one.quantity} ({one.state})": partial(_draw, one) for one in comparisons}, path
    )


def _draw(one: Comparison, axes: Any) -> None:
    edges = np.histogram_bin_edges(np.array(one.reference + one.recent), 40)
    for values, name, colour in ((one.reference, "calibration", "tab:gray"), (one.recent, "recent", "tab:blue")):
        if values:
            axes.hist(values, edges, density=True, alpha=0.6, color=colour, label=f"{name} ({len(values)})")
    axes.set_ylabel("density")
    axes.legend(frameon=False)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
