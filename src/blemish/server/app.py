"""The inspection server: HTTP API, page, record. Routes only; the work is done by inspectors."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from blemish import __version__
from blemish.errors import BlemishError, RequestError, not_among
from blemish.server.gate import Counters, Gate, Limits, answer
from blemish.server.inspector import Artifact, Asked, Desk, Inspector, by_name
from blemish.server.record import ROWS, Query, Record, to_csv
from blemish.server.watch import Watcher

PAGE = Path(__file__).parent / "page"
MOST_ROWS = 10_000
_SAFE = {
    # Nothing is fetched from, sent to or shown inside another site.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to serve."""

    limits: Limits = dataclasses.field(default_factory=Limits)
    token: str = ""
    """What requests must bring; nothing if empty."""
    local: bool = True
    """Whether the server answers to this machine's own names only."""
    keep: Path | None = None
    """Folder for the inspected pictures, so that they can be looked at again."""
    watch: Path | None = None
    """Folder whose new pictures are inspected by the first artifact."""


def create_app(
    artifacts: Sequence[Artifact], record: Record | None = None, options: Options | None = None
) -> Starlette:
    """The server as an ASGI application.

    Args:
        artifacts: What is served, each with a name of its own.
        record: Where inspections are written down; nowhere if None.
        options: Limits, token and folders.
    """
    options = options or Options()
    counters = Counters()
    desk = Desk(options.limits, counters, record, options.keep, options.watch)
    inspectors = {artifact.name: Inspector(artifact, desk) for artifact in artifacts}
    server = _Server(inspectors, desk)
    workers = [inspector.compute.serve for inspector in inspectors.values()]
    if desk.write is not None:
        workers.append(desk.write.serve)
    if options.watch is not None:
        workers.append(Watcher(options.watch, next(iter(inspectors.values())), desk).serve)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        server.tasks = [asyncio.create_task(work()) for work in workers]
        yield
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        desk.decoders.shutdown(cancel_futures=True)
        if record is not None:
            record.close()

    gate = Middleware(Gate, options.limits, counters, options.token, options.local)
    app = Starlette(
        routes=server.routes(),
        middleware=[gate],
        exception_handlers={
            BlemishError: _refused,
            HTTPException: _no_route,
            ClientDisconnect: _left,
            Exception: _failed,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # the name of the host is what the caller says: nobody is sent there
    return app


class _Server:
    """What the routes share."""

    def __init__(self, inspectors: Mapping[str, Inspector], desk: Desk) -> None:
        self._inspectors, self._desk = inspectors, desk
        self.tasks: list[asyncio.Task[None]] = []

    def routes(self) -> list[Route | Mount]:
        return [
            Route("/predict", self.predict, methods=["POST"]),
            Route("/predict/batch", self.predict_batch, methods=["POST"]),
            Route("/health", self.health),
            Route("/model", self.model),
            Route("/metrics", self.metrics),
            Route("/records", self.records),
            Route("/records/{number:int}", self.one_record),
            Route("/records/{number:int}/verdict", self.verdict, methods=["POST"]),
            Route("/openapi.json", _file("openapi.json")),
            Route("/docs", _file("docs.html")),
            Route("/", _file("index.html")),
            Mount("/page", StaticFiles(directory=PAGE)),
        ]

    async def predict(self, request: Request) -> JSONResponse:
        inspector, asked = self._asked(request, ("part", "file"))
        if _is_form(request):
            raise RequestError(
                "expected the bytes of one picture (curl --data-binary @picture.png); forms go to /predict/batch.", 415
            )
        content = await request.body()  # before there is room for it: slow clients must not take it all
        with self._desk.room.take():
            found = await inspector.inspect(content, asked)
        return JSONResponse(found, 503 if "error" in found else 200)

    async def predict_batch(self, request: Request) -> JSONResponse:
        inspector, asked = self._asked(request, ("part",))
        if not _is_form(request):
            raise RequestError("expected multipart/form-data with a file for each picture.", 415)
        most = self._desk.limits.waiting
        _check_whole(await request.body(), request.headers["content-type"])
        async with request.form(max_files=most, max_fields=0) as form:
            files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
            if not files:
                raise RequestError("the request has no pictures; expected a file for each.", 422)
            with self._desk.room.take(len(files)):
                if asked.part:
                    views = [
                        (await file.read(), dataclasses.replace(asked, file=file.filename or "")) for file in files
                    ]
                    whole = await inspector.inspect_part(views)
                    return JSONResponse(whole, 503 if "error" in whole else 200)
                found = await asyncio.gather(*(self._one_of_many(inspector, asked, file) for file in files))
        is_lost = any({"decision", "error"} <= one.keys() for one in found)
        return JSONResponse({"pictures": found}, 503 if is_lost else 200)

    async def _one_of_many(self, inspector: Inspector, asked: Asked, file: UploadFile) -> dict[str, Any]:
        """The answer for one picture of a batch; what is wrong with it stops no other."""
        name = file.filename or ""
        try:
            return await inspector.inspect(await file.read(), dataclasses.replace(asked, file=name))
        except BlemishError as error:
            return {"file": name, "error": str(error)}

    async def health(self, _: Request) -> JSONResponse:
        stopped = any(task.done() for task in self.tasks)
        trouble = "a worker of the server has stopped; start it again." if stopped else self._desk.trouble
        if trouble:
            return JSONResponse({"status": "failing", "error": trouble}, 503)
        return JSONResponse({"status": "ok", "version": __version__})

    async def model(self, _: Request) -> JSONResponse:
        return JSONResponse({"models": [inspector.artifact.plain() for inspector in self._inspectors.values()]})

    async def metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._desk.counters.registry), media_type=CONTENT_TYPE_LATEST)

    async def records(self, request: Request) -> Response:
        values = dict(request.query_params)
        kind = values.pop("format", "json")
        if kind not in ("json", "csv"):
            raise RequestError(not_among("format of records", kind[:100], ("json", "csv")), 422)
        rows = await asyncio.to_thread(self._record.rows, query_of(values))
        if kind == "csv":
            headers = {"Content-Disposition": 'attachment; filename="inspections.csv"'}
            return Response(to_csv(rows), media_type="text/csv", headers=headers)
        return JSONResponse({"records": [row.plain() for row in rows]})

    async def one_record(self, request: Request) -> JSONResponse:
        row = await asyncio.to_thread(self._record.get, request.path_params["number"])
        if row is None:
            raise _no_row(request)
        found = row.plain()
        inspector = self._inspectors.get(row.model)
        content = await asyncio.to_thread(self._desk.content, row)
        if content is not None and inspector is not None and inspector.artifact.digest == row.model_hash:
            with self._desk.room.take():
                asked = Asked(category=row.category, heatmap=True, picture=True)
                drawn = await inspector.inspect(content, asked, recorded=False)
            found |= {key: drawn[key] for key in ("heatmap", "picture", "size")}
        return JSONResponse(found)

    async def verdict(self, request: Request) -> JSONResponse:
        try:
            said = json.loads(await request.body())["verdict"]
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError('expected JSON such as {"verdict": "good"}.', 422) from error
        if said not in ("good", "defective", None):
            raise RequestError(f"the verdict is {str(said)[:50]!r}; expected good, defective or null.", 422)
        row = await asyncio.to_thread(self._record.judge, request.path_params["number"], said)
        if row is None:
            raise _no_row(request)
        return JSONResponse(row.plain())

    @property
    def _record(self) -> Record:
        if self._desk.record is None:
            raise RequestError("nothing is recorded here; start the server with --record FILE.", 404)
        return self._desk.record

    def _asked(self, request: Request, texts: Sequence[str] = ()) -> tuple[Inspector, Asked]:
        """Who is to look at the pictures of a request, and what for."""
        values = dict(request.query_params)
        _refuse_unknown(values, ("model", "category", "heatmap", "picture", *texts))
        for name, kind in (("heatmap", "png"), ("picture", "jpeg")):
            if values.get(name, kind) != kind:
                raise RequestError(f"{name} is {values[name][:50]!r}; expected {name}={kind}.", 422)
        inspector = by_name(self._inspectors, values.get("model", ""))
        return inspector, Asked(
            category=values.get("category", ""),
            part=values.get("part", ""),
            file=values.get("file", ""),
            heatmap="heatmap" in values,
            picture="picture" in values,
        )


