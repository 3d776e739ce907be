import numpy as np
import pytest
import torch

import textures
from blemish import cli, images, open_dataset
from blemish.errors import ConfigError, DatasetError
from blemish.images import GAP
from blemish.synthesis.perlin import Recipe
from blemish.synthesis.pictures import DamageConfig, Group, Pictures, mirrored, read_groups
from blemish.synthesis.preview import sheet
from blemish.synthesis.sources import parse
from blemish.types import Preprocessing


def pictures(*counts: int, balance: bool = False) -> Pictures:
    draw = np.random.default_rng(0)
    groups = [
        Group(name, draw.integers(0, 256, (count, 32, 40, 3), dtype=np.uint8), np.ones((count, 32, 40), bool))
        for name, count in zip("abc", counts, strict=False)
    ]
    return Pictures(groups, [Recipe(sources=parse("procedural,cutpaste"))] * len(counts), balance=balance)


def test_an_epoch_shows_each_picture_once():
    some = pictures(7, 5)
    numbers = torch.cat([some.batch(number, 4, 0).number for number in range(6)])
    assert sorted(numbers[:12].tolist()) == sorted(numbers[12:].tolist()) == list(range(12))
    assert numbers[:12].tolist() != numbers[12:].tolist()


def test_fewer_pictures_than_a_batch_fill_it_again_and_again():
    batch = pictures(3).batch(0, 8, 0)
    assert batch.damaged.shape == (8, 32, 40, 3)
    assert batch.mask.shape == (8, 1, 32, 40)
    assert sorted(batch.number[:3].tolist()) == [0, 1, 2]


def test_items_do_not_depend_on_the_batch_size():
    whole, halves = pictures(6).batch(0, 8, 0), [pictures(6).batch(number, 4, 0) for number in range(2)]
    for one, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(one, torch.cat([first, second]))


def test_purposes_and_epochs_have_their_own_anomalies():
    some = pictures(1)
    made = [some.batch(0, 1, 0, 0.0), some.batch(1, 1, 0, 0.0), some.batch(0, 1, 1, 0.0)]
    assert len({batch.mask.numpy().tobytes() for batch in made}) == 3
    assert all(torch.equal(batch.clean, made[0].clean) for batch in made)


def test_balanced_epochs_show_each_category_equally_often():
    some = pictures(10, 2, balance=True)
    numbers = torch.cat([some.batch(number, 12, 0).number for number in range(10)])
    assert (numbers < 10).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.cat(list(some.clean(4))).shape == (12, 32, 40, 3)


def test_pictures_are_read_once_and_exactly(tmp_path):
    data = open_dataset("auto", textures.write(tmp_path, train=4, test=1))
    (group,) = read_groups(data.train, Preprocessing(textures.SIZE), "auto", [])
    np.testing.assert_array_equal(group.pictures[0], images.read(data.train[0].path))
    with pytest.raises(DatasetError, match="none of the good pictures can be read"):
        Pictures([], [])


def test_the_sheet_shows_what_is_taught(tmp_path, capsys):
    root = textures.write(tmp_path, train=4, test=1)
    out = tmp_path / "sheet.png"
    assert cli.run(["synthesize", "preview", str(root), "--out", str(out), "--count", "9", "--image-size", "48"]) == 0
    assert f"Written: {out}" in capsys.readouterr().out
    assert images.read(out).shape == (2 * 2 * (48 + GAP), 8 * (48 + GAP), 3)
    groups = read_groups(open_dataset("auto", root).train, Preprocessing((48, 48)), "auto", [])
    assert sheet(groups, DamageConfig(sources="self"), count=2).shape == (2 * (48 + GAP), 2 * (48 + GAP), 3)
    with pytest.raises(ConfigError, match="--count is 0"):
        sheet(groups, DamageConfig(sources="self"), count=0)


def test_some_are_spread_over_all_categories():
    made = pictures(6, 2)
    every = [*made.groups[0].pictures, *made.groups[1].pictures]
    assert [next(n for n, one in enumerate(every) if (one == other).all()) for other in made.some(3).numpy()] == [
        0, 4, 7,
    ]  # fmt: skip
    assert len(made.some(100)) == 8


def test_mirror_images_come_after_the_pictures_with_their_foregrounds():
    group = pictures(3).groups[0]
    group.foregrounds[1, 5, 7] = False
    four = mirrored(group)
    assert four.pictures.shape == (12, 32, 40, 3)
    for number, axes in enumerate([(), (1,), (0,), (0, 1)]):
        assert (four.pictures[3 * number + 1] == np.flip(group.pictures[1], axes)).all()
        assert (four.foregrounds[3 * number + 1] == np.flip(group.foregrounds[1], axes)).all()
