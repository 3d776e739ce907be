"""The MVTec layout and its relatives, beyond what every layout has to do."""

from pathlib import Path

import pytest

from blemish.dataset import open_dataset
from blemish.datasets import mvtec as layout
from trees import BAD, GOOD, MASK, TREES, grow, mvtec, some

REAL = Path(__file__).parents[3] / "shared" / "data"

# category: good to learn from, good to test, defective to test, with a mask
REAL_COUNTS = {
    "mvtec_bottle": (209, 20, 63, 63),
    "magnetic_tile": (243, 125, 388, 388),
    "wood_surface": (70, 70, 71, 71),
    "solar_mono": (158, 62, 110, 110),
    "deeppcb_77000": (72, 35, 35, 35),
    "deeppcb_92000": (80, 40, 40, 40),
    "cookies": (31, 14, 32, 32),
    "dobot_cubes_image_level": (87, 29, 72, 0),
    "alien_toy_image_level": (39, 19, 60, 0),
}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the pictures of {REAL}")
def test_real_pictures() -> None:
    data = open_dataset("auto", REAL)
    assert data.categories == sorted(REAL_COUNTS)
    for category, (train, good, bad, masks) in REAL_COUNTS.items():
        own = data.of(category)
        assert len(own.train) + len(own.validation) == train
        assert sum(sample.is_anomalous is False for sample in own.test) == good
        assert sum(sample.is_anomalous is True for sample in own.test) == bad
        assert sum(bool(sample.masks) for sample in own.test) == masks


def test_masks_are_matched_by_stem_and_never_by_order(tmp_path: Path) -> None:
    files = {**mvtec("bottle", bad=0), **some("bottle/test/dent/{}.png", 12, BAD)}
    files |= {f"bottle/ground_truth/dent/{name}": MASK for name in ("10_mask.png", "2.bmp", "7_GT.PNG", "3_label.tif")}
    files |= {"bottle/ground_truth/dent/5/b.png": MASK, "bottle/ground_truth/dent/5/a.png": MASK}
    data = open_dataset("auto", grow(tmp_path, files))
    found = {sample.path.name: [mask.name for mask in sample.masks] for sample in data.test if sample.masks}
    assert found == {
        "10.png": ["10_mask.png"],
        "2.png": ["2.bmp"],
        "7.png": ["7_GT.PNG"],
        "3.png": ["3_label.tif"],
        "5.png": ["a.png", "b.png"],
    }


@pytest.mark.parametrize("masks", ["masks/dent", "gt/test/dent", "test/dent"])
def test_masks_in_other_places_are_found_and_no_pictures(tmp_path: Path, masks: str) -> None:
    files = {**mvtec("bottle", bad=0), **some("bottle/test/dent/{}.png", 3, BAD)}
    files |= {f"bottle/{masks}/{number}_mask.png": MASK for number in range(3)}
    data = open_dataset("auto", grow(tmp_path, files))
    found = {sample.path.name: [mask.name for mask in sample.masks] for sample in data.test if sample.is_anomalous}
    assert found == {f"{number}.png": [f"{number}_mask.png"] for number in range(3)}


def test_an_exact_stem_goes_before_an_ending(tmp_path: Path) -> None:
    files = {**mvtec("bottle", bad=0), "bottle/test/dent/1.png": BAD, "bottle/test/dent/1_mask.png": BAD}
    files |= {"bottle/ground_truth/dent/1.png": MASK, "bottle/ground_truth/dent/1_mask.png": MASK}
    data = open_dataset("auto", grow(tmp_path, files))
    assert {s.path.name: [m.name for m in s.masks] for s in data.test if s.masks} == {
        "1.png": ["1.png"],
        "1_mask.png": ["1_mask.png"],
    }


