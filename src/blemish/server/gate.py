"""The gate: what every request passes before anything is done for it.

It turns away strangers (token, other sites' pages), bodies that are too large or too slow, and
counts what goes through. Written as plain ASGI, so that a body is measured while it comes in.
"""

import asyncio
import hmac
import time
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blemish.errors import BlemishError, ImageError, RecordError, RequestError, ShapeError, bad_option
from blemish.server.batcher import Room

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
FREE = ("/health", "/page/", "/docs", "/openapi.json")
"""What is given without a token: it says nothing of parts. (`/` is, too.)"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all together, may take."""

    max_megabytes: float = 32.0
    """Size of a request's body."""
    max_megapixels: float = 50.0
    """Size of a picture; known from its header, before it is decoded."""
    waiting: int = 64
    """Pictures that are decoded, computed or recorded at the same time; more are told to come again."""
    timeout: float = 30.0
    """Seconds in which a request must have come in, and in which it is answered after that."""

    def __post_init__(self) -> None:
        for name in ("max_megabytes", "max_megapixels", "waiting", "timeout"):
            if not getattr(self, name) > 0:
                raise bad_option(name, getattr(self, name), "a number above 0")

    @property
    def max_bytes(self) -> int:
        """Size of a body in bytes."""
        return int(self.max_megabytes * 1e6)

    @property
    def max_pixels(self) -> int:
        """Size of a picture in pixels."""
        return int(self.max_megapixels * 1e6)


class Counters:
    """What `GET /metrics` tells."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("blemish_requests", "Requests answered.", ["path", "status"], registry=own)
        self.seconds = Histogram("blemish_request_seconds", "Time from request to answer.", ["path"], registry=own)
        self.pictures = Counter("blemish_pictures", "Pictures inspected.", ["model", "decision"], registry=own)
        self.batch = Histogram(
            "blemish_batch_size", "Pictures computed together.", ["model"], registry=own, buckets=(1, 2, 4, 8, 16)
        )
        self.unrecorded = Counter("blemish_unrecorded", "Decisions that the record did not take.", registry=own)
        self.working = Gauge("blemish_pictures_in_work", "Pictures being worked on.", registry=own)


class Gate:
    """Lets a request through to `app`, or answers it."""

    def __init__(self, app: ASGIApp, limits: Limits, counters: Counters, token: str = "", local: bool = True) -> None:
        """Prepares.

        Args:
            app: What is behind the gate.
            limits: Of bodies and time.
            counters: Grow by each request.
            token: What a request must bring as `Authorization: Bearer TOKEN`; nothing if empty.
            local: Whether only this machine's own names are answered to, so that no page of another
                site can reach the server by pointing a name of its own to it.
        """
        self._app, self._limits, self._counters = app, limits, counters
        self._token, self._local = token, local
        # Bodies are held in memory while they come in; sixteen of the largest are enough for anybody.
        self._held = Room(16 * limits.max_bytes, "bytes")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        body = _Body(receive, self._limits, self._held)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, body.receive, watched)
        except RequestError as error:
            await answer(error)(scope, receive, watched)
        finally:
            body.release()
            path = getattr(scope.get("route"), "path", "other")  # as declared, so that there are few
            self._counters.requests.labels(path, str(status)).inc()
            self._counters.seconds.labels(path).observe(time.perf_counter() - start)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._local and _split(f"//{host}").hostname not in LOCAL:
            raise RequestError(f'the host "{host[:100]}" is not this machine; use http://127.0.0.1.', 403)
        origin = headers.get("origin")
        if origin is not None and _split(origin).netloc != host:
            raise RequestError(f'a page of "{origin[:100]}" may not use this server; open its own page at /.', 403)
        path = scope["path"]
        if self._token and path != "/" and not path.startswith(FREE):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            # Header values are bytes: browsers write ü as one, curl in UTF-8 as two.
            sent = (given.encode(), given.encode("latin-1"))
            if not any(hmac.compare_digest(one, self._token.encode()) for one in sent):
                raise RequestError("the token is missing or wrong; send the header Authorization: Bearer TOKEN.", 401)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._limits.max_bytes:
            raise _too_large(self._limits)


class _Body:
    """A request's body, measured while it comes in."""

    def __init__(self, receive: Receive, limits: Limits, held: Room) -> None:
        self._receive, self._limits, self._held = receive, limits, held
        self._until = time.monotonic() + limits.timeout
        self._size = 0
        self._ended = False

    async def receive(self) -> Message:
        if self._ended:  # what still comes is that the client has left
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError as error:
            raise RequestError(
                f"the request has not come in within {self._limits.timeout:g} seconds; send it faster.", 408
            ) from error
        size = len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        self._held.add(size)
        self._size += size
        if self._size > self._limits.max_bytes:
            raise _too_large(self._limits)
        return message

    def release(self) -> None:
        self._held.taken -= self._size


def _split(url: str) -> SplitResult:
    """The pieces of a URL, which a stranger wrote; empty ones if it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _too_large(limits: Limits) -> RequestError:
    return RequestError(
        f"the request has more than {limits.max_megabytes:g} MB; send a smaller picture, or start the server with a "
        "greater --max-megabytes.",
        413,
    )


STATUS: dict[type[BlemishError], int] = {ImageError: 422, ShapeError: 422, RecordError: 503}
"""HTTP statuses of errors that carry none."""


def answer(error: BlemishError) -> JSONResponse:
    """The answer that says what is wrong."""
    status = error.status if isinstance(error, RequestError) else STATUS.get(type(error), 400)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if isinstance(error, RequestError) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return JSONResponse({"error": str(error)}, status, headers)
