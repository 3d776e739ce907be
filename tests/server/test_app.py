import asyncio
import base64
import io
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import event

from blemish.errors import RecordError
from blemish.server import Limits, Record
from blemish.server.app import PAGE
from blemish.types import Calibration, Prediction
from served import SCORES, artifact, bomb, brightness, client, picture, tiff_bomb

TOKEN, GERMAN = "open sesame", "öffne dich"


@pytest.fixture
def server(tmp_path):
    with client(tmp_path, keep=tmp_path / "kept") as found:
        yield found


def test_a_picture_gets_score_decision_and_regions(server):
    found = server.post("/predict?file=a.png&part=7", content=picture(51, spot=255)).json()
    assert found["image_score"] == pytest.approx((51 + 204 / 15) / 255, rel=0.2)
    assert (found["model"], found["category"], found["part"], found["file"]) == ("part", "cup", "7", "a.png")
    assert found["decision"] == "good"
    assert found["calibrated_score"] < 0.5 < found["threshold"] + 0.1
    assert found["regions"][0]["peak"] == pytest.approx(1)
    assert found["id"] == 1
    assert "heatmap" not in found
    assert server.post("/predict", content=picture(200)).json()["decision"] == "defective"


def test_scores_are_those_of_predict(server, tmp_path):
    content = picture(77, (33, 65), spot=9)
    (tmp_path / "a.png").write_bytes(content)
    expected = artifact().predictor.predict(tmp_path / "a.png").image_score[0]
    assert server.post("/predict", content=content).json()["image_score"] == float(expected)


def test_heatmap_and_picture_come_when_they_are_asked_for(server):
    found = server.post("/predict?heatmap=png&picture=jpeg", content=picture(spot=255)).json()
    for name, kind in (("heatmap", "PNG"), ("picture", "JPEG")):
        content = base64.b64decode(found[name].partition(",")[2])
        with Image.open(io.BytesIO(content)) as opened:
            assert (opened.size, opened.format) == ((16, 16), kind)


def test_a_batch_answers_for_each_and_a_bad_picture_stops_no_other(server):
    files = [("a", ("a.png", picture(20))), ("b", ("b.png", b"no picture")), ("c", ("c.png", picture(230)))]
    answer = server.post("/predict/batch", files=files)
    found = answer.json()["pictures"]
    assert answer.status_code == 200
    assert [one.get("decision") for one in found] == ["good", None, "defective"]
    assert "b.png: not a picture" in found[1]["error"]
    assert {row["file"] for row in server.get("/records").json()["records"]} == {"a.png", "c.png"}


