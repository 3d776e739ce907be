"""OpenVINO: an .xml with our header and a .bin beside it with the weights, run without torch."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from blemish import exporting
from blemish.artifact import Export, Header, Predictor, not_an_artifact
from blemish.errors import ArtifactError, ConfigError, ExportError
from blemish.parity import RunPrecision
from blemish.types import Prediction

if TYPE_CHECKING:
    from blemish.detector import Detector
    from blemish.images import Floats

SUFFIX = ".xml"
WEIGHTS = ".bin"
_HEADER, _DIGEST = ["blemish", "header"], ["blemish", "weights"]
_HINTS: dict[RunPrecision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
"""What is computed in → as OpenVINO calls it; products of 8 bit are in the graph itself."""
_HEAVY = {"Convolution", "GroupConvolution", "MatMul"}
"""Operations that int8 makes faster, as OpenVINO calls them."""
_RUN_HEAVY = {"Convolution", "MatMul", "FullyConnected"}
"""The same, as its CPUs call them."""
_LOG = logging.getLogger(__name__)


def save(detector: "Detector", header: Header, path: Path, how: Export) -> None:
    """Writes graph and weights, once OpenVINO gives what torch gives; the header knows the weights' digest."""
    import openvino

    graph = path.with_suffix(".onnx")
    graph.write_bytes(exporting.to_onnx(detector))
    model = openvino.convert_model(graph)
    graph.unlink()
    wanted = _fastest_first() if how.precision == "auto" else [how.precision]
    if wanted != ["fp32"]:  # whatever it is to compute in, the graph itself is right
        exporting.prove(detector, Predictor(header, _Network(model, "fp32", "cpu").run), "fp32", Export())
    for precision in wanted:
        if precision == "int8":
            model = _quantised(model, exporting.calibrating(header.fitted.preprocessing, how), detector.sensitive)
        openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
        network = _Network(openvino.Core().read_model(path), "fp32" if precision == "int8" else precision, "cpu")
        computed = network.computed()
        # Weights of 16 or 8 bit are what they are; but what was not computed in bf16 must not be called so.
        called = computed if precision == "bf16" else precision
        try:
            parity = exporting.prove(detector, Predictor(header, network.run, flow=network.flow), called, how)
            parity = replace(parity, computed=computed, products=network.products() if precision == "int8" else (0, 0))
            break
        except ExportError as error:
            if precision == wanted[-1]:
                raise
            _LOG.warning("%s Trying the next precision.", str(error).partition(" Nothing was written")[0])
    model = openvino.Core().read_model(path.read_bytes(), path.with_suffix(WEIGHTS).read_bytes())
    model.set_rt_info(replace(header, parity=parity).to_json(), _HEADER)
    model.set_rt_info(_digest(path), _DIGEST)
    openvino.serialize(model, path, path.with_suffix(WEIGHTS))


def load(path: Path, device: str) -> Predictor:
    """The graph in the file, run by OpenVINO in the precision that it was proven with."""
    model, header = _read(path)
    if header.parity is None or _info(model, _DIGEST) != _digest(path):
        raise ArtifactError(
            f"{path.with_suffix(WEIGHTS)} does not hold the weights of {path.name}, or is damaged (truncated?); "
            "expected the two files of one export: copy both again."
        )
    precision = header.parity.computed or header.parity.precision
    network = _Network(model, "fp32" if precision == "int8" else precision, device)
    return Predictor(header, network.run, flow=network.flow)


def read_header(path: Path) -> Header:
    """The header alone."""
    return _read(path)[1]


def _read(path: Path) -> tuple[Any, Header]:
    import openvino

    weights = path.with_suffix(WEIGHTS)
    if not weights.is_file():
        raise ArtifactError(f"{weights}: no such file; expected the weights of {path.name} beside it: copy both.")
    try:
        model = openvino.Core().read_model(path)
        text = _info(model, _HEADER)
    except RuntimeError as error:
        raise not_an_artifact(path) from error
    return model, Header.from_json(text, path)