def query_of(values: Mapping[str, str]) -> Query:
    """The rows that query parameters ask for.

    Raises:
        RequestError: a name that does not exist, or a value that does not fit.
    """
    _refuse_unknown(values, [field.name for field in dataclasses.fields(Query)])
    given: dict[str, Any] = dict(values)
    try:
        for name in {"since", "until"} & given.keys():
            moment = datetime.fromisoformat(given[name])
            given[name] = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        for name in {"after", "before", "limit"} & given.keys():
            given[name] = int(given[name])
            if not 0 <= given[name] < 2**63:
                raise ValueError("out of range")
    except ValueError as error:
        raise RequestError(
            f'{name} is "{values[name][:50]}"; expected a time such as 2030-01-31T08:00 for since and until, and a '
            "whole number for after, before and limit.",
            422,
        ) from error
    choices = {
        "order": ("newest", "oldest", "borderline"),
        "verdict": ("good", "defective", "none"),
        "decision": ("good", "review", "defective"),
    }
    for name, known in choices.items():
        if given.get(name) and given[name] not in known:
            raise RequestError(not_among(name, given[name][:100], known), 422)
    given["limit"] = min(given.get("limit", ROWS), MOST_ROWS)
    return Query(**given)


def _refuse_unknown(values: Mapping[str, str], known: Sequence[str]) -> None:
    for name in values:
        if name not in known:
            raise RequestError(not_among("parameter", name[:100], known), 422)


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


def _check_whole(form: bytes, content_type: str) -> None:
    """Nothing, if a form has its end: of one that breaks off, the parser would lose the last picture without a word."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if b"\r\n--" + boundary + b"--" not in form:
        raise RequestError("the form breaks off before its end; expected a file for each picture, and all of it.", 400)


def _no_row(request: Request) -> RequestError:
    return RequestError(f"there is no record {request.path_params['number']}.", 404)


def _file(name: str) -> Any:
    async def give(_: Request) -> FileResponse:
        return FileResponse(PAGE / name, headers=_SAFE)

    return give


async def _refused(_: Request, error: Exception) -> Response:
    return answer(error if isinstance(error, BlemishError) else BlemishError(str(error)))


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 400
    detail = error.detail if isinstance(error, HTTPException) else str(error)
    said = {404: f"there is nothing at {request.url.path[:100]}; see /docs.", 405: "not with this method; see /docs."}
    return JSONResponse({"error": said.get(status, detail)}, status)


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it, but it is counted


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the server failed ({type(error).__name__}); its log says more."}, 500)
