from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.dataset import open_dataset
from blemish.errors import ConfigError, DatasetError
from blemish.parts import Views, check_views, places_of_parts, whole_parts, with_views
from blemish.predictions import find_pictures
from blemish.reading import read_parts
from blemish.types import Failure, Preprocessing, Sample

PATTERN = r"(?P<part>.+)_C(?P<view>\d+)"


def sample(name: str, part: str = "", view: str = "", category: str = "lid") -> Sample:
    return Sample(path=Path(name), category=category, split="train", is_anomalous=False, part=part, view=view)


def test_views_are_in_their_own_order_and_categories_apart():
    samples = [
        sample("a", "p", "C10"),
        sample("b"),
        sample("c", "p", "C2"),
        sample("d", "p", "C1", "nut"),
        sample("e", "q", "C1"),
        sample("f"),
    ]
    assert list(places_of_parts(samples)) == [[2, 0], [1], [3], [4], [5]]
    assert list(whole_parts(samples, 3)) == [[2, 0, 1], [3, 4, 5]]
    assert list(whole_parts(samples, 1)) == [[2, 0], [1], [3], [4], [5]]
    assert list(places_of_parts([sample("a", "p", "²"), sample("b", "p", "1²")])) == [[1, 0]]


def test_a_pattern_joins_pictures():
    names = ["x/a_C1.png", "x/a_C2.png", "x/b_C1.png", "x/logo.png"]
    found = with_views([sample(name) for name in names], PATTERN)
    assert [(one.part, one.view) for one in found] == [("a", "1"), ("a", "2"), ("b", "1"), ("", "")]
    by_folder = with_views([sample("d/p1/top.png"), sample("d/p2/top.png")], r"(?P<part>[^/]+)/(?P<view>[^/]+)$")
    assert [(one.part, one.view) for one in by_folder] == [("p1", "top"), ("p2", "top")]


def test_a_pattern_that_fits_nothing_is_told_with_what_it_was_tried_on():
    with pytest.raises(DatasetError, match=r"fits none of 5 pictures; it was tried on 0.png, 1.png, 2.png, for"):
        with_views([sample(f"{number}.png") for number in range(5)], PATTERN)
    with pytest.raises(DatasetError, match=r"it was tried on 0/top.png, 1/top.png, 2/top.png, for"):
        with_views([sample(f"shots/{number}/top.png") for number in range(5)], PATTERN)


@pytest.mark.parametrize("pattern", ["(?P<part>.+)", "(?P<part>.+", "(.+)_C(.+)"])
def test_no_pattern(pattern):
    with pytest.raises(ConfigError, match="--view-pattern"):
        with_views([sample("a_C1.png")], pattern)


def test_missing_views_are_kept_dropped_or_refused():
    samples = [
        sample("a", "p", "1"),
        sample("b", "p", "2"),
        sample("c", "q", "2"),
        sample("d"),
        sample("e", "r", "1", "nut"),
    ]
    assert check_views(samples) == samples
    assert [one.path.name for one in check_views(samples, "drop")] == ["a", "b", "d", "e"]
    with pytest.raises(DatasetError, match="part q of lid has no view 1; expected all of 1, 2"):
        check_views(samples, "error")


def test_a_view_that_is_there_twice_is_refused():
    with pytest.raises(DatasetError, match=r'part p of lid has view "1" 2 times \(a, c\)'):
        check_views([sample("a", "p", "1"), sample("b", "p", "2"), sample("c", "p", "1")])


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for kind, parts in (("good", 10), ("bad", 2)):
        (tmp_path / kind).mkdir()
        for part in range(parts):
            for view in (1, 2, 3):
                picture = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(picture).save(tmp_path / kind / f"{kind}{part}_C{view}.png")
    return tmp_path


def test_a_part_is_never_torn_between_splits(folder):
    data = open_dataset("folder", folder, views=Views(PATTERN))
    splits = {}
    for one in data.samples:
        splits.setdefault(one.part, set()).add(one.split)
    assert len(splits) == 12
    assert all(len(own) == 1 for own in splits.values())
    assert [len(own) for own in (data.train, data.validation, data.test)] == [18, 6, 12]


def test_batches_hold_whole_parts_less_what_cannot_be_read(folder):
    broken = folder / "bad" / "bad0_C2.png"
    broken.write_bytes(broken.read_bytes()[:100])
    samples = open_dataset("folder", folder, views=Views(PATTERN)).samples
    shuffled = [samples[place] for place in np.random.default_rng(1).permutation(len(samples))]
    failures: list[Failure] = []
    batches = list(read_parts(shuffled, Preprocessing((32, 32)), 7, failures))
    assert [failure.path for failure in failures] == [broken]
    where = {}
    for number, batch in enumerate(batches):
        for one in batch.samples:
            where.setdefault(one.part, []).append((number, one.view))
    for part, found in where.items():
        assert len({number for number, _ in found}) == 1
        assert [view for _, view in found] == (["1", "3"] if part == "bad0" else ["1", "2", "3"])
    assert [len(batch.samples) for batch in batches].count(6) >= 5


def test_where_pictures_are_parts_batches_are_as_before(folder):
    samples = [replace(one, part="") for one in open_dataset("folder", folder).samples]
    batches = list(read_parts(samples, Preprocessing((32, 32)), 7, []))
    assert [len(batch.samples) for batch in batches] == [7] * 5 + [1]
    assert [one.path for batch in batches for one in batch.samples] == [one.path for one in samples]


def test_views_may_differ_in_size(folder):
    Image.new("RGB", (70, 50)).save(folder / "good" / "good0_C2.png")
    samples = [one for one in open_dataset("folder", folder, views=Views(PATTERN)).samples if one.part == "good0"]
    (batch,) = read_parts(samples, Preprocessing((32, 48)), 8, [])
    assert batch.images.shape == (3, 3, 32, 48)
    assert list(batch.sizes) == [(40, 40), (50, 70), (40, 40)]


def test_a_part_none_of_whose_views_can_be_read_is_named_view_by_view(folder):
    for view in (1, 2, 3):
        (folder / "bad" / f"bad0_C{view}.png").write_bytes(b"no picture")
    failures: list[Failure] = []
    samples = open_dataset("folder", folder, views=Views(PATTERN)).samples
    seen = {one.part for batch in read_parts(samples, Preprocessing((32, 32)), 8, failures) for one in batch.samples}
    assert "bad0" not in seen
    assert len(seen) == 11
    assert sorted(failure.path.name for failure in failures) == [f"bad0_C{view}.png" for view in (1, 2, 3)]


def test_a_pattern_joins_pictures_in_folders_of_parts(tmp_path):
    for name in ("p1/top", "p1/side", "p2/top"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    found = with_views([sample(str(path)) for path in find_pictures([tmp_path])], r"(?P<part>[^/]+)/(?P<view>[^/]+)$")
    assert [(one.part, one.view) for one in found] == [("p1", "side"), ("p1", "top"), ("p2", "top")]
