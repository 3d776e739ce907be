"""inspect part.blemish: what an artifact holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.command import ArtifactFile, say
from blemish.errors import ConfigError, count_of
from blemish.types import Choice

if TYPE_CHECKING:
    from blemish.artifact import Header

NAMED = 8
"""Things kept that are named, at most; the rest is in --json."""


@dataclass(frozen=True)
class Inspect:
    """Say what an artifact holds: model, configuration, training, thresholds, categories."""

    artifact: ArtifactFile
    """Made by blemish fit."""
    json: Path | None = None
    """File for all of it."""
    plot: Path | None = None
    """File (.png, .svg, .pdf) for a drawing of what the model chose from: losses, what was kept, what not."""

    def __call__(self) -> int:
        """Prints the header."""
        from blemish.artifact import deciding

        predictor = deciding(self.artifact)
        header = predictor.header
        self._write(header)
        height, width = header.fitted.preprocessing.image_size
        rule = header.fitted.preprocessing.intensity
        say(f"{self.artifact}: {header.model}, {self.artifact.stat().st_size / 1e6:.1f} MB")
        say(
            f"Learned from {count_of(len(header.fitted.learned_from), 'good picture')}, brought to {height}x{width} "
            "pixels."
        )
        say(f"Pictures of more than 8 bit: {f'{rule.low:g} to {rule.high:g}' if rule else 'refused (none was seen)'}.")
        say("Configuration: " + ", ".join(f"{key} {value}" for key, value in header.config.items()))
        say("Made with: " + ", ".join(f"{key} {value}" for key, value in header.versions.items()))
        if header.fitted.training is not None:
            say(f"Training: {header.fitted.training.sentence()}")
        for name, choice in header.fitted.choices.items():
            say(f"{name}: {_sentence(choice)}")
        if header.fitted.importance:
            best = list(header.fitted.importance.items())
            more = f", and {len(best) - NAMED} more" if len(best) > NAMED else ""
            named = ", ".join(f"{name} {100 * share:.1f} %" for name, share in best[:NAMED])
            say(f"What decides: {named}{more}")
        for remark in header.fitted.remarks:
            say(remark)
        if header.fitted.gain is not None:
            from blemish.label_gain import sentences

            say("\n".join(sentences(header.fitted.gain)))
        for category in predictor.categories:
            for sentence in predictor.decider(category).of_parts().sentences():
                say(f"{category}: {sentence}")
        for file in filter(None, (self.json, self.plot)):
            say(f"Written: {file}")
        return 0

    def _write(self, header: "Header") -> None:
        import json

        from blemish.files import write_text

        if self.json is not None:
            values = json.loads(header.to_json(), parse_constant=lambda _: None)  # what is not a number is null
            write_text(self.json, json.dumps(values, indent=2, allow_nan=False) + "\n")
        if self.plot is not None:
            from blemish.report import draw_choices

            if not header.fitted.choices:
                raise ConfigError(
                    f"{self.artifact}: {header.model} chooses nothing that could be drawn; leave --plot out."
                )
            draw_choices(header.fitted.choices, self.plot)


def _sentence(choice: Choice) -> str:
    """How many were kept, and the best of them.

    >>> _sentence(Choice((0.5, 0.1, 0.3), (1, 2)))
    '2 of 3 kept; number (loss): 1 (0.1), 2 (0.3)'
    """
    best = sorted(choice.kept, key=choice.losses.__getitem__)
    named = ", ".join(f"{number} ({choice.losses[number]:.4g})" for number in best[:NAMED])
    more = f" and {len(best) - NAMED} more up to {choice.losses[best[-1]]:.4g}" if len(best) > NAMED else ""
    return f"{len(best)} of {len(choice.losses)} kept; number (loss): {named}{more}"


COMMAND = Inspect
