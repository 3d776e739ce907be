"""Batching: what many ask for one by one is done together, in a thread of its own."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from blemish.errors import RequestError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Room:
    """Counts what is being worked on, and refuses what there is no room for."""

    def __init__(self, size: int, what: str) -> None:
        self.size = size
        self.taken = 0
        self._what = what

    @contextmanager
    def take(self, count: int = 1) -> Iterator[None]:
        """Nothing; while the block runs, `count` more are taken.

        Raises:
            RequestError: there is no room for them (429).
        """
        self.add(count)
        try:
            yield
        finally:
            self.taken -= count

    def add(self, count: int) -> None:
        """Takes room that the caller gives back."""
        if self.taken + count > self.size:
            raise RequestError(
                f"the server is busy: {self.taken} of at most {self.size} {self._what} are being worked on; "
                "try again in a second.",
                429,
                retry_after=1,
            )
        self.taken += count


class Batcher(Generic[Item, Result]):
    """A function of many items, called item by item: those that wait go together.

    Nobody is kept waiting for a batch to fill: what has come in while the last one was computed is
    the next one. So a batch is one item on a quiet line, and large under load.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]], most: int, name: str) -> None:
        """Prepares.

        Args:
            run: Gives a result for each item; called in one thread only.
            most: Items that are done together, at most.
            name: Of the thread.
        """
        self._run = run
        self._most = most
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, name)

    async def __call__(self, item: Item) -> Result:
        """The result for one item, or what was raised for the batch that it was in."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, future))
        return await future

    async def serve(self) -> None:
        """Works until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = [await self._waiting.get()]
                while len(batch) < self._most and not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
                batch = [(item, future) for item, future in batch if not future.done()]  # who left is not served
                if not batch:
                    continue
                items, futures = [item for item, _ in batch], [future for _, future in batch]
                try:
                    results = await loop.run_in_executor(self._thread, self._run, items)
                except Exception as error:  # belongs to those who asked; the server stays up
                    _answer(futures, [error] * len(futures))
                else:
                    _answer(futures, results)
        finally:
            self._thread.shutdown(wait=True)


def _answer(futures: Sequence["asyncio.Future[Result]"], results: Sequence[Result | Exception]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
