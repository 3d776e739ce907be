"""The examples of the documents run as they stand."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import blemish
import textures
from blemish import options

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def example(tmp_path, monkeypatch) -> Callable[[int], ModuleType]:
    """Gives the module that a block of Python in extend.md is, by its number."""

    def load(number: int) -> ModuleType:
        blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "extend.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
        (tmp_path / "plug_in.py").write_text(blocks[number], "utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "plug_in", raising=False)
        return importlib.import_module("plug_in")

    return load


def test_the_model_of_extend_learns_and_finds(example, tmp_path):
    kind = example(0).DETECTOR
    data = blemish.open_dataset("auto", textures.write(tmp_path))
    assert kind(kind.presets["tiny"]).fit(data).fitted.calibrations["cloth"].image_scores


def test_the_command_of_extend_counts(example, tmp_path, capsys):
    root = textures.write(tmp_path / "parts", train=5)
    assert options.parse(example(1).COMMAND, "blemish count pictures", [str(root), "--twice"])() == 0
    assert capsys.readouterr().out.endswith("\n8\n")  # one of the five is held out


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(page):
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    assert not re.search(r"^(TABLE|CORESET|TODO|FIXME)", text, re.MULTILINE)
