"""What every command must do. A new command is tested by existing."""

import pytest

from blemish import cli, command, registry
from shell import call


@pytest.mark.parametrize("name", cli.commands())
def test_its_line_says_what_is_typed_and_what_comes_of_it(name):
    typed, _, what = registry.describe("commands", cli.commands()[name]).partition(": ")
    assert f"{typed} ".startswith(f"{name} ")
    assert what.endswith(".")


@pytest.mark.parametrize("name", cli.commands())
def test_its_help_explains_it(name, capsys):
    assert call(*name.split(), "--help") == 0
    said = capsys.readouterr().out
    module = registry.load("commands", cli.commands()[name])
    kind = module.COMMAND if isinstance(module.COMMAND, type) else module.COMMAND([])
    assert kind.__doc__.split()[0] in said
    assert f"usage: blemish {name}" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
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
        (["fit", "patchcore", "DATA", "--out", "OUT", "--config", "nowhere.toml"], "TOML (No such file"),
        (["fit", "patchcore", "DATA", "--out", "OUT", "--config"], "names no file"),
        (["fit", "patchcore", "EMPTY", "--out", "OUT"], "does not have any known layout"),
        (["predict", "nowhere.blemish", "DATA"], "no such file"),
        (["predict", "ARTIFACT", "nowhere.png"], "nowhere.png does not exist"),
        (["predict", "ARTIFACT", "EMPTY"], "no pictures there"),
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

    assert call(*map(filled, words)) == command.FAILED
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "a.blemish").exists()
