"""Labelled defects: pictures that a dataset gets to learn from, from a folder or from what people said of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from blemish import images
from blemish.dataset import MASK_FOLDERS, Dataset, contents, masks_beside, masks_in
from blemish.errors import DatasetError, ImageError, count_of
from blemish.reading import digest, read_mask, short
from blemish.types import Failure, Sample

NOWHERE: images.Bools = np.zeros((1, 1), bool)
"""The mask of a good picture, and of one whose defect is not marked."""


def with_defects(data: Dataset, folder: Path) -> Dataset:
    """The dataset with the pictures of a folder as defects to learn from; copies of them leave the test.

    Their masks are taken where there are any: beside the pictures, in a folder like ground_truth in `folder` or beside
    it, or where the MVTec layout has those of its test pictures.

    Raises:
        DatasetError: no such folder, no pictures in it, or several categories.
    """
    category = _one_category(data, folder)
    files = images.list_pictures(folder)
    elsewhere = masks_in(*_mask_folders(folder))
    found = dict.fromkeys(files, ()) if elsewhere else masks_beside(files)
    if not found:
        raise DatasetError(f"--defects {folder} has no pictures (found: {contents(folder)}); expected defective ones.")
    known = {digest(path) for path in found}
    learn = [
        Sample(
            path=path,
            category=category,
            split="train",
            is_anomalous=True,
            defect=folder.name,
            masks=own or elsewhere.get(path.stem, ()),
        )
        for path, own in found.items()
    ]
    kept = [sample for sample in data.samples if not sample.is_anomalous or digest(sample.path) not in known]
    return replace(data, samples=(*kept, *learn))


def with_verdicts(data: Dataset, folder: Path, verdicts: Mapping[str, bool]) -> Dataset:
    """The dataset with what people said of the pictures in a folder, as labels to learn from.

    Copies of them leave the dataset, whatever it said of them.

    Args:
        data: Of one category.
        folder: Looked through with all its folders, whatever its files are called.
        verdicts: {SHA-256 of a picture's file: whether its part is defective}.

    Raises:
        DatasetError: no such folder, no picture with a verdict in it, or several categories.
    """
    category = _one_category(data, folder)
    said = {short(sha256): is_defective for sha256, is_defective in verdicts.items()}
    found = {digest(path): path for path in sorted(folder.rglob("*"), reverse=True) if path.is_file()}
    learn = [
        Sample(path=path, category=category, split="train", is_anomalous=said[key], defect="verdict" * said[key])
        for key, path in sorted(found.items(), key=lambda item: item[1])
        if key in said
    ]
    if not learn:
        raise DatasetError(
            f"none of {count_of(len(found), 'file')} in --defects {folder} is among the "
            f"{count_of(len(said), 'picture')} that the record has a verdict on; name the folder that the server "
            "keeps pictures in, or that they were sent from."
        )
    kept = [sample for sample in data.samples if digest(sample.path) not in said.keys() & found.keys()]
    return replace(data, samples=(*kept, *learn))


def with_readable_masks(defects: Iterable[Sample], lost: list[Failure]) -> Iterator[Sample]:
    """The labelled defects; `lost` grows by those with a mask that can't be read."""
    for sample in defects:
        try:
            mask_of(sample)
        except ImageError as error:
            lost.append(Failure(sample.path, str(error)))
        else:
            yield sample


def mask_of(sample: Sample) -> images.Bools:
    """Where a picture is labelled defective, in the size of its file; `NOWHERE` if that is not known.

    Raises:
        ImageError: a mask can't be read or has another size than its picture.
    """
    mask = read_mask(sample, images.read_size(sample.path)) if sample.masks and sample.is_anomalous else None
    return NOWHERE if mask is None else mask


def _mask_folders(folder: Path) -> list[Path]:
    """Where masks of the pictures in a folder may lie, the nearest first."""
    place = folder.absolute()
    inside = [place / name for name in sorted(MASK_FOLDERS)]
    beside = [place.parent / name / place.name for name in sorted(MASK_FOLDERS)]
    of_test = [place.parent.parent / name / place.name for name in sorted(MASK_FOLDERS)]
    return inside + beside + of_test


def _one_category(data: Dataset, folder: Path) -> str:
    """The category of the defects in a folder, if there can be no doubt."""
    if not folder.is_dir():
        raise DatasetError(f"--defects {folder} is not a folder; expected one of defective pictures.")
    if len(data.categories) != 1:
        raise DatasetError(
            f"--defects holds one category, but there are {len(data.categories)}: choose one with --category."
        )
    return data.categories[0]
