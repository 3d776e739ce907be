from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import blemish
import textures
from blemish.dataset import Dataset
from blemish.errors import ConfigError, ImageError
from blemish.feature_cache import FeatureCache, Features, origin, parse_size, place
from blemish.reading import digest
from blemish.types import Failure, Intensity, Preprocessing

SMALL = Preprocessing((32, 48))
EACH = (5 * 8 * 12 + 7 * 4 * 6) * 4
"""Bytes of the features of a picture."""


class Counting:
    """A backbone that counts what it sees."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        draw = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(width, 3, side, side, generator=draw) for width, side in ((5, 4), (7, 8))]

    def __call__(self, images: np.ndarray) -> list[torch.Tensor]:
        self.calls.append(len(images))
        return [torch.conv2d(torch.from_numpy(images), weight, stride=weight.shape[-1]) for weight in self.weights]


@pytest.fixture
def data(tmp_path) -> Dataset:
    return blemish.open_dataset("auto", textures.write(tmp_path / "data", train=12, test=1))


def cache(folder: Path, budget: float = 1e9, **about: str) -> FeatureCache:
    return FeatureCache(folder, {"backbone": "one", "weights": "abc", **about}, int(budget))


def features(data: Dataset, see: Counting, kept: FeatureCache | None) -> Features:
    return Features(see, data.train, SMALL, 4, kept)


def gathered(made: Features) -> list[torch.Tensor]:
    failures: list[Failure] = []
    parts = list(made.gather(failures))
    assert not failures
    return [torch.cat(maps) for maps in zip(*parts, strict=True)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_kept_features_are_the_computed_ones_and_the_backbone_is_left_alone(data, tmp_path):
    see, plain = Counting(), Counting()
    expected = gathered(features(data, plain, None))
    kept = features(data, see, cache(tmp_path / "c"))
    same(gathered(kept), expected)
    assert sum(see.calls) == 12  # ten pictures, always four at a time
    for numbers in ([0, 3, 9, 1], [5], [2, 2]):
        same(kept.batch(numbers), [feature[numbers] for feature in expected])
        same(features(data, plain, None).batch(numbers), [feature[numbers] for feature in expected])
    assert sum(see.calls) == 12
    assert kept.batch([0, 1])[0].is_contiguous(memory_format=torch.channels_last)
    assert kept.cache.used == sum(file.stat().st_size for file in (tmp_path / "c").rglob("*.safetensors"))


def test_a_killed_run_goes_on_where_it_stopped(data, tmp_path):
    see = Counting()
    killed = features(data, see, cache(tmp_path / "c")).gather([])
    next(killed)
    killed.close()
    again = Counting()
    same(gathered(features(data, again, cache(tmp_path / "c"))), gathered(features(data, Counting(), None)))
    assert len(see.calls) == 1
    assert len(again.calls) == 2
    other = Counting()
    gathered(features(data, other, cache(tmp_path / "c")))
    assert not other.calls


def test_the_budget_is_kept_and_said_before(data, tmp_path):
    room = cache(tmp_path / "c", 3.9 * EACH)
    some = features(data, see := Counting(), room)
    assert "3 fit, and the others, 70%, go through the backbone each time" in some.sentence()
    same(gathered(some), gathered(features(data, Counting(), None)))
    assert len(list((tmp_path / "c").rglob("*.safetensors"))) == 3
    before = sum(see.calls)
    same(some.batch([0, 9]), features(data, Counting(), None).batch([0, 9]))
    assert sum(see.calls) > before
    assert "3 fit" in features(data, Counting(), cache(tmp_path / "c", 3.9 * EACH)).sentence()
    assert "all fit" in features(data, Counting(), cache(tmp_path / "d")).sentence()
    assert "3 are there already" in features(data, Counting(), cache(tmp_path / "c")).sentence()
    assert "each picture each time" in features(data, Counting(), None).sentence()


def test_damaged_features_are_computed_again(data, tmp_path):
    gathered(features(data, Counting(), cache(tmp_path / "c")))
    key = digest(data.train[2].path)
    damaged = tmp_path / "c" / key[:2] / f"{key}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    see = Counting()
    same(gathered(features(data, see, cache(tmp_path / "c"))), gathered(features(data, Counting(), None)))
    assert len(see.calls) == 1


def test_unreadable_pictures_are_named_and_left_out(data, tmp_path):
    data.train[1].path.write_bytes(b"no picture")
    data.train[4].path.unlink()
    failures: list[Failure] = []
    made = features(data, Counting(), cache(tmp_path / "c"))
    assert sum(len(part[0]) for part in made.gather(failures)) == 8 == len(made)
    assert {failure.path for failure in failures} == {data.train[1].path, data.train[4].path}
    made.samples[0].path.write_bytes(b"gone since")
    with pytest.raises(ImageError, match="not a picture"):
        features(data, Counting(), None).batch([0, 1])


def test_what_decides_features_is_in_the_hash():
    torch.manual_seed(0)
    network = nn.BatchNorm2d(3)
    base = origin(network, SMALL, {"backbone": "one"})
    network.running_mean[0] = 1  # a buffer, too
    weights = origin(network, SMALL, {"backbone": "one"})
    rule = origin(network, Preprocessing((32, 48), Intensity(0, 4095)), {"backbone": "one"})
    size = origin(network, Preprocessing((48, 32)), {"backbone": "one"})
    assert len({tuple(about.items()) for about in (base, weights, rule, size)}) == 4


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"backbone": "two"}, "backbone one there, two here"),
        ({"weights": "xyz"}, "weights abc there, xyz here"),
        ({"intensity": "0:4095"}, "intensity unknown there, 0:4095 here"),
    ],
)
def test_features_of_another_kind_are_refused_by_hash(tmp_path, about, said):
    first = cache(tmp_path / "c")
    assert cache(tmp_path / "c").hash == first.hash
    with pytest.raises(ConfigError, match=said) as raised:
        cache(tmp_path / "c", **about)
    assert first.hash in str(raised.value)
    assert "--feature-cache-dir" in str(raised.value)


def test_a_folder_that_nobody_named_is_begun_anew_by_another_training(data, tmp_path):
    about = {"backbone": "one"}
    gathered(features(data, Counting(), FeatureCache(tmp_path / "c", about, 10**9, own=True)))
    again = FeatureCache(tmp_path / "c", about, 10**9, own=True)
    assert again.has(digest(data.train[0].path))
    other = FeatureCache(tmp_path / "c", {"backbone": "two"}, 10**9, own=True)
    assert not other.has(digest(data.train[0].path))
    assert other.used == 0


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_folder_that_does_not_say_what_it_holds_is_refused(tmp_path, text):
    cache(tmp_path / "c")
    (tmp_path / "c/features.json").write_text(text)
    with pytest.raises(ConfigError, match="backbone unknown there, one here"):
        cache(tmp_path / "c")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and no feature cache"):
        cache(tmp_path)


@pytest.mark.parametrize("text", ["", "8 apples", "-1G", "G", "1e9"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="expected a size such as 8G"):
        parse_size(text)


def test_where_features_lie(tmp_path):
    with place(str(tmp_path / "own"), None) as folder:
        cache(folder)
    assert folder == tmp_path / "own"
    assert folder.exists()
    unfinished = tmp_path / "part.blemish.unfinished"
    with pytest.raises(KeyboardInterrupt), place("", unfinished) as folder:
        cache(folder)
        raise KeyboardInterrupt
    assert folder == tmp_path / "part.blemish.features"
    assert folder.exists()
    with place("", unfinished) as folder:
        pass
    assert not folder.exists()
    with place("", None) as folder:
        cache(folder)
    assert not folder.exists()
