"""Artifacts: a trained detector in a file, and the predictor that the file becomes.

An artifact format is one file in `formats/`. It is a module with

- `SUFFIX: str`, the ending of its files, for example ".blemish";
- `save(detector: Detector, header: Header, path: Path, how: Export) -> None`, which has the folder of
  `path` to itself: all files in it are moved into place afterwards. What is not run by torch itself
  is proven to give the same (`exporting.prove`), and the proof goes into the header;
- `load(path: Path, device: str) -> Predictor`;
- `read_header(path: Path) -> Header`, which imports no torch;
- `restore(path: Path) -> Detector`, where the artifact can be turned into other formats.

Every format carries the same header, so that a predictor decides alike whatever runs it.
"""

import dataclasses
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import numpy as np

from blemish import images, registry
from blemish.errors import ArtifactError, ConfigError, ImageError, ShapeError, count_of
from blemish.files import replacing_together
from blemish.headers import from_plain, versions
from blemish.images import Floats, check_batch
from blemish.parity import AskedPrecision, Parity
from blemish.parts import part_of
from blemish.types import Batch, Calibration, Decider, Failure, Fitted, Policy, Prediction, Preprocessing, pool

if TYPE_CHECKING:
    from torch import Tensor

    from blemish.detector import Detector
    from blemish.nn.backbone import Backbone

VERSION = 1
"""Raised when an older Blemish could not understand a new artifact any more."""
BATCH = 4
"""Files that are predicted together: few, because large temporaries cost more than they save on a CPU."""
Run = Callable[[Floats], Prediction[Floats]]
Look = Callable[[Floats, Sequence[Hashable]], Prediction[Floats]]
Flow = Callable[[Iterable[Floats]], Iterator[Prediction[Floats]]]
Explain = Callable[[Floats, Sequence[Hashable]], list[str]]
Show = Callable[[Floats], tuple[Prediction[Floats], Mapping[int, "Tensor"]]]


@dataclass(frozen=True)
class Header:
    """What an artifact says of itself."""

    model: str
    """The model's name."""
    config: Mapping[str, Any]
    """The model's configuration, as plain values."""
    fitted: Fitted
    """Preprocessing, calibrations, policy, and what was learned from."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """What it was made with."""
    source: str = ""
    """SHA-256 of the artifact that this one was exported from, if it was."""
    parity: Parity | None = None
    """How near an exported artifact is to its detector."""

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"blemish_artifact": VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str, path: Path) -> "Header":
        """The header in `text`, read from `path`.

        Raises:
            ArtifactError: it is not one, or one of a newer Blemish.
        """
        try:
            values = json.loads(text)
            number = int(values.pop("blemish_artifact"))
            if number > VERSION:
                raise ArtifactError(
                    f"{path} was written by a newer Blemish (artifact version {number}; this one reads up to "
                    f"{VERSION}): pip install --upgrade blemish"
                )
            header = from_plain(cls, values)
            height, width = header.config["image_size"]
            if (height, width) != header.fitted.preprocessing.image_size:
                raise ValueError("two sizes")
            return header
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise not_an_artifact(path) from error


@dataclass(frozen=True)
class Shown:
    """What a detector sees of images on its way to a prediction, for a model on top of it."""

    backbone: "Backbone"
    """What gives the feature maps."""
    predict: Show
    """As `Predictor.predict_parts` of images of the artifact's size, and the feature maps by stride."""


@dataclass(frozen=True)
class Export:
    """How a detector is turned into something that runs without torch."""

    precision: AskedPrecision = "fp32"
    """What the exported network computes in."""
    pictures: tuple[Path, ...] = ()
    """Pictures of parts that prove that it gives the same, beside the made ones; less than fp32 needs some."""
    calibration: tuple[Path, ...] = ()
    """Pictures of good parts that show int8 which values occur."""
    measure: "Callable[[Predictor], Mapping[str, float]] | None" = None
    """Gives metrics of a predictor, of which those of detector and export are kept."""


