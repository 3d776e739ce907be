"""The command line: parsing, and saying what came out. All work is done elsewhere.

Each command is a dataclass: its fields are the options, their docstrings the help texts, and
calling it does the job. Heavy modules are imported when a command runs, so that `--help` is quick.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeAlias

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from blemish import __version__, options, registry
from blemish.errors import BlemishError, ConfigError, DatasetError, not_among
from blemish.types import Decider, Failure, Policy

if TYPE_CHECKING:
    from blemish.dataset import Dataset
    from blemish.metric import Options

USAGE = """\
usage: blemish COMMAND [OPTIONS]

Finds defects in pictures of manufactured parts: learns from good ones what good looks like.

  fit MODEL DATA --out part.blemish     learn from good pictures
  predict part.blemish PICTURE...       score pictures; heatmaps, JSON lines
  score part.blemish DATA               predict a labelled test set, all metrics, a report
  metrics MAPS MASKS                    evaluate anybody's anomaly maps
  inspect part.blemish                  what an artifact holds
  list models|datasets|metrics|formats|backbones
  synthesize preview DATA               made defects to look at
  demo                                  the main job on small real data, offline

Each has --help, and takes --config FILE.toml (option names and values) and --debug (tracebacks).
New here? Type: blemish demo"""

EXTRAS = {"torch": "train", "timm": "train"}
"""Optional packages, and the extra that brings them."""
ArtifactFile: TypeAlias = Annotated[Positional[Path], arg(metavar="ARTIFACT")]
FAILED, SOME_FAILED = 2, 1
"""Exit statuses: nothing came of it; done, but some pictures could not be used."""


@dataclass(frozen=True)
class DataOptions:
    """Which pictures."""

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of pictures, or a manifest (.csv, .jsonl); its layout is recognised."""
    dataset: str = "auto"
    """Name of the layout, if it should not be recognised; see: blemish list datasets."""
    category: str = ""
    """One category, or several separated by commas; all that are found if not given."""
    train_dir: Path | None = None
    """Folder of the good pictures to learn from, in place of the layout's own."""
    validation_fraction: float = 0.2
    """Share of the good training pictures that is held out to set the threshold."""

    def open(self, *, seed: int = 0, known: Sequence[str] = ()) -> "Dataset":
        """The dataset, described in a sentence for each category.

        Args:
            seed: Decides which pictures are held out.
            known: Categories that are meant when none is named, where the dataset has any of them.
        """
        from blemish.dataset import open_dataset

        data = open_dataset(
            self.dataset,
            self.data,
            category=[name.strip() for name in self.category.split(",") if name.strip()],
            train_dir=self.train_dir,
            validation_fraction=self.validation_fraction,
            seed=seed,
        )
        common = [name for name in data.categories if name in known]
        if common and not self.category:
            data = data.of(*common)
        say("\n".join(data.sentences()))
        if known and not common:
            say(
                f"The artifact was calibrated for {', '.join(known)}, and for none of these: the threshold is that "
                "of all its categories together."
            )
        return data


