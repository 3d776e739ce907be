import numpy as np
import pytest
from PIL import Image

import textures
from blemish import images
from shell import call


def test_a_sheet_shows_pictures_above_their_components(data, tmp_path, capsys):
    file = tmp_path / "sheet.png"
    assert call("components", data, "--out", file, "--count", 3, "--image-size", 64, "--components", "cluster:3") == 0
    said = capsys.readouterr().out
    assert [f"component {number}: " in said for number in range(4)] == [True, True, True, False]
    assert images.read(file).shape == (2 * 68, 3 * 68, 3)
    first = file.read_bytes()
    assert call("components", data, "--out", file, "--count", 3, "--image-size", 64, "--components", "cluster:3") == 0
    assert file.read_bytes() == first


def test_components_have_the_same_colour_on_all_pictures(data, tmp_path, capsys):
    labels = np.zeros(textures.SIZE, np.uint8)
    labels[:, 40:] = 200
    Image.fromarray(labels).save(tmp_path / "parts.png")
    words = ["--components", f"static:{tmp_path / 'parts.png'}", "--out", tmp_path / "sheet.png", "--count", 2]
    assert call("components", data, "--image-size", 64, *words) == 0
    said = capsys.readouterr().out
    assert "component 0: 50.0 % of the pixels" in said
    sheet = images.read(tmp_path / "sheet.png")[68 + 2 : 68 + 66].astype(int)
    left, right = sheet[:, 2:34].mean((0, 1)), sheet[:, 34:66].mean((0, 1))
    assert left[2] > left[0] + 20  # blue is the first, red the last
    assert right[0] > right[2] + 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--components", "cluster:1"], "cluster:K with K from 2"),
        (["--count", 0], "--count is 0"),
        (["--components", "folder:nowhere"], "no such folder"),
    ],
)
def test_what_makes_no_sheet_is_said(data, tmp_path, capsys, words, message):
    assert call("components", data, "--out", tmp_path / "sheet.png", *words) == 2
    assert message in capsys.readouterr().err
