"""Datasets: which pictures there are, what is known of them, and reading them in batches.

A dataset layout is one file in `datasets/`. It is a module with

- `TITLE: str`, the layout's name in a sentence, for example "MVTec layout";
- `LEARNS_FROM: str`, where in a category's folder the good pictures to learn from lie, for example
  "train/good"; empty when that is not a matter of folders;
- optionally `APART: bool`, True where no model may learn two categories, because what is good in one
  is defective, or tested, in another;
- optionally `SPLITS_GOOD: bool`, True where folders don't say which good pictures are to be tested on:
  a share of them, whole parts, goes there after reading;
- `categories(root: Path) -> list[str]`, the categories found in `root`, sorted; empty when `root`
  does not have this layout. It looks at names, and never raises for what another layout may know;
- `read(root: Path, category: str) -> list[Sample]`, all samples of one of them, in any order.
  Splits are those on disk. Masks are matched by stem. It raises `DatasetError` for what it can't
  make sense of, never for an empty split.

What several layouts need is here: tables of words, folders of categories, masks, splitting.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

from blemish import images, registry
from blemish.errors import DatasetError, bad_option, count_of, not_among
from blemish.parts import Views
from blemish.types import Sample, Split

# fmt: off
GOOD_WORDS = frozenset({
    "good", "ok", "okay", "normal", "nominal", "pass", "passed", "accept", "accepted", "clean", "healthy",
    "no_defect", "non_defective", "defect_free",
})
"""Names of folders of good pictures and labels of good parts, as `word` writes them."""

BAD_WORDS = frozenset({
    "bad", "ng", "ko", "nok", "not_ok", "not_good", "ungood", "defect", "defects", "defective", "abnormal",
    "anomaly", "anomalies", "anomalous", "fail", "failed", "faulty", "reject", "rejected",
})
"""The same for defective parts whose kind of defect is not said."""
# fmt: on

MASK_FOLDERS = frozenset({"mask", "masks", "ground_truth", "gt"})
"""Names of folders that hold masks and never pictures, in lower case."""

LOW_SHOT = "low_shot_train.json"
"""What tells VAD from the MVTec layout, which it has otherwise."""

_MASK_ENDING = re.compile("_(mask|gt|label)$", re.IGNORECASE)


class Layout(Protocol):
    """What a module in `datasets/` defines; see above."""

    TITLE: str
    LEARNS_FROM: str

    def categories(self, root: Path) -> list[str]:
        """The categories found in `root`; empty when it does not have this layout."""

    def read(self, root: Path, category: str) -> list[Sample]:
        """All samples of one category."""


@dataclass(frozen=True)
class Dataset:
    """Pictures of one or more categories, split into train, validation and test."""

    title: str
    """What layout was found, in words."""
    root: Path
    """The folder (or manifest) that was opened."""
    samples: tuple[Sample, ...]
    """All pictures."""
    opened: tuple[str, ...] = ()
    """The categories that were opened, also those that turned out to have no pictures."""
    learns_from: str = ""
    """Where in a category's folder its good training pictures lie; empty when there is no such place."""
    apart: bool = False
    """Whether no model may learn two of the categories."""

    @cached_property
    def train(self) -> list[Sample]:
        """Good pictures to learn from."""
        return [sample for sample in self.samples if sample.split == "train" and sample.is_anomalous is False]

    @cached_property
    def train_defects(self) -> list[Sample]:
        """Defective pictures that may be learned from; most models look at good ones only."""
        return [sample for sample in self.samples if sample.split == "train" and sample.is_anomalous is True]

    @cached_property
    def validation(self) -> list[Sample]:
        """Good pictures held out of training, to calibrate on; never pictures of the test set."""
        return [sample for sample in self.samples if sample.split == "validation" and sample.is_anomalous is False]

    @cached_property
    def test(self) -> list[Sample]:
        """Good and defective pictures to evaluate on."""
        return [sample for sample in self.samples if sample.split == "test"]

    @cached_property
    def categories(self) -> list[str]:
        """The categories that were opened, sorted."""
        return sorted({*self.opened, *self._by_category})

    def of(self, *categories: str) -> "Dataset":
        """The part of this dataset that shows `categories`."""
        samples = tuple(sample for category in categories for sample in self._by_category.get(category, ()))
        return replace(self, samples=samples, opened=categories)

    def sentences(self) -> list[str]:
        """What was found, a sentence for each category."""
        return [_sentence(self.of(category), category) for category in self.categories]

    def require_train(self) -> None:
        """Nothing, if there are good pictures to learn from in each category.

        Raises:
            DatasetError: a category has none, or the categories must not be learned together.
        """
        if not self.categories:
            raise DatasetError(f"{self.root} has no pictures; expected good ones to learn from.")
        if self.apart and len(self.categories) > 1:
            raise DatasetError(
                f"what is good in one category of {self.title} may be abnormal or tested in another, so no model may "
                f"learn {' and '.join(self.categories)} together; choose one with --category."
            )
        for category in self.categories:
            if not self.of(category).train:
                raise DatasetError(_nothing_to_learn(self.root, category, self.learns_from))

    @cached_property
    def _by_category(self) -> dict[str, list[Sample]]:
        return _grouped(self.samples)


