"""Evaluation of anybody's anomaly maps: files of maps and masks in, all metrics out.

Maps are .npy (H, W), or grey .png, .tif, .tiff of any depth, with higher = more abnormal. Masks are
binary pictures or .npy of the same shape. Two ways to say which belong together:

- two folders: a map and its mask have the same path below their folder, but for the suffix and an
  `_mask` at the end of the mask's name. Of nested folders, the first names the category and the
  last the kind of defect; those in a folder `good` are good and need no mask;
- a manifest, .csv or .jsonl: one line for each map, with `map` and, where known, `mask`, `label`
  (good or defective), `image_score`, `category`, `defect` and `part`. Paths are relative to it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blemish import images
from blemish.dataset import BAD_WORDS, GOOD_WORDS
from blemish.errors import DatasetError, MetricError, not_among
from blemish.metric import Evaluation, Mode, Options, PictureError, Results, refuse
from blemish.progress import track
from blemish.rows import Finder, Place, Row, read_rows, word
from blemish.types import Sample

_MAP_SUFFIXES = frozenset({".npy", ".png", ".tif", ".tiff"})
_MASK_SUFFIXES = images.SUFFIXES | {".npy"}
_COLUMNS = ("map", "mask", "label", "image_score", "category", "defect", "part")
_LABELS: Mapping[str, bool | None] = {
    **dict.fromkeys(GOOD_WORDS | {"0", "false"}, False),
    **dict.fromkeys(BAD_WORDS | {"1", "true"}, True),
    **dict.fromkeys(("", "none", "null", "unknown"), None),
}


@dataclass(frozen=True, slots=True)
class MapFile:
    """One map and what is known of it."""

    sample: Sample
    """Its path is that of the map; its masks are one or none."""
    image_score: float | None = None
    """The picture's score; the maximum of the map when not given."""


def evaluate_files(
    maps: str | os.PathLike[str],
    masks: str | os.PathLike[str] | None = None,
    *,
    mode: Mode = "auto",
    options: Options | None = None,
) -> Results:
    """All metrics of the maps in a folder or manifest.

    Args:
        maps: A folder of maps, or a manifest.
        masks: A folder of masks; none for a manifest.
        mode: "exact", "streaming", or "auto" for what fits the size.
        options: How to compute.

    Raises:
        MetricError: nothing there; maps and masks don't pair; or pictures can't be used, of which
            the first is named and those with the same fault are counted.
    """
    return collect(list_files(maps, masks), mode=mode, options=options).compute(options)


def collect(files: Iterable[MapFile], *, mode: Mode = "auto", options: Options | None = None) -> Evaluation:
    """An evaluation of all files, to be saved, merged or computed."""
    files = list(files)
    options = options or Options()
    evaluation = Evaluation(mode, intervals=options.resamples > 0)
    trust_labels = options.protocol == "default"
    faults: list[PictureError] = []
    for file in track(files, "Evaluating", len(files)):
        try:
            _add(evaluation, file, trust_labels=trust_labels)
        except PictureError as fault:
            faults.append(fault)
    refuse(faults, len(files))
    return evaluation


def _add(evaluation: Evaluation, file: MapFile, *, trust_labels: bool) -> None:
    sample, name = file.sample, str(file.sample.path)
    anomaly_map = read_array(sample.path)
    mask = read_array(sample.masks[0]) if sample.masks else None
    if trust_labels and sample.is_anomalous and mask is not None and not mask.any():
        raise PictureError(
            name,
            f"it is labelled defective, but its mask {sample.masks[0]} marks no pixel",
            "labels and masks that agree; to take labels from masks, add --protocol ader",
        )
    if mask is not None and not (trust_labels and sample.is_anomalous is not None):
        sample = replace(sample, is_anomalous=None)  # so that the mask decides
    score = float(np.max(anomaly_map)) if file.image_score is None else file.image_score
    evaluation.add(sample, score, anomaly_map, mask)


def list_files(maps: str | os.PathLike[str], masks: str | os.PathLike[str] | None = None) -> list[MapFile]:
    """The maps in a folder or manifest, with their masks; nothing is read but the manifest.

    Raises:
        MetricError: nothing there, or maps and masks don't pair.
    """
    maps, masks = Path(maps), None if masks is None else Path(masks)
    if maps.is_file():
        if masks is not None:
            raise MetricError(f"{maps} is a manifest, which names the masks itself; leave out {masks}.")
        files = _from_manifest(maps)
    elif masks is None:
        raise MetricError(
            f"{maps} is not a manifest (.csv or .jsonl); expected one, or a folder of maps and then a folder of masks."
        )
    else:
        files = _from_folders(maps, masks)
    if not files:
        raise MetricError(f"{maps} holds no maps (0 files); expected {', '.join(sorted(_MAP_SUFFIXES))}.")
    return files


