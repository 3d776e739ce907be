"""Plug-ins, found by their file name.

A plug-in is a module: a file in one of the folders `models`, `datasets`, `metrics`, `formats`,
`commands`, or a module of another package that declares the entry point group `blemish.<folder>`.
Its name is the name of the file (or of the entry point); what it must define is written in
`detector.py`, `dataset.py`, `metric/`, `artifact.py` and `command.py`.
Listing and describing plug-ins imports none of them.
"""

import ast
import importlib
import importlib.util
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Literal

from blemish.errors import ConfigError, not_among

Folder = Literal["models", "datasets", "metrics", "formats", "commands"]
_SINGULAR: dict[Folder, str] = {
    "models": "model",
    "datasets": "dataset layout",
    "metrics": "metric file",
    "formats": "artifact format",
    "commands": "command",
}


def names(folder: Folder) -> tuple[str, ...]:
    """The names of all plug-ins of `folder`, sorted.

    >>> "patchcore" in names("models")
    True
    """
    return tuple(sorted(_modules(folder)))


def load(folder: Folder, name: str) -> ModuleType:
    """The module of plug-in `name`, imported now.

    Raises:
        ConfigError: no plug-in of that name; the message suggests the nearest one.
    """
    return importlib.import_module(_module(folder, name))


def describe(folder: Folder, name: str) -> str:
    """The first line of the plug-in's docstring, read without importing it."""
    spec = importlib.util.find_spec(_module(folder, name))
    if spec is None or spec.origin is None:
        return ""
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))) or ""
    return docstring.partition("\n")[0]


def _module(folder: Folder, name: str) -> str:
    modules = _modules(folder)
    if name not in modules:
        raise ConfigError(not_among(_SINGULAR[folder], name, modules))
    return modules[name]


def _modules(folder: Folder) -> dict[str, str]:
    files = (Path(__file__).parent / folder).glob("[!_]*.py")
    own = {file.stem: f"blemish.{folder}.{file.stem}" for file in files}
    others = {point.name: point.module for point in entry_points(group=f"blemish.{folder}")}
    return others | own
