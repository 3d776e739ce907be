"""Real-IAD: five views of each part, listed in a JSON file for each category.

    <root>/<category>.json                          beside the folder of its pictures
    <root>/<category>/OK/S0001/…_C1_….jpg           good parts, a folder each
    <root>/<category>/NG/<code>/S0001/…_C1_….jpg    defective ones by kind of defect, masks beside them

or as downloaded, lists and pictures apart:

    <root>/realiad_jsons/realiad_jsons/<category>.json
    <root>/realiad_1024/<category>/…                or realiad_512, realiad_256, realiad_raw

Another list (realiad_jsons_sv, realiad_jsons_fuiad_0.1, …) is taken where its folder is opened, other
pictures where theirs is. A view that shows nothing of a defect is good, though its part is not. What
is listed to learn from is taken as good: the lists for noisy training hold defective parts there.

Source: arXiv 2403.12580.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from blemish.dataset import subfolders
from blemish.errors import DatasetError
from blemish.rows import Finder
from blemish.types import Sample, Split

TITLE = "Real-IAD"
LEARNS_FROM = ""

_PICTURES = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
_LISTS = ("realiad_jsons", "realiad_jsons/realiad_jsons")
_SPLITS: tuple[Split, ...] = ("train", "test")
_KEYS = ("anomaly_class", "image_path", "mask_path")
_VIEW = re.compile(r"_(C\d+)_")


class _Found(NamedTuple):
    """Where a category is."""

    listed: Path
    """Its JSON file."""
    pictures: list[Path]
    """Folders that hold its OK and NG; the lists are for any of them."""


def categories(root: Path) -> list[str]:
    """The categories that have both a list and pictures."""
    return sorted(_found(root))


def read(root: Path, category: str) -> list[Sample]:
    """All views of the parts of one category."""
    listed, pictures = _found(root)[category]
    if len(pictures) > 1:
        names = ", ".join(str(place) for place in pictures)
        raise DatasetError(
            f"{category} has pictures in {names}; open one of the folders {', '.join(_PICTURES)} to choose."
        )
    try:
        table = json.loads(listed.read_text("utf-8"))
        good = table["meta"]["normal_class"]
        rows = [(split, number, row) for split in _SPLITS for number, row in enumerate(table[split], start=1)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{listed} can't be read as a list of Real-IAD ({error!r}); expected JSON with meta, train and test."
        ) from error
    find = Finder(pictures[0])
    return [_sample(row, split, (category, good), find, f"{listed}, {split} {number}") for split, number, row in rows]


def _sample(row: Any, split: Split, names: tuple[str, str], find: Finder, place: str) -> Sample:
    category, good = names
    if not isinstance(row, dict) or any(key not in row for key in _KEYS):
        raise DatasetError(f"{place}: expected an object with {', '.join(_KEYS)}; download the lists again.")
    path = find(str(row["image_path"]), place)
    view = _VIEW.search(path.name)
    if view is None:
        raise DatasetError(f'{place}: {path.name} does not say its view; expected a name with "_C1_" or the like.')
    is_anomalous = split == "test" and row["mask_path"] is not None and row["anomaly_class"] != good
    return Sample(
        path=path,
        category=category,
        split=split,
        is_anomalous=is_anomalous,
        defect=str(row["anomaly_class"]) if is_anomalous else "",
        masks=(_mask(str(row["mask_path"]), find, place),) if is_anomalous else (),
        # Numbers of parts start anew for each kind of defect.
        part=path.parent.relative_to(find.folder).as_posix(),
        view=view[1],
    )


def _mask(name: str, find: Finder, place: str) -> Path:
    """The mask, which some downloads call <stem>_mask.png."""
    other = Path(name).with_stem(f"{Path(name).stem}_mask")
    names = [one for one in (str(other), name) if (find.folder / one).is_file()]
    if not names:
        raise DatasetError(
            f'{place}: there is no mask "{name}" in {find.folder}, nor {other.name} beside it; expected the mask '
            "beside its picture. Unpack the archive of the pictures again: it holds both."
        )
    return find(names[0], place)


def _found(root: Path) -> dict[str, _Found]:
    """The categories below a folder: the first place that has both lists and pictures counts."""
    for lists, places in _places(root):
        found = {}
        for listed in sorted(lists.glob("*.json")):
            inside = [folder for place in places if (folder := _inside(place / listed.stem)) is not None]
            if inside:
                found[listed.stem] = _Found(listed, inside)
        if found:
            return found
    return {}


def _places(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders that may hold lists, each with those that may hold pictures."""
    yield root, [root]
    yield from ((root / lists, [root / name for name in _PICTURES]) for lists in _LISTS)
    if root.name in _PICTURES:
        yield from ((root.parent / lists, [root]) for lists in _LISTS)
    if root.name.startswith(_LISTS[0]):
        for above in root.parents[:2]:
            yield root, [above / name for name in _PICTURES]


def _inside(folder: Path) -> Path | None:
    """The folder of OK and NG: this one, or one of the same name in it."""
    for place in (folder, folder / folder.name):
        if {"OK", "NG"} & {inside.name for inside in subfolders(place)}:
            return place
    return None
