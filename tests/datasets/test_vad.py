"""VAD: each protocol has its labelled defects, and all have the same test."""

from pathlib import Path

import pytest

from blemish.dataset import open_dataset
from blemish.errors import DatasetError
from trees import TREES, grow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return grow(tmp_path, TREES["vad"].files)


@pytest.mark.parametrize(
    ("protocol", "names"),
    [("one-class", []), ("low-shot-0", ["1.png"]), ("low-shot-1", ["0.png"]), ("high-shot", ["0.png", "1.png"])],
)
def test_protocols_differ_by_their_labelled_defects(root: Path, protocol: str, names: list[str]) -> None:
    data = open_dataset("auto", root, category=f"vad-{protocol}")
    assert [sample.path.name for sample in data.train_defects] == names
    assert len(data.train + data.validation) == 4
    assert {sample.defect for sample in data.test} == {"", "bad", "bad_unseen_defects"}
    assert [sample.path for sample in data.test] == [
        sample.path for sample in open_dataset("auto", root, category="vad-one-class").test
    ]
    (sentence,) = data.sentences()
    assert ("1 of the defective ones are of kinds that are not among the labelled" in sentence) == bool(names)


def test_the_folder_itself_can_be_opened(root: Path) -> None:
    inside, outside = (open_dataset("vad", place, category="vad-high-shot") for place in (root / "vad", root))
    assert inside.samples == outside.samples


def test_protocols_are_not_learned_together(root: Path) -> None:
    with pytest.raises(DatasetError, match="choose one with --category"):
        open_dataset("auto", root).require_train()


@pytest.mark.parametrize("text", ["[]", "nonsense", '{"0": 3}'])
def test_a_list_that_is_none_is_named(root: Path, text: str) -> None:
    (root / "vad/low_shot_train.json").write_text(text)
    with pytest.raises(DatasetError, match=r"low_shot_train\.json can't be read"):
        open_dataset("vad", root)


def test_a_listed_picture_that_is_not_there_is_named(root: Path) -> None:
    (root / "vad/train/bad/1.png").unlink()
    with pytest.raises(DatasetError, match=r"1\.png"):
        open_dataset("vad", root, category="vad-low-shot-0")
