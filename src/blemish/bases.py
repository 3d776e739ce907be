"""Bases: the detectors that a model on top looks through, what they say, and what one of them sees anyway."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from blemish import images
from blemish.artifact import Predictor
from blemish.images import Floats
from blemish.nn.peaks import Eye
from blemish.types import Prediction


@dataclass(frozen=True)
class Looked:
    """What there is to know of images (B, 3, H, W)."""

    found: list[Prediction[Floats]]
    """What each base says."""
    heat: Floats
    """(B, H, W) mean of the bases' maps, each scaled by its own good pictures."""
    patches: Floats | None
    """(B, D, h, w) features, where an eye looks, too."""


class Bases:
    """Detectors, and the eye that looks beside them."""

    def __init__(self, predictors: Sequence[Predictor], eye: Eye | None, size: tuple[int, int]) -> None:
        """Joins them.

        Args:
            predictors: One or more.
            eye: What sees patches; None where they are not wanted.
            size: Height and width of the images, and of `Looked.heat`.
        """
        self.predictors = list(predictors)
        self.eye = eye
        self.size = size
        self.shown = (
            None if eye is None else next((n for n, base in enumerate(predictors) if shows(base, eye, size)), None)
        )
        """The base that has run the eye's backbone anyway, by number; None: the eye looks itself."""

    def look(self, seen: Floats, parts: Sequence[Hashable]) -> Looked:
        """What there is to know of images (B, 3, H, W) in [0, 1], of which those with equal `parts` are of one part."""
        found, patches = [], None
        for number, base in enumerate(self.predictors):
            if number == self.shown and base.shown is not None and self.eye is not None:
                prediction, maps = base.shown.predict(seen)
                found.append(prediction)
                with torch.inference_mode():
                    patches = self.eye.patches(maps).cpu().numpy()
            else:
                found.append(base.predict_parts(seen, parts))
        if self.eye is not None and patches is None:
            device = next(self.eye.parameters()).device
            with torch.inference_mode():
                patches = self.eye(torch.from_numpy(seen).to(device)).cpu().numpy()
        return Looked(found, heat_of(found, self.predictors, self.size), patches)


def heat_of(found: Sequence[Prediction[Floats]], bases: Sequence[Predictor], size: tuple[int, int]) -> Floats:
    """The mean (B, H, W) of the maps of bases, each scaled by its own good pictures."""
    scaled = []
    for each, base in zip(found, bases, strict=True):
        low, high = base.decider().heat_span
        scaled.append([images.resize((one - low) / (high - low), size) for one in each.anomaly_map])
    return np.asarray(np.mean(scaled, axis=0), np.float32)


def shows(base: Predictor, eye: Eye, size: tuple[int, int]) -> bool:
    """Whether a base gives the very feature maps that the eye would see: same network, weights, strides and size."""
    if base.shown is None or base.preprocessing.image_size != size:
        return False
    own, there = eye.backbone.state_dict(), base.shown.backbone.state_dict()
    has_strides = set(eye.backbone.strides) <= set(base.shown.backbone.strides)
    return has_strides and all(name in there and torch.equal(there[name], value) for name, value in own.items())
