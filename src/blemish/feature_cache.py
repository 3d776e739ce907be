"""Features of pictures that a frozen backbone sees again and again: computed once, kept on disk within a budget.

A folder holds a file for each picture, named after its content, so that a killed run goes on where
it stopped and several processes can share a folder. What decides the features (backbone, weights,
intensity rule, size of pictures, precision) is written into the folder, and a folder of other
features is refused.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blemish import distributed
from blemish.errors import ConfigError, ImageError, count_of
from blemish.files import replacing, write_text
from blemish.images import Floats
from blemish.nn.backbone import fingerprint
from blemish.progress import bar
from blemish.reading import digest, read_batches
from blemish.types import Failure, Preprocessing, Sample

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_ABOUT = "features.json"


def parse_size(text: str) -> int:
    """A number of bytes.

    Raises:
        ConfigError: the text is none.

    >>> parse_size("1.5G"), parse_size("200 MB"), parse_size("0")
    (1500000000, 200000000, 0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text.upper())
    if not found:
        raise ConfigError(f'--feature-cache is "{text}"; expected a size such as 8G or 500M, or 0 for no cache.')
    return int(float(found[1]) * _UNITS[found[2]])


def origin(backbone: nn.Module, preprocessing: Preprocessing, others: Mapping[str, object]) -> dict[str, str]:
    """What decides the features of a picture, in words: weights by their hash; `others` are more of it."""
    rule = preprocessing.intensity
    height, width = preprocessing.image_size
    return {
        "weights": fingerprint(backbone.state_dict()),
        "intensity": "8 bit" if rule is None else f"{rule.low:g}:{rule.high:g}",
        "image size": f"{height}x{width}",
        **{name: str(value) for name, value in others.items()},
    }


class FeatureCache:
    """A folder of features; see the module's docstring."""

    def __init__(self, folder: Path, about: Mapping[str, str], budget: int, own: bool = False) -> None:
        """Opens the folder, or makes it.

        Args:
            folder: Where.
            about: What decides the features, from `origin`.
            budget: Bytes that all features in the folder may take.
            own: Whether nobody has named the folder: features of another training are deleted then.

        Raises:
            ConfigError: the folder holds other features.
            OutputError: it can't be written to.
        """
        self.folder, self.budget = folder, budget
        self.hash = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        written = folder / _ABOUT
        if own and written.is_file() and _read(written).get("hash") != self.hash:
            shutil.rmtree(folder, ignore_errors=True)
        if written.is_file():
            _check(folder, _read(written), {**about, "hash": self.hash})
        elif folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty, and no feature cache; expected a new folder.")
        else:
            write_text(written, json.dumps({**about, "hash": self.hash}, indent=2) + "\n")
        self.used = sum(file.stat().st_size for file in folder.glob("??/*.safetensors"))

    def get(self, key: str) -> list[Tensor] | None:
        """The feature maps (C, h, w) of the picture with that digest; None if they are not here or damaged."""
        try:
            found = load_file(self._file(key))
        except (FileNotFoundError, SafetensorError):
            return None
        return [found[str(number)].permute(2, 0, 1) for number in range(len(found))]

    def add(self, key: str, features: Sequence[Tensor]) -> None:
        """Keeps the feature maps (C, h, w) of a picture, if there is room."""
        # Channels last, as convolutions want them.
        tensors = {str(number): feature.permute(1, 2, 0).contiguous() for number, feature in enumerate(features)}
        others = distributed.world_size()  # which fill the folder, too, about as fast
        if self.used + others * sum(tensor.nbytes for tensor in tensors.values()) > self.budget:
            return
        with replacing(self._file(key)) as temporary:
            save_file(tensors, temporary)
        self.used += others * self._file(key).stat().st_size

    def has(self, key: str) -> bool:
        """Whether the features of that picture are here."""
        return self._file(key).is_file()

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