def open_dataset(  # noqa: PLR0913 - each is an option of its own
    layout: str,
    root: str | os.PathLike[str],
    *,
    category: str | Sequence[str] | None = None,
    train_dir: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.2,
    views: Views | None = None,
    seed: int = 0,
) -> Dataset:
    """The dataset in a folder.

    Args:
        layout: A name of `blemish list datasets`, or "auto" to recognise it by looking.
        root: The folder, a category's own folder, or a manifest file.
        category: One name or several; all that are found when none is given.
        train_dir: Folder of good pictures to learn from, in place of the layout's own; relative to
            `root` or absolute.
        validation_fraction: Share of the good training pictures that is held out for calibration,
            where the layout has no validation split of its own; at least one picture.
        views: How pictures are joined to parts; as the layout says, if not given.
        seed: Decides which pictures these are.

    Raises:
        DatasetError: nothing there, no known layout, or no such category.
        ConfigError: no such layout, or a fraction outside (0, 1).
    """
    root = Path(root)
    if root.name in {"", ".."}:
        root = root.resolve()  # a category may be called by its folder's name
    if not 0 < validation_fraction < 1:
        raise bad_option("validation_fraction", validation_fraction, "a share between 0 and 1")
    if not root.exists():
        raise DatasetError(f"{root} does not exist; expected a folder of pictures or a manifest.")
    module, found = _recognise(layout, root)
    wanted = _wanted(category, found, root)
    samples = [sample for name in wanted for sample in module.read(root, name)]
    if train_dir is not None:
        samples = _with_train_dir(samples, (root.parent if root.is_file() else root) / train_dir, wanted)
    samples = (views or Views()).join(samples)
    if getattr(module, "SPLITS_GOOD", False):
        samples = [sample for own in _grouped(samples).values() for sample in split_good(own)]
    held_out = hold_out(samples, validation_fraction, seed)
    held_out.sort(key=lambda sample: (sample.category, str(sample.path)))
    apart = bool(getattr(module, "APART", False))
    return Dataset(module.TITLE, root, tuple(held_out), tuple(wanted), module.LEARNS_FROM, apart)


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in `folder`, sorted by name, without hidden ones; none if it is not a folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DatasetError(f"{folder} can't be opened ({error.strerror}); expected a folder to read.") from error
    return [folder / name for name in sorted(names)]


def category_names(root: Path, is_category: Callable[[Path], bool]) -> list[str]:
    """The categories in `root`: itself if it is one, else the folders directly in it that are; sorted."""
    return [folder.name for folder in ([root] if is_category(root) else filter(is_category, subfolders(root)))]


def category_folder(root: Path, category: str, is_category: Callable[[Path], bool]) -> Path:
    """The folder of one of `category_names`, found without looking at the others."""
    return root if is_category(root) else root / category


def part_folders(folder: Path) -> list[Path]:
    """Where the pictures of one kind lie: the folder itself or, where it has none, those in it, each of them a part.

    Raises:
        DatasetError: one of several parts has no pictures.
    """
    inside = [] if images.has_pictures(folder) else subfolders(folder)
    full = [place for place in inside if images.has_pictures(place)]
    for place in inside:
        if full and place not in full:
            raise DatasetError(
                f"{place} has no pictures, and the folders beside it are parts seen in several; expected the views "
                "of a part. Put them there, or remove the folder."
            )
    return full or [folder]


