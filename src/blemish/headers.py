"""Headers: what a file of ours says of itself, as JSON inside a safetensors file."""

import dataclasses
import platform
import types as python_types
import typing
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors import SafetensorError, safe_open

Plain = TypeVar("Plain")


def read(path: Path, key: str) -> str | None:
    """The header under `key` of a safetensors file; None if there is none, or it is no such file."""
    try:
        with safe_open(path, "numpy") as file:
            return (file.metadata() or {}).get(key)
    except (OSError, SafetensorError):
        return None


def from_plain(kind: type[Plain], value: Any) -> Plain:
    """A dataclass (or what its fields hold) from the plain values that JSON gives.

    Raises:
        TypeError: a field is missing, or there is one too many.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, python_types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return cast(Plain, None if value is None else from_plain(inner, value))
    if origin in (tuple, list):
        kinds = arguments if origin is tuple and Ellipsis not in arguments else repeat(arguments[0])
        return cast(Plain, origin(from_plain(kind, item) for kind, item in zip(kinds, value, strict=False)))
    if origin is dict:
        return cast(Plain, {key: from_plain(arguments[1], item) for key, item in value.items()})
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_plain(hints.get(name, Any), item) for name, item in value.items()})
    return cast(Plain, float(value) if kind is float else value)


def versions() -> dict[str, str]:
    """What is installed here of the packages that results may depend on."""
    found = {"python": platform.python_version()}
    for package in ("blemish", "torch", "timm", "numpy", "opencv-python-headless", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
