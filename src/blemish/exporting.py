"""Exporting: a detector as an ONNX graph, and the proof that an exported detector gives the same.

The graph takes images as a detector does, (B, 3, H, W) float32 in [0, 1] at the artifact's size, any
number of them. What comes before it (reading, the intensity rule, resizing) and after it
(thresholds, regions) is the same code for every format, so only the network can differ; and that
is measured each time one is written, by what will run it.
"""

import ast
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blemish import images
from blemish.artifact import Export, Predictor
from blemish.errors import ConfigError, ExportError
from blemish.images import Floats, Picture
from blemish.parity import Parity, RunPrecision
from blemish.types import Decider, Prediction, Preprocessing

if TYPE_CHECKING:
    from blemish.detector import Detector

INPUT, OUTPUTS = "image", ("anomaly_map", "image_score")
"""Names in the graph."""
BATCHES = (1, 2, 5)
"""Batch sizes of the proof."""
CALIBRATION = 300
"""Pictures that set the ranges of int8, at most."""
SAME = 1e-5
"""Scores are one and the same that differ by no more than this share: rounding in fp32."""
SHOWN = 40
"""Pictures of parts that prove less than fp32, at most, where they are not given for that alone."""
TOLERANCE: dict[RunPrecision, float] = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.3}
"""Differences that are accepted: as shares of the detector's own value, or of the threshold where that is larger."""


def to_onnx(detector: "Detector") -> bytes:
    """The detector as an ONNX model (IR of protobuf), for any number of images of its size.

    Raises:
        ExportError: the model does something that no graph can, or that fixes the batch size.
    """
    import onnxscript  # noqa: F401 - torch would say less clearly that it is missing
    import torch

    from blemish.detector import Detector, infer

    if not detector.is_one_graph:
        raise ExportError(
            f"{type(detector).__name__} works with whole artifacts, outside of any graph of tensors, so it can't be "
            "exported: keep the .blemish file. Its bases can be exports, for speed: blemish fit segad --base part.onnx."
        )
    if type(detector).look is not Detector.look:
        raise ExportError(
            f"{type(detector).__name__} looks at the views of a part together, which no exported graph does; "
            "expected a model that looks at each picture alone: keep the .blemish file."
        )
    height, width = detector.config.image_size
    example = np.zeros((2, 3, height, width), np.float32)
    detector = detector.to("cpu").train(mode=False)
    infer(detector, example)  # what is computed once and kept must not be part of the graph
    # Going through torch.export first says so where an operation fixes the batch size; the exporter
    # alone would silently write a graph for two images.
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own insides
            program = torch.export.export(
                detector, (torch.from_numpy(example),), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
            made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=OUTPUTS)
    except Exception as error:  # each kind of obstacle has its own kind of error
        first = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"{type(detector).__name__} can't be exported: {first[:300]}. Its forward must be a pure function of "
            "tensors for any number of images; see docs/extend.md."
        ) from error
    finally:
        quiet.setLevel(level)
    if made is None:
        raise ExportError(f"{type(detector).__name__} can't be exported: torch.onnx gave no graph.")
    proto = made.model_proto
    _name_by_modules(proto)
    model: bytes = proto.SerializeToString()
    return model


def _name_by_modules(model: Any) -> None:
    """Puts the module that each node comes from before its name, so that formats can treat parts of it apart."""
    for node in model.graph.node:
        about = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(about.get("pkg.torch.onnx.name_scopes", "[]"))  # from the whole to the operation
        node.name = "/".join([*filter(None, scopes[-2:-1]), node.name])


