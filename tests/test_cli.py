import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import textures
from blemish import cli
from blemish.errors import OutputError

TINY = ["--preset", "tiny", "--device", "cpu"]


def call(*words: object) -> int:
    """The exit status of `blemish` with these arguments."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return stopped.value.code


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return textures.write(tmp_path_factory.mktemp("data"), train=20)


@pytest.fixture(scope="module")
def artifact(data) -> Path:
    file = data / "part.blemish"
    assert call("fit", "patchcore", data, "--out", file, "--max-false-reject", 0.25, *TINY) == 0
    return file


def test_fit_says_what_it_found_promises_and_wrote(data, tmp_path, capsys):
    assert call("fit", "patchcore", data, "--category", "cloth", "--out", tmp_path / "a.blemish", *TINY) == 0
    said = capsys.readouterr().out
    assert "MVTec layout, category cloth: 20 good pictures to learn from (4 of them held out" in said
    assert "at most 1 in 5 good parts is expected above it" in said
    assert "99 good pictures" in said
    assert "Next: blemish score" in said


def test_score_writes_table_json_csv_and_html(artifact, data, tmp_path, capsys):
    outputs = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "html")}
    options = [word for kind, file in outputs.items() for word in (f"--{kind}", file)]
    assert call("score", artifact, data, *options, "--resamples", 20) == 0
    values = json.loads(outputs["json"].read_text())
    assert values["metrics"]["cloth"]["image_auroc"] == values["mean"]["image_auroc"] == 1
    assert len(outputs["csv"].read_text().splitlines()) == 1 + 12
    assert "<html" in outputs["html"].read_text()
    assert values["intervals"]["cloth"]["image_auroc"] == [1, 1]
    assert "cloth, 95 % intervals over pictures: image_auroc 1.0000 to 1.0000" in capsys.readouterr().out


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
    assert call("predict", artifact, tmp_path / "empty.png") == cli.FAILED
    assert "none of the 1 pictures can be read" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_loses_no_scores(artifact, data, tmp_path, monkeypatch, capsys):
    from blemish import report

    def full(*_: object, **__: object) -> None:
        raise OutputError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(report, "write", full)
        assert call("score", artifact, data) == cli.FAILED
    assert "cloth" in capsys.readouterr().out
    (kept,) = (tmp_path / "cache/blemish/score").iterdir()
    assert len((kept / "scores.jsonl").read_text().splitlines()) == 12
    assert call("score", artifact, data) == 0
    assert not kept.exists()


def test_unreadable_pictures_are_named_and_the_exit_status_says_so(artifact, data, tmp_path, capsys):
    good = next((data / "cloth/test/good").iterdir())
    (tmp_path / "truncated.png").write_bytes(good.read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "fine.png").write_bytes(good.read_bytes())
    assert call("predict", artifact, tmp_path, "--json-lines", tmp_path / "x.jsonl") == cli.SOME_FAILED
    printed = capsys.readouterr()
    assert "3 pictures could not be used" in printed.err
    for name in ("truncated.png", "empty.png", "text.png"):
        assert name in printed.err
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 1


def test_maps_that_were_written_can_be_evaluated(artifact, data, tmp_path, capsys):
    out = tmp_path / "maps"
    assert call("predict", artifact, data / "cloth/test", "--out-dir", out, "--maps") == 0
    masks = tmp_path / "masks" / "blob"
    masks.mkdir(parents=True)
    for file in (data / "cloth/ground_truth/blob").iterdir():
        Image.open(file).resize((64, 64), Image.Resampling.NEAREST).save(masks / file.name)
    assert call("metrics", out / "maps", tmp_path / "masks", "--json", tmp_path / "m.json") == 0
    values = json.loads((tmp_path / "m.json").read_text())
    assert values["mean"]["pixel_auroc"] > 0.95
    assert "pixel" in capsys.readouterr().out


def test_inspect_and_list(artifact, capsys):
    assert call("inspect", artifact) == 0
    said = capsys.readouterr().out
    assert "patchcore" in said
    assert "16 good pictures" in said
    assert "at most 1 in 4 good parts" in said
    for what, name in [("models", "patchcore"), ("datasets", "mvtec"), ("metrics", "aupro"), ("formats", "native")]:
        assert call("list", what) == 0
        assert name in capsys.readouterr().out
    assert call("list", "backbones") == 0
    assert "tf_efficientnet_lite0" in capsys.readouterr().out


def test_options_come_from_a_file_and_the_command_line_wins(data, tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text('preset = "tiny"\nimage_size = "32x64"\nstrides = [8, 16]\ncoreset_size = 10\n')
    file = tmp_path / "a.blemish"
    assert call("fit", "patchcore", data, "--config", config, "--out", file, "--coreset-size", 20) == 0
    capsys.readouterr()
    assert call("inspect", file) == 0
    said = capsys.readouterr().out
    assert "32x64 pixels" in said
    assert "coreset_size 20" in said
    assert "strides [8, 16]" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fiit"], 'no command named "fiit". Did you mean "fit"?'),
        (["fit", "pathcore", "DATA", "--out", "OUT"], 'Did you mean "patchcore"?'),
        (["fit", "patchcore", "nowhere", "--out", "OUT"], "nowhere does not exist"),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--category", "clot"], 'Did you mean "cloth"?'),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--preset", "smal"], 'Did you mean "small"?'),
        (["fit", "patchcore", "DATA", "--out", "part.zip"], "expected the name of an artifact"),
        (["fit", "patchcore", "DATA", "--out", "FILE/part.blemish"], "can't be written"),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--image-size", "big"], '--image-size is "big"'),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--intensity", "1"], '--intensity is "1"'),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--max-false-reject", "5"], "expected a share between 0 and 1"),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--dataset", "visaa"], 'Did you mean "visa"?'),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--config", "nowhere.toml"], "can't be read as TOML"),
        (["fit", "patchcore", "EMPTY", "--out", "OUT"], "does not have any known layout"),
        (["predict", "nowhere.blemish", "DATA"], "no such file"),
        (["predict", "ARTIFACT", "nowhere.png"], "nowhere.png does not exist"),
        (["predict", "ARTIFACT", "EMPTY"], "no pictures there"),
        (["predict", "ARTIFACT", "DATA", "--category", "linen"], 'no category named "linen"'),
        (["predict", "ARTIFACT", "DATA", "--max-false-reject", "0"], "--max-false-reject is 0"),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--seed", "-1"], "--seed is -1"),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--blur", "nan"], "--blur is nan"),
        (["score", "ARTIFACT", "DATA", "--resamples", "-5"], "--resamples is -5"),
        (["predict", "ARTIFACT", "DATA", "--maps"], "--maps needs a folder"),
        (["predict", "ARTIFACT", "DATA", "--device", "tpu"], '--device is "tpu"'),
        (["score", "ARTIFACT", "DATA", "--json", "FILE/x.json"], "can't be written"),
        (["score", "FILE", "DATA"], "expected the name of an artifact"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(words, message, data, artifact, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "empty").mkdir()
    places = {
        "DATA": data, "OUT": tmp_path / "a.blemish", "ARTIFACT": artifact, "FILE": tmp_path / "file",
        "EMPTY": tmp_path / "empty",
    }  # fmt: skip

    def filled(word: str) -> str:
        head, slash, tail = word.partition("/")
        return f"{places[head]}{slash}{tail}" if head in places else word

    assert call(*map(filled, words)) == cli.FAILED
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "a.blemish").exists()


def test_debug_shows_where(capsys):
    assert call("fiit", "--debug") == cli.FAILED
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["help"], [], ["--version"], ["fit", "--help"], ["score", "--help"]])
def test_help_is_there(words, capsys):
    assert call(*words) == 0
    assert "blemish" in capsys.readouterr().out


def test_every_command_and_option_is_explained(capsys):
    for name in cli.COMMANDS:
        assert f"  {name} " in cli.USAGE or f"  {name}\n" in cli.USAGE
        assert call(name, "--help") == 0
        said = capsys.readouterr().out
        assert cli.COMMANDS[name].__doc__.split(":")[0].split()[0] in said
    assert call("fit", "patchcore", "--help") == 0
    said = capsys.readouterr().out
    for option in ("--out", "--category", "--image-size", "--coreset-size", "--max-false-reject", "--train-dir"):
        assert option in said


def test_an_option_that_does_not_exist_is_refused(data, tmp_path, capsys):
    assert call("fit", "patchcore", data, "--out", tmp_path / "a.blemish", "--coreset-sise", 3) == 2
    assert "--coreset-size" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["fit", "patchcore", "d", "--out", "x.blemish"], ["list", "backbones"]])
def test_what_needs_torch_says_so_where_there_is_none(words):
    code = f"import sys; sys.modules['torch'] = None; from blemish.cli import main; main({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == cli.FAILED
    assert "torch, which is not installed: pip install" in done.stderr
    assert "blemish[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "blemish", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("blemish 0.")
