"""Streaming against exact on maps made from real masks, however badly scaled."""

import numpy as np
import pytest

from blemish.metric import Options
from blemish.metric import evaluation as evaluation_module
from metrics.cases import DATA, evaluation, likely_maps, real_masks

CATEGORIES = ("mvtec_bottle", "magnetic_tile", "wood_surface", "deeppcb_77000")
SCALES = {
    "plain": lambda x: x,
    "heavy tails": lambda x: np.exp(6 * x),
    "heavy tails on both sides": lambda x: x**5,
    "saturated softmax": lambda x: 1 / (1 + np.exp(-12 * (x + 1))),
    "saturated at 100": lambda x: 100 / (1 + np.exp(-12 * (x + 1))),
    "saturated at 0": lambda x: 1 / (1 + np.exp(-20 * (x - 1))),
    "tiny range": lambda x: 0.5 + 1e-3 * x,
    "tinier range": lambda x: 0.7 + 1e-5 * x,
    "tiny values": lambda x: 1e-6 * (x + 5),
    "clipped": lambda x: np.clip(x, -0.5, 0.8) * 0.37 + 0.4,
    "8 bits": lambda x: np.round(255 / (1 + np.exp(-x))),
    "all equal": lambda x: 0 * x + 0.3,
}


@pytest.fixture(scope="module")
def real():
    if not DATA.is_dir():
        pytest.skip("../shared/data, real pictures beside the project, is absent")
    masks = {name: real_masks(name, 40) for name in CATEGORIES}
    return {name: (likely_maps(found), found) for name, found in masks.items()}


@pytest.mark.parametrize("index", range(len(SCALES)), ids=list(SCALES))
def test_agrees_with_exact(real, index):
    scale = list(SCALES)[index]
    maps, masks = real[CATEGORIES[index % len(CATEGORIES)]]
    scaled = SCALES[scale](maps.astype(np.float64)).astype(np.float32)
    exact, streaming = (evaluation(scaled, masks, mode) for mode in ("exact", "streaming"))
    for protocol in ("default", "ader", "adeval"):
        expected, found = (each.compute(Options(protocol=protocol)) for each in (exact, streaming))
        assert found.metrics["part"] == pytest.approx(expected.metrics["part"], abs=1e-4), protocol
        assert found.undefined == expected.undefined
        if protocol == "default" and scale != "all equal":
            assert not found.undefined["part"]
    largest = max(state.normal.spread.keys.size for state in streaming._states.values())
    assert largest <= evaluation_module.CELLS


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category(real, category):
    maps, masks = real[category]
    exact, streaming = (evaluation(maps, masks, mode).compute() for mode in ("exact", "streaming"))
    assert 0.5 < exact.mean["pixel_auroc"] < 1
    assert streaming.mean == pytest.approx(exact.mean, abs=1e-4)
    assert (exact.mode, streaming.mode) == ("exact", "streaming")
    assert "streaming" in streaming.notes[0]