def masks_in(*folders: Path) -> dict[str, tuple[Path, ...]]:
    """The masks in the first of these folders that has any, by the stem of their picture.

    A mask has the stem of its picture, or that and `_mask`, `_GT` or `_label`, or lies in a folder
    that has it for a name. Order and suffix never matter.
    """
    for folder in filter(Path.is_dir, folders):
        files = images.list_pictures(folder)
        exact = _by_stem(files, lambda path: path.stem)
        ending = _by_stem(files, _picture_stem)
        inside = {place.name: tuple(images.list_pictures(place)) for place in subfolders(folder)}
        if found := inside | ending | exact:
            return found
    return {}


def masks_beside(files: list[Path]) -> dict[Path, tuple[Path, ...]]:
    """The pictures among the files of one folder, each with those named like it and `_mask`, `_GT` or `_label`."""
    stems = {path.stem for path in files}
    masks = {path for path in files if _picture_stem(path) != path.stem and _picture_stem(path) in stems}
    found = _by_stem(sorted(masks), _picture_stem)
    return {path: found.get(path.stem, ()) for path in files if path not in masks}


def split_good(samples: list[Sample], fraction: float = 0.2) -> list[Sample]:
    """The samples of a category, a share of its good training pictures moved to test.

    That is where there are defective pictures to test on and no good ones to tell them from. Good
    views of a part that is tested go with it.
    """
    test = [sample for sample in samples if sample.split == "test"]
    tested = {sample.is_anomalous for sample in test}
    if True not in tested or False in tested:
        return samples
    parts = {sample.part for sample in test if sample.part}
    together = [replace(sample, split="test") if sample.part in parts else sample for sample in samples]
    return _moved(together, "test", fraction, "test")


def _by_stem(files: Iterable[Path], stem: Callable[[Path], str]) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for path in files:
        found[stem(path)] = (*found.get(stem(path), ()), path)
    return found


def _picture_stem(mask: Path) -> str:
    return _MASK_ENDING.sub("", mask.stem)


def _recognise(layout: str, root: Path) -> tuple[Layout, list[str]]:
    names = registry.names("datasets") if layout == "auto" else (layout,)
    modules = {name: cast(Layout, registry.load("datasets", name)) for name in names}
    found = {name: module.categories(root) for name, module in modules.items()}
    matching = [name for name in names if found[name]]
    if len(matching) > 1 and "folder" in matching:
        matching.remove("folder")  # it takes any folder, so it comes last
    if len(matching) == 1:
        return modules[matching[0]], found[matching[0]]
    if matching:
        raise DatasetError(f"{root} could be any of {', '.join(matching)}; name one with --dataset.")
    expected = "any known layout" if layout == "auto" else f'the layout "{layout}"'
    if root.is_file():
        raise DatasetError(
            f"{root} does not have {expected}; expected a folder of pictures, or a manifest ending in .csv or .jsonl."
        )
    raise DatasetError(
        f"{root} does not have {expected} (found: {contents(root)}). Put good pictures into train/good, "
        "or see docs/data.md for the layouts and manifests that are understood."
    )


def _wanted(category: str | Sequence[str] | None, found: list[str], root: Path) -> list[str]:
    wanted = [category] if isinstance(category, str) else sorted(set(category or found))
    for name in wanted:
        if name not in found:
            raise DatasetError(f"{root}: {not_among('category', name, found)}")
    return wanted


def _with_train_dir(samples: list[Sample], folder: Path, categories: list[str]) -> list[Sample]:
    if not folder.is_dir():
        raise DatasetError(f"--train-dir {folder} is not a folder; expected one of good pictures.")
    if len(categories) != 1:
        raise DatasetError(
            f"--train-dir holds one category, but there are {len(categories)}: choose one with --category."
        )
    learn = [
        Sample(path=path, category=categories[0], split="train", is_anomalous=False)
        for path in images.list_pictures(folder)
    ]
    if not learn:
        raise DatasetError(f"--train-dir {folder} has no pictures (found: {contents(folder)}); expected good ones.")
    places = {place for place in {sample.path.parent for sample in samples} if place.resolve() == folder.resolve()}
    return learn + [sample for sample in samples if sample.split != "train" and sample.path.parent not in places]


