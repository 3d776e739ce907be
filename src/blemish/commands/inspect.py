"""inspect part.blemish: what an artifact holds."""

from dataclasses import dataclass
from typing import NoReturn

from blemish.command import ArtifactFile, say
from blemish.errors import ConfigError


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


COMMAND = Inspect
