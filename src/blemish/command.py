"""Commands: what they must be, the options that several share, and how they say what came out.

A command is one file in `commands/`, found by its name: `fit.py` is `blemish fit`, and
`synthesize_preview.py` is `blemish synthesize preview`: the first underscore is a space, further
ones are hyphens. It is a module with

- a docstring whose first line is the line of `blemish --help`, "fit MODEL DATA: learn from good
  pictures.", with what is to be typed before the colon;
- `TOGETHER = True` if several processes, started by torchrun, can share the work (`distributed`);
- `COMMAND`: a dataclass whose fields are the options, whose docstrings are the help texts, and
  whose call does the job and returns the exit status; or, where options depend on what was typed,
  a function from the words behind the command's name to such a dataclass.

A command only asks and says; the work is done elsewhere. Heavy modules are imported when a command
runs, so that `--help` is quick.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from rich.console import Console
from tyro.conf import Positional, arg

from blemish.engine import Kind
from blemish.errors import ConfigError, bad_option, count_of
from blemish.parts import MissingViews, Views
from blemish.types import Failure, Policy

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.artifact import Predictor
    from blemish.blocks import Place
    from blemish.dataset import Dataset
    from blemish.engine import Cluster
    from blemish.metric import Options

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
    view_pattern: str = ""
    """Regular expression that joins pictures to parts by their names, such as (?P<part>.+)_C(?P<view>\\d+)."""
    missing_views: MissingViews = "keep"
    """Keep parts that lack views, drop them, or stop with an error."""

    def open(self, *, seed: int = 0, known: Sequence[str] = (), root: Path | None = None) -> "Dataset":
        """The dataset, described in a sentence for each category.

        Args:
            seed: Decides which pictures are held out.
            known: Categories that are meant when none is named, where the dataset has any of them.
            root: A copy of the data to look at in its place.
        """
        from blemish.dataset import open_dataset

        data = open_dataset(
            self.dataset,
            root or self.data,
            category=[name.strip() for name in self.category.split(",") if name.strip()],
            train_dir=self.train_dir,
            validation_fraction=self.validation_fraction,
            views=Views(self.view_pattern, self.missing_views),
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
class DetectorOptions:
    """Which detector, and how strict."""

    artifact: ArtifactFile
    """Made by blemish fit."""
    max_false_reject: float | None = None
    """Another rate than the artifact's own."""
    max_review: float | None = None
    """Another grey zone than the artifact's own."""
    top_views: int | None = None
    """Another number of views, whose mean score is a part's, than the artifact's own."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""

    def load(self) -> "Predictor":
        """The predictor in the artifact."""
        from blemish import artifact

        return artifact.load(self.artifact, device=self.device)

    def policy(self, own: Policy) -> Policy:
        """The artifact's own policy, with what was given in its place."""
        names = ("max_false_reject", "max_review", "top_views")
        return replace(own, **{name: given for name in names if (given := getattr(self, name)) is not None})


@dataclass(frozen=True)
class ClusterOptions:
    """Who does the work."""

    engine: Kind = "local"
    """local: this process; ray: actors of Ray on one machine or many, see docs/scale.md."""
    address: str = ""
    """Of a Ray cluster that runs, or auto; without it Ray starts on this machine."""
    actors: int = 0
    """How many actors of Ray; one for each GPU, or else for each processor, if not given."""

    def cluster(self, device: str) -> "Cluster | None":
        """Where actors run; None for the local engine.

        Raises:
            ConfigError: options that are for Ray are given to the local engine.
        """
        from blemish.engine import Cluster

        if self.engine == "ray":
            return Cluster(self.address, self.actors, device)
        given = [f"--{field.name}" for field in fields(self) if field.name != "engine" and self._is_given(field.name)]
        if given:
            raise ConfigError(f"{' and '.join(given)} say how Ray works; add --engine ray, or leave them out.")
        return None

    def _is_given(self, name: str) -> bool:
        return bool(getattr(self, name) != getattr(type(self)(), name))


@dataclass(frozen=True)
class EngineOptions(ClusterOptions):
    """Who does the work, and in which pieces."""

    block: int = 256
    """Pictures that an actor of Ray takes at a time, about; no more are lost with an actor that dies."""
    parts: Path | None = None
    """Folder that keeps what Ray's actors find: Parquet tables and metric states; a killed job goes on from there.
    One in the cache, until all is done, if not given."""

    def place(self, device: str) -> "Place | None":
        """Where blocks are judged; None for the local engine.

        Raises:
            ConfigError: options that are for Ray are given to the local engine.
        """
        from blemish.blocks import Place

        if self.block < 1:
            raise bad_option("block", self.block, "1 or more")
        cluster = self.cluster(device)
        return None if cluster is None else Place(cluster, self.block, self.parts)


@dataclass(frozen=True)
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


class _Printer(Console):
    """A console that leaves it to the command line what becomes of output that nobody reads any more."""

    def on_broken_pipe(self) -> None:
        with contextlib.suppress(SystemExit):  # a status that would say that pictures could not be used
            super().on_broken_pipe()
        raise BrokenPipeError


def say(text: "str | Table") -> None:
    """Prints to the standard output."""
    _Printer().print(text, markup=False, highlight=False, soft_wrap=isinstance(text, str))


def report_failures(failures: Sequence[Failure]) -> int:
    """The exit status, after naming the pictures that could not be used."""
    if not failures:
        return 0
    console = Console(stderr=True)
    console.print(f"{count_of(len(failures), 'picture')} could not be used:", highlight=False)
    for failure in failures[:20]:
        console.print(f"  {failure.reason}", markup=False, highlight=False, soft_wrap=True)
    if len(failures) > 20:
        console.print(f"  and {len(failures) - 20} more.", highlight=False)
    return SOME_FAILED
