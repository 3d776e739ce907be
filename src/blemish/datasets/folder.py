"""Any folder of pictures: just good ones, or folders of good and of bad ones.

    <category>/*.png                                just good pictures

    <category>/                                     good and bad
    ├─ good/*.png                                   or ok, normal, pass, …; or directly in <category>
    ├─ bad/*.png                                    or ng, ko, defective, …; beside good pictures in
    │                                               a folder of their own, any other folder is a kind
    │                                               of defect
    └─ masks/*.png, masks/bad/*.png                 optional: <stem>.png, <stem>_mask.png, <stem>/*.png

In good and bad, a part that is seen in several views may have a folder, good/<part>/<view>.png; its
masks are then in masks/bad/<part>. Several such folders in one are several categories. Where there
are bad pictures to test on, a fifth of the good parts, chosen by a hash of their names, goes to test.
Words for good, bad and masks are those of `dataset.py`, in any case.
"""

from pathlib import Path

from blemish import images
from blemish.dataset import (
    BAD_WORDS,
    GOOD_WORDS,
    MASK_FOLDERS,
    category_folder,
    masks_beside,
    masks_in,
    part_folders,
    subfolders,
)
from blemish.errors import DatasetError
from blemish.rows import word
from blemish.types import Sample, Split

TITLE = "Folder of pictures"
LEARNS_FROM = "good"
SPLITS_GOOD = True

# What they hold is not said by their names alone, so that they are no categories of good pictures.
_NO_CATEGORIES = MASK_FOLDERS | {"train", "test", "val", "valid", "validation"}


def categories(root: Path) -> list[str]:
    """The folder itself, or those directly in it that hold pictures."""
    if _is_category(root):
        return [root.name]
    return [place.name for place in _inside(root) if _is_sorted(place) or images.has_pictures(place)]


def read(root: Path, category: str) -> list[Sample]:
    """All pictures of one category."""
    folder = category_folder(root, category, _is_category)
    mask_folders = [place for place in subfolders(folder) if word(place.name) in MASK_FOLDERS]
    samples = []
    owner: dict[Path, Path] = {}
    places = [(place, kind, defect) for kind, defect in _places(folder) for place in _part_folders(kind, folder)]
    for place, kind, defect in places:
        part = "" if place == kind else place.relative_to(folder).as_posix()
        own = [masks / place.relative_to(kind) for masks in (*(each / defect for each in mask_folders), *mask_folders)]
        found = masks_in(*own) if defect else {}
        for path, beside in masks_beside(images.list_pictures(place)).items():
            masks = (beside or found.get(path.stem, ())) if defect else ()
            for mask in masks:
                if owner.setdefault(mask, path) != path:
                    raise DatasetError(
                        f"{mask} is the mask of {owner[mask]} and of {path}; give each kind of defect a folder of "
                        f"masks of its own, {mask.parent / defect}."
                    )
            split: Split = "test" if defect else "train"
            samples.append(
                Sample(
                    path=path,
                    category=category,
                    split=split,
                    is_anomalous=bool(defect),
                    defect=defect,
                    masks=masks,
                    part=part,
                    view=path.stem if part else "",
                )
            )
    return samples


def _part_folders(kind: Path, folder: Path) -> list[Path]:
    """Those of the parts of one kind; the category's own folder holds other things than parts."""
    return [kind] if kind == folder else part_folders(kind)


def _is_category(root: Path) -> bool:
    """Whether it is one category: sorted, or with pictures and no sorted folders, to which those are a trifle."""
    if _is_sorted(root):
        return True
    return root.is_dir() and images.has_pictures(root) and not any(map(_is_sorted, _inside(root)))


def _inside(root: Path) -> list[Path]:
    return [place for place in subfolders(root) if word(place.name) not in _NO_CATEGORIES]


def _is_sorted(folder: Path) -> bool:
    """Whether pictures in it are sorted into good and bad ones."""
    return any(word(place.name) in GOOD_WORDS | BAD_WORDS for place in subfolders(folder))


def _places(folder: Path) -> list[tuple[Path, str]]:
    """The folders of pictures of one category, each with its kind of defect; that is empty for good."""
    inside = [place for place in subfolders(folder) if word(place.name) not in MASK_FOLDERS]
    good = [place for place in inside if word(place.name) in GOOD_WORDS]
    bad = [place for place in inside if place not in good and (good or word(place.name) in BAD_WORDS)]
    return [(place, "") for place in good or [folder]] + [(place, place.name) for place in bad]
