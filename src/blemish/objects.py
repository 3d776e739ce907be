"""Object stores: pictures and lists at an address such as s3://bucket/folder, brought to this machine.

Addresses are opened by pyarrow (s3, gs, abfs, hdfs, file) or, where it does not know the scheme, by
fsspec. Credentials are taken from the environment, as each store's own tools do; what else a store
needs stands behind a question mark, such as ?region=eu-central-1 or ?endpoint_override=host:9000&scheme=http.
"""

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from blemish.errors import DatasetError

_ADDRESS = re.compile(r"([a-z][a-z0-9+]+):/+(.+)")
_SMALL = 100 * 2**20
"""Bytes of a list or a file of annotations, at most."""


def is_address(place: Path | str) -> bool:
    """Whether this is the address of an object store, and no file.

    >>> is_address(Path("s3://bucket/a.png")), is_address(Path("C:/a.png")), is_address("a.png")
    (True, False, False)
    """
    return _ADDRESS.fullmatch(str(place)) is not None


def name_of(place: Path | str) -> str:
    """What a file or an address is called; a path has made one slash of two.

    >>> name_of(Path("s3://bucket/a.png")), name_of(Path("a.png"))
    ('s3://bucket/a.png', 'a.png')
    """
    found = _ADDRESS.fullmatch(str(place))
    return str(place) if found is None else f"{found[1]}://{found[2]}"


@dataclass(frozen=True)
class Store:
    """A folder or an object of an object store that was opened."""

    address: str
    """As it was given."""
    scheme: str
    files: Any
    """pyarrow's file system."""
    base: str
    """What the file system calls it."""

    def named(self, path: str) -> str:
        """The address of what the file system calls so."""
        return f"{self.scheme}://{path}"

    def read(self, path: str) -> bytes:
        """The content of an object.

        Raises:
            OSError: it is not there, or must not be read.
        """
        with self.files.open_input_stream(path) as stream:
            return bytes(stream.read())

    def fetch(self, place: Path, target: Path) -> None:
        """Copies the object at an address of this store to a file.

        Raises:
            OSError: it is not there, or must not be read.
        """
        found = _ADDRESS.fullmatch(str(place))
        inside = str(place) if found is None else found[2]
        target.write_bytes(self.read(f"/{inside}" if self.base.startswith("/") else inside))

    def list(self) -> list[tuple[str, int]]:
        """All objects at and below the address: what the file system calls them, and their bytes; sorted.

        Raises:
            DatasetError: there are none, or they must not be listed.
        """
        from pyarrow.fs import FileSelector, FileType

        try:
            info = self.files.get_file_info(self.base)
            found = [info]
            if info.type != FileType.File:
                found = self.files.get_file_info(FileSelector(self.base, recursive=True))
        except (OSError, ValueError) as error:
            raise unreachable(self.address, error) from error
        return sorted((each.path, int(each.size)) for each in found if each.type == FileType.File)


def open_store(place: Path | str) -> Store:
    """The object store at an address.

    Raises:
        DatasetError: nobody knows such stores, or it can't be reached.
    """
    import pyarrow as pa
    from pyarrow import fs

    address = name_of(place)
    scheme = address.partition("://")[0]
    try:
        files, base = fs.FileSystem.from_uri(address)
    except pa.ArrowInvalid:
        files, base = _by_fsspec(address)
    except (OSError, ValueError) as error:
        raise unreachable(address, error) from error
    return Store(address, scheme, files, base.rstrip("/"))


def _by_fsspec(address: str) -> tuple[Any, str]:
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    try:
        files, base = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError, OSError) as error:
        raise unreachable(address, error) from error
    return PyFileSystem(FSSpecHandler(files)), base


def shadow(store: Store, folder: Path, endings: Set[str]) -> Iterator[tuple[Path, str]]:
    """The files below `folder` that stand for the store's pictures, which end so, each with its address.

    Pictures are empty files of the same name, and other small files are copied, so that a dataset's
    layout can be recognised without reading a picture.
    """
    for path, size in store.list():
        inside = PurePosixPath(path).relative_to(store.base)
        target = folder / inside
        if ".." in inside.parts or inside.is_absolute():
            raise DatasetError(f"{store.named(path)} leads out of {store.address}; expected an object inside it.")
        target.parent.mkdir(parents=True, exist_ok=True)
        if inside.suffix.lower() in endings:
            target.touch()
            yield target, store.named(path)
        elif size <= _SMALL:
            try:
                target.write_bytes(store.read(path))
            except OSError as error:
                raise unreachable(store.named(path), error) from error


def unreachable(address: str, error: Exception) -> DatasetError:
    """What to say of an address that can't be read."""
    reason = " ".join(str(error).split())
    return DatasetError(
        f"{address} can't be read ({reason}); expected a folder or an object that exists and that the credentials in "
        "the environment may read and list (for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role)."
    )
