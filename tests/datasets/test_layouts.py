"""What every dataset layout has to do, and what each finds in its own miniature trees."""

from pathlib import Path

import pytest

from blemish import registry
from blemish.dataset import Dataset, open_dataset, split_good
from blemish.reading import read_mask
from trees import TREES, Counts, Tree, grow

LAYOUTS = registry.names("datasets")


@pytest.fixture(params=TREES)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tree, Path]:
    tree = TREES[request.param]
    return tree, grow(tmp_path, tree.files) / tree.root


def counts(data: Dataset) -> Counts:
    bad = [sample for sample in data.test if sample.is_anomalous]
    on_disk = [sample for sample in data.samples if sample.is_anomalous is False]
    return Counts(
        train=sum(sample.split == "train" for sample in on_disk),
        good=sum(sample.split == "test" for sample in on_disk),
        bad=len(bad),
        masks=sum(bool(sample.masks) for sample in bad),
        validation=sum(sample.split == "validation" for sample in on_disk),
        unlabelled=sum(sample.is_anomalous is None for sample in data.test),
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_complete(name: str) -> None:
    layout = registry.load("datasets", name)
    assert layout.TITLE
    assert isinstance(layout.LEARNS_FROM, str)
    assert registry.describe("datasets", name)
    assert any(tree.layout == name for tree in TREES.values()), "a layout needs a tree in tests/trees.py"


def test_only_its_own_layout_recognises_a_tree(tree: tuple[Tree, Path]) -> None:
    own, root = tree
    matching = {name for name in LAYOUTS if registry.load("datasets", name).categories(root)}
    assert matching - {"folder"} == {own.layout} - {"folder"}
    assert matching >= {own.layout}


def test_auto_finds_every_picture(tree: tuple[Tree, Path]) -> None:
    own, root = tree
    data = open_dataset("auto", root)
    assert data.categories == sorted(own.categories)
    assert data.title == registry.load("datasets", own.layout).TITLE
    layout = registry.load("datasets", own.layout)
    split = split_good if getattr(layout, "SPLITS_GOOD", False) else list
    samples = [sample for name in data.categories for sample in split(layout.read(root, name))]
    plain = Dataset(data.title, root, tuple(samples))
    assert {name: counts(plain.of(name)) for name in data.categories} == own.categories


def test_samples_are_sorted_and_unique(tree: tuple[Tree, Path]) -> None:
    data = open_dataset("auto", tree[1])
    keys = [(sample.category, str(sample.path)) for sample in data.samples]
    assert keys == sorted(set(keys))


def test_masks_belong_to_their_pictures(tree: tuple[Tree, Path]) -> None:
    for sample in open_dataset("auto", tree[1]).samples:
        assert bool(sample.defect) == bool(sample.is_anomalous)
        if sample.masks:
            assert sample.is_anomalous
            assert all(sample.path.stem in str(mask) for mask in sample.masks)
            mask = read_mask(sample, (40, 56))
            assert mask is not None
            assert mask.sum() == 144


def test_one_category_alone_is_the_same(tree: tuple[Tree, Path]) -> None:
    own, root = tree
    everything = open_dataset("auto", root)
    for name in own.categories:
        assert open_dataset(own.layout, root, category=name).samples == everything.of(name).samples


def test_a_picture_is_held_out_where_the_layout_has_no_validation(tree: tuple[Tree, Path]) -> None:
    own, root = tree
    data = open_dataset("auto", root)
    for name, expected in own.categories.items():
        part = data.of(name)
        assert len(part.train) + len(part.validation) == expected.train + expected.validation
        assert part.validation
        assert part.train
    for name in data.categories:
        data.of(name).require_train()


# Each category's own folder can be opened as well.
@pytest.mark.parametrize("name", ["mvtec_ad", "btad", "visa", "mvtec_loco", "folder_of_categories"])
def test_category_folder_is_the_category(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = grow(tmp_path, TREES[name].files)
    for category in TREES[name].categories:
        expected = open_dataset("auto", root).of(category).samples
        assert open_dataset("auto", root / category).samples == expected
        monkeypatch.chdir(root / category)
        here = open_dataset("auto", ".")
        assert here.categories == [category]
        assert [sample.path.resolve() for sample in here.samples] == [sample.path.resolve() for sample in expected]
