import numpy as np
import pytest
from safetensors import safe_open

import blemish
import textures
from blemish.detector import infer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return blemish.open_dataset("auto", textures.write(tmp_path_factory.mktemp("cloth")))


@pytest.mark.parametrize(
    ("model", "changes", "tolerance"),
    [("patchcore", {}, 0.05), ("realnet", {"steps": 2, "evaluations": 1}, 0.5)],  # what is trained parts soon
)
def test_half_precision_halves_the_file_and_loses_nothing_on_the_way(data, tmp_path, model, changes, tolerance):
    batch = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    sizes, scores = [], []
    for weights in ("float32", "bfloat16", "float16"):
        detector = blemish.create(model, preset="tiny", config={"weights": weights, **changes}, device="cpu").fit(data)
        file = tmp_path / f"{weights}.blemish"
        blemish.save(detector, file)
        before, after = infer(detector, batch), blemish.load(file).predict(batch)
        np.testing.assert_array_equal(after.anomaly_map, before.anomaly_map)
        np.testing.assert_array_equal(after.image_score, before.image_score)
        sizes.append(file.stat().st_size)
        scores.append(after.image_score)
    for size, score, kind in zip(sizes[1:], scores[1:], ("BF16", "F16"), strict=True):
        assert size < 0.6 * sizes[0]
        assert (score != scores[0]).any()
        np.testing.assert_allclose(score, scores[0], rtol=tolerance)
        with safe_open(tmp_path / f"{kind.lower().replace('f', 'float')}.blemish", "pt") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 - no mapping
        assert kind in {part.get_dtype() for part in slices}
        wide = [part.get_shape() for part in slices if part.get_dtype() == "F32"]
        assert all(sum(side > 1 for side in shape) <= 1 for shape in wide)
