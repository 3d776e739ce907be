"""synthesize fit DATA --out good.diffusion: learn a diffusion model of good pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish import distributed, options
from blemish.command import DataOptions, report_failures, say
from blemish.errors import ConfigError, count_of, not_among

if TYPE_CHECKING:
    from blemish.synthesis.sdas import DiffusionConfig


TOGETHER = True


@dataclass(frozen=True)
class DiffusionOptions:
    """What to make."""

    out: Path
    """The model to write, ending in .diffusion."""
    preset: str = "small"
    """Named configuration that the options below start from: paper, small or tiny."""
    weights: Path | None = None
    """Checkpoint of the U-Net to begin with, such as guided-diffusion's 256x256_diffusion.pt for --preset paper."""
    classifier_weights: Path | None = None
    """The same for the classifier, such as 256x256_classifier.pt."""
    grids: Path | None = None
    """Folder for grids of samples drawn while it learns; OUT-grids if not given."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class FitDiffusion:
    """Learn a diffusion model of good pictures, from which abnormal ones of any strength are drawn."""

    data: DataOptions
    fit: DiffusionOptions
    if TYPE_CHECKING:
        config: DiffusionConfig  # those of the preset that is named; see COMMAND

    def __call__(self) -> int:
        """Learns, draws grids while it does, saves, and says what comes next; several processes learn together."""
        with distributed.joined(self.fit.device):
            return self._fit()

    def _fit(self) -> int:
        from blemish.files import check_writable
        from blemish.synthesis import preview, sdas, sdas_training

        out = self.fit.out
        if out.suffix != sdas.SUFFIX:
            raise ConfigError(f'--out is {out}; expected the name of a diffusion model, ending in "{sdas.SUFFIX}".')
        check_writable(out)
        grids = self.fit.grids or out.with_name(f"{out.stem}-grids")
        places = sdas_training.Places(
            unfinished=out.with_name(f"{out.name}.unfinished"),
            weights=self.fit.weights,
            classifier_weights=self.fit.classifier_weights,
        )
        data = self.data.open(seed=self.config.seed)
        trained = sdas_training.fit(data, self.config, self.fit.device, places, preview.Grids(grids))
        if not distributed.is_first():
            return 0
        sdas.save(trained.model, out)
        sdas_training.forget(places)
        for line in trained.reports:
            say(line)
        best = trained.outcome.best
        said = "" if best is None else f"; best at step {best[0]}, where held-out pictures lost {-best[1]:.4f}"
        say(f"Learned for {count_of(trained.outcome.step, 'step')}{said}. Grids of samples: {grids}")
        say(f"Written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
        category = f" --category {data.categories[0]}" if len(data.categories) > 1 else ""
        say(f"Next: blemish synthesize sample {out}{category} --count 100 --out samples")
        return report_failures(trained.failures)


def COMMAND(words: Sequence[str]) -> type[FitDiffusion]:  # noqa: N802 - its name in every command
    """The command with the options of the preset that is named."""
    from blemish.synthesis import sdas

    name = options.value_of("--preset", words) or "small"
    if name not in sdas.PRESETS:
        raise ConfigError(not_among("preset of the diffusion model", name, sdas.PRESETS))
    own: list[tuple[str, Any, Any]] = [("config", sdas.DiffusionConfig, field(default=sdas.PRESETS[name]))]
    command: type[FitDiffusion] = make_dataclass("FitDiffusion", own, bases=(FitDiffusion,), frozen=True)
    command.__doc__ = FitDiffusion.__doc__
    return command
