"""Components: where on a picture each piece of the part lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blemish import images
from blemish.dataset import Dataset
from blemish.errors import ConfigError, DatasetError, ImageError, ShapeError, bad_option
from blemish.files import check_writable, write_bytes
from blemish.images import Floats, Picture
from blemish.nn.clusters import Clusters
from blemish.nn.map_features import Labels
from blemish.reading import read_batches
from blemish.synthesis.foreground import foreground
from blemish.training import generator
from blemish.types import Failure, Preprocessing, Sample

MOST = 64
"""Components that a picture may have."""
BATCH = 8
"""Pictures of a sheet that are read at a time."""
SUFFIXES = (".png", ".npy", ".bmp", ".tif", ".tiff")
"""Endings of label maps: what is kept as it is."""


class Components(nn.Module):
    """The component of each pixel, as one of the kinds of `--components` finds it."""

    def __init__(self, components: str, backbone: str, weights: str) -> None:
        """Builds what finds them.

        Args:
            components: none, foreground, cluster:K, static:FILE or folder:DIR.
            backbone: timm's name; for clusters.
            weights: As of `Backbone`.

        Raises:
            ConfigError: no such kind.
        """
        super().__init__()
        self.kind, self.rest = parse(components)
        self.clusters = Clusters(backbone, weights, int(self.rest)) if self.kind == "cluster" else None
        self.static: Tensor
        """(H, W) uint8 component of each pixel; empty unless one label picture is for all."""
        self.values: Tensor
        """(K,) int64, ascending: the value in label maps of each component, red · 2³² + green · 2¹⁶ + blue."""
        self.register_buffer("static", torch.zeros(0, 0, dtype=torch.uint8))
        self.register_buffer("values", torch.zeros(0, dtype=torch.int64))

    @property
    def count(self) -> int:
        """How many there are."""
        if self.static.numel():
            return int(self.static.max()) + 1
        if self.clusters is not None:
            return len(self.clusters.centres)
        return {"foreground": 2, "folder": len(self.values)}.get(self.kind, 1)

    def usable(self, samples: Sequence[Sample], failures: list[Failure]) -> list[Sample]:
        """The samples whose components can be told; the others are added to `failures`.

        Raises:
            DatasetError: no label maps, or one for two pictures.
        """
        if self.kind != "folder":
            return list(samples)
        if not Path(self.rest).is_dir():
            raise DatasetError(f"--components folder:{self.rest}: no such folder; expected one of label maps.")
        found: list[Sample] = []
        owners: dict[Path, Path] = {}
        values: set[int] = set()
        for sample in samples:
            try:
                file = self._find(sample.path)
                values.update(np.unique(_read_map(file, sample.path)).tolist())
            except ImageError as error:
                failures.append(Failure(sample.path, str(error)))
                continue
            if (other := owners.setdefault(file, sample.path)) != sample.path:
                raise DatasetError(
                    f"{other} and {sample.path} both find the label map {file}; lay the maps out in folders like "
                    "those of the pictures, so that each has its own."
                )
            found.append(sample)
        if len(values) > MOST:
            raise DatasetError(_too_many(f"the label maps in {self.rest} have", len(values)))
        self.values = torch.tensor(sorted(values), dtype=torch.int64)
        return found

    def learn(self, samples: Sequence[Sample], preprocessing: Preprocessing, batch: int, draw: torch.Generator) -> None:
        """Looks at the label picture, or finds the parts in good pictures.

        Args:
            samples: Good pictures.
            preprocessing: Of the detector.
            batch: Pictures at a time.
            draw: Decides which places the parts are found in.
        """
        if self.kind == "static":
            self.static = torch.from_numpy(numbered(images.read(self.rest), self.rest, preprocessing.image_size))
        if self.clusters is not None:
            device = self.clusters.centres.device
            read = read_batches(samples, preprocessing, batch, [])  # failures are noted when rows are read
            with torch.inference_mode():
                tensors = (torch.from_numpy(each.images).to(device) for each in read)
                self.clusters.learn(tensors, len(samples), draw)

    def labels(self, image: Floats, path: Path | None = None) -> Labels:
        """The component (H, W) of each pixel of an image (3, H, W) in [0, 1].

        Args:
            image: As the detector sees it.
            path: The picture's file, which its label map is found by.

        Raises:
            ImageError: the picture has no label map that fits.
            ConfigError: there are label maps, but no file to find one by.
        """
        if self.kind == "folder":
            return self._from_map(path, (image.shape[1], image.shape[2]))
        if self.static.numel():
            return np.asarray(self.static.cpu().numpy())
        if self.clusters is not None:
            with torch.inference_mode():
                device = self.clusters.centres.device
                return np.asarray(self.clusters(torch.from_numpy(image[None]).to(device))[0].cpu().numpy(), np.uint8)
        if self.kind == "foreground":
            return foreground(images.to_picture(image), "").astype(np.uint8)
        return np.zeros(image.shape[1:], np.uint8)

    def _from_map(self, path: Path | None, size: tuple[int, int]) -> Labels:
        if path is None:
            raise ConfigError(
                "components come from label maps here, which are found by the files of pictures: predict files (not "
                "images in memory, nor views of parts), or fit with --components foreground or cluster:4."
            )
        file = self._find(path)
        values, known = _read_map(file, path), self.values.cpu().numpy()
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        if (strange := known[place] != values).any():
            raise ImageError(
                f"{path}: its label map {file} has the value {_colour(int(values[strange][0]))}, which no map had that "
                "was learned from; expected the same values for the same components."
            )
        return _resized(place.astype(np.uint8), size)

    def _find(self, path: Path) -> Path:
        """The label map of a picture: the one in the folders most like its own, else the one with its stem."""
        steps = path.absolute().with_suffix("").parts[1:]
        for start in range(len(steps)):
            bare = Path(self.rest, *steps[start:])
            for suffix in SUFFIXES:
                if (file := bare.with_name(f"{bare.name}{suffix}")).is_file():
                    return file
        raise ImageError(
            f"{path} has no label map in {self.rest}; expected {path.stem}.png there, or in folders like the picture's."
        )


@dataclass(frozen=True)
class Seen:
    """What a sheet of components shows."""

    shares: list[float]
    """Share of the pixels that each component has, in the pictures shown."""
    failures: list[Failure]
    """Pictures that could not be used."""


def write_sheet(
    path: Path, data: Dataset, components: Components, image_size: tuple[int, int], seed: int, count: int
) -> Seen:
    """Writes a sheet of good pictures, each above its components in colours.

    Args:
        path: A PNG file.
        data: Its good training pictures are shown, evenly chosen.
        components: A new one.
        image_size: Height and width that pictures are brought to.
        seed: Of what is drawn, as of a detector's config.
        count: How many pictures, at most.

    Raises:
        ConfigError: fewer than one.
        DatasetError: there are no good pictures, or no label maps that fit.
        OutputError: the file can't be written.
    """
    if count < 1:
        raise bad_option("count", count, "1 or more")
    check_writable(path, ".png")
    data.require_train()
    failures: list[Failure] = []
    good = components.usable(data.train, failures)
    rule, _ = images.measure_intensity(sample.path for sample in good if images.is_deep(sample.path))
    preprocessing = Preprocessing(image_size, rule)
    components.eval().learn(good, preprocessing, BATCH, generator(seed, 0))
    shown = [good[len(good) * number // count] for number in range(count)] if count < len(good) else good
    drawn, sizes = [], np.zeros(components.count)
    for batch in read_batches(shown, preprocessing, BATCH, failures):
        for sample, image in zip(batch.samples, batch.images, strict=True):
            labels = components.labels(image, sample.path)
            sizes += np.bincount(labels.ravel(), minlength=components.count) / labels.size
            hues = (labels / max(1, components.count - 1)).astype(np.float32)
            coloured = cv2.addWeighted(images.heatmap(hues, -0.1, 1.1), 0.7, images.to_picture(image), 0.3, 0)
            drawn.append(images.pair(images.to_picture(image), np.asarray(coloured, np.uint8)))
    if not drawn:
        raise DatasetError(f"{data.root}: none of the good pictures can be shown; {failures[0].reason}")
    write_bytes(path, images.encode(images.contact_sheet(drawn)))
    return Seen((sizes / len(drawn)).tolist(), failures)


def parse(components: str) -> tuple[str, str]:
    """Kind and detail of --components.

    Raises:
        ConfigError: no such kind.
    """
    kind, _, rest = components.partition(":")
    is_known = {
        "none": not rest,
        "foreground": not rest,
        "static": bool(rest),
        "folder": bool(rest),
        "cluster": rest.isdecimal() and 2 <= int(rest) <= MOST,
    }
    if not is_known.get(kind):
        raise ConfigError(
            f'--components is "{components}"; expected none, foreground, static:FILE, folder:DIR, '
            f"or cluster:K with K from 2 to {MOST}."
        )
    return kind, rest


def numbered(picture: Picture, name: str, size: tuple[int, int] | None = None) -> Labels:
    """The components (H, W), 0 and on, of a label picture (H, W, 3), by its values (or colours) in ascending order.

    Raises:
        ShapeError: more values than there can be components, as in a photograph.
    """
    height, width = picture.shape[:2]
    colours, found = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) > MOST:
        raise ShapeError(_too_many(f"{name} has", len(colours)))
    return _resized(found.reshape(height, width).astype(np.uint8), size or (height, width))


def _read_map(file: Path, picture: Path) -> NDArray[np.int64]:
    """The values (H, W) of a label map.

    Raises:
        ImageError: it can't be read, holds no labels, or has another size than its picture.
    """
    if file.suffix == ".npy":
        found = images.read_npy(file)
        if (
            found.ndim != 2
            or found.dtype.kind not in "iub"
            or not 0 <= found.min(initial=0) <= found.max(initial=0) < 2**16
        ):
            raise ImageError(f"{file} holds {found.dtype} {found.shape}; expected labels (H, W), 0 to 65535.")
        values = found.astype(np.int64) * 0x1_0001_0001  # as a grey picture has it
    else:
        read = images.read(file)
        if read.dtype.kind == "f":
            raise ImageError(f"{file} holds floating-point values; expected a label map, whole numbers.")
        red, green, blue = np.moveaxis(read.astype(np.int64), 2, 0)
        values = (red << 32) + (green << 16) + blue
    if values.shape != (size := images.read_size(picture)):
        raise ImageError(
            f"{picture}: its label map {file} has {values.shape[0]}x{values.shape[1]} pixels and the picture "
            f"{size[0]}x{size[1]}; expected the same size."
        )
    return np.asarray(values)


def _colour(value: int) -> str:
    """A value of a label map, as it is written in pictures."""
    red, green, blue = value >> 32, value >> 16 & 0xFFFF, value & 0xFFFF
    return str(red) if red == green == blue else f"({red}, {green}, {blue})"


def _resized(labels: Labels, size: tuple[int, int]) -> Labels:
    if labels.shape == size:
        return labels
    return np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def _too_many(what: str, count: int) -> str:
    return (
        f"{what} {count} different values; expected labels of at most {MOST} components, one value for each "
        "(PNG: JPEG blurs them)."
    )
