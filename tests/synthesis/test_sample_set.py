import errno
import fcntl
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from blemish import engine, images
from blemish.errors import ConfigError, DatasetError, OutputError
from blemish.synthesis import sample_set, sdas
from blemish.synthesis.sample_set import Wanted, lay_out, read_manifest, write
from blemish.synthesis.sampling import draw
from blemish.synthesis.sources import parse
from untrained import exact, untrained

DRAWING = exact(steps=4, strength=(0.2, 0.4))


@pytest.fixture(scope="module")
def model():
    return untrained("a", "b")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pictures_masks_and_manifest_are_written(model, tmp_path):
    written = write(tmp_path, model, "hash", Wanted(category="a", count=3), DRAWING)
    assert (written.drawn, written.found, written.failures) == (3, 0, [])
    rows = read_manifest(tmp_path)
    assert [row["index"] for row in rows] == [0, 1, 2]
    for row, drawn in zip(rows, dict(draw(model, 0, range(3), DRAWING)).values(), strict=True):
        np.testing.assert_array_equal(images.read(tmp_path / row["path"]), drawn.picture)
        mask = cv2.imread(str(tmp_path / row["mask"]), cv2.IMREAD_UNCHANGED)
        sure = cv2.imread(str(tmp_path / row["confidence"]), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(mask)) <= {0, 255}
        np.testing.assert_array_equal(mask > 0, sure >= 128)
        assert row["changed"] == pytest.approx((mask > 0).mean(), abs=1e-6)
        assert 0.2 <= row["strength"] <= 0.4
        assert (row["seed"], row["model"], row["solver"], row["category"]) == (0, "hash", "ancestral", "a")


def test_actors_draw_the_same_set(model, tmp_path, monkeypatch):
    file, real = tmp_path / "good.diffusion", tmp_path / "real"
    sdas.save(model, file)
    real.mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (60 * number, 90, 30)).save(real / f"{number}.png")
    wanted, left = Wanted(category="a", count=10, first=4, init=real), []

    def here(blocks, make, shared, cluster):
        work = make(shared)
        for number, text in reversed(list(blocks)):
            left.append(number)
            yield number, work(text)
            if len(left) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(engine, "spread", here)
    write(tmp_path / "one", model, "hash", wanted, DRAWING)
    actors = sample_set.Actors(file, engine.Cluster(device="cpu"))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "several", model, "hash", wanted, DRAWING, actors)
    written = write(tmp_path / "several", model, "hash", wanted, DRAWING, actors)
    assert (written.drawn, written.found) == (4, 6)
    assert left == [1, 0]
    assert contents(tmp_path / "one") == contents(tmp_path / "several")


def test_a_full_disk_stops_and_the_same_run_goes_on(model, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wanted = Wanted(category="a", count=5)
    write(whole, model, "hash", wanted, DRAWING)
    really, calls = Path.write_bytes, []

    def full(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) == 8:  # in the middle of the third picture: its mask
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"masks/a/000002.png can't be written \(No space left.*free some"):
        write(parts, model, "hash", wanted, DRAWING)
    assert len(read_manifest(parts)) == 2
    assert not [path for path in parts.rglob(".*") if path.name != ".lock"]
    monkeypatch.undo()
    written = write(parts, model, "hash", wanted, DRAWING)
    assert (written.drawn, written.found) == (3, 2)
    assert contents(parts) == contents(whole)


def test_half_a_line_and_lost_files_are_mended(model, tmp_path):
    wanted = Wanted(category="a", count=3)
    write(tmp_path, model, "hash", wanted, DRAWING)
    before = contents(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(before["manifest.jsonl"][:-20])
    (tmp_path / "masks/a/000000.png").unlink()
    assert write(tmp_path, model, "hash", wanted, DRAWING).drawn == 2
    after = contents(tmp_path)
    rows = after["manifest.jsonl"].decode().splitlines()
    assert sorted(rows) == sorted(before["manifest.jsonl"].decode().splitlines())
    assert {**after, "manifest.jsonl": b""} == {**before, "manifest.jsonl": b""}
    assert write(tmp_path, model, "hash", wanted, DRAWING).drawn == 0


def test_a_set_can_grow_and_hold_other_categories(model, tmp_path):
    write(tmp_path, model, "hash", Wanted(category="a", count=2), DRAWING)
    assert write(tmp_path, model, "hash", Wanted(category="a", count=4), DRAWING).drawn == 2
    write(tmp_path, model, "hash", Wanted(category="b", count=1, first=7), DRAWING)
    assert [(row["category"], row["index"]) for row in read_manifest(tmp_path)] == [
        *(("a", index) for index in range(4)),
        ("b", 7),
    ]


@pytest.mark.parametrize(
    ("changes", "model_hash", "named"),
    [
        ({"seed": 1}, "hash", "seed 0, not 1"),
        ({"strength": (0.1, 0.2)}, "hash", "strengths"),
        ({}, "new", "model hash"),
    ],
)
def test_pictures_drawn_otherwise_are_not_mixed_in(model, tmp_path, changes, model_hash, named):
    write(tmp_path, model, "hash", Wanted(category="a", count=1), DRAWING)
    fields = {"steps": 4, "strength": (0.2, 0.4), **changes}
    with pytest.raises(OutputError, match=f"drawn with {named}"):
        write(tmp_path, model, model_hash, Wanted(category="a", count=2), exact(**fields))


def test_a_folder_that_another_run_writes_to_is_refused(model, tmp_path):
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="is being written to by another run"):
            write(tmp_path, model, "hash", Wanted(category="a", count=1), DRAWING)
    assert write(tmp_path, model, "hash", Wanted(category="a", count=1), DRAWING).drawn == 1