def hold_out(samples: list[Sample], fraction: float, seed: int) -> list[Sample]:
    """Moves some good training pictures to validation, where a category has none there."""
    result = []
    for own in _grouped(samples).values():
        has_validation = any(sample.split == "validation" and sample.is_anomalous is False for sample in own)
        result += own if has_validation else _moved(own, "validation", fraction, str(seed))
    return result


def _moved(samples: list[Sample], split: Split, fraction: float, seed: str) -> list[Sample]:
    """The samples of one category with a share of the good training pictures, at least one, moved to `split`.

    Which ones is decided by a hash of seed and path within the folder that they share, so that it
    depends neither on where the dataset lies nor on the order of the files; the views of one part
    stay together, and one part always stays to learn from.
    """
    good = [sample for sample in samples if sample.split == "train" and sample.is_anomalous is False]
    if not good:
        return samples
    shared = len(os.path.commonpath({sample.path.parent for sample in good}))
    part_of = {sample.path: sample.part or sample.path.as_posix()[shared:].lstrip("/") for sample in good}
    parts = sorted(set(part_of.values()), key=lambda part: _hash(seed, part))
    chosen = set(parts[: min(max(1, round(fraction * len(parts))), len(parts) - 1)])
    return [replace(sample, split=split) if part_of.get(sample.path) in chosen else sample for sample in samples]


def _grouped(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    by_category: dict[str, list[Sample]] = {}
    for sample in samples:
        by_category.setdefault(sample.category, []).append(sample)
    return by_category


def _hash(seed: str, text: str) -> bytes:
    return hashlib.sha256(f"{seed}/{text}".encode("utf-8", "surrogateescape")).digest()


def contents(folder: Path) -> str:
    """What is in a folder, in words, for messages."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _nothing_to_learn(root: Path, category: str, place: str) -> str:
    if not place:
        return (
            f"{category} has no good pictures to learn from in {root}. "
            "Add some, or name a folder of good pictures with --train-dir."
        )
    folder = root / category if (root / category).is_dir() else root
    good = folder / place
    lack = (
        f"no pictures in {place} (found: {contents(good)})"
        if good.is_dir()
        else f"no {place} folder (found: {contents(folder)})"
    )
    return (
        f"{category} has {lack}. Blemish learns from good pictures there: "
        "move some in, or name your folder with --train-dir."
    )


def _sentence(data: Dataset, category: str) -> str:
    learn = f"{count_of(len(data.train) + len(data.validation), 'good picture')} to learn from"
    if data.validation:
        learn += f" ({len(data.validation)} of them held out to calibrate)"
    if data.train_defects:
        learn += f" and {count_of(len(data.train_defects), 'labelled defect')}"
    labels = Counter(sample.is_anomalous for sample in data.test)
    places = {sample.path.parent for sample in data.test if sample.is_anomalous is False}
    split_here = any(sample.path.parent in places for sample in data.train)
    counts = {
        "good from the same folder" if split_here else "good": labels[False],
        "defective": labels[True],
        "unlabelled": labels[None],
    }
    # Testing takes both kinds, so that one that lacks is said as well.
    is_labelled = labels[False] + labels[True] > 0
    test = [
        f"{number or 'no'} {kind}"
        for kind, number in counts.items()
        if number or (is_labelled and kind != "unlabelled")
    ]
    tested = " and ".join(filter(None, (", ".join(test[:-1]), test[-1]))) if test else "none"
    return f"{data.title}, category {category}: {learn}, {tested} to test{_masks(data.test)}{_unseen(data)}."


def _unseen(data: Dataset) -> str:
    """How many of the defective test pictures are of kinds that no labelled defect is of."""
    known = {sample.defect for sample in data.train_defects}
    unseen = sum(bool(sample.is_anomalous) and sample.defect not in known for sample in data.test)
    return f"; {unseen} of the defective ones are of kinds that are not among the labelled" if known and unseen else ""


def _masks(test: Iterable[Sample]) -> str:
    defective = [sample for sample in test if sample.is_anomalous]
    with_mask = sum(bool(sample.masks) for sample in defective)
    if not defective:
        return ""
    if with_mask == len(defective):
        return ", masks for all"
    return f", masks for {with_mask} of {len(defective)}" if with_mask else ", no masks"
