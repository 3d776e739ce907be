"""Command-line arguments: dataclasses from words, and words from a TOML file."""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import tyro
from tyro.conf import OmitArgPrefixes
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from blemish.errors import ConfigError
from blemish.types import Intensity

_METAVARS: dict[Any, str] = {Path: "PATH", float: "RATE"}
"""What is shown for an option that may be left out, by its type."""

_SEVERAL: dict[Any, tuple[Callable[[str], Any], str]] = {
    (str, ...): (str, "NAME,NAME,..."),
    (int, ...): (int, "NUMBER,NUMBER,..."),
}
"""What a tuple holds that takes several values, with commas or spaces between them."""


def parse(kind: Callable[..., Any], program: str, arguments: Sequence[str]) -> Any:
    """An instance of the dataclass `kind`, made of command-line arguments; exits where they don't fit."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def image_size(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if get_args(info.type) != (int, int):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="SIDE|HEIGHTxWIDTH",
            instance_from_str=lambda words: _image_size(words[0]),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: ["x".join(map(str, value))],
        )

    @registry.primitive_rule
    def intensity(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != (Intensity | None):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="LOW:HIGH",
            instance_from_str=lambda words: _intensity(words[0]),
            is_instance=lambda value: value is None or isinstance(value, Intensity),
            str_from_instance=lambda value: ["measured" if value is None else f"{value.low:g}:{value.high:g}"],
        )

    @registry.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if NoneType not in get_args(info.type) or len(get_args(info.type)) != 2:
            return None
        (inner,) = set(get_args(info.type)) - {NoneType}
        if inner not in _METAVARS:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=_METAVARS[inner],
            instance_from_str=lambda words: inner(words[0]),
            is_instance=lambda value: value is None or isinstance(value, inner),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    @registry.primitive_rule
    def several(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if get_args(info.type) not in _SEVERAL:
            return None
        one, metavar = _SEVERAL[get_args(info.type)]
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=metavar,
            instance_from_str=lambda words: tuple(one(item) for item in _items(words)),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [",".join(map(str, value))] if value else [],
        )

    return tyro.cli(kind, prog=program, args=list(arguments), config=(OmitArgPrefixes,), registry=registry)


def with_config_file(arguments: list[str]) -> list[str]:
    """The arguments with those of `--config FILE` before them, so that the command line wins."""
    file = value_of("--config", arguments)
    if file is None:
        return arguments
    if not file:
        raise ConfigError("--config names no file; expected one in TOML with option names and values.")
    try:
        values = tomllib.loads(Path(file).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"--config {file}: can't be read as TOML ({reason}).") from error
    words: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            raise ConfigError(f"--config {file} has a table [{key}]; expected option names and values, without tables.")
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    where = next(index for index, word in enumerate(arguments) if word.partition("=")[0] == "--config")
    length = 1 if "=" in arguments[where] else 2
    remaining = arguments[:where] + arguments[where + length :]
    first = next((index for index, word in enumerate(remaining) if word.startswith("-")), len(remaining))
    return [*remaining[:first], *words, *remaining[first:]]


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """What follows the last `option` among the arguments, or stands behind its "="."""
    found = None
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == option:
            found = value if equals else next(iter(arguments[index + 1 : index + 2]), "")
    return found


def _items(words: Sequence[str]) -> list[str]:
    return [item.strip() for word in words for item in word.split(",") if item.strip()]


def _image_size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    try:
        return int(height), int(width or height)
    except ValueError as error:
        raise ConfigError(f'--image-size is "{text}"; expected 256, or HEIGHTxWIDTH such as 256x512.') from error


def _intensity(text: str) -> Intensity:
    low, _, high = text.partition(":")
    try:
        return Intensity(float(low), float(high))
    except ValueError as error:
        raise ConfigError(f'--intensity is "{text}"; expected LOW:HIGH, for example 0:4095.') from error
