import hashlib

import pytest
from PIL import Image

import textures
from blemish import command
from blemish.artifact import read_header
from blemish.models.patchcore import PatchCore
from blemish.server.record import Record
from served import row
from shell import TINY, call


def test_fit_says_what_it_found_promises_and_wrote(data, tmp_path, capsys):
    assert call("fit", "patchcore", data, "--category", "cloth", "--out", tmp_path / "a.blemish", *TINY) == 0
    said = capsys.readouterr().out
    assert "MVTec layout, category cloth: 20 good pictures to learn from (4 of them held out" in said
    assert "at most 1 in 5 good parts is expected above it" in said
    assert "99 good pictures" in said
    assert "Next: blemish score" in said


def test_fit_and_inspect_promise_for_parts_where_pictures_are_views(data, tmp_path, capsys):
    file, pattern = tmp_path / "a.blemish", r"(?P<part>[^/]+/[^/]+/\d+)(?P<view>\d)$"
    assert call("fit", "patchcore", data, "--out", file, "--view-pattern", pattern, "--top-views", 2, *TINY) == 0
    fitted = capsys.readouterr().out
    (calibration,) = read_header(file).fitted.calibrations.values()
    held_out = len(calibration.parts)
    assert 0 < held_out < len(calibration.image_scores)
    assert call("inspect", file) == 0
    for said in (fitted, capsys.readouterr().out):
        assert f"at most 1 in {held_out + 1} good parts is expected above it" in said
        assert f"99 good parts held out of training; there are {held_out}." in said


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
    config.write_text("[model]\ncoreset_size = 10\n")
    assert call("fit", "patchcore", data, "--config", config, "--out", file) == command.FAILED
    assert "has a table [model]; expected option names" in capsys.readouterr().err


def test_an_option_that_does_not_exist_is_refused(data, tmp_path, capsys):
    assert call("fit", "patchcore", data, "--out", tmp_path / "a.blemish", "--coreset-sise", 3) == 2
    assert "--coreset-size" in capsys.readouterr().err


def test_the_model_comes_first(data, tmp_path, capsys):
    assert call("fit", "--preset", "tiny", "patchcore", data, "--out", tmp_path / "a.blemish") == command.FAILED
    assert "the model comes first: blemish fit patchcore DATA" in capsys.readouterr().err


def test_every_option_is_explained(capsys):
    assert call("fit", "patchcore", "--help") == 0
    said = capsys.readouterr().out
    for option in ("--out", "--category", "--image-size", "--coreset-size", "--max-false-reject", "--train-dir"):
        assert option in said


@pytest.fixture(scope="module")
def defects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("defects")
    for number in range(6):
        Image.fromarray(textures.blob(7000 + number)[0]).save(folder / f"{number}.png")
    return folder


def test_labels_that_do_not_help_are_said_and_not_used(data, defects, tmp_path, capsys):
    file = tmp_path / "a.blemish"
    assert call("fit", "patchcore", data, "--defects", defects, "--out", file, *TINY, "--out-of-fold", 2) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Judged by cross-validation on 16 good and 6 defective pictures" in said
    assert "patchcore.blemish alone: AUROC 1.0000, 0.0 % of good ones stopped" in said
    assert "the detector without them is recommended" in said
    assert "What is written is the model without labels (--keep auto)." in said
    assert read_header(file).model == "patchcore"
    assert [path.name for path in tmp_path.iterdir()] == ["a.blemish"]


def test_labels_are_used_if_asked_for(data, defects, tmp_path, capsys):
    file, options = tmp_path / "a.blemish", ("--out-of-fold", 2, "--keep", "with", "--components", "foreground")
    assert call("fit", "patchcore", data, "--defects", defects, "--out", file, *TINY, *options) == 0
    assert "What is written uses the labels, as asked for (--keep with)." in capsys.readouterr().out
    header = read_header(file)
    assert (header.model, header.config["base"]) == ("segad", ["patchcore.blemish"])
    assert header.fitted.gain.good == 16
    page = tmp_path / "report.html"
    assert call("score", file, data, "--html", page) == 0
    shown = page.read_text()
    assert "What decides" in shown
    assert "decided by: " in shown
    assert "patchcore.blemish alone: AUROC 1.0000" in shown
    capsys.readouterr()
    assert call("inspect", file) == 0
    assert "What decides: " in (said := capsys.readouterr().out)
    assert "of patchcore.blemish" in said
    assert len(header.fitted.calibrations["cloth"].image_scores) == 4


def test_a_killed_fit_with_labels_takes_up_what_it_had_fitted(data, defects, tmp_path, capsys, monkeypatch):
    file, fits = tmp_path / "a.blemish", []
    once = PatchCore.learn

    def learn(self, *given):
        fits.append(self)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return once(self, *given)

    monkeypatch.setattr(PatchCore, "learn", learn)
    arguments = ("fit", "patchcore", data, "--defects", defects, "--out", file, *TINY, "--out-of-fold", 2)
    assert call(*arguments) == 130
    assert call(*arguments) == 0
    assert len(fits) == 4  # the base, the first fold, the second that was stopped, and the second again
    assert [path.name for path in tmp_path.iterdir()] == ["a.blemish"]


def test_labels_and_exports_do_not_go_together(data, defects, tmp_path, capsys):
    assert call("fit", "patchcore", data, "--defects", defects, "--out", tmp_path / "a.onnx", *TINY) == 2
    assert "export it afterwards" in capsys.readouterr().err


def test_verdicts_of_people_are_labels(data, defects, tmp_path, capsys):
    folder = tmp_path / "kept"
    folder.mkdir()
    record = Record(str(tmp_path / "r.sqlite"))
    for number, path in enumerate([*sorted(defects.iterdir()), *sorted((data / "cloth/test/good").iterdir())]):
        content = path.read_bytes()
        (folder / f"{number}").write_bytes(content)  # the server keeps pictures without a suffix
        (place,) = record.add([row(picture_hash=hashlib.sha256(content).hexdigest())])
        if number < 7:
            record.judge(place, "good" if number in (0, 6) else "defective")
    record.close()
    file, options = tmp_path / "a.blemish", ("--out-of-fold", 2, "--keep", "with")
    words = ["fit", "patchcore", data, "--defects", folder, "--out", file, *TINY, *options]
    assert call(*words, "--verdicts", tmp_path / "r.sqlite") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Labelled by people: 5 more defective pictures." in said
    assert "Judged by cross-validation on 18 good and 5 defective pictures" in said
    assert call(*words, "--verdicts", tmp_path / "nothing.sqlite") == 2
    assert "no such file" in capsys.readouterr().err
    assert call("fit", "patchcore", data, "--out", file, *TINY, "--verdicts", tmp_path / "r.sqlite") == 2
    assert "give both" in capsys.readouterr().err
    Record(str(tmp_path / "empty.sqlite")).close()
    assert call(*words, "--verdicts", tmp_path / "empty.sqlite") == 2
    assert "none of 12 files" in capsys.readouterr().err
