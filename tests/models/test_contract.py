"""What every model must do. A new model is tested by existing."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import blemish
import textures
from blemish import registry
from blemish.artifact import Predictor
from blemish.dataset import Dataset
from blemish.detector import Detector, infer
from blemish.errors import ConfigError, DatasetError, ShapeError

# SegAD can't be fitted without a base and defects; tests/models/test_segad.py holds it to the same.
pytestmark = pytest.mark.parametrize("model", sorted({*registry.names("models")} - {"segad"}))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return blemish.open_dataset("auto", textures.write(tmp_path_factory.mktemp("cloth")))


@cache
def fitted(model: str, data: Dataset) -> Detector:
    return fit(model, data)


def fit(model: str, data: Dataset) -> Detector:
    return blemish.create(model, preset="tiny", device="cpu").fit(data)


@cache
def saved(model: str, data: Dataset, folder: Path) -> Predictor:
    blemish.save(fitted(model, data), folder / f"{model}.blemish")
    return blemish.load(folder / f"{model}.blemish", device="cpu")


@pytest.fixture
def predictor(model: str, data: Dataset) -> Predictor:
    return saved(model, data, data.root)


@pytest.fixture
def batch(predictor: Predictor, data: Dataset) -> np.ndarray:
    from blemish.reading import read_image

    return np.stack([read_image(sample.path, predictor.preprocessing)[0] for sample in data.test[:5]])


def test_finds_painted_blobs(predictor, data, model):
    report = blemish.score(predictor, data)
    assert report.results.metrics["cloth"]["image_auroc"] == 1.0
    assert report.results.metrics["cloth"]["pixel_auroc"] > 0.95
    assert report.results.metrics["cloth"]["miss_rate"] == 0


def test_the_same_seed_gives_the_same_map(data, batch, model):
    one, other = infer(fitted(model, data), batch), infer(fit(model, data), batch)
    np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
    np.testing.assert_array_equal(one.image_score, other.image_score)


def test_alone_is_as_in_a_batch(predictor, batch, model):
    together = predictor.predict(batch)
    for number in range(len(batch)):
        alone = predictor.predict(batch[number : number + 1])
        np.testing.assert_allclose(alone.anomaly_map[0], together.anomaly_map[number], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(alone.image_score[0], together.image_score[number], rtol=1e-4, atol=1e-5)


def test_what_was_saved_is_what_was_trained(predictor, data, batch, model):
    before, after = infer(fitted(model, data), batch), predictor.predict(batch)
    np.testing.assert_array_equal(before.anomaly_map, after.anomaly_map)
    np.testing.assert_array_equal(before.image_score, after.image_score)
    assert predictor.header.fitted == fitted(model, data).fitted
    assert predictor.header.model == model


def test_shapes_types_and_sign(predictor, batch, model):
    prediction = predictor.predict(batch)
    assert prediction.anomaly_map.shape == (len(batch), *predictor.preprocessing.image_size)
    assert prediction.image_score.shape == (len(batch),)
    assert prediction.anomaly_map.dtype == prediction.image_score.dtype == np.float32
    assert np.isfinite(prediction.anomaly_map).all()


def test_forward_is_pure(data, batch, model):
    detector = fitted(model, data)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    image = torch.from_numpy(batch)
    with torch.inference_mode():
        one, other = detector(image), detector(image)
    torch.testing.assert_close(one.anomaly_map, other.anomaly_map, rtol=0, atol=0)
    for name, value in detector.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("size", [(64, 96), (65, 79), (32, 32)])
def test_any_image_size_works(data, model, size):
    detector = blemish.create(model, preset="tiny", config={"image_size": size}, device="cpu")
    blemish_map = infer(detector.fit(data), np.zeros((1, 3, *size), np.float32)).anomaly_map
    assert blemish_map.shape == (1, *size)


def test_arrays_may_be_turned_round(predictor, batch):
    turned = predictor.predict(batch[:, ::-1, :, ::-1].copy())
    assert np.array_equal(predictor.predict(batch[:, ::-1, :, ::-1]).image_score, turned.image_score)


def test_several_categories_make_one_model_and_are_calibrated_apart(tmp_path, model):
    for category in ("cloth", "linen"):
        textures.write(tmp_path, category, train=8, test=2)
    data = blemish.open_dataset("auto", tmp_path)
    detector = fit(model, data)
    assert detector.fitted is not None
    assert sorted(detector.fitted.calibrations) == ["cloth", "linen"]
    assert all(len(calibration.image_scores) == 2 for calibration in detector.fitted.calibrations.values())
    assert len(detector.fitted.learned_from) == 12


def test_unreadable_training_pictures_are_named_and_left_out(tmp_path, model):
    root = textures.write(tmp_path, train=8)
    broken = root / "cloth/train/good/003.png"
    broken.write_bytes(broken.read_bytes()[:200])
    detector = fit(model, blemish.open_dataset("auto", root))
    assert [failure.path.name for failure in detector.failures] == ["003.png"]
    assert "003.png" in detector.failures[0].reason


def test_nothing_to_learn_from_is_said(tmp_path, model):
    root = textures.write(tmp_path, train=0)
    with pytest.raises(DatasetError, match="train"):
        fit(model, blemish.open_dataset("auto", root))


def test_presets_and_options(model):
    from blemish import detector

    kind = detector.find(model)
    assert {"paper", "small", "tiny"} <= set(kind.presets)
    with pytest.raises(ConfigError, match="no preset of"):
        blemish.create(model, preset="smal")
    with pytest.raises(ConfigError, match='Did you mean "image_size"'):
        blemish.create(model, config={"image_sise": (64, 64)})


def test_paper_preset_builds(model):
    detector = blemish.create(model, preset="paper", backbone_weights="random", device="cpu")
    assert sum(parameter.numel() for parameter in detector.parameters()) > 1e6


def test_saving_before_learning_is_refused(model, tmp_path):
    detector = blemish.create(model, preset="tiny", backbone_weights="random")
    with pytest.raises(ConfigError, match="learned nothing yet"):
        blemish.save(detector, tmp_path / "x.blemish")


def test_wrong_input_is_one_sentence(predictor, batch, model):
    for wrong in (batch[0], (batch * 255).astype(np.uint8), batch * 255, batch[:, :1], batch * np.nan):
        with pytest.raises(ShapeError, match="expected"):
            predictor.predict(wrong)