def prove(detector: "Detector", predictor: Predictor, precision: RunPrecision, how: Export) -> Parity:
    """How far an export is from its detector, on made pictures and those of parts, in batches of 1, 2 and 5.

    Made pictures, of odd sizes and depths, show whether the graph is right. They are unlike any part, and a
    detector says of them what it happens to: rounding moves that as it likes. So less than fp32 is held to its
    tolerance on pictures of parts.

    Args:
        detector: What was exported.
        predictor: The export.
        precision: What it computes in.
        how: Pictures of parts, and metrics to compare.

    Raises:
        ConfigError: no pictures of parts are given, and less than fp32 must be proven.
        ExportError: farther than the precision explains; the message says on which picture and where.
    """
    from blemish.detector import infer

    shown = _shown(precision, how)
    deciders = [predictor.decider(category) for category in predictor.categories]
    score_scale = min(abs(decider.reject.value) for decider in deciders)
    map_scale = min(abs(decider.pixel) for decider in deciders)
    tolerance = TOLERANCE[precision]
    batches: list[int] = []
    worst, unlike = [0.0, 0.0], [0.0, 0.0]
    flipped = 0
    for names, batch in _batches(predictor.preprocessing, shown):
        before = infer(detector, batch)
        after = _predicted(predictor, batch, before)
        apart = [
            _apart(one, other, scale) for one, other, scale in zip(before, after, (map_scale, score_scale), strict=True)
        ]
        if precision != "fp32":
            unlike = [max(pair) for pair in zip(unlike, _forgiven(apart, names), strict=True)]
        for what, values, one, other in zip(OUTPUTS, apart, before, after, strict=True):
            place = np.unravel_index(int(values.argmax()), values.shape)
            if not values[place] <= tolerance:
                raise ExportError(
                    f"the {precision} export differs: {what} of {names[place[0]]} (in a batch of {len(batch)}) is "
                    f"{other[place]:.6g} instead of {one[place]:.6g}"
                    + (f" at row {place[1]}, column {place[2]}" if len(place) > 1 else "")
                    + f", {values[place]:.2g} of itself or of the threshold where {tolerance:g} is accepted. Nothing "
                    "was written; try another --precision or format, and please report it."
                )
        worst = [max(known, float(values.max())) for known, values in zip(worst, apart, strict=True)]
        batches.append(len(batch))
        pairs = [(float(one), float(other)) for one, other in zip(before.image_score, after.image_score, strict=True)]
        flipped += sum(_is_flipped(each, *pair) for each in deciders for pair in pairs)
    pictures = sum(batches)
    return Parity(
        precision=precision,
        pictures=pictures,
        batches=tuple(sorted(set(batches))),
        map_difference=worst[0],
        score_difference=worst[1],
        decisions=pictures * len(deciders),
        flipped=flipped,
        tolerance=tolerance,
        made_differences=(unlike[0], unlike[1]),
        metrics=_measured(detector, predictor, how),
    )


def made_pictures(preprocessing: Preprocessing) -> dict[str, Picture]:
    """Pictures of odd sizes by name: soft fields, noise, hard edges, flat ones; 16 bit where there is a rule for it."""
    random = np.random.default_rng(0)
    rows, columns = preprocessing.image_size

    def soft(height: int, width: int) -> Picture:
        field = images.resize(random.random((7, 9, 3), np.float32), (height, width))
        return np.asarray(field * 255, np.uint8)

    def noise(height: int, width: int) -> Picture:
        return random.integers(0, 256, (height, width, 3), np.uint8)

    edges = soft(480, 640)
    edges[100:180, 200:420] = (230, 60, 40)
    pictures = {
        "640x480 with a patch": edges,
        "480x640 soft": soft(640, 480),
        "255x257 noise": noise(257, 255),
        "257x255 soft": soft(255, 257),
        "1x1 grey": np.full((1, 1), 128, np.uint8),
        "black": np.zeros((rows, columns, 3), np.uint8),
        "its own size, noise": noise(rows, columns),
    }
    rule = preprocessing.intensity
    if rule is not None:
        deep = rule.low + (rule.high - rule.low) * images.resize(random.random((5, 5, 3), np.float32), (300, 200))
        is_whole = rule.low >= 0 and 1 < rule.high < 2**16
        pictures["200x300 of more than 8 bit"] = deep.astype(np.uint16 if is_whole else np.float32)
    else:
        pictures["200x300 soft"] = soft(300, 200)
    return pictures


def _is_flipped(decider: Decider, before: float, after: float) -> bool:
    """Whether a decision comes out otherwise, and not because a threshold is the very score of a picture."""
    return decider.decide(before) != decider.decide(after) and not math.isclose(before, after, rel_tol=SAME)