class Features:
    """The feature maps of pictures: from the cache where they are, else from the backbone."""

    def __init__(
        self,
        see: Callable[[Floats], list[Tensor]],
        samples: Sequence[Sample],
        preprocessing: Preprocessing,
        batch_size: int,
        cache: FeatureCache | None = None,
    ) -> None:
        """Joins them; nothing is read yet.

        Args:
            see: The feature maps (B, C, h, w), finest first, of images (B, 3, H, W) float32 in [0, 1].
            samples: The pictures.
            preprocessing: Applied to each.
            batch_size: How many pictures `see` is given; always as many, so that it gives the same
                digits whatever is cached.
            cache: Where features are kept; None to keep none.
        """
        self.see, self.samples, self.preprocessing = see, list(samples), preprocessing
        self.batch_size, self.cache = batch_size, cache
        self._keys: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def sentence(self) -> str:
        """What the budget of the cache allows."""
        if self.cache is None:
            return "No feature cache: the backbone sees each picture each time."
        blank = np.zeros((1, 3, *self.preprocessing.image_size), np.float32)
        each = sum(feature[0].nbytes for feature in self._see(blank))
        here = sum(self.cache.has(self._key(sample)) for sample in self.samples)
        fit = min(len(self), here + max(0, self.cache.budget - self.cache.used) // each)
        known = f" {here} are there already." if here else ""
        needed, budget = _gigabytes(each * len(self)), _gigabytes(self.cache.budget)
        size = f"{count_of(len(self), 'picture')} take {needed}, the budget is {budget}"
        if fit == len(self):
            return f"Feature cache {self.cache.folder}: {size}; all fit, so training never runs the backbone.{known}"
        return (
            f"Feature cache {self.cache.folder}: {size}; {fit} fit, and the others, {1 - fit / len(self):.0%}, go "
            f"through the backbone each time. A larger --feature-cache saves that.{known}"
        )

    def gather(self, failures: list[Failure]) -> Iterator[list[Tensor]]:
        """The features of all pictures in order, a batch at a time; they are cached on the way.

        Where several processes work together, each gets every so many-th batch. Pictures that can't be
        read are left out of `samples` and added to `failures`.
        """
        own: list[Failure] = []
        with bar("Embed", len(self)) as drawn:
            for number, at in enumerate(range(0, len(self), self.batch_size)):
                chunk = self.samples[at : at + self.batch_size]
                if number % distributed.world_size() == distributed.rank():
                    good, features = self._of(chunk, own)
                    if good:
                        yield features
                drawn.advance(len(chunk))
        said = distributed.gathered(json.dumps([(str(failure.path), failure.reason) for failure in own]))
        unread = {Path(path): reason for each in said for path, reason in json.loads(each)}
        failures += [Failure(path, reason) for path, reason in unread.items()]
        self.samples = [sample for sample in self.samples if sample.path not in unread]

    def batch(self, numbers: Sequence[int]) -> list[Tensor]:
        """The feature maps (B, C, h, w), finest first, of the pictures with these numbers.

        Raises:
            ImageError: a picture can't be read any more.
        """
        failures: list[Failure] = []
        _, features = self._of([self.samples[number] for number in numbers], failures)
        if failures:
            raise ImageError(failures[0].reason)
        return features

    def _of(self, samples: Sequence[Sample], failures: list[Failure]) -> tuple[list[Sample], list[Tensor]]:
        """The samples that can be read, and their features."""
        found: dict[Path, list[Tensor]] = {}
        if self.cache is not None:
            kept = {sample.path: self.cache.get(self._key(sample)) for sample in samples}
            found = {path: features for path, features in kept.items() if features is not None}
        absent = [sample for sample in samples if sample.path not in found]
        for batch in read_batches(absent, self.preprocessing, self.batch_size, failures):
            seen = [feature.cpu() for feature in self._see(batch.images)]
            for number, sample in enumerate(batch.samples):
                found[sample.path] = [feature[number] for feature in seen]
                if self.cache is not None:
                    self.cache.add(self._key(sample), found[sample.path])
        good = [sample for sample in samples if sample.path in found]
        maps = zip(*(found[sample.path] for sample in good), strict=True)
        return good, [_stacked(each) for each in maps]

    def _see(self, images: Floats) -> list[Tensor]:
        full = np.concatenate([images, np.repeat(images[-1:], self.batch_size - len(images), axis=0)])
        return [feature[: len(images)] for feature in self.see(full)]

    def _key(self, sample: Sample) -> str:
        if sample.path not in self._keys:
            self._keys[sample.path] = digest(sample.path)
        return self._keys[sample.path]


@contextmanager
def place(named: str, unfinished: Path | None) -> Iterator[Path]:
    """The folder for a cache while the block runs.

    Args:
        named: A folder of the user's, which is kept; empty for none.
        unfinished: The unfinished state of a training: its features lie beside it, and go when the
            block ends without an error. Without it they lie in a temporary folder.
    """
    if named:
        yield Path(named)
    elif unfinished is None:
        with TemporaryDirectory() as folder:
            yield Path(folder) / "features"
    else:
        folder_beside = unfinished.with_suffix(".features")
        yield folder_beside
        distributed.wait()
        shutil.rmtree(folder_beside, ignore_errors=True)


def _read(file: Path) -> Mapping[str, str]:
    """How features were made, as far as that can be read."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _check(folder: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Nothing, if both say the same of how features were made."""
    if found.get("hash") == expected["hash"]:
        return
    differing = [
        f"{name} {found.get(name, 'unknown')} there, {expected.get(name, 'unknown')} here"
        for name in {**found, **expected}
        if found.get(name) != expected.get(name)
    ]
    raise ConfigError(
        f"{folder} holds features of another kind ({'; '.join(differing)}). "
        "Delete that folder, or name another one with --feature-cache-dir."
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _stacked(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps (C, h, w) as a batch (B, C, h, w), channels last.

    NumPy copies them in this thread alone. PyTorch would wake a pool of threads of its own for it, beside
    that of the training it works ahead for; on two cores, training took 1.4 times as long.
    """
    raw = [each.permute(1, 2, 0).contiguous().view(torch.uint8).numpy() for each in maps]
    return torch.from_numpy(np.stack(raw)).view(maps[0].dtype).permute(0, 3, 1, 2)
