"""Progress of long work on the error stream: how far, how fast, how much longer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "-/s")


class Bar:
    """One bar; `advance` moves it."""

    def __init__(self, progress: Progress, task: Task) -> None:
        self._progress = progress
        self._id = task.id

    def advance(self, steps: int = 1) -> None:
        """Moves the bar on by `steps`."""
        self._progress.advance(self._id, steps)

    def describe(self, text: str) -> None:
        """Puts `text` in front of the bar."""
        self._progress.update(self._id, description=text)


def note(sentence: str) -> None:
    """Says on the error stream what somebody should know before long work begins."""
    Console(stderr=True).print(sentence, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(description: str, total: int) -> Iterator[Bar]:
    """A bar for `total` steps, drawn while the block runs and only where somebody can see it."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task_id = progress.add_task(description, total=total)
        yield Bar(progress, progress.tasks[task_id])


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """The items themselves, with a bar that moves by one for each."""
    with bar(description, total) as drawn:
        for item in items:
            yield item
            drawn.advance()
