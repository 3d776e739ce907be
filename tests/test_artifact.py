import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import blemish
from blemish import artifact, images
from blemish.artifact import Header, Predictor, read_header
from blemish.errors import ArtifactError, ConfigError, ImageError, ShapeError
from blemish.headers import from_plain
from blemish.models.patchcore import PatchCoreConfig
from blemish.types import Calibration, Fitted, Intensity, Policy, Prediction, Preprocessing


def header(**changes: object) -> Header:
    """A header of a model that scores brightness, calibrated for two categories."""
    calibrations = {
        "cup": Calibration(tuple(np.linspace(0.1, 0.5, 9)), tuple(np.linspace(0.1, 0.5, 9))),
        "lid": Calibration(tuple(np.linspace(0.3, 0.7, 9)), tuple(np.linspace(0.3, 0.7, 9))),
    }
    preprocessing = Preprocessing((32, 48), Intensity(0, 4095))
    fitted = Fitted(preprocessing, calibrations, Policy(0.1, 0.2), ("0123456789abcdef",))
    values = {
        "model": "patchcore",
        "config": asdict(PatchCoreConfig(image_size=(32, 48))),
        "fitted": fitted,
        "versions": {"blemish": "0"},
    }
    return Header(**(values | changes))


def brightness(batch: np.ndarray) -> Prediction[np.ndarray]:
    grey = batch.mean(axis=1)
    return Prediction(grey, grey.max(axis=(1, 2)))


def test_header_survives_json():
    there = header()
    back = Header.from_json(there.to_json(), "x")
    assert back.fitted == there.fitted
    assert from_plain(PatchCoreConfig, back.config) == PatchCoreConfig(image_size=(32, 48))
    assert back.versions == there.versions


def test_configs_survive_json_with_everything_changed():
    config = PatchCoreConfig(image_size=(64, 96), strides=(8, 16), intensity=Intensity(1, 2.5), blur=0.0)
    assert from_plain(PatchCoreConfig, json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "[" * 99_999, '{"blemish_artifact": 1}', '{"blemish_artifact": 1, "model": "x", "y": 1}'],
)
def test_other_json_is_no_header(text):
    with pytest.raises(ArtifactError, match="is not an artifact"):
        Header.from_json(text, "x.blemish")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("fitted", "calibrations"), {}),
        (("fitted", "calibrations", "cup", "image_scores"), []),
        (("fitted", "preprocessing", "image_size"), [64, 64]),
        (("config", "image_size"), "abc"),
        (("config", "strides"), 5),
        (("config", "unheard_of"), 1),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, where, value):
    values = json.loads(header().to_json())
    inner = values
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    save_file({"x": np.zeros(3)}, tmp_path / "x.blemish", {"blemish": json.dumps(values)})
    with pytest.raises(ArtifactError, match="is not an artifact of Blemish, or is damaged"):
        blemish.load(tmp_path / "x.blemish")


def test_a_newer_version_is_named():
    newer = json.dumps(json.loads(header().to_json()) | {"blemish_artifact": artifact.VERSION + 1})
    with pytest.raises(ArtifactError, match="written by a newer Blemish.*pip install --upgrade blemish"):
        Header.from_json(newer, "x.blemish")


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file that is long enough", b"\x80\x04\x95pickle" * 10])
def test_files_that_are_no_artifacts(tmp_path, content):
    file = tmp_path / "x.blemish"
    file.write_bytes(content)
    for read in (blemish.load, read_header):
        with pytest.raises(ArtifactError, match="is not an artifact of Blemish, or is damaged"):
            read(file)


def test_safetensors_of_others_are_no_artifacts(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "x.blemish")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        blemish.load(tmp_path / "x.blemish")


def test_weights_that_do_not_fit_the_header_are_refused(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "x.blemish", {"blemish": header().to_json()})
    with pytest.raises(ArtifactError, match="is not an artifact|damaged"):
        blemish.load(tmp_path / "x.blemish")


def test_missing_files_and_unknown_suffixes(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        blemish.load(tmp_path / "x.blemish")
    (tmp_path / "x.pth").write_bytes(b"1")
    with pytest.raises(
        ArtifactError, match=r'ends in "\.pth"; expected the name of an artifact, ending in .*\.blemish'
    ):
        blemish.load(tmp_path / "x.pth")


def test_reading_a_header_brings_no_torch(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "x.blemish", {"blemish": header().to_json()})
    code = (
        "import sys; from blemish.artifact import read_header\n"
        f"read_header({str(tmp_path / 'x.blemish')!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_predict_takes_files_arrays_and_tensors(tmp_path):
    import torch

    predictor = Predictor(header(), brightness)
    pictures = [np.full((20, 30, 3), value, np.uint8) for value in (10, 200)]
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    batch = images.to_batch(pictures, predictor.preprocessing)
    expected = predictor.predict(batch)
    assert expected.anomaly_map.shape == (2, 32, 48)
    tensor = torch.from_numpy(batch)
    for given in (paths, [str(path) for path in paths], tensor, images.to_batch(pictures), batch[:, ::-1, ::-1]):
        np.testing.assert_allclose(predictor.predict(given).image_score, expected.image_score, rtol=1e-6)
    np.testing.assert_allclose(predictor.predict(tensor.bfloat16()).image_score, expected.image_score, rtol=0.01)
    assert predictor.predict(paths[1]).image_score == expected.image_score[1]
    many = predictor.predict([paths[0], paths[1]] * 5)
    np.testing.assert_array_equal(many.image_score, np.tile(expected.image_score, 5))
    with pytest.raises(ShapeError, match="at least one"):
        predictor.predict([])
    for given in (pictures, b"a.png", [Image.fromarray(pictures[0])], [paths[0], None]):
        with pytest.raises(ShapeError, match=r"pictures holds a .*to_batch"):
            predictor.predict(given)
    with pytest.raises(ImageError, match="can't be opened"):
        predictor.predict(tmp_path / "missing.png")


def test_deep_pictures_go_by_the_recorded_rule(tmp_path):
    Image.fromarray(np.full((20, 30), 2048, np.uint16)).save(tmp_path / "deep.png")
    score = Predictor(header(), brightness).predict(tmp_path / "deep.png").image_score
    assert score == pytest.approx(2048 / 4095)


def test_categories_have_their_own_thresholds_and_unknown_ones_the_pooled():
    predictor = Predictor(header(), brightness)
    assert predictor.categories == ["cup", "lid"]
    assert predictor.decider("cup").reject.value == pytest.approx(0.5)
    assert predictor.decider("lid").reject.value == pytest.approx(0.7)
    assert predictor.decider().reject.good_pictures == predictor.decider("jar").reject.good_pictures == 18
    assert predictor.decider("cup", Policy(0.5)).reject.value < predictor.decider("cup").reject.value


def test_saving_needs_a_known_suffix(tmp_path):
    with pytest.raises(ConfigError, match="expected the name of an artifact"):
        artifact.format_of(tmp_path / "x.zip")
