"""Watching a folder: pictures that a camera puts there are inspected as they come."""

import asyncio
import hashlib
import logging
import stat
from pathlib import Path

from blemish import images
from blemish.errors import BlemishError, RecordError, RequestError
from blemish.server.inspector import Asked, Desk, Inspector
from blemish.server.record import Query

_LOG = logging.getLogger(__name__)
EVERY = 1.0
"""Seconds between two looks."""


class Watcher:
    """Looks into a folder and below it, again and again."""

    def __init__(self, folder: Path, inspector: Inspector, desk: Desk) -> None:
        self.folder, self._inspector, self._desk = folder, inspector, desk
        self._seen: dict[Path, tuple[int, int]] = {}
        self._done: set[tuple[Path, tuple[int, int]]] = set()

    async def serve(self) -> None:
        """Works until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Inspects what is new and has not grown since the last look: a camera may still be writing."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(None, self._states)
        except OSError as error:
            _LOG.warning("%s can't be looked into (%s).", self.folder, error)
            return
        ready = [path for path, state in found.items() if self._seen.get(path) == state]
        self._seen = found
        self._done &= set(found.items())
        for path in ready:
            if (path, found[path]) not in self._done and await self._inspect(path):
                self._done.add((path, found[path]))

    def _states(self) -> dict[Path, tuple[int, int]]:
        states = {}
        for path in sorted(self.folder.rglob("*")):
            if images.is_picture(path):
                status = path.lstat()
                # A link must not make the server read what lies elsewhere, nor a pipe make it wait.
                if stat.S_ISREG(status.st_mode):
                    states[path] = (status.st_mtime_ns, status.st_size)
        return states

    async def _inspect(self, path: Path) -> bool:
        """Whether the picture is done with; a busy server or a lost record is tried again."""
        name = path.relative_to(self.folder).as_posix()
        try:
            if path.stat().st_size > self._desk.limits.max_bytes:
                raise RequestError(f"{name} has more than {self._desk.limits.max_megabytes:g} MB.", 413)
            content = await asyncio.get_running_loop().run_in_executor(None, path.read_bytes)
            if await asyncio.to_thread(self._is_recorded, name, content):
                return True
            with self._desk.room.take():
                found = await self._inspector.inspect(content, Asked(file=name))
        except (BlemishError, OSError) as error:
            _LOG.warning("%s was not inspected: %s", name, error)
            is_busy = isinstance(error, RequestError) and error.status in (429, 503)
            return not (is_busy or isinstance(error, RecordError))
        if "error" in found:
            _LOG.error("%s is %s, %s", name, found["decision"], found["error"])
            return False
        return True

    def _is_recorded(self, name: str, content: bytes) -> bool:
        """Whether an earlier run has inspected it with the same artifact."""
        if self._desk.record is None:
            return False
        query = Query(file=name, picture_hash=hashlib.sha256(content).hexdigest())
        rows = self._desk.record.rows(query)
        return any(row.model_hash == self._inspector.artifact.digest for row in rows)
