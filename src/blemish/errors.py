"""What Blemish raises when something can't be done.

    BlemishError
    ├── ConfigError      an option, a preset or a name that does not exist or does not fit
    ├── DatasetError     a folder or manifest that is not what was expected
    ├── ImageError       a picture or mask that can't be read or used
    ├── ShapeError       an array of the wrong shape, type or range
    ├── TrainingError    learning that can't go on: a loss that is not a number
    ├── MetricError      scores, maps and masks that can't be evaluated together
    ├── ArtifactError    a saved detector that can't be read
    ├── ExportError      an exported detector that would not give what the detector gives
    ├── OutputError      a file or folder that can't be written
    ├── RecordError      a database of inspections that can't be written or read
    └── RequestError     what the server refuses to do

Each message is one sentence or two: what failed, with the value and where; what was expected;
what to type next. The command line prints the message alone and exits with status 2.
"""

import difflib
from collections.abc import Iterable


class BlemishError(Exception):
    """The parent of everything Blemish raises on purpose."""


class ConfigError(BlemishError):
    """An option, a preset or a name that does not exist or does not fit."""


class DatasetError(BlemishError):
    """A folder or manifest that is not what was expected."""


class ImageError(BlemishError):
    """A picture or mask that can't be read or used."""


class ShapeError(BlemishError):
    """An array of the wrong shape, type or range."""


class TrainingError(BlemishError):
    """Learning that can't go on: a loss that is not a number."""


class MetricError(BlemishError):
    """Scores, maps and masks that can't be evaluated together."""


class ArtifactError(BlemishError):
    """A saved detector that can't be read."""


class ExportError(BlemishError):
    """An exported detector that would not give what the detector gives."""


class OutputError(BlemishError):
    """A file or folder that can't be written."""


class RecordError(BlemishError):
    """A database of inspections that can't be written or read."""


class RequestError(BlemishError):
    """What the server refuses to do."""

    def __init__(self, message: str, status: int = 400, retry_after: int | None = None) -> None:
        """The sentence, the HTTP status that goes with it, and the seconds after which to try again."""
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


def bad_option(name: str, value: object, expected: str) -> ConfigError:
    """The error for an option of the command line, or a field of a config, with a value that makes no sense.

    >>> str(bad_option("batch_size", 0, "1 or more"))
    '--batch-size is 0; expected 1 or more.'
    """
    return ConfigError(f"--{name.replace('_', '-')} is {value}; expected {expected}.")


def not_among(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist, with the nearest one that does.

    >>> not_among("model", "reelnet", ["invad", "realnet"])
    'no model named "reelnet". Did you mean "realnet"? Known: invad, realnet.'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    guess = f' Did you mean "{near[0]}"?' if near else ""
    return f'no {what} named "{name}".{guess} Known: {", ".join(known) or "none"}.'


def count_of(number: int, noun: str) -> str:
    """So many of them, in words.

    >>> count_of(1, "good picture"), count_of(2, "part")
    ('1 good picture', '2 parts')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
