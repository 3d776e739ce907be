"""Blemish finds defects in pictures of manufactured parts.

It learns from good pictures what good looks like, then says of a new picture how abnormal it is
and where:

    import blemish

    data = blemish.open_dataset("auto", "parts/bottle")
    detector = blemish.create("patchcore").fit(data)
    blemish.save(detector, "bottle.blemish")
    predictor = blemish.load("bottle.blemish")
    prediction = predictor.predict(["new.png"])     # anomaly_map (B, H, W), image_score (B,)
    report = blemish.score(predictor, data)

The names below are imported when they are first used, so that `import blemish` stays quick.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from blemish.artifact import Predictor, load, save
    from blemish.dataset import Dataset, open_dataset
    from blemish.detector import Detector, create
    from blemish.errors import BlemishError
    from blemish.scoring import score
    from blemish.types import Calibration, Policy, Prediction, Sample

__all__ = [
    "BlemishError",
    "Calibration",
    "Dataset",
    "Detector",
    "Policy",
    "Prediction",
    "Predictor",
    "Sample",
    "create",
    "load",
    "open_dataset",
    "save",
    "score",
]

_HOME = {
    "artifact": ("Predictor", "load", "save"),
    "dataset": ("Dataset", "open_dataset"),
    "detector": ("Detector", "create"),
    "errors": ("BlemishError",),
    "scoring": ("score",),
    "types": ("Calibration", "Policy", "Prediction", "Sample"),
}
_MODULE_OF = {name: f"blemish.{module}" for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"blemish.{name}") is not None:
        return importlib.import_module(f"blemish.{name}")  # so that blemish.images is there without an import
    raise AttributeError(f"module 'blemish' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
