"""Bases: what one of them sees anyway is what the eye would see, to the last digit."""

from pathlib import Path

import numpy as np
import pytest
import torch

import blemish
import textures
from blemish import artifact
from blemish.bases import Bases, shows
from blemish.nn.peaks import Eye

SIZE = (64, 64)
BACKBONE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return textures.write(tmp_path_factory.mktemp("cloth"), train=8)


@pytest.fixture(scope="module")
def eye() -> Eye:
    return Eye(BACKBONE, "default").eval()


def base(root: Path, backbone_weights: str = "default", **changes) -> artifact.Predictor:
    detector = blemish.create(
        "patchcore", preset="tiny", config=changes, backbone_weights=backbone_weights, device="cpu"
    )
    return artifact.predictor(detector.fit(blemish.open_dataset("auto", root)))


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, *SIZE)).astype(np.float32)


def test_the_backbone_of_a_base_is_run_once(root, eye, monkeypatch):
    bases = Bases([base(root, strides=(8, 16)), base(root)], eye, SIZE)
    assert bases.shown == 1
    apart = Bases(bases.predictors, eye, SIZE)
    apart.shown = None
    expected = apart.look(images(), range(3))
    monkeypatch.setattr(eye.backbone, "forward", None)
    found = bases.look(images(), range(3))
    np.testing.assert_array_equal(found.patches, expected.patches)
    np.testing.assert_array_equal(found.heat, expected.heat)
    for one, other in zip(found.found, expected.found, strict=True):
        np.testing.assert_array_equal(one.image_score, other.image_score)
        np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)


def test_more_strides_and_views_of_one_part_are_no_hindrance(root, eye):
    assert shows(base(root, strides=(4, 8, 16, 32)), eye, SIZE)
    found = Bases([base(root, strides=(4, 8, 16, 32))], eye, SIZE).look(images(2), ["part", "part"])
    with torch.inference_mode():
        np.testing.assert_array_equal(found.patches, eye(torch.from_numpy(images(2))).numpy())


@pytest.mark.parametrize(
    "changes",
    [{"strides": (8, 16)}, {"image_size": (96, 64)}, {"weights": "bfloat16"}, {"backbone_weights": "random"}],
)
def test_a_base_that_sees_otherwise_is_not_asked(root, eye, changes):
    assert not shows(base(root, **changes), eye, SIZE)


def test_an_export_is_not_asked(root, eye, tmp_path):
    detector = blemish.create("patchcore", preset="tiny", device="cpu").fit(blemish.open_dataset("auto", root))
    blemish.save(detector, tmp_path / "a.onnx")
    exported = blemish.load(tmp_path / "a.onnx", device="cpu")
    bases = Bases([exported], eye, SIZE)
    assert bases.shown is None
    with torch.inference_mode():
        np.testing.assert_array_equal(bases.look(images(), range(3)).patches, eye(torch.from_numpy(images())).numpy())
    assert Bases([artifact.predictor(detector)], None, SIZE).look(images(), range(3)).patches is None
