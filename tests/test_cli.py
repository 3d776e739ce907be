import os
import subprocess
import sys
from pathlib import Path

import pytest

from blemish import cli, command, registry
from shell import call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fiit"], 'no command named "fiit". Did you mean "fit"?'),
        (["synthesize", "preveiw"], 'no command named "synthesize preveiw". Did you mean "synthesize preview"?'),
    ],
)
def test_a_command_that_does_not_exist_is_said(words, message, capsys):
    assert call(*words) == command.FAILED
    assert message in capsys.readouterr().err


def test_a_file_is_a_command_and_its_first_underscore_a_space(monkeypatch):
    names = ("fit", "predict", "score", "prepare_coco_ad", "prepare_visa")
    monkeypatch.setattr(registry, "names", lambda folder: names if folder == "commands" else ())
    assert cli.commands() == {
        "fit": "fit",
        "predict": "predict",
        "score": "score",
        "prepare coco-ad": "prepare_coco_ad",
        "prepare visa": "prepare_visa",
    }
    assert cli.find(["prepare", "coco-ad", "from", "to"]) == "prepare coco-ad"


def test_the_first_word_alone_lists_what_may_follow(capsys):
    assert call("synthesize") == command.FAILED
    assert "  synthesize preview DATA  " in capsys.readouterr().out
    assert call("synthesize", "--help") == 0
    assert "  fit MODEL" not in capsys.readouterr().out


def test_debug_shows_where(capsys):
    assert call("fiit", "--debug") == command.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_what_the_machine_refuses_is_a_sentence(monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert call("inspect", "closed/part.blemish") == command.FAILED
    printed = capsys.readouterr().err
    assert "PermissionError: closed/part.blemish: Permission denied; see to permissions" in printed
    assert "Traceback" not in printed
    assert call("inspect", "closed/part.blemish", "--debug") == command.FAILED
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["help"], [], ["--version"], ["fit", "--help"], ["score", "--help"]])
def test_help_is_there(words, capsys):
    assert call(*words) == 0
    assert "blemish" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["fit", "patchcore", "d", "--out", "x.blemish"], ["list", "backbones"]])
def test_what_needs_torch_says_so_where_there_is_none(words):
    code = f"import sys; sys.modules['torch'] = None; from blemish.cli import main; main({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == command.FAILED
    assert "torch, which is not installed: pip install" in done.stderr
    assert "blemish[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "blemish", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("blemish 0.")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_that_cannot_be_printed_are_spelled_out(encoding):
    name = os.fsencode("ö") + b"\xff.blemish"
    done = subprocess.run(
        [sys.executable, "-m", "blemish", "inspect", name],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=False,
    )  # fmt: skip
    assert done.returncode == command.FAILED
    assert b"\\udcff.blemish: no such file" in done.stderr


def test_a_reader_who_leaves_is_no_failure():
    with subprocess.Popen(
        [sys.executable, "-m", "blemish", "list", "metrics"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        running.stdout.close()
        assert running.wait(60) == 0
        assert running.stderr.read() == b""