class Predictor:
    """A trained detector at work: the same interface whatever file it came from."""

    def __init__(
        self,
        header: Header,
        run: Run,
        look: Look | None = None,
        flow: Flow | None = None,
        explain: Explain | None = None,
        shown: Shown | None = None,
    ) -> None:
        """Joins a header and what computes.

        Args:
            header: The artifact's.
            run: Gives the prediction for images (B, 3, H, W) float32 in [0, 1] of the artifact's size.
            look: The same where it is said what part each shows; for models that look at views together.
            flow: The same as `run` for many batches, in order, several at a time; where that is faster.
            explain: Says what decided on images; for models that know.
            shown: What it sees, too; for models that torch runs and that show it.
        """
        self.header = header
        self._run = run
        self._look = look
        self._flow = flow
        self._explain = explain
        self.shown = shown

    @property
    def preprocessing(self) -> Preprocessing:
        """What pictures go through before they are judged."""
        return self.header.fitted.preprocessing

    @property
    def categories(self) -> list[str]:
        """The categories that it was calibrated for."""
        return sorted(self.header.fitted.calibrations)

    @property
    def policy(self) -> Policy:
        """The false-reject rate asked for when it was made."""
        return self.header.fitted.policy

    def predict(self, pictures: "Floats | Any | str | Path | Sequence[str | Path]") -> Prediction[Floats]:
        """How abnormal the pictures are, and where: higher = more abnormal.

        Args:
            pictures: Files (one or several); or images (B, 3, H, W) float32 RGB in [0, 1], as NumPy
                array or torch tensor, as `blemish.images.to_batch` makes them of pictures in memory.
                Images of another size are brought to the artifact's.

        Returns:
            Prediction with `anomaly_map` (B, H, W) at the artifact's size and `image_score` (B,).

        Raises:
            ShapeError: neither of these.
            ImageError: a file can't be read as a picture.
        """
        if isinstance(pictures, str | Path):
            pictures = [pictures]
        if not isinstance(pictures, Sequence):
            return self._run(check_batch(pictures, self.preprocessing.image_size))
        if not pictures:
            raise ShapeError("pictures is empty; expected at least one file or image.")
        for one in pictures:
            if not isinstance(one, str | Path):
                raise ShapeError(
                    f"pictures holds a {type(one).__name__}; expected names of files, or images (B, 3, H, W). Convert "
                    "pictures in memory with blemish.images.to_batch(pictures, predictor.preprocessing)."
                )
        read = [self._predict_files(pictures[at : at + BATCH]) for at in range(0, len(pictures), BATCH)]
        anomaly_map, image_score = (np.concatenate(parts) for parts in zip(*read, strict=True))
        return Prediction(anomaly_map, image_score)

    def predict_parts(self, images: Floats, parts: Sequence[Hashable]) -> Prediction[Floats]:
        """How abnormal images are, and where, of which those with equal `parts` are views of one part.

        Args:
            images: (B, 3, H, W) float32 RGB in [0, 1], all views of each part.
            parts: What part each shows.

        Raises:
            ShapeError: no such images, or not a part for each.
        """
        batch = check_batch(images, self.preprocessing.image_size)
        if len(parts) != len(batch):
            raise ShapeError(
                f"there are {count_of(len(batch), 'image')} and {len(parts)} names of parts; expected one for each."
            )
        return self._run(batch) if self._look is None else self._look(batch, parts)

    def stream(self, batches: Iterable[Batch], failures: list[Failure]) -> Iterator[tuple[Batch, Prediction[Floats]]]:
        """Each batch with its prediction, in order; what computes may be some batches ahead of the caller.

        Args:
            batches: As `blemish.reading.read_parts` makes them with this predictor's preprocessing.
            failures: Grows by the pictures that lack what belongs to them, such as a label map.
        """
        if self._flow is None:
            for batch in batches:
                yield from self._predicted(batch, failures)
            return
        begun: deque[Batch] = deque()

        def images_of() -> Iterator[Floats]:
            for batch in batches:
                begun.append(batch)
                yield batch.images

        for prediction in self._flow(images_of()):
            yield begun.popleft(), prediction

    def explain(self, images: Floats, parts: Sequence[Hashable]) -> list[str]:
        """What decided on each of these images, in a few words; empty where the model can't say.

        Args:
            images: As `predict_parts` takes them.
            parts: What part each shows.
        """
        batch = check_batch(images, self.preprocessing.image_size)
        return [""] * len(batch) if self._explain is None else self._explain(batch, parts)

    def _predict_files(self, paths: Sequence[str | Path]) -> Prediction[Floats]:
        read = np.stack([images.to_chw(images.read(path), self.preprocessing, str(path)) for path in paths])
        # As `parts.part_of` names pictures; the number keeps files that are given twice apart.
        return self.predict_parts(read, [(str(place), "", str(path)) for place, path in enumerate(paths)])

    def _predicted(self, batch: Batch, failures: list[Failure]) -> list[tuple[Batch, Prediction[Floats]]]:
        """The batch with its prediction; in several pieces where a picture lacks what belongs to it."""
        try:
            return [(batch, self.predict_parts(batch.images, [part_of(sample) for sample in batch.samples]))]
        except ImageError as error:
            if len(batch.samples) == 1:
                failures.append(Failure(batch.samples[0].path, str(error)))
                return []
        alone = [
            Batch(batch.images[place : place + 1], [sample], [batch.sizes[place]])
            for place, sample in enumerate(batch.samples)
        ]
        return [found for one in alone for found in self._predicted(one, failures)]

    @cached_property
    def _pooled(self) -> Calibration:
        return pool(self.header.fitted.calibrations.values())

    def decider(self, category: str | None = None, policy: Policy | None = None) -> Decider:
        """What turns scores into decisions.

        Args:
            category: Whose calibration to take; that of all categories together when it is None or
                one that the artifact was not calibrated for.
            policy: Another false-reject rate than the one asked for when the artifact was made.
        """
        calibration = self.header.fitted.calibrations.get(category or "", self._pooled)
        return Decider(calibration, policy or self.policy)