class _Network:
    """A graph that OpenVINO runs: one batch at once by all threads, or several by some threads each."""

    def __init__(self, model: Any, precision: RunPrecision, device: str) -> None:
        """Compiles nothing yet.

        Args:
            model: The graph.
            precision: What to compute in, apart from products of 8 bit, which are in the graph.
            device: "auto", or what OpenVINO has.
        """
        import openvino

        core = openvino.Core()
        there = [name.lower() for name in core.available_devices]
        if device not in ("auto", *there):
            raise ConfigError(
                f'--device is "{device}", which OpenVINO has not here; expected auto, {", ".join(there)}.'
            )
        name = "CPU" if device == "auto" else device.upper()
        if precision not in _capabilities(core, name):
            _LOG.warning("%s has no units for %s here; it computes in fp32, nearer to the detector.", name, precision)
            precision = "fp32"
        hints = {"INFERENCE_PRECISION_HINT": _HINTS[precision]}
        if name == "CPU":
            hints["ENABLE_CPU_PINNING"] = "NO"  # threads that decode work on the same cores

        @cache  # compiled when it is first needed: who streams needs no network for single batches
        def compiled(hint: str) -> Any:
            return core.compile_model(model, name, {**hints, "PERFORMANCE_HINT": hint})

        self._compiled: Callable[[str], Any] = compiled
        self._alone = Lock()

    def run(self, batch: "Floats") -> Prediction["Floats"]:
        """The prediction of one batch, as soon as it can be."""
        with self._alone:  # calls share their memory, and each has all cores
            found = self._compiled("LATENCY")(batch, share_inputs=True)
            return Prediction(*(found[name].copy() for name in exporting.OUTPUTS))

    def computed(self) -> RunPrecision:
        """What it really computes in, whatever was asked for."""
        found = self._compiled("LATENCY").get_property("INFERENCE_PRECISION_HINT").to_string()
        return {hint: precision for precision, hint in _HINTS.items()}[found]

    def products(self) -> tuple[int, int]:
        """How many filters and products are really computed in 8 bit, and how many there are."""
        steps = [step.get_rt_info() for step in self._compiled("LATENCY").get_runtime_model().get_ops()]
        run = [step["runtimePrecision"].astype(str) for step in steps if step["layerType"].astype(str) in _RUN_HEAVY]
        return sum(each in ("u8", "i8") for each in run), len(run)

    def flow(self, batches: Iterable["Floats"]) -> Iterator[Prediction["Floats"]]:
        """The predictions of many batches, in order; the next ones are computed while the caller has one."""
        compiled = self._compiled("THROUGHPUT")
        # Twice as many as run at once, so that none of these waits for the caller.
        most = 2 * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        busy: deque[Any] = deque()
        try:
            for batch in batches:
                found = None
                if len(busy) < most:
                    request = compiled.create_infer_request()
                else:
                    request = busy.popleft()
                    found = _finished(request)
                request.start_async({exporting.INPUT: batch}, share_inputs=True)
                busy.append(request)
                if found is not None:
                    yield found
            while busy:
                yield _finished(busy.popleft())
        finally:
            for request in busy:  # the caller has left; their images must stay until they are through
                request.wait()


def _finished(request: Any) -> Prediction["Floats"]:
    """What a request found, copied: its memory is used again."""
    request.wait()
    return Prediction(*(request.get_tensor(name).data.copy() for name in exporting.OUTPUTS))


def _capabilities(core: Any, name: str) -> set[str]:
    """The precisions that a device has units for, as we call them; fp32 always works."""
    return {"fp32"} | {each.lower() for each in core.get_property(name, "OPTIMIZATION_CAPABILITIES")}


def _fastest_first() -> list[RunPrecision]:
    """What is worth trying on this CPU without calibration; fp16 only saves room on those we know."""
    import openvino

    return ["bf16", "fp32"] if "bf16" in _capabilities(openvino.Core(), "CPU") else ["fp32"]


def _quantised(model: Any, pictures: "list[Floats]", sensitive: Sequence[str]) -> Any:
    """The graph with weights and activations of 8 bit, their ranges as these pictures show them.

    Only products and filters of several channels: maps are left alone, which would else be cut off
    at the highest value of a good picture; and so are those of the sensitive modules.
    """
    try:
        import nncf
        from nncf.quantization.advanced_parameters import OverflowFix
    except ImportError as error:
        raise ConfigError('--precision int8 needs NNCF: pip install "blemish[export]"') from error
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function would mute handlers of others, too
    steps = model.get_ops()
    names = [each.get_friendly_name() for each in steps if _is_of_map(each) or _is_within(each, sensitive)]
    others = {each.get_type_name() for each in steps} - _HEAVY
    left_alone = nncf.IgnoredScope(names=names, types=sorted(others), validate=False)
    # CPUs without VNNI add pairs of products in 16 bit: with weights of 7 bit none is cut off, and all CPUs agree.
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE)
    return nncf.quantize(
        model,
        nncf.Dataset(pictures),
        subset_size=len(pictures),
        ignored_scope=left_alone,
        advanced_parameters=advanced,
    )


def _is_of_map(step: Any) -> bool:
    if step.get_type_name() != "Convolution":
        return False
    channels = step.get_input_partial_shape(0)[1]
    return bool(channels.is_static) and channels.get_length() == 1


def _is_within(step: Any, modules: Sequence[str]) -> bool:
    """Whether a filter or product belongs to one of these modules, by its name; see `exporting.to_onnx`."""
    name = step.get_friendly_name()
    return step.get_type_name() in _HEAVY and any(name.startswith((f"{each}.", f"{each}/")) for each in modules)


def _info(model: Any, place: list[str]) -> str:
    return str(model.get_rt_info(place).astype(str)) if model.has_rt_info(place) else ""


def _digest(path: Path) -> str:
    return hashlib.sha256(path.with_suffix(WEIGHTS).read_bytes()).hexdigest()