def _from_folders(maps: Path, masks: Path) -> list[MapFile]:
    mask_of = {_mask_key(key): path for key, path in _by_key(masks, _MASK_SUFFIXES).items()}
    map_of = _by_key(maps, _MAP_SUFFIXES)
    for wrong, what, where in (
        (sorted(key for key in map_of if key not in mask_of and "good" not in key.parent.parts), "map", masks),
        (sorted(key for key in mask_of if key not in map_of), "mask", maps),
    ):
        if wrong:
            other = "mask" if what == "map" else "map"
            raise MetricError(
                f"{what} {wrong[0]} has no {other} in {where} ({what}s without one: {len(wrong)}); expected the same "
                "path below both folders. Put maps of good pictures into a folder good, or list all in a manifest."
            )
    return [
        MapFile(
            Sample(
                path=path,
                category=folders[0] if len(folders := _folders(key)) > 1 else maps.resolve().name,
                split="test",
                is_anomalous=folders[-1] != "good" if folders else None,
                defect=folders[-1] if folders and folders[-1] != "good" else "",
                masks=(mask_of[key],) if key in mask_of else (),
            )
        )
        for key, path in map_of.items()
    ]


def _folders(key: Path) -> list[str]:
    return [name for name in key.parent.parts if name != "test"]


def _mask_key(key: Path) -> Path:
    return key.with_name(key.name.removesuffix("_mask"))


def _by_key(folder: Path, suffixes: frozenset[str]) -> dict[Path, Path]:
    """The files below a folder by their path in it, without suffix."""
    if not folder.is_dir():
        raise MetricError(f"{folder} is not a folder; expected one of {', '.join(sorted(suffixes))} files.")
    found: dict[Path, Path] = {}
    twice = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            key = path.relative_to(folder).with_suffix("")
            if key in found:
                twice.append(path)
            found[key] = path
    if twice:
        raise MetricError(
            f"{twice[0]} is there twice, with another suffix (such files: {len(twice)}); expected one of each name."
        )
    return found


def _from_manifest(path: Path) -> list[MapFile]:
    find = Finder(path.parent)
    try:
        return [_from_row(row, find, place, path.stem) for place, row in read_rows(path, _COLUMNS)]
    except DatasetError as error:
        raise MetricError(str(error)) from error


def _from_row(row: Row, find: Finder, place: Place, category: str) -> MapFile:
    label = word(row.get("label", ""))
    if label not in _LABELS:
        raise MetricError(f"{place}: {not_among('label', label, _LABELS)}")
    try:
        score = float(row["image_score"]) if row.get("image_score") else None
    except ValueError as error:
        raise MetricError(f'{place}: the image_score is "{row["image_score"]}"; expected a number.') from error
    sample = Sample(
        path=find(row.get("map", ""), place),
        category=row.get("category") or category,
        split="test",
        is_anomalous=_LABELS[label],
        defect=row.get("defect", ""),
        masks=(find(row["mask"], place),) if row.get("mask") else (),
        part=row.get("part", ""),
    )
    return MapFile(sample, score)


def read_array(path: Path) -> NDArray[Any]:
    """The numbers in a file: (H, W), as stored.

    Raises:
        PictureError: it can't be read, or is not one plane of numbers.
    """
    array: NDArray[Any] | None
    try:
        if path.suffix.lower() == ".npy":
            array = images.read_npy(path)
        else:
            array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except Exception as error:  # decoders raise whatever they like about damaged files
        raise PictureError(str(path), "it can't be read", "numbers in .npy, or a picture that is whole") from error
    if array is None:
        raise PictureError(str(path), "it can't be read as a picture", "a map or mask that can be read")
    if array.ndim == 3 and array.shape[2] in {3, 4} and (array[:, :, :3] == array[:, :, :1]).all():
        array = array[:, :, 0]
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array.squeeze(0 if array.shape[0] == 1 else 2)
    if array.ndim != 2:
        raise PictureError(str(path), f"it has shape {array.shape}", "one plane (H, W) of raw values, not colours")
    if array.dtype.kind not in "biuf":
        raise PictureError(str(path), f"it holds {array.dtype}", "numbers, or yes and no")
    return np.asarray(array)