@dataclass(frozen=True)
class FitOptions:
    """What to make."""

    out: Path
    """The artifact to write, ending in .blemish."""
    preset: str = "small"
    """Named configuration of the model that the options below start from."""
    max_false_reject: float = 0.01
    """Share of good parts that may be called defective, at most: 0.005 is 5 in 1000."""
    max_review: float | None = None
    """Share of good parts that may be rejected or sent to a person, at most: opens a grey zone."""
    backbone_weights: str = "default"
    """default (embedded, or downloaded for other backbones), random, or a file."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class Predict:
    """Score pictures with a trained detector: good, to review, or defective, and where."""

    artifact: ArtifactFile
    """Made by blemish fit."""
    pictures: Annotated[Positional[tuple[Path, ...]], arg(metavar="PICTURE...")]
    """Pictures, or folders of pictures."""
    category: str = ""
    """Whose threshold decides, where the artifact knows several."""
    out_dir: Path | None = None
    """Folder for predictions.jsonl and an overlay of each picture and its anomaly map."""
    json_lines: Path | None = None
    """File for one JSON object a picture: score, decision, regions with box, area and peak."""
    maps: bool = False
    """Write raw anomaly maps (.npy) to --out-dir, too."""
    max_false_reject: float | None = None
    """Another rate than the artifact's own."""
    max_review: float | None = None
    """Another grey zone than the artifact's own."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""

    def __call__(self) -> int:
        """Predicts, writes, prints."""
        from blemish import artifact, predictions
        from blemish.files import check_writable

        if self.maps and self.out_dir is None:
            raise ConfigError("--maps needs a folder to write to; name one with --out-dir.")
        for file in (self.json_lines, self.out_dir and self.out_dir / "predictions.jsonl"):
            if file is not None:
                check_writable(file)
        pictures = predictions.find_pictures(self.pictures, self.out_dir)
        predictor = artifact.load(self.artifact, device=self.device)
        category = self.category or (predictor.categories[0] if len(predictor.categories) == 1 else "")
        if category and category not in predictor.categories:
            raise ConfigError(f"{self.artifact}: {not_among('category', category, predictor.categories)}")
        policy = change(predictor.policy, self.max_false_reject, self.max_review)
        failures: list[Failure] = []
        judged = predictions.predict(predictor, pictures, failures, category=category, policy=policy)
        scored = predictions.write(judged, pictures, json_lines=self.json_lines, out_dir=self.out_dir, maps=self.maps)
        if not scored:
            raise DatasetError(f"none of the {len(pictures)} pictures can be read; {failures[0].reason}")
        say(predictions.table(scored))
        say(predictions.summary(scored))
        for sentence in predictor.decider(category, policy).sentences():
            say(_capital(sentence))
        if not category:
            say(
                "The category was not named, so the threshold is that of all categories together, and its promise "
                "holds for their mix; see --category."
            )
        return report_failures(failures)


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """How to measure."""

    protocol: Literal["default", "ader", "adeval"] = "default"
    """How metrics are computed: our way, or that of published tables."""
    mode: Literal["auto", "exact", "streaming"] = "auto"
    """Keep all map values, or count them in bounded memory."""
    aupro_limit: float = 0.3
    """False-positive rate up to which AUPRO is taken."""
    resamples: int = 0
    """How often to draw the pictures again for 95 % intervals; 200 is enough, 0 is none."""

    def how(self) -> "Options":
        """The same for the metrics."""
        from blemish.metric import Options

        return Options(protocol=self.protocol, aupro_limit=self.aupro_limit, resamples=self.resamples)


@dataclass(frozen=True)
class Score(MetricOptions):
    """Predict a labelled test set and measure everything."""

    artifact: ArtifactFile
    """Made by blemish fit."""
    data: DataOptions
    json: Path | None = None
    """File for all metrics and settings."""
    csv: Path | None = None
    """File for a line for each picture."""
    html: Path | None = None
    """File for a report to show: curves, mistakes, finds; self-contained."""
    max_false_reject: float | None = None
    """Another rate than the artifact's own."""
    max_review: float | None = None
    """Another grey zone than the artifact's own."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""

    def __call__(self) -> int:
        """Scores, writes, prints."""
        from blemish import artifact, report, scoring
        from blemish.files import check_writable

        for file in filter(None, (self.json, self.csv, self.html)):
            check_writable(file)
        predictor = artifact.load(self.artifact, device=self.device)
        data = self.data.open(known=predictor.categories)
        policy = change(predictor.policy, self.max_false_reject, self.max_review)
        found = scoring.score(predictor, data, policy=policy, options=self.how(), mode=self.mode, resume=True)
        say(report.table(found.results))
        say("\n".join(report.notes(found)))
        report.write(found, predictor, json_file=self.json, csv_file=self.csv, html_file=self.html)
        scoring.forget(found)
        for file in filter(None, (self.json, self.csv, self.html)):
            say(f"Written: {file}")
        return report_failures(found.failures)


@dataclass(frozen=True)
class Metrics(MetricOptions):
    """Evaluate anybody's anomaly maps: .npy, .tiff or .png, with masks of the same names."""

    maps: Annotated[Positional[Path], arg(metavar="MAPS")]
    """Folder of maps (higher = more abnormal), or a manifest (.csv, .jsonl) of maps and masks."""
    masks: Annotated[Positional[Path | None], arg(metavar="MASKS")] = None
    """Folder of masks; not needed with a manifest."""
    json: Path | None = None
    """File for all values."""

    def __call__(self) -> int:
        """Evaluates, writes, prints."""
        import json
        from dataclasses import asdict

        from blemish import map_files, report
        from blemish.files import check_writable, write_text

        if self.json is not None:
            check_writable(self.json)
        results = map_files.evaluate_files(self.maps, self.masks, mode=self.mode, options=self.how())
        say(report.full_table(results))
        say("\n".join(report.caveats(results)))
        if self.json is not None:
            write_text(self.json, json.dumps(asdict(results), indent=2, allow_nan=False) + "\n")
            say(f"Written: {self.json}")
        return 0


