import json
from pathlib import Path

import pytest

from blemish import command, images
from shell import TINY, call

SIDE = 16
QUICK = [*TINY, "--steps", "4", "--evaluations", "1", "--precision", "float32", "--image-size", SIDE]


@pytest.fixture(scope="module")
def model(data, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("models") / "good.diffusion"
    assert call("synthesize", "fit", data, "--out", file, *QUICK) == 0
    return file


def test_fit_leaves_a_model_and_a_grid_and_nothing_unfinished(model, capsys):
    assert sorted(path.name for path in model.parent.iterdir()) == ["good-grids", "good.diffusion"]
    (grid,) = (model.parent / "good-grids").iterdir()
    assert images.read(grid).shape == (3 * SIDE, 4 * SIDE, 3)


def test_sample_writes_a_set_and_says_what_was_there(model, tmp_path, capsys):
    words = ["synthesize", "sample", model, "--out", tmp_path / "set", "--steps", "4", "--device", "cpu"]
    assert call(*words, "--count", "2", "--strength", "0.3") == 0
    assert call(*words, "--count", "3", "--strength", "0.3") == 0
    assert "Drawn: 1 picture; 2 there already" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "set/manifest.jsonl").read_text().splitlines()]
    assert [(row["category"], row["strength"]) for row in rows] == 3 * [("cloth", 0.3)]
    assert call("prepare", "sia", tmp_path / "set", tmp_path / "data") == 0
    assert len(list((tmp_path / "data/MVTec-AD/sdas/cloth").iterdir())) == 3


def test_preview_of_a_model_is_a_ladder(model, tmp_path):
    assert call("synthesize", "preview", model, "--count", "2", "--out", tmp_path / "ladder.png") == 0
    assert images.read(tmp_path / "ladder.png").shape == (5 * SIDE, 2 * SIDE, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "DATA", "--out", "OUT/a.blemish"], 'ending in ".diffusion"'),
        (["fit", "DATA", "--out", "OUT/a.diffusion", "--preset", "smal"], 'Did you mean "small"?'),
        (["fit", "DATA", "--out", "OUT/a.diffusion", "--width", "20", *TINY], "--width is 20"),
        (["fit", "DATA", "--out", "OUT/a.diffusion", "--weights", "no.pt", *TINY], "there is no such file"),
        (["sample", "MODEL", "--out", "OUT", "--category", "clot"], 'Did you mean "cloth"?'),
        (["sample", "MODEL", "--out", "OUT", "--strength=-1"], "--strength is -1:-1"),
        (["sample", "MODEL", "--out", "OUT", "--strength", "9"], "--strength is 9:9"),
        (["sample", "MODEL", "--out", "OUT", "--guidance", "1"], "has no classifier"),
        (["sample", "MODEL", "--out", "OUT", "--solver", "dpm", "--strength", "0.1"], "--solver dpm draws no noise"),
        (["sample", "MODEL", "--out", "OUT", "--init", "nowhere"], "there is no such folder"),
        (["sample", "nowhere.diffusion", "--out", "OUT"], "no such file"),
        (["sample", "DATA/part.blemish", "--out", "OUT"], "is not a diffusion model"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words, message, artifact, model, tmp_path, capsys):
    places = {"DATA": artifact.parent, "OUT": tmp_path / "out", "MODEL": model}
    filled = [
        f"{places[word.split('/')[0]]}{word[len(word.split('/')[0]) :]}" if word.split("/")[0] in places else word
        for word in words
    ]
    assert call("synthesize", *filled) == command.FAILED
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*/*"))
