"""The examples of the documents run as they stand."""

import re
from pathlib import Path

import pytest

import blemish
import textures
from blemish import options

DOCS = Path(__file__).parents[1] / "docs"


def example(number: int) -> dict:
    """What the module in that block of Python in extend.md defines."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "extend.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    found: dict = {"__name__": "example"}
    exec(compile(blocks[number], "extend.md", "exec"), found)  # noqa: S102 - our own text
    return found


def test_the_command_of_extend_counts(tmp_path, capsys):
    root = textures.write(tmp_path, train=5)
    assert options.parse(example(1)["COMMAND"], "blemish count pictures", [str(root), "--twice"])() == 0
    assert capsys.readouterr().out.endswith("\n8\n")  # one of the five is held out


def test_the_model_of_extend_learns_and_finds(tmp_path):
    found = example(0)
    data = blemish.open_dataset("auto", textures.write(tmp_path))
    detector = found["DETECTOR"](found["DETECTOR"].presets["tiny"]).fit(data)
    assert detector.fitted.calibrations["cloth"].image_scores


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(page):
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    assert not re.search(r"^(TABLE|CORESET|TODO|FIXME)", text, re.MULTILINE)