def _forgiven(apart: Sequence[Floats], names: Sequence[str | Path]) -> list[float]:
    """The largest differences of maps and of scores on made pictures, of which only what is no number stays."""
    made = np.array([isinstance(name, str) for name in names])
    found = [float(values[made].max(initial=0)) for values in apart]
    for values in apart:
        values[np.isfinite(values) & made.reshape(-1, *[1] * (values.ndim - 1))] = 0
    return found


def _shown(precision: RunPrecision, how: Export) -> list[Path]:
    """The pictures of parts that prove it: those given for that or, of those for calibration, some."""
    if how.pictures or precision == "fp32":
        return list(how.pictures)
    if not how.calibration:
        raise ConfigError(
            f"{precision} must be proven on pictures of parts, and none were given; expected --pictures FOLDER, or "
            "--data DATA, whose held-out good pictures are taken."
        )
    return drawn(how.calibration, SHOWN)


def drawn(paths: Sequence[Path], most: int) -> list[Path]:
    """The paths, or where there are more than `most`, so many of them evenly drawn."""
    return [paths[number * len(paths) // most] for number in range(most)] if len(paths) > most else list(paths)


def _batches(preprocessing: Preprocessing, paths: Sequence[Path]) -> Iterator[tuple[list[str | Path], Floats]]:
    """The made pictures, by name, and those in files, ready for a detector, in batches of 1, 2 and 5."""
    made = made_pictures(preprocessing)
    sizes = cycle(BATCHES)
    names: list[str | Path] = []
    ready: list[Floats] = []
    size = next(sizes)
    named: list[str | Path] = [*made, *paths]
    for name in named:
        picture = images.read(name) if isinstance(name, Path) else made[name]
        names.append(name)
        ready.append(images.to_chw(picture, preprocessing, str(name)))
        if len(ready) == size:
            yield names, np.stack(ready)
            names, ready, size = [], [], next(sizes)
    if ready:
        yield names, np.stack(ready)


def calibrating(preprocessing: Preprocessing, how: Export) -> list[Floats]:
    """Good pictures, each a batch (1, 3, H, W), that show which values occur; evenly drawn where there are many.

    Raises:
        ConfigError: none was given.
        ImageError: one can't be read.
    """
    if not how.calibration:
        raise ConfigError(
            "--precision int8 must see which values occur in good pictures, and none were given; expected "
            "--calibration FOLDER with good pictures, or --data DATA, whose training pictures are taken."
        )
    chosen = drawn(how.calibration, CALIBRATION)
    return [images.to_chw(images.read(path), preprocessing, str(path))[None] for path in chosen]


def _measured(detector: "Detector", predictor: Predictor, how: Export) -> dict[str, tuple[float, float]]:
    """{metric: (of the detector, of its export)}."""
    from blemish.detector import infer

    if how.measure is None:
        return {}
    before = how.measure(Predictor(predictor.header, lambda batch: infer(detector, batch)))
    after = how.measure(predictor)
    return {name: (value, after[name]) for name, value in before.items() if name in after}


def _predicted(predictor: Predictor, batch: Floats, wanted: Prediction[Floats]) -> Prediction[Floats]:
    """What the export says of the batch, in the shapes that the detector gives.

    Raises:
        ExportError: it takes no such batch, or gives other shapes.
    """
    try:
        found = predictor.predict(batch)
    except Exception as error:  # each runtime has its own kind of error
        raise ExportError(f"the export does not take a batch of {len(batch)} images: {error}") from error
    for what, one, other in zip(OUTPUTS, wanted, found, strict=True):
        if one.shape != other.shape:
            raise ExportError(f"the export gives {what} of shape {other.shape}; expected {one.shape}.")
    return found


def _apart(one: Floats, other: Floats, scale: float) -> Floats:
    """Element by element, the difference as a share of the first, or of `scale` where that is larger; NaN: infinite."""
    least = max(scale, float(np.finfo(np.float32).tiny))
    share = np.abs(one.astype(np.float64) - other) / np.maximum(np.abs(one), least)
    return np.nan_to_num(share, nan=np.inf).astype(np.float32)
