"""The parts that benchmarks/multiview.py renders, and the attention it compares with."""

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import blemish
from blemish.nn.mvad import Selecting, Selector, others_of

FILE = Path(__file__).parents[1] / "benchmarks" / "multiview.py"
SIZE = 64


@pytest.fixture(scope="module")
def multiview():
    spec = importlib.util.spec_from_file_location("multiview", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["multiview"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["multiview"]


def shots(multiview, number, kind):
    part = multiview.make_part(3, number, kind)
    return [multiview.render(part, view, SIZE, np.random.default_rng([3, number, view])) for view in range(5)]


@pytest.mark.parametrize(("kind", "seen"), [("scratch", {1, 2}), ("dent", {1}), ("panel", {1}), ("film", {1})])
def test_a_defect_changes_the_views_that_see_it_and_nothing_else(multiview, kind, seen):
    for number in range(6):
        good, bad = shots(multiview, number, ""), shots(multiview, number, kind)
        changed = []
        for view, ((before, nothing), (after, mask)) in enumerate(zip(good, bad, strict=True)):
            assert not nothing.any()
            difference = np.abs(before.astype(int) - after).max(axis=2) > 2
            assert not (difference & (cv2.dilate(mask, np.ones((5, 5), np.uint8)) == 0)).any()
            if mask.any():
                assert difference.any()
                changed.append(view)
        assert len(changed) in seen


def test_parts_depend_on_seed_and_number_alone(multiview, tmp_path):
    multiview.write_parts(tmp_path / "a", 3, 4, SIZE)
    multiview.write_parts(tmp_path / "b", 3, 8, SIZE)
    for name in ("0000/C1.png", "0003/C5.png"):
        assert (tmp_path / "a/parts" / name).read_bytes() == (tmp_path / "b/parts" / name).read_bytes()
    data = blemish.open_dataset("manifest", tmp_path / "a")
    assert {len([one for one in data.samples if one.part == part]) for part in {one.part for one in data.samples}} == {
        5
    }
    assert len(data.train) + len(data.validation) == 4 * 5
    defective = {sample.part for sample in data.test if sample.is_anomalous}
    assert len(defective) == 4
    assert len({sample.part for sample in data.test}) == 8
    assert all(sample.masks for sample in data.test if sample.is_anomalous)
    assert any(sample.part in defective and not sample.is_anomalous for sample in data.test)


@pytest.mark.parametrize("is_plain", [True, False])
def test_all_tokens_is_what_choosing_all_windows_is(multiview, monkeypatch, is_plain):
    feature = torch.randn(5, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    others = others_of("aaaaa")
    chosen = Selector(Selecting(top=10**6))
    expected = chosen(feature, chosen.cut(feature), others)
    for name in ("cut", "forward"):
        monkeypatch.setattr(Selector, name, getattr(Selector, name))  # is put back afterwards
    multiview.look_at_all_tokens(is_plain=is_plain)
    every = Selector(Selecting())
    torch.testing.assert_close(every(feature, every.cut(feature), others), expected)
