import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from blemish import command, images
from blemish.errors import DatasetError
from blemish.predictions import find_pictures, free_name
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


def test_overlays_have_the_proportions_of_the_pictures(artifact, data, tmp_path):
    picture = images.read(data / "cloth/test/good/000.png")
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "one.png").write_bytes(images.encode(images.resize(picture, (90, 300))))
    assert call("predict", artifact, folder, "--out-dir", tmp_path / "found") == 0
    assert images.read(tmp_path / "found/overlays/one.png").shape == (64, 213, 3)


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


@pytest.mark.parametrize("above", [False, True])
def test_results_may_lie_beside_the_pictures(artifact, data, tmp_path, capsys, above):
    folder = tmp_path / "new"
    shutil.copytree(data / "cloth/test/good", folder)
    out = tmp_path if above else folder
    for _ in range(2):
        assert call("predict", artifact, folder, "--out-dir", out) == 0
        assert "6 pictures:" in capsys.readouterr().out
    assert len(list((out / "overlays").iterdir())) == 6


def test_a_picture_that_is_named_twice_is_scored_once(artifact, data, tmp_path, capsys, monkeypatch):
    shutil.copytree(data / "cloth/test/good", tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    assert call("predict", artifact, "new/003.png", "./new/003.png", tmp_path / "new/003.png", "new/../new") == 0
    assert "6 pictures:" in capsys.readouterr().out


def test_no_picture_at_all_is_status_2(artifact, capsys):
    assert call("predict", artifact) == command.FAILED
    assert "no pictures are named" in capsys.readouterr().err


def test_nothing_that_can_be_read_is_status_2(artifact, tmp_path, capsys):
    (tmp_path / "empty.png").write_bytes(b"")
    assert call("predict", artifact, tmp_path / "empty.png") == command.FAILED
    assert "none of 1 picture can be read" in capsys.readouterr().err


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


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_regular_file_is_named_and_passed_over(artifact, data, tmp_path, capsys, kind):
    folder = tmp_path / "new"
    folder.mkdir()
    shutil.copy(next((data / "cloth/test/good").iterdir()), folder / "fine.png")
    with socket.socket(socket.AF_UNIX) as opened:
        os.mkfifo(folder / "odd.png") if kind == "pipe" else opened.bind(str(folder / "odd.png"))
        assert call("predict", artifact, folder) == command.SOME_FAILED
    printed = capsys.readouterr()
    assert "1 picture could not be used:" in printed.err
    assert "odd.png: a pipe, socket or device" in printed.err
    assert "1 picture: 0 defective, 1 good." in printed.out


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
        "fits none of 6 pictures; it was tried on good/000.png, good/001.png, good/002.png" in capsys.readouterr().err
    )


def test_links_to_folders_are_followed_and_hidden_folders_passed_over(tmp_path):
    for name in ("line/a.png", "elsewhere/b.png", "line/.trash/c.png", "line/d.png/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "line/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "line/round").symlink_to(tmp_path / "line")
    found = [path.relative_to(tmp_path).as_posix() for path in find_pictures([tmp_path / "line"])]
    assert found == ["line/a.png", "line/d.png/e.jpg", "line/linked/b.png"]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").touch()
    scandir = os.scandir

    def guarded(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DatasetError, match="closed can't be opened .Permission denied"):
        find_pictures([tmp_path])


def test_no_two_pictures_get_one_name():
    taken = set()
    pictures = ["a-png.png", "a.jpg", "a.png", "a.PNG", "b/a.png"]
    assert len({free_name(Path(name), taken) for name in pictures}) == len(pictures)
