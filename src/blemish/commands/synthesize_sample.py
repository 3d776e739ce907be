"""synthesize sample good.diffusion --count N --out DIR: draw abnormal pictures with masks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from blemish.command import ClusterOptions, report_failures, say
from blemish.errors import count_of


@dataclass(frozen=True)
class Sample:
    """Draw pictures of a wanted strength, each with a mask of where the strength changed it.

    Killed and started again, it goes on where it was. Picture i depends on the seed and i alone.
    """

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    """Made by blemish synthesize fit, ending in .diffusion."""
    out: Path
    """Folder for CATEGORY/*.png, masks, confidence and manifest.jsonl."""
    category: str = ""
    """One that the model knows; may be left out where it knows one only."""
    count: int = 16
    """How many pictures; the published SIA has 10000 a category."""
    first: int = 0
    """Number of the first picture: parts of a set can be made on several machines."""
    strength: str = ""
    """LOW:HIGH between which each one's strength is drawn, or one for all; if not given 0.1:0.2 (ddim 0.01:0.03)."""
    solver: Literal["ancestral", "ddim", "dpm"] = "ancestral"
    """ancestral: the paper's; ddim: its variant; dpm: few steps, for strength 0 only."""
    steps: int = 20
    """How many of the 1000 times are visited."""
    guidance: float = 0.0
    """Scale of the classifier's gradient, where the model has a classifier; the paper's is 1."""
    init: Path | None = None
    """Folder of real good pictures to start from, so that the change stays aligned with the part."""
    depth: float = 0.5
    """Share of the way to pure noise that these are sent."""
    least_change: int = 16
    """Grey levels by which a pixel must change to be in the mask."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the processor is made for it."""
    seed: int = 0
    """Picture i draws from (seed, i)."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    where: ClusterOptions = field(default_factory=ClusterOptions)

    def __call__(self) -> int:
        """Draws and writes what is not there yet."""
        from blemish.synthesis import sample_set, sampling, sdas

        drawing = sampling.Drawing(
            strength=sampling.parse_strength(self.strength) if self.strength else None,
            solver=self.solver,
            steps=self.steps,
            guidance=self.guidance,
            depth=self.depth,
            least_change=self.least_change,
            precision=self.precision,
            seed=self.seed,
        )
        wanted = sample_set.Wanted(category=self.category, count=self.count, first=self.first, init=self.init)
        cluster = self.where.cluster(self.device)
        actors = None if cluster is None else sample_set.Actors(self.model, cluster)
        # Where actors draw, this process only needs to know the model.
        model = sdas.load(self.model, self.device if actors is None else "cpu")
        written = sample_set.write(self.out, model, sdas.hash_of(self.model), wanted, drawing, actors)
        found = f"; {written.found} there already" if written.found else ""
        say(f"Drawn: {count_of(written.drawn, 'picture')}{found}. Written: {self.out / sample_set.MANIFEST}")
        say(f"Next: blemish fit realnet DATA --sources self,sdas:{self.out} --out part.blemish")
        return report_failures(written.failures)


COMMAND = Sample
