"""Diffusion models that have learned nothing, for what does not depend on it."""

from dataclasses import replace

import torch

from blemish.synthesis.sampling import Drawing
from blemish.synthesis.sdas import PRESETS, DiffusionModel, Known

CONFIG = replace(PRESETS["tiny"], image_size=(16, 16), precision="float32")


def untrained(*categories: str, grey: tuple[str, ...] = (), classifier: bool = False) -> DiffusionModel:
    """A network with random weights everywhere, so that its output is not 0."""
    torch.manual_seed(0)
    model = DiffusionModel(Known(CONFIG, categories, grey, has_classifier=classifier)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def exact(**fields: object) -> Drawing:
    """A drawing in float32, whose results don't depend on what is computed beside them."""
    return Drawing(precision="float32", **fields)
