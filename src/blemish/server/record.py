"""The record: every inspection as a row of a database, and what a person said of it afterwards."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import JSON, DateTime, Dialect, Engine, Select, create_engine, event, func, inspect, make_url, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator

from blemish.errors import ConfigError, RecordError

Verdict = Literal["good", "defective"]
Order = Literal["newest", "oldest", "borderline"]
ROWS = 100
"""Rows that are given when nobody says how many."""


class Instant(TypeDecorator[datetime]):
    """A moment; in UTC inside the database and out of it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """As the database keeps it."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """As Python sees it; SQLite forgets the zone."""
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)


class Base(DeclarativeBase):
    """The tables."""


class Inspection(Base):
    """One picture that was inspected, and what came of it."""

    __tablename__ = "inspections"

    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime] = mapped_column(Instant, index=True)
    model: Mapped[str] = mapped_column(index=True)
    """The name that the server gave to the artifact."""
    model_hash: Mapped[str]
    """SHA-256 of the artifact's file; an .xml holds that of its .bin, so it speaks for both."""
    category: Mapped[str]
    """Whose threshold decided; empty when it was that of all together."""
    part: Mapped[str] = mapped_column(index=True)
    """As the caller named it; may be empty."""
    file: Mapped[str]
    """Name of the picture's file, if the caller said it; only a text, never opened."""
    picture_hash: Mapped[str] = mapped_column(index=True)
    """SHA-256 of the picture's file."""
    threshold: Mapped[float]
    image_score: Mapped[float | None]
    """None where it is not a number."""
    calibrated_score: Mapped[float | None] = mapped_column(index=True)
    map_maximum: Mapped[float | None]
    """Highest value of the anomaly map."""
    appearance: Mapped[dict[str, float]] = mapped_column(JSON)
    """What the picture looks like, whatever the model makes of it; see `blemish.appearance`."""
    decision: Mapped[str] = mapped_column(index=True)
    regions: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    part_threshold: Mapped[float | None] = mapped_column(default=None)
    part_decision: Mapped[str | None] = mapped_column(default=None)
    """What was decided of the part, where all its views were looked at together."""
    verdict: Mapped[str | None] = mapped_column(default=None)
    """What a person said: good or defective; None while nobody has."""
    verdict_time: Mapped[datetime | None] = mapped_column(Instant, default=None)

    def plain(self) -> dict[str, Any]:
        """The row as values that JSON knows."""
        values = {column: getattr(self, column) for column in COLUMNS}
        return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in values.items()}