def test_a_form_that_breaks_off_is_refused_and_not_answered_in_part(server):
    whole = server.build_request("POST", "/predict/batch", files=views(20, 230))
    body = whole.read()
    for end in (len(body) - 3, len(body) // 2, len(body) - 100):
        answer = server.post(
            "/predict/batch", content=body[:end], headers={"Content-Type": whole.headers["Content-Type"]}
        )
        assert (answer.status_code, "breaks off" in answer.text) == (400, True)
    assert server.get("/records").json()["records"] == []


def views(*values: int) -> list:
    return [("view", (f"{at}.png", picture(value))) for at, value in enumerate(values)]


def test_views_of_a_part_are_looked_at_together_and_decided_by_the_threshold_for_parts(tmp_path):
    seen = []

    def look(images, parts):
        seen.append(list(parts))
        means = images.mean(axis=(1, 2, 3))
        own = np.array([means[np.equal(parts, part)].mean() for part in parts])
        return Prediction(np.abs(images.mean(axis=1) - own[:, None, None]), np.abs(means - own))

    calibration = Calibration(SCORES, SCORES, parts=tuple((score,) for score in np.linspace(0.3, 0.85, 49)))
    with client(tmp_path, artifact(run=None, look=look, calibration=calibration)) as server:
        found = server.post("/predict/batch?part=p7&heatmap=png", files=views(0, 255, 0, 0)).json()
        assert seen == [[0, 0, 0, 0]]
        scores = [view["image_score"] for view in found["pictures"]]
        assert scores == pytest.approx([0.25, 0.75, 0.25, 0.25])
        assert (found["part"], found["part_score"], found["worst_view"]) == ("p7", scores[1], "1.png")
        assert found["threshold"] == pytest.approx(0.3 + 0.55 * 47 / 48)  # of 49 good parts, not of 99 good pictures
        assert found["decision"] == "review"
        assert [view["decision"] for view in found["pictures"]] == ["good", "defective", "good", "good"]
        assert all("heatmap" in view and view["part"] == "p7" for view in found["pictures"])
        rows = server.get("/records?part=p7&order=oldest").json()["records"]
        assert [row["id"] for row in rows] == [view["id"] for view in found["pictures"]]
        assert {(row["part_decision"], row["part_threshold"]) for row in rows} == {("review", found["threshold"])}
        assert server.post("/predict", content=picture(255)).json()["image_score"] == 0  # alone: no other view
        assert server.get("/records?limit=1").json()["records"][0]["part_decision"] is None


def test_a_model_that_was_calibrated_on_parts_promises_for_parts(tmp_path):
    parts = tuple((score,) for score in np.linspace(0.3, 0.85, 49))
    for calibration, unit, threshold in (
        (Calibration(SCORES, SCORES, parts=parts), "49 good parts", pytest.approx(0.3 + 0.55 * 47 / 48)),
        (Calibration(SCORES, SCORES), "99 good pictures", None),
    ):
        with client(tmp_path, artifact(calibration=calibration)) as one:
            (cup,) = one.get("/model").json()["models"][0]["categories"].values()
        assert all(f"({unit} held out" in sentence for sentence in cup["sentences"])
        assert cup["part_threshold"] == threshold
        assert cup["threshold"] == pytest.approx(SCORES[94])  # still that of a picture


def test_a_part_with_a_view_that_cannot_be_read_is_not_decided(server):
    answer = server.post("/predict/batch?part=p7", files=[*views(20, 30), ("c", ("c.png", b"no picture"))])
    assert (answer.status_code, "c.png: not a picture" in answer.text) == (422, True)
    assert server.get("/records").json()["records"] == []


def test_a_model_that_looks_at_pictures_alone_decides_on_parts_too(server):
    alone = [server.post("/predict", content=picture(value)).json() for value in (20, 230)]
    found = server.post("/predict/batch?part=p7", files=views(20, 230)).json()
    assert [view["image_score"] for view in found["pictures"]] == [one["image_score"] for one in alone]
    assert (found["decision"], found["worst_view"]) == ("defective", "1.png")


def test_a_picture_of_no_known_category_is_decided_by_all_together(tmp_path):
    with client(tmp_path, artifact(categories=("red", "blue"))) as server:
        found = server.post("/predict", content=picture(20)).json()
        assert ("category" in found, found["decision"]) == (False, "good")
        assert found["threshold"] == pytest.approx(artifact().predictor.decider().reject.value, rel=0.02)
        assert server.get("/records").json()["records"][0]["category"] == ""


def test_several_artifacts_are_told_apart_by_name(tmp_path):
    other = artifact("lid", lambda images: brightness(1 - images), ("red", "blue"))
    with client(tmp_path, artifact("cup"), other) as server:
        assert server.post("/predict?model=cup", content=picture(20)).json()["decision"] == "good"
        assert server.post("/predict?model=lid&category=red", content=picture(20)).json()["decision"] == "defective"
        for query, message in (
            ("", "say ?model=NAME"),
            ("?model=cupp", 'Did you mean "cup"?'),
            ("?model=lid&category=rad", 'Did you mean "red"?'),
        ):
            answer = server.post(f"/predict{query}", content=picture())
            assert answer.status_code == 404
            assert message in answer.json()["error"]
        assert [model["name"] for model in server.get("/model").json()["models"]] == ["cup", "lid"]
        categories = server.get("/model").json()["models"][1]["categories"]
        assert categories["red"]["good_scores"][0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("path", "content", "status", "message"),
    [
        ("/predict", b"", 422, "empty"),
        ("/predict", b"hello", 422, "not a picture"),
        ("/predict", picture()[:60], 422, "can't be read"),
        ("/predict", picture(size=(1100, 1000)), 422, "at most 1,000,000 are taken"),
        ("/predict", bomb(10_000, 9_000), 422, "at most 1,000,000 are taken"),
        ("/predict", bomb(60_000, 60_000), 422, "tiles"),
        ("/predict", tiff_bomb(), 422, "at most 1,000,000 are taken"),
        ("/predict", bytes(1_000_001), 413, "--max-megabytes"),
        ("/predict?modle=part", picture(), 422, "modle"),
        ("/predict?heatmap=gif", picture(), 422, "expected heatmap=png"),
        ("/predict?file=" + "a" * 301, picture(), 422, "at most 300 characters"),
        ("/predict?file=a%0Ab", picture(), 422, "can be printed"),
        ("/predict?file=a%E2%80%A8b", picture(), 422, "can be printed"),
        ("/predict?file=Screenshot%2010.02%E2%80%AFAM.png", picture(), 200, "Screenshot 10.02\u202fAM.png"),
        ("/predict/batch", b"hello", 415, "multipart/form-data"),
        (f"/records/{2**63}/verdict", b'{"verdict": "good"}', 404, f"no record {2**63}"),
        ("/predict/../../etc/passwd", b"", 404, "nothing at"),
        ("/page/../app.py", b"", 404, ""),
        ("/records/1/verdict", b'{"verdict": "good"}', 404, "no record 1"),
        ("/records/1/verdict", b'{"verdict": "fine"}', 422, "'fine'"),
        ("/records/1/verdict", b"[]", 422, "expected JSON"),
        ("/records/1/verdict", b"\xff", 422, "expected JSON"),
        ("/health", b"", 405, "method"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_and_the_server_goes_on(tmp_path, path, content, status, message):
    with client(tmp_path, limits=Limits(max_megabytes=1, max_megapixels=1)) as server:
        answer = server.post(path, content=content)
        assert (answer.status_code, message in answer.text) == (status, True), answer.text
        assert "Traceback" not in answer.text
        assert server.post("/predict", content=picture()).status_code == 200


def test_a_body_that_does_not_say_its_size_is_measured(tmp_path):
    with client(tmp_path, limits=Limits(max_megabytes=0.1)) as server:
        answer = server.post("/predict", content=iter([bytes(60_000)] * 2))
        assert answer.status_code == 413


def test_path_tricks_in_names_are_only_texts(server, tmp_path):
    for name in ("../../up.png", "/etc/passwd", "C:\\x.png"):
        assert server.post("/predict", params={"file": name, "part": name}, content=picture()).status_code == 200
        assert server.post("/predict/batch", files=[("a", (name, picture()))]).status_code == 200
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and "record.sqlite" not in path.name]
    assert [path.read_bytes() for path in kept] == [picture()]
    assert kept[0].is_relative_to(tmp_path / "kept")


def test_a_token_is_needed_where_one_is_set(tmp_path):
    with client(tmp_path, token=TOKEN) as server:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
            for path in ("/model", "/records", "/metrics", "/records/1"):
                answer = server.get(path, headers=header)
                assert answer.status_code == 401
                assert "Authorization: Bearer TOKEN" in answer.json()["error"]
            assert server.post("/predict", headers=header, content=picture()).status_code == 401
        assert server.get("/health").status_code == 200
        assert server.get("/").status_code == 200
    with client(tmp_path, token=TOKEN) as server:
        assert server.get("/model", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    with client(tmp_path, token=GERMAN) as server:
        sent = ((GERMAN.encode(), 200), (GERMAN.encode("latin-1"), 200), (b"offne dich", 401), (b"\xff", 401))
        for token, status in sent:
            assert server.get("/model", headers={"Authorization": b"Bearer " + token}).status_code == status


def test_pages_of_other_sites_are_turned_away(server):
    for strange in ({"Host": "evil.example"}, {"Host": "[::1"}, {"Origin": "http://["}):
        assert server.get("/model", headers=strange).status_code == 403
    origin = {"Origin": "http://evil.example"}
    assert server.post("/predict", content=picture(), headers=origin).status_code == 403
    assert server.get("/records").json()["records"] == []
    assert server.post("/predict", content=picture(), headers={"Origin": "http://127.0.0.1"}).status_code == 200


def test_under_load_pictures_go_together_and_what_is_too_much_comes_again(tmp_path):
    started, go_on, sizes = threading.Event(), threading.Event(), []

    def slow(images):
        sizes.append(len(images))
        started.set()
        go_on.wait(20)
        return brightness(images)

    with client(tmp_path, artifact(run=slow), limits=Limits(waiting=6)) as server, ThreadPoolExecutor(8) as pool:
        values = [20, 40, 60, 80, 100, 120]
        asked = [pool.submit(server.post, "/predict", content=picture(values[0]))]
        assert started.wait(20)
        asked += [pool.submit(server.post, "/predict", content=picture(value)) for value in values[1:]]
        deadline = time.monotonic() + 20
        while "blemish_pictures_in_work 6.0" not in server.get("/metrics").text and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = server.post("/predict", content=picture())
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "6 of at most 6 pictures" in refused.json()["error"]
        time.sleep(0.3)  # until the last is decoded, too
        go_on.set()
        scores = [one.result(20).json()["image_score"] for one in asked]
        assert scores == pytest.approx([value / 255 for value in values], rel=1e-5)
        assert sizes == [1, 5]
        metrics = server.get("/metrics").text
        assert 'blemish_requests_total{path="/predict",status="429"} 1.0' in metrics
        assert "blemish_pictures_in_work 0.0" in metrics


def test_what_takes_too_long_is_given_up_and_makes_room(tmp_path):
    hold = threading.Event()

    def stuck(images):
        hold.wait(20)
        return brightness(images)

    with client(tmp_path, artifact(run=stuck), limits=Limits(timeout=0.3, waiting=1)) as server:
        answer = server.post("/predict", content=picture())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        hold.set()
        assert server.post("/predict", content=picture()).status_code == 200


def test_a_slow_client_is_let_go(tmp_path):
    with client(tmp_path, limits=Limits(timeout=0.2)) as server:
        sent, parts = [], [{"type": "http.request", "body": b"slow", "more_body": True}]

        async def receive():
            if not parts:
                await asyncio.sleep(30)
            return parts.pop()

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")], "root_path": "", "http_version": "1.1", "scheme": "http",
        }  # fmt: skip
        asyncio.run(server.app(scope, receive, send))
        assert sent[0]["status"] == 408
        assert "within 0.2 seconds" in json.loads(sent[1]["body"])["error"]


def test_a_failure_of_the_model_is_one_answer_and_not_the_end(tmp_path):
    failing = [True]

    def run(images):
        if failing.pop() if failing else False:
            raise MemoryError("too much")
        return brightness(images)

    with client(tmp_path, artifact(run=run)) as server:
        answer = server.post("/predict", content=picture())
        assert answer.status_code == 500
        assert "MemoryError" in answer.json()["error"]
        assert server.post("/predict", content=picture()).status_code == 200
        assert server.get("/health").status_code == 200


def test_a_score_that_is_no_number_is_defective_and_null(tmp_path):
    with client(tmp_path, artifact(run=lambda images: brightness(images * np.nan))) as server:
        found = server.post("/predict?heatmap=png", content=picture()).json()
        assert (found["image_score"], found["decision"]) == (None, "defective")
        assert server.get("/records").json()["records"][0]["image_score"] is None


def test_a_full_disk_is_named_and_loses_no_decision(tmp_path):
    record, full = Record(str(tmp_path / "r.sqlite")), [True]

    # A database that may not grow fails exactly as one on a full disk does.
    @event.listens_for(record._engine, "checkout")
    def size(connection, *_):
        connection.execute(f"PRAGMA max_page_count={1 if full else 1_000_000}")

    long = {"part": "x" * 300, "file": "x" * 300}
    with client(tmp_path, record=record) as server:
        answers = [server.post("/predict", params=long, content=picture(230)) for _ in range(30)]
        lost = [answer for answer in answers if answer.status_code == 503]
        assert len(lost) > 5
        assert {answer.json()["decision"] for answer in answers} == {"defective"}
        assert "not recorded: the record sqlite:///" in lost[-1].json()["error"]
        assert "full" in lost[-1].json()["error"]
        assert server.get("/health").status_code == 503
        assert server.post("/predict/batch", params={"part": "x" * 300}, files=views(40, 230)).status_code == 503
        full.clear()
        assert server.post("/predict", content=picture()).status_code == 200
        assert server.get("/health").json()["status"] == "ok"
        assert f"blemish_unrecorded_total {len(lost) + 2}.0" in server.get("/metrics").text
        assert len(server.get("/records").json()["records"]) == 30 - len(lost) + 1


def test_a_picture_that_cannot_be_kept_does_not_cost_its_row(tmp_path):
    (tmp_path / "kept").write_text("in the way")
    with client(tmp_path, keep=tmp_path / "kept") as server:
        answer = server.post("/predict", content=picture(230))
        assert (answer.status_code, answer.json()["decision"]) == (503, "defective")
        assert "the picture was not kept: " in answer.json()["error"]
        assert [row["id"] for row in server.get("/records").json()["records"]] == [answer.json()["id"]]


def test_records_are_filtered_judged_and_exported(server):
    for value, part in ((20, "p1"), (230, "p2"), (118, "=p3")):
        server.post("/predict", params={"part": part, "file": f"{value}.png"}, content=picture(value))
    rows = server.get("/records").json()["records"]
    assert [row["part"] for row in rows] == ["=p3", "p2", "p1"]
    assert [row["decision"] for row in rows] == ["review", "defective", "good"]
    assert server.get("/records?order=borderline").json()["records"][0]["part"] == "=p3"
    assert len(server.get("/records?decision=good").json()["records"]) == 1
    assert [row["id"] for row in server.get("/records?after=1&order=oldest&limit=1").json()["records"]] == [2]
    judged = server.post("/records/2/verdict", json={"verdict": "good"}).json()
    assert judged["verdict"] == "good"
    assert judged["verdict_time"].endswith("+00:00")
    assert [row["id"] for row in server.get("/records?verdict=good").json()["records"]] == [2]
    assert [row["id"] for row in server.get("/records?verdict=none").json()["records"]] == [3, 1]
    table = server.get("/records?format=csv&order=oldest")
    assert table.headers["content-type"].startswith("text/csv")
    lines = table.text.splitlines()
    assert lines[0].startswith("id,time,model,")
    assert [",'=p3," in line for line in lines[1:]] == [False, False, True]
    one = server.get("/records/2").json()
    assert one["heatmap"].startswith("data:image/png;base64,")
    assert one["picture"].startswith("data:image/jpeg;base64,")
    assert len(server.get("/records").json()["records"]) == 3


@pytest.mark.parametrize("query", ["since=x", "limit=-1", "after=1.5", "order=old", "verdict=bad", "colour=red"])
def test_filters_that_do_not_fit_are_refused(server, query):
    answer = server.get(f"/records?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["error"]


def test_a_number_that_no_database_knows_is_no_record(server):
    assert server.get(f"/records/{10**30}").status_code == 404


def test_a_form_for_one_picture_is_sent_to_the_right_place(server):
    answer = server.post("/predict", files=views(20))
    assert (answer.status_code, "/predict/batch" in answer.json()["error"]) == (415, True)


def test_a_watched_picture_waits_for_a_lost_record(tmp_path, monkeypatch):
    monkeypatch.setattr("blemish.server.watch.EVERY", 0.01)
    record, refused = Record(str(tmp_path / "r.sqlite")), []
    rows = record.rows

    def sometimes(query=None):
        if len(refused) < 3:
            refused.append(query)
            raise RecordError("the database is locked")
        return rows(query)

    monkeypatch.setattr(record, "rows", sometimes)
    watched = tmp_path / "watched"
    (watched / "folder.png").mkdir(parents=True)
    os.mkfifo(watched / "pipe.png")
    (watched / "a.png").write_bytes(picture())
    with client(tmp_path, record=record, watch=watched) as server:
        for _ in range(200):
            if server.get("/metrics").text.count('blemish_pictures_total{decision="good"'):
                break
            time.sleep(0.02)
        assert len(refused) == 3
        assert [row["file"] for row in server.get("/records").json()["records"]] == ["a.png"]


def test_without_a_record_there_is_none(tmp_path):
    with client(tmp_path, record=None) as server:
        assert "id" not in server.post("/predict", content=picture()).json()
        answer = server.get("/records")
        assert (answer.status_code, "--record" in answer.text) == (404, True)


def test_the_description_lists_exactly_the_routes(server):
    described = server.get("/openapi.json").json()
    found = {
        (path.replace("{number}", "{number:int}"), method.upper())
        for path, methods in described["paths"].items()
        for method in methods
    }
    routes = {
        (route.path, method)
        for route in server.app.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD" and route.path not in ("/", "/docs", "/openapi.json")
    }
    assert found == routes


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_ask_nothing_of_other_sites(server, path):
    answer = server.get(path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for file in PAGE.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, file
        assert "https://" not in text, file
