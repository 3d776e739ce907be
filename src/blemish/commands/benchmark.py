"""benchmark DATA... --models a,b --seeds 0,1: a grid of fit and score, one table; goes on where it stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from itertools import takewhile
from pathlib import Path

from blemish.benchmark import Grid, Outcome, Table, cells_of, published, read_grid, run, run_on, terminal_table, write
from blemish.command import FAILED, SOME_FAILED, ClusterOptions, say
from blemish.errors import ConfigError, count_of
from blemish.progress import bar


@dataclass(frozen=True)
class Benchmark:
    """Fit and score every model on every category with every seed, each in a process and folder of its own.

    What is finished is not run again; a failed cell is named, and the others go on.
    """

    grid: Grid = field(default_factory=Grid)
    where: ClusterOptions = field(default_factory=ClusterOptions)

    def __call__(self) -> int:
        """Runs what is left to run, writes and prints the table."""
        named = tuple(path for path in self.grid.data if not _is_table(path))
        grid = replace(self.grid, data=named or self._of_file.data)
        if grid.beside:
            published(grid.beside, ())
        cells, cluster = cells_of(grid), self.where.cluster(grid.device)
        found: dict[str, Outcome] = {}
        with bar("Benchmark", len(cells)) as drawn:
            outcomes = run(cells, grid.out, grid.jobs) if cluster is None else run_on(cluster, cells, grid.out)
            for outcome in outcomes:
                found[outcome.cell.name + outcome.cell.folder] = outcome
                drawn.advance()
                say(f"{len(found)} of {len(cells)}: {_said(outcome)}")
        table = Table(grid, tuple(found[cell.name + cell.folder] for cell in cells))
        say(terminal_table(table))
        say("\n".join(table.notes()))
        for file in write(table, grid.out):
            say(f"Written: {file}")
        if len(table.failed) == len(cells):
            return FAILED
        return SOME_FAILED if table.failed else 0

    @property
    def _of_file(self) -> Grid:
        """What the options started from."""
        return getattr(type(self), "grid", Grid())


def COMMAND(words: Sequence[str]) -> type[Benchmark]:  # noqa: N802 - its name in every command
    """The command with the options of the .toml file that is named first, if one is, for defaults."""
    tables = [Path(word) for word in takewhile(lambda word: not word.startswith("-"), words) if _is_table(Path(word))]
    if len(tables) > 1:
        raise ConfigError(f"there are {len(tables)} tables of options, {' and '.join(map(str, tables))}; name one.")
    if not tables:
        return Benchmark
    command: type[Benchmark] = make_dataclass(
        "Benchmark", [("grid", Grid, field(default=read_grid(tables[0])))], bases=(Benchmark,), frozen=True
    )
    command.__doc__ = Benchmark.__doc__
    return command


def _is_table(path: Path) -> bool:
    return path.suffix == ".toml"


def _said(outcome: Outcome) -> str:
    if outcome.scores is None:
        return f"{outcome.cell.name} failed: {outcome.reason}"
    if outcome.was_there:
        return f"{outcome.cell.name}: finished before"
    seconds = outcome.fit.seconds if outcome.fit else 0.0
    return f"{outcome.cell.name}: fitted in {seconds:.0f} s, {count_of(outcome.scores.pictures, 'picture')} scored"
