import importlib.util
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

import served
from blemish.errors import ConfigError, RecordError
from blemish.server.record import Base, Query, Record
from served import row


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    """A real PostgreSQL server on this machine, with nothing in it: its URL, and how to stop and start it."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/bin")]
    programs = next((place for place in places if (place / "initdb").exists()), None)
    if programs is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("needs Debian's package postgresql and the package psycopg")
    # It does not run as root, and its socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        Path(folder).chmod(0o777)
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]

        def control(*words: str) -> None:
            subprocess.run([*user, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd=folder)

        control(str(programs / "initdb"), "-D", f"{folder}/data", "-U", "tester", "-A", "trust", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
        program = str(programs / "pg_ctl")

        def start() -> None:
            control(program, "-D", f"{folder}/data", "-l", f"{folder}/log", "-o", options, "-w", "start")

        def stop() -> None:
            control(program, "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")

        start()
        yield SimpleNamespace(url=f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres", start=start, stop=stop)
        stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def record(request, tmp_path):
    is_sqlite = request.param == "sqlite"
    found = Record(str(tmp_path / "r.sqlite") if is_sqlite else request.getfixturevalue("postgresql").url)
    yield found
    if not is_sqlite:
        Base.metadata.drop_all(found._engine)
    found.close()


def test_rows_come_back_as_they_went(record):
    moment = datetime(2030, 1, 31, 8, tzinfo=timezone(timedelta(hours=2)))
    assert record.add([row(time=moment, part="ü", regions=[{"peak": 1.5}])]) == [1]
    found = record.get(1)
    assert (found.time, found.part, found.regions) == (moment, "ü", [{"peak": 1.5}])
    assert found.plain()["time"] == "2030-01-31T06:00:00+00:00"
    assert record.get(2) is None


def test_times_and_order(record):
    start = datetime(2030, 1, 1, tzinfo=UTC)
    near = (0.1, 0.52, None, 0.45)
    record.add([row(time=start + timedelta(hours=n), calibrated_score=near[n]) for n in range(4)])
    assert [
        one.id for one in record.rows(Query(since=start + timedelta(hours=1), until=start + timedelta(hours=3)))
    ] == [3, 2]
    assert [one.id for one in record.rows(Query(order="borderline"))] == [2, 4, 1, 3]


def test_a_verdict_can_be_taken_back(record):
    record.add([row()])
    assert record.judge(1, "defective").verdict == "defective"
    assert record.get(1).verdict_time is not None
    assert record.judge(1, None).verdict_time is None
    assert record.judge(5, "good") is None


@pytest.mark.parametrize("place", ["", "oracle9://x/y", "://", "postgresql+nothing://x/y"])
def test_a_url_of_no_known_kind_is_refused(place):
    with pytest.raises(ConfigError, match="expected a file such as"):
        Record(place)


def test_a_file_may_have_any_name(tmp_path):
    place = tmp_path / "line 3? 100%41 ö#.sqlite"
    record = Record(str(place))
    record.add([row()])
    record.close()
    assert place.is_file()


def test_a_database_that_cannot_be_opened_names_itself(tmp_path):
    (tmp_path / "file").write_text("x" * 5000)
    for place in (tmp_path / "file" / "r.sqlite", tmp_path / "file"):
        with pytest.raises(RecordError, match=r"the record sqlite:///.*file.* can't be opened"):
            Record(str(place))


def test_the_password_is_not_said():
    with pytest.raises(RecordError) as caught:
        Record("postgresql+psycopg://me:hidden@127.0.0.1:1/none")
    assert "hidden" not in str(caught.value)


def test_a_table_of_another_make_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "r.sqlite") as connection:
        connection.execute("CREATE TABLE inspections (id INTEGER PRIMARY KEY, time TEXT)")
    connection.close()
    with pytest.raises(RecordError, match="without appearance, calibrated_score"):
        Record(str(tmp_path / "r.sqlite"))


def test_a_full_disk_is_an_error_and_keeps_what_is_there(tmp_path):
    record = Record(str(tmp_path / "r.sqlite"))
    record.add([row()])
    from sqlalchemy import event

    # A database that may not grow fails exactly as one on a full disk does.
    @event.listens_for(record._engine, "checkout")
    def small(connection, *_):
        connection.execute("PRAGMA max_page_count=1")

    with pytest.raises(RecordError, match="full"):
        record.add([row(file="x" * 100_000)])
    assert len(record.rows()) == 1


def test_a_lost_database_is_named_loses_no_decision_and_is_used_again_when_it_is_back(postgresql, tmp_path):
    record = Record(postgresql.url)
    with served.client(tmp_path, record=record) as server:
        assert server.post("/predict?part=1", content=served.picture(230)).status_code == 200
        postgresql.stop()
        try:
            lost = server.post("/predict?part=2", content=served.picture(230))
            assert (lost.status_code, lost.json()["decision"]) == (503, "defective")
            assert "not recorded: the record postgresql+psycopg://tester@127.0.0.1:" in lost.json()["error"]
            assert server.get("/records").status_code == server.get("/health").status_code == 503
        finally:
            postgresql.start()
        assert server.post("/predict?part=3", content=served.picture(230)).status_code == 200
        assert server.get("/health").status_code == 200
        assert [row["part"] for row in server.get("/records").json()["records"]] == ["3", "1"]
    Base.metadata.drop_all(record._engine)
    record.close()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import served
from pathlib import Path
from types import SimpleNamespace
server = served.client(Path(sys.argv[1]))
app = server.app
async def dies(scope, receive, send):
    async def last(message):
        if message["type"] == "http.response.start":
            os.kill(os.getpid(), signal.SIGKILL)
        await send(message)
    await app(scope, receive, last)
from starlette.testclient import TestClient
with TestClient(dies, base_url="http://127.0.0.1") as live:
    live.post("/predict?part=77", content=served.picture())
"""


def test_rows_survive_a_kill_between_request_and_answer(tmp_path):
    tests = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), tests], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    found = Record(str(tmp_path / "record.sqlite"))
    assert [one.part for one in found.rows()] == ["77"]
    found.close()
