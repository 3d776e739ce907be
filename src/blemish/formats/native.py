"""Blemish's own format: one safetensors file with a JSON header, run by torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from blemish import headers
from blemish.artifact import Export, Header, Predictor, not_an_artifact, predictor
from blemish.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from blemish.detector import Detector

SUFFIX = ".blemish"
_KEY = "blemish"


def save(detector: "Detector", header: Header, path: Path, how: Export) -> None:
    """Writes weights, buffers and header to one file."""
    if how != Export():
        raise ConfigError(
            f"{path.name} keeps the detector as it is; --precision, --pictures, --calibration and --data are for "
            ".onnx and .xml."
        )
    from safetensors.torch import save_file

    state = {key: _least(value.detach().cpu().contiguous()) for key, value in detector.state_dict().items()}
    save_file(state, path, {_KEY: header.to_json()})


def load(path: Path, device: str) -> Predictor:
    """The detector in the file, run by torch."""
    header = read_header(path)
    detector = restore(path)
    from blemish.training import choose_device

    detector.to(choose_device(device))
    return predictor(detector, header)


def restore(path: Path) -> "Detector":
    """Builds the detector that the header names and fills it with the tensors of the file."""
    header = read_header(path)
    from safetensors.torch import load_file

    from blemish import detector as detectors

    kind = detectors.find(header.model)
    try:
        config = detectors.from_header(header.model, header.config)
        detector: Detector = kind(config, "random")
        detector.restore(load_file(path))
    except (RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise not_an_artifact(path) from error
    detector.fitted = header.fitted
    detector.train(mode=False)
    return detector


def read_header(path: Path) -> Header:
    """The header alone."""
    text = headers.read(path, _KEY)
    if text is None:
        raise not_an_artifact(path)
    return Header.from_json(text, path)


def _least(value: "Tensor") -> "Tensor":
    """The same numbers in half the bytes, where they fit."""
    if value.is_floating_point():
        for short in (value.bfloat16(), value.half()):
            if bool((short == value).all()):
                return short
    return value
