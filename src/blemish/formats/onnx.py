"""ONNX: one .onnx file with our header in its metadata, run by ONNX Runtime without torch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from blemish import exporting
from blemish.artifact import Export, Header, Predictor, Run, not_an_artifact
from blemish.errors import ArtifactError, ConfigError
from blemish.types import Prediction

if TYPE_CHECKING:
    from blemish.detector import Detector
    from blemish.images import Floats

SUFFIX = ".onnx"
_KEY = "blemish"
_METADATA = 14  # the field of onnx.ModelProto; its entries have a key (1) and a value (2)


def save(detector: "Detector", header: Header, path: Path, how: Export) -> None:
    """Writes graph, weights and header to one file, once ONNX Runtime gives what torch gives."""
    if how.precision not in ("fp32", "auto"):
        raise ConfigError(f'--precision is "{how.precision}"; expected fp32 for .onnx, or a name that ends in .xml.')
    model = exporting.to_onnx(detector)
    parity = exporting.prove(detector, Predictor(header, _runner(model, "cpu")), "fp32", how)
    text = replace(header, parity=parity).to_json().encode()
    entry = _field(1, _KEY.encode()) + _field(2, text)
    path.write_bytes(model + _field(_METADATA, entry))


def load(path: Path, device: str) -> Predictor:
    """The graph in the file, run by ONNX Runtime."""
    header = read_header(path)
    return Predictor(header, _runner(path, device))


def read_header(path: Path) -> Header:
    """The header alone; the weights are passed over."""
    found: dict[bytes, bytes] = {}
    try:
        with path.open("rb") as file:
            for field, start, size in _fields(file, path.stat().st_size):
                if field == _METADATA:
                    entry = dict(_parts(file, start, size))
                    found[entry[1]] = entry[2]
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror}).") from error
    except (KeyError, ValueError) as error:
        raise not_an_artifact(path) from error
    if _KEY.encode() not in found:
        raise not_an_artifact(path)
    return Header.from_json(found[_KEY.encode()].decode("utf-8", "replace"), path)


def _runner(model: bytes | Path, device: str) -> Run:
    import onnxruntime

    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    there = [name for name, provider in wanted.items() if provider in onnxruntime.get_available_providers()]
    if device not in ("auto", *there):
        raise ConfigError(
            f'--device is "{device}", which ONNX Runtime has not here; expected auto, {", ".join(there)}.'
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = [wanted[name] for name in reversed(there) if device in ("auto", name)]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # its errors have no common parent
        if isinstance(model, Path):
            raise not_an_artifact(model) from error
        raise

    def run(batch: "Floats") -> Prediction["Floats"]:
        return Prediction(*session.run(exporting.OUTPUTS, {exporting.INPUT: batch}))

    return run


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, size) of each field of a protobuf message up to `end`, where it has a size.

    Raises:
        ValueError: it is no such message, or cut off.
    """
    while file.tell() < end:
        key = _number(file)
        kind = key & 7
        if kind == 0:
            _number(file)
            continue
        size = {1: 8, 5: 4}[kind] if kind in (1, 5) else _number(file) if kind == 2 else -1
        start = file.tell()
        if size < 0 or start + size > end:
            raise ValueError("cut off")
        if kind == 2:
            yield key >> 3, start, size
        file.seek(start + size)


def _parts(file: BinaryIO, start: int, size: int) -> Iterator[tuple[int, bytes]]:
    file.seek(start)
    for field, inner, length in _fields(file, start + size):
        file.seek(inner)
        yield field, file.read(length)


def _number(file: BinaryIO) -> int:
    """The next number: seven bits a byte, the lowest first, the eighth set in all but the last."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("no number")


def _field(number: int, content: bytes) -> bytes:
    """A field with a size, as protobuf writes it."""
    return _written(number << 3 | 2) + _written(len(content)) + content


def _written(value: int) -> bytes:
    digits = bytearray()
    while value >= 128:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
