"""VAD: labelled defects to learn from, and kinds of defects that nobody has learned from.

    <root>/                                or <root>/vad/
    ├─ train/good/*.png                    2000
    ├─ train/bad/*.png                     1000, labelled
    ├─ test/good/*.png                     1000
    ├─ test/bad/*.png                      835
    ├─ test/bad_unseen_defects/*.png       165 of kinds that are not in train/bad
    └─ low_shot_train.json                 {"<key>": [100 names of train/bad]} for 5 keys

Its protocols are its categories, which differ by the labelled defects to learn from: vad-one-class (none),
vad-low-shot-<key> (those listed) and vad-high-shot (all). They are tested on the same pictures.
Repacked without the list, VAD has the MVTec layout.

Source: arXiv 2405.04953, section 4.
"""

import json
from pathlib import Path

from blemish import images
from blemish.dataset import LOW_SHOT, subfolders
from blemish.errors import DatasetError, count_of
from blemish.types import Sample, Split

TITLE = "VAD"
LEARNS_FROM = "train/good"
APART = True

_ONE_CLASS, _LOW_SHOT, _HIGH_SHOT = "-one-class", "-low-shot-", "-high-shot"
_SPLITS: tuple[Split, ...] = ("train", "test")


def categories(root: Path) -> list[str]:
    """The protocols of each folder that has VAD's list."""
    return sorted(
        f"{folder.resolve().name}{protocol}"
        for folder in _folders(root)
        for protocol in (_ONE_CLASS, _HIGH_SHOT, *(f"{_LOW_SHOT}{key}" for key in _lists(folder)))
    )


def read(root: Path, category: str) -> list[Sample]:
    """All pictures of one protocol."""
    folder = next(folder for folder in _folders(root) if category.startswith(f"{folder.resolve().name}-"))
    protocol = category.removeprefix(folder.resolve().name)
    labelled = {path.name: path for path in images.list_pictures(folder / "train" / "bad")}
    wanted = set(labelled)
    if protocol == _ONE_CLASS:
        wanted = set()
    elif protocol.startswith(_LOW_SHOT):
        wanted = set(_lists(folder)[protocol.removeprefix(_LOW_SHOT)])
    if lost := sorted(wanted - set(labelled)):
        raise DatasetError(
            f"{folder / LOW_SHOT} lists {count_of(len(lost), 'picture')} not to be found in "
            f"{folder / 'train' / 'bad'} ({lost[0]}); unpack the whole archive again."
        )
    return [
        Sample(
            path=path,
            category=category,
            split=split,
            is_anomalous=kind.name != "good",
            defect="" if kind.name == "good" else kind.name,
        )
        for split in _SPLITS
        for kind in subfolders(folder / split)
        for path in images.list_pictures(kind)
        if split == "test" or kind.name == "good" or path.name in wanted
    ]


def _folders(root: Path) -> list[Path]:
    return [folder for folder in (root, *subfolders(root)) if (folder / LOW_SHOT).is_file()]


def _lists(folder: Path) -> dict[str, list[str]]:
    """The names of the labelled defects under each key."""
    try:
        found = json.loads((folder / LOW_SHOT).read_text("utf-8"))
        return {str(key): [str(name) for name in names] for key, names in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"{folder / LOW_SHOT} can't be read ({error!r}); expected JSON with names of pictures under each key."
        ) from error
