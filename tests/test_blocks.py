import gc
import json
from pathlib import Path

import pytest

import textures
from blemish import blocks as judging_blocks
from blemish import cli, command, engine, predictions
from blemish.errors import ConfigError
from blemish.jobs import Job, pack
from blemish.judging import Region, Scored
from blemish.packed import PAGE, packed_samples
from blemish.types import Sample
from shell import TINY, call

pytest.importorskip("pyarrow", reason="needs blemish[scale]")
import pyarrow as pa
from pyarrow import parquet

RAY = ("--engine", "ray", "--block", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A picture in the middle can't be read, nor can a mask."""
    root = textures.write(tmp_path_factory.mktemp("data"), train=12)
    (root / "cloth/test/good/003.png").write_bytes(b"no picture")
    (root / "cloth/ground_truth/blob/002.png").write_bytes(b"no mask")
    return root


@pytest.fixture(scope="module")
def artifact(data) -> Path:
    file = data / "part.blemish"
    assert call("fit", "patchcore", data, "--out", file, "--max-false-reject", 0.25, *TINY) == 0
    return file


@pytest.fixture
def blocks(monkeypatch) -> list[int]:
    """Blocks are done here, last one first; grows by their numbers. A negative number stops before so many more."""
    taken: list[int] = []

    def here(left, make, shared, cluster):
        work, waiting = None, list(left)
        for number, text in reversed(waiting):
            work = work or make(shared)
            if -len(taken) in taken:
                raise KeyboardInterrupt
            taken.append(number)
            yield number, dict(work(text))

    monkeypatch.setattr(engine, "spread", here)
    return taken


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_actors_predict_what_one_process_does(artifact, data, tmp_path, capsys, blocks):
    said = []
    for name, options in (("one", ()), ("several", RAY)):
        predict = ("predict", artifact, data / "cloth/test", "--out-dir", tmp_path / name, "--maps")
        assert call(*predict, *options) == command.SOME_FAILED
        said.append(capsys.readouterr())
    assert sorted(blocks) == [0, 1, 2]
    assert contents(tmp_path / "one") == contents(tmp_path / "several")
    assert said[0] == said[1]
    assert "good/003.png" in said[0].err
    assert not list((tmp_path / "cache/blemish/jobs").iterdir())


def test_actors_score_what_one_process_does(artifact, data, tmp_path, capsys, blocks):
    for mode in ("streaming", "auto"):
        found = []
        for options in ((), RAY):
            files = ("--json", tmp_path / "report.json", "--csv", tmp_path / "report.csv")
            assert call("score", artifact, data, "--mode", mode, *files, *options) == command.SOME_FAILED
            report = json.loads((tmp_path / "report.json").read_text())
            report["failures"].sort(key=lambda failure: failure["reason"])
            found.append((report, (tmp_path / "report.csv").read_text(), capsys.readouterr().out))
        assert found[0] == found[1]
        assert len(found[0][0]["failures"]) == 2
        assert found[0][0]["metrics"]["cloth"]["pixel_auroc"] > 0.5
    assert sorted(blocks) == [0, 0, 1, 1, 2, 2]


def test_blocks_are_made_as_they_are_asked_for(artifact, data, tmp_path, monkeypatch):
    made, text_of = [], judging_blocks._text

    def counted(samples, names):
        made.append(len(samples))
        return text_of(samples, names)

    def here(left, make, shared, cluster):
        work = make(shared)
        for taken, (number, text) in enumerate(left, start=1):
            assert len(made) == taken
            yield number, dict(work(text))

    monkeypatch.setattr(judging_blocks, "_text", counted)
    monkeypatch.setattr(engine, "spread", here)
    assert call("predict", artifact, data / "cloth/test", "--json-lines", tmp_path / "x", *RAY) == command.SOME_FAILED
    assert made == [4, 4, 4]


@pytest.mark.parametrize("words", [("predict", "cloth/test"), ("score", ".")])
def test_what_was_found_is_read_once(artifact, data, tmp_path, monkeypatch, blocks, words):
    read, rows = [], Job.rows
    monkeypatch.setattr(Job, "rows", lambda self, number: read.append(number) or rows(self, number))
    assert call(words[0], artifact, data / words[1], *RAY) == command.SOME_FAILED
    assert read == [0, 1, 2]


def test_few_pictures_are_in_memory_at_a_time(tmp_path, monkeypatch):
    """In the process that was started, however many there are."""
    alive = []

    def count_alive():
        kinds = [type(each) for each in gc.get_objects()]
        alive.append((kinds.count(Sample), kinds.count(Scored)))

    def found(left, make, shared, cluster):
        for number, text in left:
            samples, _ = judging_blocks._samples(text)
            scored = [Scored(str(each.path), 0.5, 0.5, "good", (Region((1, 2, 3, 4), 5, 0.5),)) for each in samples]
            same = {"image_score": 0.5, "calibrated_score": 0.5, "decision": "good"}
            content = pack([{"path": row.path, "line": row.line(), **same} for row in scored])
            del samples, scored
            count_alive()
            yield number, {"rows": content}

    def keep(scored):
        last = []
        for place, row in enumerate(scored):
            last = [row]
            if place % 100 == 0:
                count_alive()
        return last

    monkeypatch.setattr(engine, "spread", found)
    monkeypatch.setattr(judging_blocks, "_contents", lambda _: {"part": b""})
    count_alive()
    before = alive.pop()
    paths = (Path(f"/pictures/{number:07}.png") for number in range(6 * PAGE))
    samples = packed_samples(predictions.samples_of(paths, "cloth"))
    place = judging_blocks.Place(block=128, parts=tmp_path / "parts")
    done = judging_blocks.predict(judging_blocks.Order(tmp_path / "part"), samples, place)
    assert done.gather(keep, [tmp_path / "lines"]).counts == {"good": 6 * PAGE}
    assert len(alive) > 24
    assert max(seen for seen, _ in alive) - before[0] <= 2 * PAGE + 128
    assert max(seen for _, seen in alive) - before[1] <= 2


def test_views_of_a_part_stay_together(artifact, data, tmp_path, capsys, blocks):
    pattern = ("--view-pattern", r"(?P<part>good/00[012]|good/00[45]|blob/00)(?P<view>)")
    for name, options in (("one", ()), ("several", RAY)):
        call("predict", artifact, data / "cloth/test", "--out-dir", tmp_path / name, *pattern, *options)
    assert contents(tmp_path / "one") == contents(tmp_path / "several")
    assert len(lines(tmp_path / "one/parts.jsonl")) == 6  # one of them with six views


def test_a_killed_job_goes_on_without_scoring_a_picture_twice(artifact, data, tmp_path, blocks):
    parts = tmp_path / "parts"
    predict = ("predict", artifact, data / "cloth/test/blob", "--json-lines", tmp_path / "lines", "--parts", parts)
    blocks.append(-2)  # after one block
    assert call(*predict, *RAY) == 130
    assert blocks == [-2, 1]
    assert not (tmp_path / "lines").exists()
    del blocks[:]
    blocks.append(100)
    assert call(*predict, *RAY) == 0
    assert blocks == [100, 0]
    found = [line["path"] for line in lines(tmp_path / "lines")]
    assert found == sorted(str(path) for path in (data / "cloth/test/blob").iterdir())
    table = parquet.read_table(parts / "000001.parquet")
    assert table["path"].to_pylist() == found[4:]
    assert call(*predict, *RAY) == 0  # what is done is done
    assert len(blocks) == 2


def test_damaged_parts_are_done_anew(artifact, data, tmp_path, capsys, blocks):
    score = ("score", artifact, data, "--mode", "streaming", *RAY, "--parts", tmp_path / "parts")
    call(*score, "--json", tmp_path / "first.json")
    damaged = tmp_path / "parts/000001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    del blocks[:]
    call(*score, "--json", tmp_path / "second.json")
    assert blocks == [1]
    assert "000001.parquet is damaged" in capsys.readouterr().err.replace("\n", "")
    state = tmp_path / "parts/000002.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    assert call(*score) == command.FAILED
    assert "type the same command again" in capsys.readouterr().err
    call(*score, "--json", tmp_path / "third.json")
    assert blocks == [1, 2]
    assert len({(tmp_path / f"{name}.json").read_bytes() for name in ("first", "second", "third")}) == 1
    (tmp_path / "parts/job.json").write_text("{")
    assert call(*score) == command.FAILED
    assert "job.json is damaged" in capsys.readouterr().err


def test_parts_of_another_artifact_are_not_mixed_in(artifact, data, tmp_path, capsys, blocks):
    parts = ("--parts", tmp_path / "parts")
    assert call("predict", artifact, data / "cloth/test/blob", *RAY, *parts) == 0
    other = tmp_path / "other.blemish"
    assert call("fit", "patchcore", data, "--out", other, "--seed", 1, *TINY) == 0
    capsys.readouterr()
    assert call("predict", other, data / "cloth/test/blob", *RAY, *parts) == command.FAILED
    said = capsys.readouterr().err
    assert "holds parts of another job (artifact " in said
    assert "must not be mixed" in said


def test_a_parquet_table_is_a_manifest(artifact, data, tmp_path, capsys, blocks):
    names = [f"cloth/test/{kind}/{number:03}.png" for number in range(3) for kind in ("good", "blob")]
    rows = [{"path": name, "split": "test", "label": "good" if "good" in name else "bad"} for name in names]
    table = data / "list.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), table)
    manifest = data / "list.jsonl"
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    said = []
    for file, options in ((table, ()), (manifest, ()), (table, RAY)):
        assert call("predict", artifact, file, "--json-lines", tmp_path / "x.jsonl", *options) == 0
        said.append((lines(tmp_path / "x.jsonl"), capsys.readouterr()))
        assert call("score", artifact, file, "--json", tmp_path / "x.json", *options) == 0
        capsys.readouterr()
        said.append((tmp_path / "x.json").read_text())
    assert [line["path"] for line in said[0][0]] == [str(data / name) for name in names]
    assert said[0] == said[2] == said[4]
    assert json.loads(said[1])["metrics"] == json.loads(said[3])["metrics"] == json.loads(said[5])["metrics"]
    table.write_bytes(table.read_bytes()[:-30])
    assert call("predict", artifact, table) == command.FAILED
    assert "expected a table in Parquet that is whole" in capsys.readouterr().err


def test_an_object_store_is_read_like_a_folder(artifact, data, tmp_path, capsys, blocks):
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(data / "cloth"), "/set/cloth", recursive=True)
    try:
        local, remote = tmp_path / "local.jsonl", tmp_path / "remote.jsonl"
        assert call("predict", artifact, data / "cloth/test", "--json-lines", local) == command.SOME_FAILED
        capsys.readouterr()
        predict = ("predict", artifact, "memory://set/cloth/test", "--json-lines", remote)
        assert call(*predict, *RAY) == command.SOME_FAILED
        said = capsys.readouterr().err
        assert "memory:///set/cloth/test/good/003.png" in said or "memory://set/cloth/test/good/003.png" in said
        drop = {"path"}
        plain = [[{k: v for k, v in line.items() if k not in drop} for line in lines(file)] for file in (local, remote)]
        assert plain[0] == plain[1]
        assert all(line["path"].startswith("memory://") for line in lines(remote))
        for place, options in ((data / "cloth", ()), ("memory://set/cloth", RAY)):
            assert call("score", artifact, place, "--json", tmp_path / "x.json", *options) == command.SOME_FAILED
            plain.append(json.loads((tmp_path / "x.json").read_text()))
        assert plain[2]["metrics"] == plain[3]["metrics"]
        assert len(plain[3]["failures"]) == 2
        assert call(*predict) == command.FAILED
        assert "which --engine ray reads" in capsys.readouterr().err
        assert call("predict", artifact, "memory://elsewhere", *RAY) == command.FAILED
        assert "memory://elsewhere" in capsys.readouterr().err
    finally:
        store.rm("/set", recursive=True)


def test_an_unknown_store_is_an_error(artifact, capsys, blocks):
    assert call("predict", artifact, "nosuch://bucket/a", *RAY) == command.FAILED
    assert "nosuch://bucket/a can't be read" in capsys.readouterr().err


def test_options_of_ray_are_for_ray(artifact, data):
    with pytest.raises(ConfigError, match="--actors and --block say how Ray works; add --engine ray"):
        cli.run(["predict", str(artifact), str(data), "--actors", "2", "--block", "7"])
    with pytest.raises(ConfigError, match="--block is 0; expected 1 or more"):
        cli.run(["predict", str(artifact), str(data), "--engine", "ray", "--block", "0"])


def test_without_ray_nothing_imports_it():
    import subprocess
    import sys

    code = "import sys, blemish.cli, blemish.blocks; blemish.cli.run(['list', 'models']); print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
