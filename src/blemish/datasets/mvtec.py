"""MVTec AD and its relatives: train/good, test/good, test/<defect>, ground_truth/<defect>.

    <root>/<category>/                            or <root>/ being the category's own folder
    ├─ train/good/*.png
    ├─ test/good/*.png
    ├─ test/<defect>/*.png
    └─ ground_truth/<defect>/<stem>_mask.png

A part that is seen in several views may have a folder: test/<defect>/<part>/<view>.png, with masks in
ground_truth/<defect>/<part>. For ground_truth there may stand masks, mask or gt; where a kind has no folder of
masks, each may lie beside its picture. The relatives differ by words, which the tables below hold:

    MPDD, VisA prepared      masks named <stem>_mask.png or <stem>.png
    BTAD                     folders ok and ko for good and bad
    MVTec 3D-AD              pictures in <split>/<defect>/rgb, masks in <split>/<defect>/gt; validation
    MVTec LOCO, AutoVI       a folder of masks for each picture, ground_truth/<defect>/<stem>/*.png
    MVTec AD 2               validation/good, test_public with its own ground_truth, test_private unlabelled
    VAD, repacked            without its list of labelled defects; train/bad is kept and labelled
    VisA prepared, 2cls      masks in ground_truth/train/bad and ground_truth/test/bad
    BMAD                     valid; pictures in <split>/<defect>/img, masks in <split>/<defect>/label
"""

from pathlib import Path

from blemish import images
from blemish.dataset import (
    GOOD_WORDS,
    LOW_SHOT,
    MASK_FOLDERS,
    category_folder,
    category_names,
    masks_beside,
    masks_in,
    part_folders,
    subfolders,
)
from blemish.rows import word
from blemish.types import Sample, Split

TITLE = "MVTec layout"
LEARNS_FROM = "train/good"

# Masks of the pictures in {split}/{kind}; those found first are taken.
_TRUTH = ("ground_truth", "masks", "mask", "gt")
_MASKS = (
    *(f"{name}/{{split}}/{{kind}}" for name in _TRUTH),
    "{split}/ground_truth/{kind}",
    "{split}/{kind}/gt",
    "{split}/{kind}/label",
)
_FOLDERS: dict[str, tuple[Split, tuple[str, ...]]] = {
    "train": ("train", _MASKS),
    "validation": ("validation", _MASKS),
    "valid": ("validation", _MASKS),
    "test": ("test", (*(f"{name}/{{kind}}" for name in _TRUTH), *_MASKS)),
    "test_public": ("test", _MASKS),
    "test_private": ("test", ()),
    "test_private_mixed": ("test", ()),
}
_PICTURE_FOLDERS = ("rgb", "img")


def categories(root: Path) -> list[str]:
    """The folders that hold a train or test folder with folders (and no pictures) in it."""
    return category_names(root, _is_category)


def read(root: Path, category: str) -> list[Sample]:
    """All pictures of one category; those directly in a test folder are unlabelled."""
    folder = category_folder(root, category, _is_category)
    samples = []
    for place in subfolders(folder):
        if word(place.name) not in _FOLDERS:
            continue
        split, masks = _FOLDERS[word(place.name)]
        for kind in subfolders(place):
            if word(kind.name) not in MASK_FOLDERS:
                where = [folder / mask.format(split=place.name, kind=kind.name) for mask in masks]
                samples += _read_kind(kind, category, split, where)
        if split == "test":
            samples += [
                Sample(path=path, category=category, split=split, is_anomalous=None)
                for path in images.list_pictures(place)
            ]
    return samples


def _is_category(folder: Path) -> bool:
    if (folder / LOW_SHOT).is_file():
        return False
    places = [place for place in subfolders(folder) if word(place.name) in _FOLDERS]
    return any(subfolders(place) and not images.has_pictures(place) for place in places)


def _read_kind(folder: Path, category: str, split: Split, mask_folders: list[Path]) -> list[Sample]:
    is_good = word(folder.name) in GOOD_WORDS
    inside = [place for name in _PICTURE_FOLDERS if (place := folder / name).is_dir()]
    samples = []
    for place in inside or part_folders(folder):
        is_part = not inside and place != folder
        below = Path(place.name if is_part else "")
        found = {} if is_good else masks_in(*(masks / below for masks in mask_folders))
        files = images.list_pictures(place)
        # A mask among the pictures would be taken for one of them.
        beside = dict.fromkeys(files, ()) if is_good or found else masks_beside(files)
        samples += [
            Sample(
                path=path,
                category=category,
                split=split,
                is_anomalous=not is_good,
                defect="" if is_good else folder.name,
                masks=own or found.get(path.stem, ()),
                # Numbers of parts may start anew in each folder.
                part=f"{folder.parent.name}/{folder.name}/{place.name}" if is_part else "",
                view=path.stem if is_part else "",
            )
            for path, own in beside.items()
        ]
    return samples
