"""Writing files so that they are there whole or not at all.

A link stays, and the file that it points to is written; so do devices and pipes, such as /dev/stdout.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory, mkdtemp
from typing import Literal

from safetensors import SafetensorError

from blemish.errors import OutputError

REFUSED = (OSError, SafetensorError)
"""What writing a file may raise; safetensors wraps what the system says."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without an error.

    Raises:
        OutputError: the folder can't be made or written to.
    """
    if _is_stream(path):
        with _copied_to(path) as temporary:
            yield temporary
        return
    path = _behind_links(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix, delete=False) as opened:
            temporary = Path(opened.name)
    except OSError as error:
        raise OutputError(_sentence(path, error)) from error
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except REFUSED as error:
        raise OutputError(_sentence(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_together(path: Path) -> Iterator[Path]:
    """A path of the same name in an empty folder: all files left there move beside `path` when the block ends.

    `path` itself comes last, and without an error in the block only.

    Raises:
        OutputError: the folder can't be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise OutputError(_sentence(path, error)) from error
    try:
        yield folder / path.name
        for made in sorted(folder.iterdir(), key=lambda made: made.name == path.name):
            made.chmod(0o666 & ~_umask())
            made.replace(path.with_name(made.name))
    except REFUSED as error:
        raise OutputError(_sentence(path, error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file.

    Raises:
        OutputError: it can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file.

    Raises:
        OutputError: it can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def growing(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that adds lines to a text file.

    Until the block ends without an error, they are in a file of that name and `.part`, so that
    neither an error nor a kill loses what was written.

    Raises:
        OutputError: the file can't be written.
    """
    target = _behind_links(path)
    unfinished = path if _is_stream(path) else target.with_name(f"{target.name}.part")
    try:
        with _adding(unfinished, "w") as add:
            yield add
        if unfinished is not path:
            unfinished.replace(target)
    except OSError as error:
        raise OutputError(_sentence(path, error)) from error


@contextmanager
def appending(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that adds lines to the end of a text file; each is in the file at once.

    Raises:
        OutputError: the file can't be written.
    """
    try:
        with _adding(path, "a") as add:
            yield add
    except OSError as error:
        raise OutputError(_sentence(path, error)) from error


@contextmanager
def _adding(file: Path, mode: Literal["w", "a"]) -> Iterator[Callable[[str], None]]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open(mode, encoding="utf-8") as opened:

        def add(line: str) -> None:
            opened.write(f"{line}\n")
            opened.flush()

        yield add


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nothing; while the block runs, nobody else gets the same for `folder`. A killed run holds it no longer.

    Raises:
        OutputError: another run has it, or the folder can't be written to.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / ".lock").open("w")
    except OSError as error:
        raise OutputError(_sentence(folder, error)) from error
    with opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"{folder} is being written to by another run; wait until it has ended, or choose another folder."
            ) from error
        yield


def check_writable(path: Path, ending: str = "") -> None:
    """Nothing, if a file could be written at `path`: asked before long work, so that none is lost.

    Args:
        path: Of the file.
        ending: That its name must have, if any: what it will hold.

    Raises:
        OutputError: it could not.
    """
    if ending and path.suffix.lower() != ending:
        raise OutputError(f'{path} ends in "{path.suffix}"; expected a name that ends in {ending}.')
    if os.path.isdir(path):  # noqa: PTH112 - pathlib raises where a folder above may not be looked into
        raise OutputError(f"{path} is a folder; expected the name of a file to write.")
    is_there = os.path.exists(path)  # noqa: PTH110 - likewise
    if not _is_stream(path):
        parents = _behind_links(path).absolute().parents
        existing = next(folder for folder in parents if os.path.exists(folder))  # noqa: PTH110 - likewise
        if not existing.is_dir():
            raise OutputError(f"{path} can't be written: {existing} is a file, not a folder; choose another place.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"{path} can't be written: no permission in {existing}; choose another place.")
    if is_there and not os.access(path, os.W_OK):
        raise OutputError(f"{path} can't be written: it is there already and read-only; choose another name.")


def digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_stream(path: Path) -> bool:
    """Whether it is a device, a pipe or the like: written to, but never replaced by a file."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))  # noqa: PTH110, PTH112, PTH113 - as above


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path)) if os.path.islink(path) else path  # noqa: PTH114 - likewise


@contextmanager
def _copied_to(stream: Path) -> Iterator[Path]:
    """A temporary file, whose content goes to `stream` when the block ends without an error."""
    with TemporaryDirectory() as folder:
        temporary = Path(folder) / stream.name
        yield temporary
        try:
            with stream.open("wb") as opened:
                opened.write(temporary.read_bytes())
        except OSError as error:
            raise OutputError(_sentence(stream, error)) from error


def _sentence(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"{path} can't be written ({reason}); choose another place, or free some space."


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