def test_defective_training_pictures_are_kept_but_not_learned_from(tmp_path: Path) -> None:
    data = open_dataset("auto", grow(tmp_path, TREES["vad_repacked"].files))
    bad = [sample for sample in data.samples if sample.split == "train" and sample.is_anomalous]
    assert [sample.path.name for sample in bad] == ["0.png", "1.png"]
    assert not set(bad) & set(data.train + data.validation)
    assert {sample.defect for sample in data.test} == {"", "bad", "bad_unseen_defects"}


def test_masks_of_training_pictures_are_their_own(tmp_path: Path) -> None:
    data = open_dataset("auto", grow(tmp_path, TREES["visa_prepared_2cls"].files))
    bad = [sample for sample in data.samples if sample.is_anomalous]
    assert {(sample.split, sample.masks[0].parent.parent.name) for sample in bad} == {
        ("train", "train"),
        ("test", "test"),
    }


def test_masks_of_the_test_set_are_not_given_to_training_pictures(tmp_path: Path) -> None:
    files = {**mvtec("bottle"), **some("bottle/train/scratch/{:03}.png", 2, BAD)}
    data = open_dataset("auto", grow(tmp_path, files))
    assert all(bool(sample.masks) == (sample.split == "test") for sample in data.samples if sample.is_anomalous)


def test_a_validation_split_on_disk_is_used_as_it_is(tmp_path: Path) -> None:
    data = open_dataset("auto", grow(tmp_path, TREES["mvtec_loco"].files), validation_fraction=0.9)
    assert {sample.path.parts[-3] for sample in data.validation} == {"validation"}
    assert {sample.path.parts[-3] for sample in data.train} == {"train"}


def test_other_files_and_case(tmp_path: Path) -> None:
    files = {
        **some("Bottle/Train/Good/{}.PNG", 3, GOOD),
        "Bottle/Train/Good/Thumbs.db": "?",
        "Bottle/Train/Good/.DS_Store": "?",
        "Bottle/Train/Good/._0.png": "?",
        "Bottle/Train/Good/notes.txt": "?",
        "Bottle/Train/Good/folder.png/x.txt": "?",
        "Bottle/Test/GOOD/0.png": GOOD,
        "Bottle/Test/.hidden/0.png": BAD,
        "Bottle/desktop.ini": "?",
    }
    data = open_dataset("auto", grow(tmp_path, files))
    assert [sample.path.name for sample in data.samples] == ["0.png", "0.PNG", "1.PNG", "2.PNG"]


@pytest.mark.parametrize(
    "files",
    [
        some("train2017/{}.jpg", 2, GOOD),
        {**some("Class1/Train/{}.PNG", 2, GOOD), "Class1/Train/Label/1_label.PNG": MASK},  # DAGM
        some("train/{}.png", 2, GOOD),
        {},
    ],
    ids=["coco", "dagm", "flat", "empty"],
)
def test_is_not_recognised(tmp_path: Path, files: dict[str, str]) -> None:
    assert layout.categories(grow(tmp_path, files)) == []
    assert layout.categories(tmp_path / "missing") == []


def test_a_part_may_have_a_folder_of_its_views(tmp_path: Path) -> None:
    names = [
        f"lid/{kind}/p{part}/{view}.png" for kind in ("train/good", "test/good") for part in (1, 2) for view in "ab"
    ]
    names += ["lid/test/dent/p1/a.png", "lid/test/dent/p1/b.png"]
    files = dict.fromkeys(names, GOOD) | {"lid/ground_truth/dent/p1/b_mask.png": MASK}
    data = open_dataset("auto", grow(tmp_path, files))
    assert data.categories == ["lid"]
    assert {(f"lid/{sample.part}", sample.view) for sample in data.samples} == {
        tuple(name[:-4].rsplit("/", 1)) for name in names
    }, "p1 is another part in each folder"
    assert [(sample.part, sample.view, sample.masks[0].name) for sample in data.test if sample.masks] == [
        ("test/dent/p1", "b", "b_mask.png")
    ]
    assert len(data.train) == len(data.validation) == 2
