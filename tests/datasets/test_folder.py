"""Plain folders of pictures, beyond what every layout has to do."""

from pathlib import Path

import pytest

from blemish.dataset import open_dataset
from blemish.datasets import folder as layout
from blemish.errors import DatasetError
from trees import BAD, GOOD, MASK, grow, some


@pytest.mark.parametrize("good", ["good", "OK", "Normal", "no-defect", "PASSED"])
@pytest.mark.parametrize("bad", ["bad", "NG", "Not OK", "anomalies", "defective"])
def test_words_in_any_case(tmp_path: Path, good: str, bad: str) -> None:
    grow(tmp_path, {**some(f"lid/{good}/{{}}.png", 5, GOOD), **some(f"lid/{bad}/{{}}.png", 2, BAD)})
    data = open_dataset("auto", tmp_path)
    assert data.categories == ["lid"]
    assert {sample.path.parent.name for sample in data.samples if sample.is_anomalous is False} == {good}
    assert {sample.defect for sample in data.samples if sample.is_anomalous} == {bad}


def test_good_pictures_are_all_learned_from_where_none_are_bad(tmp_path: Path) -> None:
    data = open_dataset("auto", grow(tmp_path, some("lid/good/{}.png", 10, GOOD)) / "lid")
    assert len(data.train) + len(data.validation) == 10
    assert data.test == []


def test_which_good_pictures_are_tested_stays_the_same(tmp_path: Path) -> None:
    files = {**some("lid/good/{:02}.png", 20, GOOD), **some("lid/bad/{}.png", 2, BAD)}
    here = open_dataset("auto", grow(tmp_path / "a", files), seed=0)
    there = open_dataset("auto", grow(tmp_path / "b", files), seed=7)

    def tested(data: object) -> list[str]:
        return [sample.path.name for sample in data.test if not sample.is_anomalous]

    assert len(tested(here)) == 4
    assert tested(here) == tested(there)


def test_bad_folder_only_is_a_test_set(tmp_path: Path) -> None:
    data = open_dataset("auto", grow(tmp_path, some("lid/bad/{}.png", 2, BAD)))
    assert (len(data.train), len(data.test)) == (0, 2)


def test_folders_of_masks_by_kind(tmp_path: Path) -> None:
    files = {**some("lid/good/{}.png", 3, GOOD), "lid/dent/1.png": BAD, "lid/rust/1.png": BAD}
    files |= {"lid/Masks/dent/1.png": MASK, "lid/Masks/rust/1_mask.png": MASK}
    data = open_dataset("auto", grow(tmp_path, files))
    assert {s.defect: s.masks[0].parent.name for s in data.test if s.masks} == {"dent": "dent", "rust": "rust"}


def test_a_mask_of_two_pictures_is_refused(tmp_path: Path) -> None:
    files = {**some("lid/good/{}.png", 3, GOOD), "lid/dent/1.png": BAD, "lid/rust/1.png": BAD}
    grow(tmp_path, {**files, "lid/masks/1.png": MASK})
    with pytest.raises(DatasetError) as caught:
        open_dataset("auto", tmp_path)
    lid = tmp_path / "lid"
    assert str(caught.value) == (
        f"{lid}/masks/1.png is the mask of {lid}/dent/1.png and of {lid}/rust/1.png; "
        f"give each kind of defect a folder of masks of its own, {lid}/masks/rust."
    )


def test_a_mask_beside_its_picture_is_no_picture(tmp_path: Path) -> None:
    files = {**some("lid/ok/{}.jpg", 3, GOOD), "lid/ng/a.jpg": BAD, "lid/ng/a_mask.png": MASK, "lid/ng/b_mask.png": BAD}
    data = open_dataset("auto", grow(tmp_path, files))
    found = {sample.path.name: [mask.name for mask in sample.masks] for sample in data.test if sample.is_anomalous}
    assert found == {"a.jpg": ["a_mask.png"], "b_mask.png": []}


def test_a_stray_picture_does_not_hide_categories(tmp_path: Path) -> None:
    grow(tmp_path, {"logo.png": GOOD, **some("lid/good/{}.png", 2, GOOD), **some("cap/good/{}.png", 2, GOOD)})
    assert layout.categories(tmp_path) == ["cap", "lid"]


def test_flat_train_and_test_folders_are_not_taken_for_categories(tmp_path: Path) -> None:
    grow(tmp_path, {**some("lid/train/{}.png", 2, GOOD), **some("lid/test/{}.png", 2, BAD)})
    with pytest.raises(DatasetError, match=r"found: test, train\). Put good pictures into train/good"):
        open_dataset("auto", tmp_path / "lid")


@pytest.mark.parametrize("root", ["missing", "a.txt", "empty"])
def test_is_not_recognised(tmp_path: Path, root: str) -> None:
    grow(tmp_path, {"a.txt": "?", "empty/notes.txt": "?"})
    assert layout.categories(tmp_path / root) == []


def test_a_part_may_have_a_folder_of_its_views(tmp_path: Path) -> None:
    names = [f"good/p{part}/{view}.png" for part in range(10) for view in ("side", "top")]
    names += ["dent/p0/side.png", "dent/p0/top.png", "dent/p1/top.png"]
    root = grow(tmp_path, dict.fromkeys(names, GOOD) | dict.fromkeys(["masks/dent/p0/top.png"], MASK))
    data = open_dataset("auto", root)
    assert {(sample.part, sample.view) for sample in data.samples} == {
        tuple(name[:-4].rsplit("/", 1)) for name in names
    }
    assert {sample.part: [mask.name for mask in sample.masks] for sample in data.test if sample.masks} == {
        "dent/p0": ["top.png"]
    }
    whole = [(split, sample.part) for split in ("train", "validation", "test") for sample in getattr(data, split)]
    assert len(set(whole)) == 12
    assert {len([pair for pair in whole if pair == one]) for one in whole if one[1] != "dent/p1"} == {2}


def test_a_part_without_views_is_refused(tmp_path: Path) -> None:
    root = grow(tmp_path, {"good/p0/top.png": GOOD, "good/p1/top.png": GOOD, "good/p2/notes.txt": "text"})
    with pytest.raises(DatasetError, match="p2 has no pictures, and the folders beside it are parts seen in several"):
        open_dataset("folder", root)
