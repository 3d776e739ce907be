"""KolektorSDD and KolektorSDD2, beyond what every layout has to do."""

from pathlib import Path

from blemish.dataset import open_dataset
from blemish.datasets import kolektor as layout
from trees import BAD, BLANK, GOOD, MASK, TREES, grow


def test_a_black_mask_means_good(tmp_path: Path) -> None:
    data = open_dataset("auto", grow(tmp_path, TREES["kolektor_sdd"].files))
    bad = [sample for sample in data.samples if sample.is_anomalous]
    assert [f"{sample.path.parent.name}/{sample.path.name}" for sample in bad] == ["kos01/Part5.jpg", "kos03/Part5.jpg"]
    assert all(sample.split == "test" for sample in bad)
    assert not any("label" in sample.path.name for sample in data.samples)


def test_defective_training_pictures_are_kept_but_not_learned_from(tmp_path: Path) -> None:
    data = open_dataset("auto", grow(tmp_path, TREES["kolektor_sdd2"].files))
    bad = [sample for sample in data.samples if sample.split == "train" and sample.is_anomalous]
    assert [sample.path.name for sample in bad] == ["10009.png"]
    assert bad[0].masks


def test_a_damaged_mask_leaves_its_picture_unlabelled(tmp_path: Path) -> None:
    grow(tmp_path, TREES["kolektor_sdd"].files)
    damaged = tmp_path / "KolektorSDD" / "kos02" / "Part1_label.bmp"
    damaged.write_bytes(b"BM")
    data = open_dataset("auto", tmp_path)
    unknown = [sample for sample in data.samples if sample.is_anomalous is None]
    assert [sample.path.name for sample in unknown] == ["Part1.jpg"]
    assert unknown[0].split == "test"
    assert unknown[0].masks == (damaged,)


def test_pictures_without_masks_beside_them_are_not_recognised(tmp_path: Path) -> None:
    grow(tmp_path, {"a/train/1.png": GOOD, "a/test/1.png": BAD, "b/kos/1.jpg": GOOD, "b/kos/1_label.bmp": BLANK})
    assert layout.categories(tmp_path / "a") == []
    assert layout.categories(tmp_path / "b") == []
    grow(tmp_path, {"a/test/1_GT.png": MASK})
    assert layout.categories(tmp_path / "a") == ["a"]
