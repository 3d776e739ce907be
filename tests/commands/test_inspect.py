import json

from PIL import Image

from blemish import command
from shell import TINY, call


def test_what_an_artifact_holds(artifact, capsys):
    assert call("inspect", artifact) == 0
    said = capsys.readouterr().out
    assert "patchcore" in said
    assert "16 good pictures" in said
    assert "at most 1 in 4 good parts" in said


def test_training_and_channels_of_a_trained_model(data, tmp_path, capsys):
    file = tmp_path / "part.blemish"
    planes = ["--planes", 8, 40, "--reconstruction", "unet", "--maxima", 8]
    assert call("fit", "realnet", data, "--out", file, *TINY, "--steps", 2, "--evaluations", 2, *planes) == 0
    capsys.readouterr()
    assert call("inspect", file, "--json", tmp_path / "all.json", "--plot", tmp_path / "afs.png") == 0
    said = capsys.readouterr().out
    assert "Training: 2 batches in 0 min" in said
    assert "are kept, with a validation score of" in said
    assert "channels at stride 4: 8 of 24 kept; number (loss): " in said
    assert "channels at stride 8: 40 of 40 kept" in said
    assert "and 32 more up to" in said
    fitted = json.loads((tmp_path / "all.json").read_text())["fitted"]
    assert [step for step, _ in fitted["training"]["scores"]] == [1, 2]
    chosen = fitted["choices"]["channels at stride 4"]
    assert len(chosen["losses"]) == 24
    best = sorted(range(24), key=chosen["losses"].__getitem__)[:8]
    assert chosen["kept"] == sorted(best)
    with Image.open(tmp_path / "afs.png") as drawing:
        assert drawing.size == (840, 576)


def test_a_model_that_chooses_nothing_has_no_drawing(artifact, tmp_path, capsys):
    assert call("inspect", artifact, "--plot", tmp_path / "afs.png") == command.FAILED
    assert "chooses nothing that could be drawn" in capsys.readouterr().err
