import json
import shutil

import numpy as np

from blemish import command
from shell import call


def test_predict_writes_lines_overlays_and_maps(artifact, data, tmp_path, capsys):
    out = tmp_path / "maps"
    assert call("predict", artifact, data / "cloth/test", "--out-dir", out, "--maps") == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert all((line["decision"] == "defective") == ("blob" in line["path"]) for line in lines)
    assert all(line["regions"] for line in lines if "blob" in line["path"])
    assert sorted(path.name for path in (out / "overlays/blob").iterdir()) == [f"00{n}.png" for n in range(6)]
    assert len(list((out / "overlays").rglob("*.png"))) == len(list((out / "maps").rglob("*.npy"))) == 12
    assert np.load(out / "maps/good/003.npy").shape == (64, 64)
    assert not list(out.glob("*.part"))
    assert "12 pictures: 6 defective, 6 good." in capsys.readouterr().out


def test_another_rate_can_be_asked_for_later(artifact, data, capsys):
    assert call("predict", artifact, data / "cloth/test/good", "--max-false-reject", 0.5, "--max-review", 0.8) == 0
    assert "1 in 2 good parts" in capsys.readouterr().out


def test_overlays_follow_the_rate_that_is_asked_for(artifact, data, tmp_path):
    for rate in (0.25, 0.9):
        out = tmp_path / str(rate)
        assert call("predict", artifact, data / "cloth/test/blob", "--out-dir", out, "--max-false-reject", rate) == 0
    one, other = ((tmp_path / name / "overlays/000.png").read_bytes() for name in ("0.25", "0.9"))
    assert one != other


def test_an_earlier_run_and_masks_are_no_pictures_to_predict(artifact, data, tmp_path, capsys):
    folder = tmp_path / "parts"
    shutil.copytree(data / "cloth", folder)
    for _ in range(2):
        assert call("predict", artifact, folder, "--out-dir", folder / "found") == 0
        assert "32 pictures:" in capsys.readouterr().out


def test_nothing_that_can_be_read_is_status_2(artifact, tmp_path, capsys):
    (tmp_path / "empty.png").write_bytes(b"")
    assert call("predict", artifact, tmp_path / "empty.png") == command.FAILED
    assert "none of the 1 pictures can be read" in capsys.readouterr().err


def test_unreadable_pictures_are_named_and_the_exit_status_says_so(artifact, data, tmp_path, capsys):
    good = next((data / "cloth/test/good").iterdir())
    (tmp_path / "truncated.png").write_bytes(good.read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "fine.png").write_bytes(good.read_bytes())
    assert call("predict", artifact, tmp_path, "--json-lines", tmp_path / "x.jsonl") == command.SOME_FAILED
    printed = capsys.readouterr()
    assert "3 pictures could not be used" in printed.err
    for name in ("truncated.png", "empty.png", "text.png"):
        assert name in printed.err
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 1


def test_an_unknown_category_is_decided_by_all_together_and_that_is_said(artifact, data, tmp_path, capsys):
    lines = {}
    for category in ("cloth", "clot"):
        out = tmp_path / f"{category}.jsonl"
        assert call("predict", artifact, data / "cloth/test", "--category", category, "--json-lines", out) == 0
        lines[category] = [json.loads(line) for line in out.read_text().splitlines()]
        printed = capsys.readouterr().out
        assert ("threshold is that of all categories together" in printed) == (category == "clot")
    assert 'No category named "clot". Did you mean "cloth"?' in printed
    assert {line.get("category") for line in lines["clot"]} == {None}
    assert {line["category"] for line in lines["cloth"]} == {"cloth"}
    assert [line["image_score"] for line in lines["clot"]] == [line["image_score"] for line in lines["cloth"]]


PATTERN = r"(?P<part>.+)(?P<view>[01])$"


def test_views_are_joined_and_told_by_part(artifact, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("predict", artifact, data / "cloth/test/blob", "--view-pattern", PATTERN, "--out-dir", out) == 0
    printed = capsys.readouterr().out
    assert "5 parts: 5 defective, 0 good." in printed  # 000 and 001 are one, 002 to 005 fit no pattern
    assert "not calibrated on parts" in printed
    assert len((out / "parts.jsonl").read_text().splitlines()) == 5


def test_a_pattern_that_fits_nothing_is_status_2(artifact, data, capsys):
    pattern = "(?P<part>x+)_C(?P<view>y)"
    assert call("predict", artifact, data / "cloth/test/good", "--view-pattern", pattern) == command.FAILED
    assert (
        "fits none of the 6 pictures; it was tried on good/000.png, good/001.png, good/002.png"
        in capsys.readouterr().err
    )
