"""fit MODEL DATA --out part.blemish: learn from good pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from blemish import distributed, options, registry
from blemish.command import DataOptions, report_failures, say
from blemish.errors import ConfigError, count_of
from blemish.types import Decider, Policy

if TYPE_CHECKING:
    from blemish.dataset import Dataset
    from blemish.detector import Detector
    from blemish.types import Failure, LabelGain


TOGETHER = True


@dataclass(frozen=True)
class FitOptions:
    """What to make."""

    out: Path
    """The artifact to write, ending in .blemish."""
    preset: str = "small"
    """Named configuration of the model that the options below start from."""
    defects: Path | None = None
    """Folder of defective pictures. Models other than segad get a SegAD on top that learns from them; what is better
    is written."""
    verdicts: str = ""
    """Record of blemish serve (file or URL): of the pictures in the folder --defects, those called defective in it are
    learned from as such, and those called good as further good ones."""
    max_false_reject: float = 0.01
    """Share of good parts that may be called defective, at most: 0.005 is 5 in 1000."""
    max_review: float | None = None
    """Share of good parts that may be rejected or sent to a person, at most: opens a grey zone."""
    top_views: int = 1
    """A part's score is the mean of so many of its views' scores, the highest; 1 is the maximum."""
    backbone_weights: str = "default"
    """default (embedded, or downloaded for other backbones), random, or a file."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class LabelOptions:
    """How defects are learned from, where --defects names some."""

    components: str = "none"
    """How pictures fall into components: none, foreground, cluster:K, static:FILE or folder:DIR."""
    out_of_fold: int = 3
    """Times that the model is fitted anew without some of its pictures, so that SegAD learns from maps of them, too."""
    masks: bool = True
    """Learn from the masks of the labelled defects, too, where there are any (in ground_truth beside them, say)."""
    keep: Literal["auto", "with", "without"] = "auto"
    """Write what was learned with the labels, without them, or (auto) with them if cross-validation says they help."""


@dataclass(frozen=True)
class Fit:
    """Learn from good pictures. Each model has options of its own: blemish fit patchcore --help."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """The model, which comes before everything else; see: blemish list models."""
    data: DataOptions
    fit: FitOptions

    def __call__(self) -> int:
        """Learns, calibrates, saves, and says what comes next; several processes learn together."""
        if self.fit.defects is not None and distributed.asked():
            raise ConfigError(
                "--defects is learned from by one process; fit on good pictures with torchrun, and then segad on top "
                "without it."
            )
        with distributed.joined(self.fit.device):
            return self._fit()

    def _fit(self) -> int:
        from blemish import artifact, detector
        from blemish.files import check_writable

        config, out = getattr(self, "config", None), self.fit.out
        if config is None:
            raise ConfigError(f"the model comes first: blemish fit {self.model} DATA --out {out}.")
        policy = self._policy
        artifact.format_of(out)
        check_writable(out)
        data = self.data.open(seed=config.seed)
        data = self._with_labels(data)
        data.require_train()
        learner = detector.create(
            self.model, config=config, backbone_weights=self.fit.backbone_weights, device=self.fit.device
        )
        labels: LabelOptions | None = getattr(self, "labels", None)
        if self.fit.defects is not None and labels is not None:
            failures = self._fit_with_labels(learner, data, labels)
        else:
            learner.unfinished = out.with_name(f"{out.name}.unfinished")
            learner.fit(data, policy)
            if not distributed.is_first():
                return 0
            artifact.save(learner, out)
            learner.unfinished.unlink(missing_ok=True)
            failures = learner.failures
            if learner.fitted:
                self._say_gain(learner.fitted.gain, learner.fitted.remarks)
        for category, calibration in artifact.read_header(out).fitted.calibrations.items():
            for sentence in Decider(calibration, policy).of_parts().sentences():
                say(f"{category}: {sentence}")
        say(f"Written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
        say(f"Next: blemish {self._next(data)}")
        return report_failures(failures)

    @property
    def _policy(self) -> Policy:
        return Policy(self.fit.max_false_reject, self.fit.max_review, self.fit.top_views)

    def _with_labels(self, data: "Dataset") -> "Dataset":
        """The data with labelled pictures to learn from, if there are any."""
        from blemish.defects import with_defects, with_verdicts

        folder, record = self.fit.defects, self.fit.verdicts
        if record and folder is None:
            raise ConfigError("--verdicts says what pictures show, and --defects DIR where they are: give both.")
        if folder is None:
            return data
        if not record:
            return with_defects(data, folder)
        from blemish.server.record import Record

        if "://" not in record and not Path(record).is_file():
            raise ConfigError(f"--verdicts {record}: no such file; expected the record of blemish serve.")
        opened = Record(record)
        try:
            found = with_verdicts(data, folder, opened.verdicts())
        finally:
            opened.close()
        say(
            "Labelled by people: "
            f"{count_of(len(found.train_defects) - len(data.train_defects), 'more defective picture')}."
        )
        return found

    def _fit_with_labels(self, learner: "Detector", data: "Dataset", labels: LabelOptions) -> "list[Failure]":
        """Fits the model and SegAD, writes what is better, and says why; gives pictures that could not be used."""
        from blemish import detector, labelled

        made = labelled.fit(
            learner,
            data,
            self._policy,
            self.fit.out,
            components=labels.components,
            out_of_fold=labels.out_of_fold,
            masks=labels.masks,
            keep=labels.keep,
            preset=self.fit.preset if self.fit.preset in detector.find("segad").presets else "small",
            weights=self.fit.backbone_weights,
        )
        self._say_gain(made.gain, made.remarks)
        uses = "uses the labels" if made.is_supervised else "is the model without labels"
        say(f"What is written {uses}{'' if labels.keep == 'auto' else ', as asked for'} (--keep {labels.keep}).")
        return made.failures

    def _say_gain(self, gain: "LabelGain | None", remarks: Sequence[str]) -> None:
        for remark in remarks:
            say(remark)
        if gain is not None:
            from blemish.label_gain import sentences

            say("\n".join(sentences(gain)))

    def _next(self, data: "Dataset") -> str:
        if any(sample.is_anomalous is not None for sample in data.test):
            return f"score {self.fit.out} {self.data.data} --html report.html"
        return f"predict {self.fit.out} NEW_PICTURES --out-dir found"


def COMMAND(words: Sequence[str]) -> type[Fit]:  # noqa: N802 - its name in every command
    """The command with the options of the model that is named first, and with those of all models if none is."""
    if not words or words[0].startswith("-"):
        return Fit
    from blemish import detector

    preset = detector.preset_of(detector.find(words[0]), words[0], options.value_of("--preset", words) or "small")
    own: list[tuple[str, Any, Any]] = [("config", type(preset), field(default=preset))]
    if not detector.find(words[0]).learns_from_defects:
        own.append(("labels", LabelOptions, field(default_factory=LabelOptions)))
    command: type[Fit] = make_dataclass("Fit", own, bases=(Fit,), frozen=True)
    command.__doc__ = registry.describe("models", words[0])
    return command
