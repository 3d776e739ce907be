"""Labelled defects on top of any model: it is fitted, SegAD learns from its maps, and what is better is kept."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blemish import artifact, detector, folds
from blemish.dataset import Dataset
from blemish.detector import Detector
from blemish.errors import ConfigError, bad_option
from blemish.files import replacing
from blemish.types import Failure, LabelGain, Policy

Keep = Literal["auto", "with", "without"]


@dataclass(frozen=True)
class Made:
    """What came of a fit with labelled defects."""

    is_supervised: bool
    """Whether what was written uses the labels."""
    gain: LabelGain | None
    """What they bring; None where too few could be read to say."""
    remarks: tuple[str, ...]
    """What else is to be said of how SegAD learned."""
    failures: list[Failure]
    """Pictures that could not be used."""


def fit(  # noqa: PLR0913 - each is a choice of its own
    learner: Detector,
    data: Dataset,
    policy: Policy,
    out: Path,
    *,
    components: str = "none",
    out_of_fold: int = 3,
    masks: bool = True,
    keep: Keep = "auto",
    preset: str = "small",
    weights: str = "default",
) -> Made:
    """What came of fitting a detector on good pictures and SegAD on labelled defects; `out` is what is better.

    The base learns from the good training pictures. It is then fitted `out_of_fold` times more, each
    time without some of them, and SegAD learns from the maps that these fits give of what they have
    not seen. A killed run goes on where it stopped.

    Args:
        learner: A new detector, of a model that learns from good pictures.
        data: Good pictures, and labelled defects to learn from.
        policy: As of `Detector.fit`.
        out: The artifact to write.
        components: As of SegAD.
        out_of_fold: The number of folds, 2 or more.
        masks: Whether masks of labelled defects are learned from, where there are any.
        keep: Whether `out` uses the labels: where they help, always, or never.
        preset: Of SegAD.
        weights: Of the backbone.

    Raises:
        ConfigError: fewer than 2 folds, or a model that does not go with this.
        DatasetError: fewer than 2 defects, or too few good pictures.
    """
    if out_of_fold < 2:
        raise bad_option("out_of_fold", out_of_fold, "2 or more")
    model = type(learner).__module__.rpartition(".")[2]
    unfinished = out.with_name(f"{out.name}.unfinished")
    place = unfinished.with_name(f"{unfinished.name}-base")
    base = place / f"{model}.blemish"
    if out.suffix != base.suffix:
        raise ConfigError(f"--out is {out}; with --defects expected a name ending in .blemish: export it afterwards.")
    changes = {"base": (str(base),), "components": components, "out_of_fold": out_of_fold, "masks": masks}
    # It looks at the pictures as the learner does.
    same = {name: getattr(learner.config, name) for name in ("image_size", "batch_size", "seed", "intensity")}
    supervised = detector.create(
        "segad", preset=preset, config=changes | same, backbone_weights=weights, device=str(learner.device)
    )
    supervised.unfinished = unfinished
    folds.fitted(learner, folds.without(data, []), policy, base)
    supervised.fit(data, policy)
    gain, remarks = (supervised.fitted.gain, supervised.fitted.remarks) if supervised.fitted is not None else (None, ())
    is_better = gain is not None and gain.is_recommended
    is_supervised = is_better if keep == "auto" else keep == "with"
    if is_supervised:
        artifact.save(supervised, out)
    else:
        with replacing(out) as temporary:
            shutil.copyfile(base, temporary)
    shutil.rmtree(place, ignore_errors=True)
    failures = {failure.path: failure for failure in (*learner.failures, *supervised.failures)}
    return Made(is_supervised, gain, remarks, list(failures.values()))
