"""Connections: what waits for the other side waits so long and no longer."""

import asyncio
import logging

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from blemish.server.gate import Limits


class Impatient(H11Protocol):
    """A connection that is cut where the other side does not send the head of a request, or take its answer.

    Of bodies that trickle in, the `gate` says so; a head that does not come leaves nobody to answer to.
    """

    seconds = Limits.timeout
    """How long the other side may take for either."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for the first head."""
        super().connection_made(transport)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._start("head")

    def on_response_complete(self) -> None:
        """Waits for the next head."""
        super().on_response_complete()
        self._start("head")

    def pause_writing(self) -> None:
        """Waits until there is room for the rest of an answer."""
        super().pause_writing()
        self._start("answer")

    def resume_writing(self) -> None:
        """There is."""
        super().resume_writing()
        self._stop("answer")

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        super().connection_lost(exc)
        for name in list(self._timers):
            self._stop(name)

    def _start(self, name: str) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(self.seconds, self._cut, name)

    def _stop(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def _cut(self, name: str) -> None:
        is_at_work = self.cycle is not None and not self.cycle.response_complete
        if name == "answer" or not is_at_work:  # the head of what is being answered has come
            self.transport.abort()


def server_of(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """What runs the application on sockets, until it is told to stop; requests in work are answered first."""
    # Of warnings about what they send, strangers could fill a disk.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=type("Connection", (Impatient,), {"seconds": limits.timeout}),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.timeout) + 1,
    )
    return uvicorn.Server(config)
