"""blemish prepare coco-ad, as typed."""

import json

from blemish import command
from shell import call


def test_coco8_is_prepared_and_learned_from(real_data, tmp_path, capsys):
    assert call("prepare", "coco-ad", real_data / "coco8", tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "split_1: 2 good pictures to learn from, 2 good and 2 abnormal to test; abnormal are elephant, bear" in said
    tiny = ["--preset", "tiny", "--device", "cpu"]
    words = [tmp_path / "out", "--out", tmp_path / "a.blemish", *tiny]
    assert call("fit", "patchcore", *words) == command.FAILED
    assert "no model may learn split_0" in capsys.readouterr().err
    assert call("fit", "patchcore", *words, "--category", "split_1") == 0
    assert (
        call("score", tmp_path / "a.blemish", tmp_path / "out", "--json", tmp_path / "a.json", "--device", "cpu") == 0
    )
    assert "no skill" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "a.json").read_text())["metrics"]
    assert list(metrics) == ["split_1"]
    assert metrics["split_1"]["image_ap_chance"] == 0.5


def test_what_is_missing_is_named(tmp_path, capsys):
    assert call("prepare", "coco-ad", tmp_path, tmp_path / "out") == command.FAILED
    assert "annotations/instances_train2017.json is not there" in " ".join(capsys.readouterr().err.split())
