"""Detectors and the artifacts made of them, for all formats."""

import pytest

import blemish
import textures

MODELS = {
    "patchcore": {},
    "realnet": {"steps": 4, "evaluations": 1},
    "invad": {"steps": 4},
    "tocoad": {"steps": 4, "fuse": 0.5, "select": "last"},
}


@pytest.fixture(scope="session")
def cloth(tmp_path_factory):
    return textures.write(tmp_path_factory.mktemp("cloth"))


@pytest.fixture(scope="session")
def fitted(cloth):
    """Each model, fitted when it is first asked for."""
    data, known = blemish.open_dataset("auto", cloth), {}

    def get(model):
        if model not in known:
            known[model] = blemish.create(model, preset="tiny", config=MODELS[model], device="cpu").fit(data)
        return known[model]

    return get


@pytest.fixture(scope="session")
def exported(fitted, tmp_path_factory):
    """The file of each model in each format, made when it is first asked for."""
    folder, known = tmp_path_factory.mktemp("exported"), {}

    def get(model, suffix):
        if (model, suffix) not in known:
            known[model, suffix] = folder / suffix[1:] / f"{model}{suffix}"
            blemish.save(fitted(model), known[model, suffix])
        return known[model, suffix]

    return get
