"""Benchmarks: grids of models, data, settings and seeds, and the tables that come of them.

A cell of the grid is one fit and one score, each in a process of its own, in a folder of its own
that is named after everything the fit depends on. So a cell that is finished is not run again, one
that was killed goes on, and one whose settings have changed is another cell.
"""

from blemish.benchmark.grid import Cell, Grid, cells_of, read_grid
from blemish.benchmark.published import datasets, published
from blemish.benchmark.run import Outcome, run, run_on
from blemish.benchmark.table import Table, terminal_table, write

__all__ = [
    "Cell",
    "Grid",
    "Outcome",
    "Table",
    "cells_of",
    "datasets",
    "published",
    "read_grid",
    "run",
    "run_on",
    "terminal_table",
    "write",
]
