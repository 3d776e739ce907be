"""The README's commands and its Python run as they stand, on a miniature folder of parts."""

import re
import shlex
from pathlib import Path

import pytest

import textures
from blemish import cli

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def parts(tmp_path, monkeypatch) -> Path:
    """A folder in which `parts` and `new` are as the README says."""
    textures.write(tmp_path, "parts")
    for folder in ("test", "ground_truth"):
        (tmp_path / "parts" / folder / "blob").rename(tmp_path / "parts" / folder / "scratch")
    (tmp_path / "new").mkdir()
    for path in (tmp_path / "parts/test/scratch").iterdir():
        (tmp_path / "new" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "new" / "000.png").rename(tmp_path / "new" / "zero.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_commands_and_python_run(parts):
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("blemish ")]
    assert len(commands) >= 8
    for command in commands:
        assert cli.run(shlex.split(command)[1:]) == 0, command
    assert (parts / "report.html").exists()
    assert (parts / "found" / "predictions.jsonl").exists()
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own text


def test_make_targets_exist():
    makefile = (README.parent / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)$", "\n".join(blocks("sh")), re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8")):
        assert link.startswith("https://") or (README.parent / link).exists(), link


def test_every_option_that_is_named_exists(capsys):
    named = set(re.findall(r"--[a-z][a-z-]+", README.read_text("utf-8")))
    helps = ""
    for words in (["fit", "patchcore"], *(name.split() for name in cli.commands())):
        with pytest.raises(SystemExit):
            cli.run([*words, "--help"])
        helps += capsys.readouterr().out
    assert {option for option in named if option not in helps} == set()
