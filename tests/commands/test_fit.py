from blemish import command
from shell import TINY, call


def test_fit_says_what_it_found_promises_and_wrote(data, tmp_path, capsys):
    assert call("fit", "patchcore", data, "--category", "cloth", "--out", tmp_path / "a.blemish", *TINY) == 0
    said = capsys.readouterr().out
    assert "MVTec layout, category cloth: 20 good pictures to learn from (4 of them held out" in said
    assert "at most 1 in 5 good parts is expected above it" in said
    assert "99 good pictures" in said
    assert "Next: blemish score" in said


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
