"""Published figures, to show beside one's own: facts from `published.csv`, each with its source.

Protocols differ: most are of one model for all categories at 256x256 pixels, scored in the way of
`--protocol adeval`; some are of the best epoch on the test set. The column `setting` and the source
say which.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from blemish.errors import ConfigError, not_among

_ABOUT = ("dataset", "category", "method", "setting", "epochs", "source")


@dataclass(frozen=True)
class Published:
    """One row of somebody's table."""

    dataset: str
    category: str
    """Empty for the mean over all."""
    method: str
    setting: str
    """Whether one model was trained for all categories, or one for each."""
    epochs: str
    source: str
    values: Mapping[str, float]
    """{metric: value between 0 and 1}."""


@cache
def _all() -> tuple[Published, ...]:
    text = resources.files("blemish.benchmark").joinpath("published.csv").read_text("utf-8")
    return tuple(
        Published(
            row["dataset"],
            row["category"],
            row["method"],
            row["setting"],
            row["epochs"],
            row["source"],
            {name: float(value) / 100 for name, value in row.items() if name not in _ABOUT and value},
        )
        for row in csv.DictReader(text.splitlines())
    )


def datasets() -> list[str]:
    """The datasets that figures are known of."""
    return sorted({row.dataset for row in _all()})


def published(dataset: str, categories: Sequence[str]) -> list[Published]:
    """What is known of a dataset: means over all of it, and of the categories named.

    Raises:
        ConfigError: nothing is known of such a dataset.
    """
    if dataset not in datasets():
        raise ConfigError(not_among("dataset with published figures", dataset, datasets()))
    return [row for row in _all() if row.dataset == dataset and row.category in {"", *categories}]