class Format(Protocol):
    """What a module in `formats/` defines; see above."""

    SUFFIX: str

    def save(self, detector: "Detector", header: Header, path: Path, how: Export) -> None:
        """Writes the artifact."""

    def load(self, path: Path, device: str) -> Predictor:
        """Reads the artifact, ready to run."""

    def read_header(self, path: Path) -> Header:
        """Reads what the artifact says of itself."""


def save(detector: "Detector", path: str | os.PathLike[str], how: Export | None = None) -> None:
    """Writes a trained detector to a file, whole or not at all; the suffix names the format.

    Raises:
        ConfigError: the detector has learned nothing yet, or no format has that suffix.
        ExportError: the file would not give what the detector gives.
        OutputError: the file can't be written.
    """
    _write(detector, header_of(detector), Path(path), how)


def header_of(detector: "Detector") -> Header:
    """What an artifact of this detector says of itself.

    Raises:
        ConfigError: the detector has learned nothing yet.
    """
    if detector.fitted is None:
        raise ConfigError("this detector has learned nothing yet; call its fit(data) before saving it.")
    return Header(
        model=type(detector).__module__.rpartition(".")[2],
        config=dataclasses.asdict(detector.config),
        fitted=detector.fitted,
        versions=versions(),
    )


def predictor(detector: "Detector", header: Header | None = None) -> Predictor:
    """The predictor that a trained detector is, run by torch; its header is made if not given."""
    from blemish.detector import explain, infer, show

    backbone = detector.shown_backbone
    return Predictor(
        header or header_of(detector),
        lambda batch: infer(detector, batch),
        lambda batch, parts: infer(detector, batch, parts),
        explain=lambda batch, parts: explain(detector, batch, parts),
        shown=None if backbone is None else Shown(backbone, lambda batch: show(detector, batch)),
    )


def export(source: str | os.PathLike[str], target: str | os.PathLike[str], how: Export | None = None) -> Header:
    """The header of `target`, an artifact in another format that is made of `source`.

    Raises:
        ArtifactError: no such file, not an artifact, or itself an export.
        ConfigError: no format has that suffix, or it has no such precision.
        ExportError: the new artifact would not give what the detector gives.
        OutputError: the file can't be written.
    """
    source, target = Path(source), Path(target)
    restore = getattr(_existing(source), "restore", None)
    if restore is None:
        raise ArtifactError(f"{source} is an export itself; expected the artifact that it was made of (.blemish).")
    format_of(target)
    header = replace(read_header(source), source=hashlib.sha256(source.read_bytes()).hexdigest())
    _write(restore(source), header, target, how)
    return read_header(target)


def _write(detector: "Detector", header: Header, path: Path, how: Export | None) -> None:
    form = format_of(path)
    with replacing_together(path) as temporary:
        form.save(detector, header, temporary, how or Export())


def load(path: str | os.PathLike[str], *, device: str = "auto") -> Predictor:
    """The predictor in an artifact of any format.

    Args:
        path: The file; nothing in it is executed or unpickled.
        device: "auto", "cpu", "cuda", …; where the format leaves the choice.

    Raises:
        ArtifactError: no such file, not an artifact, truncated, or of a newer version.
        ConfigError: the device is not to be had.
    """
    path = Path(path)
    return _existing(path).load(path, device)


def read_header(path: str | os.PathLike[str]) -> Header:
    """What an artifact says of itself; quick, and without torch.

    Raises:
        ArtifactError: no such file, not an artifact, truncated, or of a newer version.
    """
    path = Path(path)
    return _existing(path).read_header(path)


def deciding(path: str | os.PathLike[str]) -> Predictor:
    """A predictor made of an artifact's header alone: it knows thresholds, but can't predict.

    Raises:
        ArtifactError: no such file, not an artifact, truncated, or of a newer version.
    """

    def refuse(_: object) -> NoReturn:
        raise ConfigError("a header alone can't predict; use blemish.load.")

    return Predictor(read_header(path), refuse)


def format_of(path: Path) -> Format:
    """The format whose suffix `path` has.

    Raises:
        ConfigError: there is none.
    """
    formats = [cast(Format, registry.load("formats", name)) for name in registry.names("formats")]
    for candidate in formats:
        if path.suffix == candidate.SUFFIX:
            return candidate
    known = ", ".join(sorted(candidate.SUFFIX for candidate in formats))
    raise ConfigError(f'{path} ends in "{path.suffix}"; expected the name of an artifact, ending in {known}.')


def not_an_artifact(path: Path) -> ArtifactError:
    """The error for a file that is something else, or damaged."""
    return ArtifactError(
        f"{path} is not an artifact of Blemish, or is damaged (truncated?); expected a file written by "
        "blemish fit or blemish.save: copy it again, or make it anew."
    )


def _existing(path: Path) -> Format:
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; expected an artifact made by blemish fit.")
    try:
        return format_of(path)
    except ConfigError as error:
        raise ArtifactError(str(error)) from error