@dataclass(frozen=True)
class Inspect:
    """Say what an artifact holds: model, configuration, thresholds, categories."""

    artifact: ArtifactFile
    """Made by blemish fit."""

    def __call__(self) -> int:
        """Prints the header."""
        from blemish.artifact import Predictor, read_header

        header = read_header(self.artifact)
        height, width = header.fitted.preprocessing.image_size
        rule = header.fitted.preprocessing.intensity
        say(f"{self.artifact}: {header.model}, {self.artifact.stat().st_size / 1e6:.1f} MB")
        say(f"Learned from {len(header.fitted.learned_from)} good pictures, brought to {height}x{width} pixels.")
        say(f"Pictures of more than 8 bit: {f'{rule.low:g} to {rule.high:g}' if rule else 'refused (none was seen)'}.")
        say("Configuration: " + ", ".join(f"{key} {value}" for key, value in header.config.items()))
        say("Made with: " + ", ".join(f"{key} {value}" for key, value in header.versions.items()))

        def refuse(_: object) -> NoReturn:
            raise ConfigError("a header alone can't predict.")

        predictor = Predictor(header, refuse)
        for category in predictor.categories:
            for sentence in predictor.decider(category).sentences():
                say(f"{category}: {sentence}")
        return 0


@dataclass(frozen=True)
class List:
    """Say what there is, one line each."""

    what: Positional[Literal["models", "datasets", "metrics", "formats", "backbones"]]

    def __call__(self) -> int:
        """Prints names and descriptions."""
        rows = _listed(self.what)
        width = max(len(name) for name, _ in rows)
        for name, description in rows:
            say(f"{name:{width}}  {description}")
        return 0


@dataclass(frozen=True)
class Synthesize:
    """Look at the made defects that a detector is going to be taught."""

    what: Positional[Literal["preview"]]
    """preview: a contact sheet; below each picture its damage, outlined, and darker where none may lie."""
    data: DataOptions
    out: Path = Path("preview.png")
    """The sheet, a PNG file."""
    sources: str = "procedural,self,cutpaste"
    """texture:DIR, sdas:DIR, self, cutpaste, procedural; perhaps with weights: self=2,procedural."""
    foreground: Literal["auto", "paper", "whole"] = "auto"
    """Where damage may lie."""
    image_size: tuple[int, int] = (256, 256)
    """Height and width that pictures are brought to."""
    count: int = 24
    """How many."""

    def __call__(self) -> int:
        """Makes the sheet."""
        from blemish.synthesis import preview

        failures = preview.write(self.out, self.data.open(), self.sources, self.foreground, self.image_size, self.count)
        say(f"Written: {self.out}")
        return report_failures(failures)


@dataclass(frozen=True)
class Demo:
    """Do the main job on real pictures of solar cells, offline; needs blemish[demo]."""

    out_dir: Path = Path("demo")
    """Folder for the artifact and the report."""

    def __call__(self) -> int:
        """Runs the demo."""
        from blemish import demo
        from blemish.files import check_writable

        check_writable(self.out_dir / "report.html")
        demo.run(self.out_dir, say)
        return 0


COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": Predict,
    "score": Score,
    "metrics": Metrics,
    "inspect": Inspect,
    "list": List,
    "synthesize": Synthesize,
    "demo": Demo,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 1 done but some pictures could not be used, 2 not done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(run([word for word in given if word != "--debug"]))
    except (BlemishError, ModuleNotFoundError) as error:
        if "--debug" in given:
            traceback.print_exc()
        elif isinstance(error, ModuleNotFoundError):
            error = missing(error)
        Console(stderr=True).print(f"{type(error).__name__}: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has left, which is their right
        sys.exit(0)


def run(arguments: list[str]) -> int:
    """The exit status of the command in `arguments`.

    Raises:
        BlemishError: it can't be done; the message says why.
    """
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        say(USAGE)
        return 0
    if arguments[0] == "--version":
        say(f"blemish {__version__}")
        return 0
    name, *rest = arguments
    rest = options.with_config_file(rest)
    if name == "fit":
        return _fit(rest)
    if name not in COMMANDS:
        raise ConfigError(not_among("command", name, ["fit", *COMMANDS]))
    return int(options.parse(COMMANDS[name], f"blemish {name}", rest)())


def missing(error: ModuleNotFoundError) -> ConfigError:
    """What to install when an optional package is not there; any other missing module is raised as it is."""
    if error.name not in EXTRAS:
        raise error
    return ConfigError(f'this needs {error.name}, which is not installed: pip install "blemish[{EXTRAS[error.name]}]"')


def change(policy: Policy, max_false_reject: float | None, max_review: float | None) -> Policy:
    """The policy, with what was given in place of its own."""
    rate = policy.max_false_reject if max_false_reject is None else max_false_reject
    return Policy(rate, policy.max_review if max_review is None else max_review)


def say(text: "str | Table") -> None:
    """Prints to the standard output."""
    Console().print(text, markup=False, highlight=False, soft_wrap=isinstance(text, str))


def report_failures(failures: Sequence[Failure]) -> int:
    """The exit status, after naming the pictures that could not be used."""
    if not failures:
        return 0
    console = Console(stderr=True)
    console.print(f"{len(failures)} pictures could not be used:", highlight=False)
    for failure in failures[:20]:
        console.print(f"  {failure.reason}", markup=False, highlight=False, soft_wrap=True)
    if len(failures) > 20:
        console.print(f"  and {len(failures) - 20} more.", highlight=False)
    return SOME_FAILED


def _fit(arguments: list[str]) -> int:
    """Parses with the options of the model that is named first, and trains it."""
    if not arguments or arguments[0].startswith("-"):
        known = ", ".join(registry.names("models"))
        say(
            f"usage: blemish fit MODEL DATA --out part.blemish [OPTIONS]\n\nModels: {known}.\n"
            "Each has its own options: blemish fit patchcore --help"
        )
        return 0 if arguments else FAILED
    from blemish import artifact, detector
    from blemish.files import check_writable

    model, *rest = arguments
    kind = detector.find(model)
    preset = detector.preset_of(kind, model, options.value_of("--preset", rest) or "small")
    fields: list[tuple[str, Any, Any]] = [("config", type(preset), field(default=preset))]
    command = make_dataclass("Fit", [("data", DataOptions), ("fit", FitOptions), *fields], frozen=True)
    command.__doc__ = registry.describe("models", model)
    given = options.parse(command, f"blemish fit {model}", rest)
    policy = Policy(given.fit.max_false_reject, given.fit.max_review)
    artifact.format_of(given.fit.out)
    check_writable(given.fit.out)
    data = given.data.open(seed=given.config.seed)
    data.require_train()
    learner = detector.create(
        model, config=given.config, backbone_weights=given.fit.backbone_weights, device=given.fit.device
    )
    learner.unfinished = given.fit.out.with_name(f"{given.fit.out.name}.unfinished")
    learner.fit(data, policy)
    artifact.save(learner, given.fit.out)
    learner.unfinished.unlink(missing_ok=True)
    calibrations = artifact.read_header(given.fit.out).fitted.calibrations
    for category, calibration in calibrations.items():
        for sentence in Decider(calibration, policy).sentences():
            say(f"{category}: {sentence}")
    say(f"Written: {given.fit.out} ({given.fit.out.stat().st_size / 1e6:.1f} MB)")
    has_test = any(sample.is_anomalous is not None for sample in data.test)
    score = f"score {given.fit.out} {given.data.data} --html report.html"
    say(f"Next: blemish {score if has_test else f'predict {given.fit.out} NEW_PICTURES --out-dir found'}")
    return report_failures(learner.failures)


def _listed(what: str) -> list[tuple[str, str]]:
    if what == "metrics":
        from blemish.metric import all_metrics

        return [(metric.name, f"({metric.level}) {metric.description}") for metric in all_metrics().values()]
    if what == "backbones":
        from blemish.nn.backbone import EMBEDDED

        rows = [(name, f"weights on board, from the package {module}") for name, (module, _) in EMBEDDED.items()]
        return [*rows, ("any other", "of timm's networks with feature maps; weights are downloaded or given as a file")]
    return [(name, registry.describe(what, name)) for name in registry.names(what)]  # type: ignore[arg-type]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
