import numpy as np
import pytest
from safetensors import safe_open

import blemish
import textures
from blemish.detector import infer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return blemish.open_dataset("auto", textures.write(tmp_path_factory.mktemp("cloth")))


@pytest.mark.parametrize("model", ["patchcore", "realnet"])
def test_half_precision_halves_the_file_and_loses_nothing_after_the_thresholds_are_set(data, tmp_path, model):
    changes = {"steps": 2, "evaluations": 1} if model == "realnet" else {}
    batch = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    sizes, scores = [], []
    for weights in ("float32", "bfloat16"):
        detector = blemish.create(model, preset="tiny", config={"weights": weights, **changes}, device="cpu").fit(data)
        file = tmp_path / f"{weights}.blemish"
        blemish.save(detector, file)
        before, after = infer(detector, batch), blemish.load(file).predict(batch)
        np.testing.assert_array_equal(after.anomaly_map, before.anomaly_map)
        np.testing.assert_array_equal(after.image_score, before.image_score)
        sizes.append(file.stat().st_size)
        scores.append(after.image_score)
    assert sizes[1] < 0.6 * sizes[0]
    assert (scores[0] != scores[1]).any()
    np.testing.assert_allclose(*scores, rtol=0.1)
    with safe_open(tmp_path / "bfloat16.blemish", "pt") as file:
        wide = [name for name in file.keys() if file.get_slice(name).get_dtype() == "F32"]  # noqa: SIM118 - no mapping
        assert all(sum(side > 1 for side in file.get_slice(name).get_shape()) <= 1 for name in wide)
