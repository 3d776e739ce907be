"""SDAS: a diffusion model of good pictures, from which abnormal ones of any strength are drawn.

This module has the model and its file; `sdas_training.py` teaches it, `sampling.py` draws from it.

Source: RealNet, arXiv 2403.05897, section 3.1 (strength-controllable diffusion anomaly synthesis);
network and hyper-parameters are those of Dhariwal and Nichol, arXiv 2105.05233.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blemish import headers
from blemish.errors import ArtifactError, ConfigError, bad_option
from blemish.files import replacing
from blemish.images import Picture
from blemish.nn.diffusion import NoiseUNet, NoisyClassifier
from blemish.nn.unet import GROUPS, HEAD_WIDTH, GroupNorm
from blemish.synthesis.diffusion import NoiseSchedule, noise_of_velocity, noise_schedule
from blemish.synthesis.samplers import Denoiser
from blemish.training import Precision, TrainingConfig, autocast, choose_device, choose_precision
from blemish.types import Intensity

SUFFIX = ".diffusion"
VERSION = 1
"""Raised when an older Blemish could not understand a new file any more."""
_KEY = "blemish_diffusion"
OF_CLASSES = frozenset({"label_emb.weight", "out.2.c_proj.weight", "out.2.c_proj.bias"})
"""Tensors whose shape depends on the number of classes: of a checkpoint with others they are left out."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(TrainingConfig):
    """What can be chosen for a diffusion model."""

    image_size: tuple[int, int] = (64, 64)
    """Height and width of the pictures that it makes."""
    predicts: Literal["noise", "velocity"] = "noise"
    """What the U-Net says of a noisy picture: its noise, or √ᾱ noise - √(1 - ᾱ) picture, which is as hard to tell at
    all times, so that shapes and brightness are learned sooner."""
    patch: int = 1
    """Side of the squares of pixels that the U-Net takes as one position: with 2, it has a quarter of the work."""
    width: int = 32
    """Channels of the U-Net at full size, a multiple of 32."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """Its width at each level, in multiples; each level halves the size."""
    attention: tuple[int, ...] = (4,)
    """Its levels with attention, by the factor that they are smaller than the first; 64 channels a head."""
    groups: int = 8
    """Groups of each group normalisation, a divisor of 32. Groups of one channel each know nothing of the mean, so
    that pictures come out too bright, too dark or tinted: at least two channels, better four, to each."""
    classifier_steps: int = 0
    """Steps to teach a classifier that guides sampling to the category; 0 for none. One category gets none."""
    classifier_width: int = 32
    """Channels of the classifier at full size."""
    classifier_batch_size: int = 16
    """Pictures that it takes at a time."""
    batch_size: int = 16
    """Pictures taken at a time."""
    balance: bool = False
    """Take each category equally often."""
    intensity: Intensity | None = None
    """Range of values for pictures of more than 8 bit; measured on the training pictures if not given."""
    seed: int = 0
    """Seed of everything that is drawn at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = [2**level for level in range(len(self.multipliers))]
        if not levels or not set(self.attention) <= set(levels):
            raise bad_option("attention", self.attention, f"factors among {levels}, one a level")
        if self.patch < 1:
            raise bad_option("patch", self.patch, "1 (each pixel for itself) or more")
        if self.groups < 1 or GROUPS % self.groups:
            raise bad_option("groups", self.groups, f"a divisor of {GROUPS}")
        unit = self.patch * levels[-1]
        if any(side < unit or side % unit for side in self.image_size):
            height, width = self.image_size
            raise ConfigError(
                f"--image-size is {height}x{width}; expected multiples of {unit}, for {len(levels)} levels and patches "
                f"of {self.patch}."
            )
        # The middle always attends.
        attending = {*self.attention, levels[-1]}
        for name in ("width", "classifier_width"):
            width = getattr(self, name)
            wide = [
                width * multiplier
                for multiplier, level in zip(self.multipliers, levels, strict=True)
                if level in attending
            ]
            if width < GROUPS or width % GROUPS or any(channels % HEAD_WIDTH for channels in wide):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {width}; expected a multiple of {GROUPS} that makes multiples of "
                    f"{HEAD_WIDTH} at the levels with attention, and at the last."
                )
        for name, least in (("batch_size", 1), ("classifier_batch_size", 1), ("classifier_steps", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise bad_option(name, getattr(self, name), f"{least} or more")


PRESETS: dict[str, DiffusionConfig] = {
    "paper": DiffusionConfig(
        image_size=(256, 256),
        width=256,
        groups=32,
        multipliers=(1, 1, 2, 2, 4, 4),
        attention=(8, 16, 32),
        classifier_steps=40_000,
        classifier_width=128,
        classifier_batch_size=40,
        batch_size=5,
        accumulate=12,
        average=0.9999,
        epochs=1000,
        clip=1.0,
        precision="float32",
        evaluations=100,
        seed=100,
    ),
    "small": DiffusionConfig(
        predicts="velocity",
        patch=2,
        width=64,
        multipliers=(1, 2),
        attention=(2,),
        batch_size=8,
        minutes=45,
        learning_rate=1e-3,
        schedule="cosine",
        clip=1.0,
        average=0.999,
    ),
    "tiny": DiffusionConfig(
        image_size=(32, 32),
        multipliers=(1, 2),
        attention=(2,),
        batch_size=8,
        steps=40,
        learning_rate=2e-3,
        schedule="cosine",
        clip=1.0,
        average=0.9,
        evaluations=2,
    ),
}
"""Named configurations: "paper" (faithful), "small" (a category in 45 minutes on two cores), "tiny" (for tests)."""


@dataclass(frozen=True)
class Known:
    """What a model's file says of it beside the weights."""

    config: DiffusionConfig
    categories: tuple[str, ...]
    """In the order of the classes."""
    grey: tuple[str, ...] = ()
    """Those whose pictures have no colour."""
    intensity: Intensity | None = None
    """The rule for pictures of more than 8 bit."""
    has_classifier: bool = False
    steps: int = 0
    """Changes of the weights that it was trained for."""
    learned_from: tuple[str, ...] = ()
    """A digest of the contents of each training picture, sorted."""
    versions: dict[str, str] = field(default_factory=dict)
    """What it was made with."""


class DiffusionModel(nn.Module):
    """The U-Net, perhaps a classifier, and what is known of them."""

    def __init__(self, known: Known) -> None:
        super().__init__()
        config, classes = known.config, len(known.categories)
        self.known = known
        self.network = NoiseUNet(config.width, config.multipliers, config.attention, classes, config.patch)
        halvings = 2 ** (len(config.multipliers) - 1)
        side = config.image_size[0] // halvings, config.image_size[1] // halvings
        self.classifier = None
        if known.has_classifier:
            self.classifier = NoisyClassifier(
                config.classifier_width, config.multipliers, config.attention, classes, side
            )
        for module in self.modules():
            if isinstance(module, GroupNorm):
                module.num_groups = config.groups
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """(B, 6, H, W): the noise that the U-Net sees in x, and how sure that is; see `NoiseUNet`."""
        output: Tensor = self.network(x, time, label)
        if self.known.config.predicts == "noise":
            return output
        velocity, share = output.float().chunk(2, dim=1)
        return torch.cat([noise_of_velocity(_process(x.device), time, x, velocity), share], dim=1)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(self.parameters()).device

    def denoiser(self, label: int, guidance: float = 0.0, precision: Precision = "auto") -> Denoiser:
        """What samplers see of it, for images of one class that are all at the same time.

        The networks are told time and class once for all images: a product of matrices rounds otherwise
        for other numbers of rows, and an image must not depend on how many are beside it.

        Args:
            label: The class.
            guidance: Scale of the classifier's gradient; 0 for none.
            precision: What the networks compute in.

        Raises:
            ConfigError: there is guidance, and no classifier that gives it.
        """
        kind = choose_precision(precision, self.device)
        labels = torch.tensor([label], device=self.device)

        def output(x: Tensor, time: Tensor) -> Tensor:
            with autocast(self.device, kind):
                found: Tensor = self(x, time[:1], labels)
            return found

        if not guidance:
            return Denoiser(output)
        if self.classifier is None:
            raise ConfigError(
                f"--guidance is {guidance:g}, and this model has no classifier to guide it; fit one of two categories "
                "or more with --classifier-steps 1000, or leave guidance out."
            )
        classifier = self.classifier

        def gradient(x: Tensor, time: Tensor) -> Tensor:
            with torch.enable_grad():
                image = x.detach().requires_grad_()
                with autocast(self.device, kind):
                    logits = classifier(image, time[:1])
                chosen = logits.float().log_softmax(1)[:, label].sum()
                return guidance * torch.autograd.grad(chosen, image)[0]

        return Denoiser(output, gradient)


@cache
def _process(device: torch.device) -> NoiseSchedule:
    with torch.inference_mode(mode=False):  # what is kept may be used in a training, too
        return noise_schedule().to(device)


def to_image(pictures: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) uint8 as images (B, 3, H, W) float32 in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(image: Tensor) -> Picture:
    """Images (B, 3, H, W) in [-1, 1] as pictures (B, H, W, 3) uint8, rounded: the inverse of `to_image`."""
    grey_levels = ((image.float() + 1) * 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(grey_levels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy())


def read_checkpoint(file: Path, option: str) -> dict[str, Tensor]:
    """The tensors of a U-Net or classifier in a file of ours or of others.

    Raises:
        ConfigError: no such file, a damaged one, or not a state dict.
    """
    if not file.is_file():
        raise ConfigError(f"{option} is {file}, and there is no such file; expected a state dict or a {SUFFIX} file.")
    if file.suffix == SUFFIX:
        part = "classifier." if option.startswith("--classifier") else "network."
        try:
            state = load_file(file)
        except SafetensorError as error:
            raise ConfigError(
                f"{option} is {file}, which can't be read ({error}); expected a file written by blemish synthesize fit."
            ) from error
        return {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
    from blemish.nn.backbone import read_weights

    return read_weights(file)


def take_over(network: nn.Module, state: Mapping[str, Tensor], source: str) -> str:
    """Copies a checkpoint into `network`, and says what was taken.

    What depends on the number of classes may differ, and is left as it is; nothing else may.

    Raises:
        ConfigError: other tensors are missing, too many, or of another shape; the first are named.
    """
    own = network.state_dict()
    wrong = {
        name: (_shape(state.get(name)), _shape(own.get(name)))
        for name in {**own, **state}
        if _shape(state.get(name)) != _shape(own.get(name))
    }
    described = [f"{name} ({there} there, {here} here)" for name, (there, here) in wrong.items()]
    if not wrong.keys() <= OF_CLASSES:
        raise ConfigError(
            f"weights {source}: {len(wrong)} of {len(own)} tensors differ, first {', '.join(described[:3])}; expected "
            "a checkpoint of a network of the same sizes (--width, --multipliers, --attention; for those of "
            "guided-diffusion --preset paper)."
        )
    taken = {name: value for name, value in state.items() if name not in wrong}
    network.load_state_dict({**own, **{name: value.to(own[name].dtype) for name, value in taken.items()}})
    count = sum(value.numel() for value in taken.values())
    left = f"; new and random: {', '.join(described)}" if wrong else ""
    return f"{source}: took {len(taken)} of {len(own)} tensors ({count:,} numbers){left}."


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else "x".join(map(str, tensor.shape))


def save(model: DiffusionModel, path: Path) -> None:
    """Writes weights and header to one safetensors file, whole or not at all.

    Raises:
        OutputError: it can't be written.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    header = json.dumps({"version": VERSION, **asdict(model.known)})
    with replacing(path) as temporary:
        save_file(state, temporary, {_KEY: header})


def read_known(path: Path) -> Known:
    """What a model's file says of it; quick.

    Raises:
        ArtifactError: no such file, not a diffusion model, or one of a newer Blemish.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; expected a diffusion model made by blemish synthesize fit.")
    text = headers.read(path, _KEY)
    try:
        values: dict[str, Any] = json.loads(text or "")
        number = int(values.pop("version"))
        if number > VERSION:
            raise ArtifactError(
                f"{path} was written by a newer Blemish (file version {number}; this one reads up to {VERSION}): "
                "pip install --upgrade blemish"
            )
        return headers.from_plain(Known, values)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise _not_a_model(path) from error


def hash_of(path: Path) -> str:
    """A short fingerprint of a model's file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def load(path: Path, device: str = "auto") -> DiffusionModel:
    """The model in a file, ready to draw from.

    Raises:
        ArtifactError: no such file, not a diffusion model, damaged, or one of a newer Blemish.
        ConfigError: the device is not to be had.
    """
    known = read_known(path)
    try:
        with torch.device("meta"):
            model = DiffusionModel(known)
        model.load_state_dict(load_file(path), assign=True)
    except (RuntimeError, SafetensorError, ValueError) as error:
        raise _not_a_model(path) from error
    model.to(choose_device(device)).to(memory_format=torch.channels_last)
    return model.eval()


def _not_a_model(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path} is not a diffusion model of Blemish, or is damaged (truncated?); expected a file written by "
        "blemish synthesize fit: copy it again, or make it anew."
    )
