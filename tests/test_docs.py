"""The examples of the documents run as they stand."""

import re
from pathlib import Path

import pytest

import blemish
import textures

DOCS = Path(__file__).parents[1] / "docs"


def test_the_model_of_extend_learns_and_finds(tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "extend.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    found: dict = {"__name__": "brightness"}
    exec(compile(block, "extend.md", "exec"), found)  # noqa: S102 - our own text
    data = blemish.open_dataset("auto", textures.write(tmp_path))
    detector = found["DETECTOR"](found["DETECTOR"].presets["tiny"]).fit(data)
    assert detector.fitted.calibrations["cloth"].image_scores


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(page):
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    assert not re.search(r"^(TABLE|CORESET|TODO|FIXME)", text, re.MULTILINE)