def test_real_pictures_are_started_from_and_named(model, tmp_path):
    good = tmp_path / "good"
    good.mkdir()
    for number in range(2):
        Image.fromarray(np.full((20, 24, 3), 90 + 60 * number, np.uint8)).save(good / f"{number}.png")
    (good / "broken.png").write_text("no picture")
    drawing = exact(steps=50, depth=0.02, strength=(0.0, 0.0))
    written = write(tmp_path / "out", model, "hash", Wanted(category="a", count=3, init=good), drawing)
    assert [failure.path.name for failure in written.failures] == ["broken.png"]
    rows = read_manifest(tmp_path / "out")
    assert [row["start"] for row in rows] == ["0.png", "1.png", "0.png"]
    means = [images.read(tmp_path / "out" / row["path"]).mean() for row in rows]
    assert means == pytest.approx([90, 150, 90], abs=15)
    with pytest.raises(DatasetError, match="there is no such folder"):
        write(tmp_path / "out", model, "hash", Wanted(category="a", init=tmp_path / "none"), drawing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no picture directly in it can be read"):
        write(tmp_path / "out", model, "hash", Wanted(category="a", init=tmp_path / "empty"), drawing)


def test_unknown_categories_and_counts_are_refused(model, tmp_path):
    with pytest.raises(ConfigError, match='no category named "c"'):
        write(tmp_path, model, "hash", Wanted(category="c"), DRAWING)
    with pytest.raises(ConfigError, match="--count is 0"):
        Wanted(count=0)
    with pytest.raises(ConfigError, match="--first is -1"):
        Wanted(first=-1)


def test_a_set_is_laid_out_like_sia(model, tmp_path):
    write(tmp_path / "set", model, "hash", Wanted(category="a", count=2), DRAWING)
    write(tmp_path / "set", model, "hash", Wanted(category="b", count=1), DRAWING)
    assert lay_out(tmp_path / "set", tmp_path / "data", "MPDD", None) == {"a": 2, "b": 1}
    root = tmp_path / "data/MPDD/sdas"
    assert sorted(contents(root)) == ["a/rank0_0.png", "a/rank0_1.png", "b/rank0_0.png"]
    assert (root / "a/rank0_1.png").read_bytes() == (tmp_path / "set/a/000001.png").read_bytes()
    lay_out(tmp_path / "set", tmp_path / "jpeg", "MPDD", 75)
    with Image.open(tmp_path / "jpeg/MPDD/sdas/b/rank0_0.jpg") as opened:
        assert (opened.format, opened.size) == ("JPEG", (16, 16))
    with pytest.raises(ConfigError, match="--quality is 101; expected 1 to 100"):
        lay_out(tmp_path / "set", tmp_path / "jpeg", "MPDD", 101)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"path": "../secret.png", "category": "a", "index": 0}, "leads out of"),
        ({"path": "a/000000.png", "category": "../../a", "index": 0}, "is no name of a folder"),
        ({"path": "a/000000.png", "index": 0}, "row 1: expected a JSON object with path, category and index"),
    ],
)
def test_manifests_can_not_lead_anywhere_else(model, tmp_path, row, message):
    write(tmp_path / "set", model, "hash", Wanted(category="a", count=1), DRAWING)
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "set/manifest.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DatasetError, match=message):
        lay_out(tmp_path / "set", tmp_path / "data", "MPDD", None)
    assert not (tmp_path / "data").exists() or not contents(tmp_path / "data")


def test_a_folder_without_a_manifest_is_no_set(tmp_path):
    with pytest.raises(DatasetError, match=r"has no manifest.jsonl"):
        sample_set.read_manifest(tmp_path)


def test_the_set_is_a_source_of_realnet_with_and_without_masks(model, tmp_path):
    write(tmp_path, model, "hash", Wanted(category="a", count=3), DRAWING)
    good, draw_from = np.zeros((1, 32, 32, 3), np.uint8), np.random.default_rng(0)
    for category in ("a", "other"):  # of another category, the whole folder is taken, but for what is no picture
        (plain,) = parse(f"sdas:{tmp_path}", category)
        foreign = [plain.give(good, 0, draw_from).picture for _ in range(12)]
        own = [images.resize(images.read(path), (32, 32)) for path in sorted((tmp_path / "a").glob("*.png"))]
        assert {picture.tobytes() for picture in foreign} == {picture.tobytes() for picture in own}
    (masked,) = parse(f"sdas_masked:{tmp_path}", "a")
    assert (masked.name, masked.opacity) == ("sdas_masked", (0.5, 1.0))
    picture, changed = masked.give(good, 0, draw_from)
    masks = [images.read_mask((path,), (16, 16), (32, 32)) for path in sorted((tmp_path / "masks/a").glob("*.png"))]
    assert changed.shape == picture.shape[:2]
    assert any((changed == mask).all() for mask in masks)
    (tmp_path / "masks/a/000001.png").unlink()
    with pytest.raises(DatasetError, match="has no mask .*1 of 3 pictures without theirs"):
        parse(f"sdas_masked:{tmp_path}", "a")