COLUMNS = tuple(Inspection.__table__.columns.keys())


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which rows of the record; what is empty or None does not matter."""

    model: str = ""
    model_hash: str = ""
    category: str = ""
    decision: str = ""
    verdict: str = ""
    """good, defective, or none for rows that nobody has judged."""
    part: str = ""
    file: str = ""
    picture_hash: str = ""
    since: datetime | None = None
    """The time of the first, at the earliest."""
    until: datetime | None = None
    """A time that all are before."""
    after: int | None = None
    """An id that all are greater than."""
    before: int | None = None
    """An id that all are less than."""
    order: Order = "newest"
    """borderline: those nearest to their threshold first."""
    limit: int = ROWS

    def statement(self) -> Select[Any]:
        """The same for the database."""
        row = Inspection
        wanted = select(row)
        for name in ("model", "model_hash", "category", "decision", "part", "file", "picture_hash"):
            if value := getattr(self, name):
                wanted = wanted.where(getattr(row, name) == value)
        if self.verdict:
            wanted = wanted.where(row.verdict.is_(None) if self.verdict == "none" else row.verdict == self.verdict)
        bounds = (
            (self.since, row.time.__ge__),
            (self.until, row.time.__lt__),
            (self.after, row.id.__gt__),
            (self.before, row.id.__lt__),
        )
        for bound, condition in bounds:
            if bound is not None:
                wanted = wanted.where(condition(bound))
        if self.order == "borderline":
            wanted = wanted.order_by(func.abs(func.coalesce(row.calibrated_score, 1.0) - 0.5), row.id.desc())
        else:
            wanted = wanted.order_by(row.id.desc() if self.order == "newest" else row.id.asc())
        return wanted.limit(self.limit)


class Record:
    """A database of inspections."""

    def __init__(self, place: str) -> None:
        """Opens the database, and makes the table where there is none.

        Args:
            place: A file (SQLite), or a URL such as postgresql+psycopg://user@host/database.

        Raises:
            ConfigError: a URL of a kind that is not known.
            RecordError: it can't be opened, or its table is of another make.
        """
        try:
            # A file's name may hold what means something in a URL; an empty one would be a database in memory.
            url = make_url(place) if "://" in place or not place else URL.create("sqlite", database=place)
            self.name = url.render_as_string(hide_password=True)
            self._engine: Engine = create_engine(url, pool_pre_ping=True, pool_timeout=10)
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise ConfigError(
                f'--record is "{place}"; expected a file such as inspections.sqlite, or a URL such as '
                "postgresql+psycopg://user@host/database."
            ) from error
        if url.get_backend_name() == "sqlite":
            event.listen(self._engine, "connect", _durable)
        with self._named("opened"):
            Base.metadata.create_all(self._engine)
            found = {column["name"] for column in inspect(self._engine).get_columns(Inspection.__tablename__)}
        missing = sorted(set(COLUMNS) - found)
        if missing:
            raise RecordError(
                f"{self.name} has a table inspections without {', '.join(missing)}; expected one of this version of "
                "Blemish: choose another --record."
            )

    def add(self, rows: Sequence[Inspection]) -> list[int]:
        """The numbers of the rows, once they are safely in the database: all of them or none.

        Raises:
            RecordError: the database can't be written: full, locked, gone.
        """
        with self._named("written"), Session(self._engine) as session:
            session.add_all(rows)
            session.flush()
            numbers = [row.id for row in rows]
            session.commit()
        return numbers

    def rows(self, query: Query | None = None) -> list[Inspection]:
        """The rows that are wanted.

        Raises:
            RecordError: the database can't be read.
        """
        with self._named("read"), Session(self._engine) as session:
            return list(session.scalars((query or Query()).statement()))

    def get(self, number: int) -> Inspection | None:
        """The row of that number, if there is one.

        Raises:
            RecordError: the database can't be read.
        """
        with self._named("read"), Session(self._engine) as session:
            return _row(session, number)

    def judge(self, number: int, verdict: Verdict | None) -> Inspection | None:
        """The row after a person has said what the part really is (None takes it back); None if there is no such row.

        Raises:
            RecordError: the database can't be written.
        """
        with self._named("written"), Session(self._engine, expire_on_commit=False) as session:
            row = _row(session, number)
            if row is not None:
                row.verdict = verdict
                row.verdict_time = None if verdict is None else datetime.now(UTC)
                session.commit()
            return row

    def verdicts(self) -> dict[str, bool]:
        """{SHA-256 of a picture: whether its part is defective}, as a person said last.

        Raises:
            RecordError: the database can't be read.
        """
        wanted = select(Inspection.picture_hash, Inspection.verdict).where(Inspection.verdict.is_not(None))
        with self._named("read"), Session(self._engine) as session:
            rows = session.execute(wanted.order_by(Inspection.verdict_time, Inspection.id))
            return {picture: verdict == "defective" for picture, verdict in rows}

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    @contextmanager
    def _named(self, done: str) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, ModuleNotFoundError, OSError) as error:
            cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise RecordError(
                f"the record {self.name} can't be {done} ({cause}); see to the database, or choose another --record."
            ) from error


def _row(session: Session, number: int) -> Inspection | None:
    return session.get(Inspection, number) if number < 2**63 else None  # no database counts further


def to_csv(rows: Sequence[Inspection]) -> str:
    """The rows as a table; texts that a spreadsheet would compute are quoted with an apostrophe."""
    columns = [column for column in COLUMNS if column not in ("regions", "appearance")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*columns, "regions"])
    for row in rows:
        plain = row.plain()
        writer.writerow([*(_cell(plain[column]) for column in columns), len(row.regions)])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _durable(connection: Any, _: object) -> None:
    """Rows are on the disk when they are said to be, and readers don't stop the writer."""
    for setting in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {setting}")
