"""Datasets: which pictures there are, what is known of them, and reading them in batches.

A dataset layout is one file in `datasets/`. It is a module with

- `TITLE: str`, the layout's name in a sentence, for example "MVTec layout";
- `categories(root: Path) -> list[str]`, the categories found in `root`, sorted; empty when `root`
  does not have this layout. It looks at names only and never raises for a folder that exists;
- `read(root: Path, category: str) -> list[Sample]`, all samples of one of them, sorted by path.
  Splits are those on disk. Masks are matched by stem. It raises `DatasetError` for what it can't
  make sense of, never for an empty split.
"""

import hashlib
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from blemish import images, registry
from blemish.errors import ConfigError, DatasetError, ImageError, ShapeError, not_among
from blemish.types import Batch, Failure, Sample, Split

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

_MASK_ENDING = re.compile("_(mask|gt|label)$", re.IGNORECASE)


class Layout(Protocol):
    """What a module in `datasets/` defines; see above."""

    TITLE: str

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

    @cached_property
    def train(self) -> list[Sample]:
        """Good pictures to learn from."""
        return [sample for sample in self.samples if sample.split == "train" and sample.is_anomalous is False]

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
        """The categories there are pictures of, sorted."""
        return sorted({sample.category for sample in self.samples})

    def of(self, category: str) -> "Dataset":
        """The part of this dataset that shows `category`."""
        return replace(self, samples=tuple(sample for sample in self.samples if sample.category == category))

    def sentences(self) -> list[str]:
        """What was found, a sentence for each category."""
        return [_sentence(self.of(category), category) for category in self.categories]


def open_dataset(
    layout: str,
    root: str | os.PathLike[str],
    *,
    category: str | Sequence[str] | None = None,
    train_dir: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """The dataset in a folder.

    Args:
        layout: A name of `blemish list datasets`, or "auto" to recognise it by looking.
        root: The folder, a category's own folder, or a manifest file.
        category: One name or several; all that are found when not given.
        train_dir: Folder of good pictures to learn from, in place of the layout's own; relative to
            `root` or absolute.
        validation_fraction: Share of the good training pictures that is held out for calibration,
            where the layout has no validation split of its own; at least one picture.
        seed: Decides which pictures these are.

    Raises:
        DatasetError: nothing there, no known layout, or no such category.
        ConfigError: no such layout, or a fraction outside (0, 1).
    """
    root = Path(root)
    if not 0 < validation_fraction < 1:
        raise ConfigError(f"--validation-fraction is {validation_fraction}; expected a share between 0 and 1.")
    if not root.exists():
        raise DatasetError(f"{root} does not exist; expected a folder of pictures or a manifest.")
    module, found = _recognise(layout, root)
    wanted = _wanted(category, found, root)
    samples = [sample for name in wanted for sample in module.read(root, name)]
    if train_dir is not None:
        samples = _with_train_dir(samples, root / train_dir, wanted)
    held_out = _hold_out(samples, validation_fraction, seed)
    return Dataset(module.TITLE, root, tuple(held_out))


def read_batches(
    samples: Sequence[Sample],
    preprocessing: images.Preprocessing,
    batch_size: int,
    failures: list[Failure],
) -> Iterator[Batch]:
    """The pictures of `samples`, in order, read ahead by threads.

    A picture that can't be read is left out and added to `failures`; it never stops the others.

    Args:
        samples: What to read.
        preprocessing: Applied to each picture.
        batch_size: The number of pictures in a batch; fewer in the last, and where one failed.
        failures: Grows by the pictures that could not be read.
    """
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[tuple[Sample, Future[images.Floats]]] = deque()
        waiting = iter(samples)
        while True:
            ahead = batch_size + 2 * workers - len(pending)
            pending.extend(
                (sample, pool.submit(read_image, sample, preprocessing)) for sample in islice(waiting, ahead)
            )
            if not pending:
                return
            good: list[tuple[Sample, images.Floats]] = []
            for sample, future in [pending.popleft() for _ in range(min(batch_size, len(pending)))]:
                try:
                    good.append((sample, future.result()))
                except (ImageError, ShapeError) as error:
                    failures.append(Failure(sample.path, str(error)))
            if good:
                yield Batch(np.stack([image for _, image in good]), [sample for sample, _ in good])


def read_image(sample: Sample, preprocessing: images.Preprocessing) -> images.Floats:
    """The picture of one sample, (3, H, W) float32 in [0, 1].

    Raises:
        ImageError: it can't be read.
    """
    return images.to_chw(images.read(sample.path), preprocessing, str(sample.path))


def read_mask(sample: Sample, size: tuple[int, int]) -> images.Bools | None:
    """Where the sample is defective, (H, W) at `size`; all False if it is good; None if unknown.

    Raises:
        ImageError: a mask can't be read or has another size than its picture.
    """
    if sample.masks:
        return images.read_mask(sample.masks, images.read_size(sample.path), size)
    return np.zeros(size, bool) if sample.is_anomalous is False else None


def word(name: str) -> str:
    """The name of a folder or label as the tables of words write it.

    >>> word("Not OK")
    'not_ok'
    """
    return name.strip().lower().replace("-", "_").replace(" ", "_")


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


def category_folders(root: Path, is_category: Callable[[Path], bool]) -> dict[str, Path]:
    """The folders of the categories in `root`, by name: `root` itself if it is one, else those directly in it."""
    folders = [root] if is_category(root) else [folder for folder in subfolders(root) if is_category(folder)]
    return {folder.resolve().name if folder == root else folder.name: folder for folder in folders}


def masks_in(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The masks in `folder` by the stem of their picture; empty if there is no such folder.

    A mask has the stem of its picture, or that and `_mask`, `_GT` or `_label`, or lies in a folder
    that has it for a name. Order and suffix never matter.
    """
    if not folder.is_dir():
        return {}
    files = images.list_pictures(folder)
    found = _by_stem(files, lambda path: path.stem)
    named = _by_stem(files, lambda path: _MASK_ENDING.sub("", path.stem))
    inside = {subfolder.name: tuple(images.list_pictures(subfolder)) for subfolder in subfolders(folder)}
    return inside | named | found


def _by_stem(files: Iterable[Path], stem: Callable[[Path], str]) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for path in files:
        found[stem(path)] = (*found.get(stem(path), ()), path)
    return found


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
    inside = ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else "a file"
    expected = "any known layout" if layout == "auto" else f"the {modules[layout].TITLE}"
    raise DatasetError(
        f"{root} does not have {expected} (found: {inside or 'nothing'}). Put good pictures into train/good, "
        "or see docs/data.md for the layouts and manifests that are understood."
    )


def _wanted(category: str | Sequence[str] | None, found: list[str], root: Path) -> list[str]:
    if category is None:
        return found
    wanted = [category] if isinstance(category, str) else list(category)
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
    taken = {sample.path.resolve() for sample in learn}
    others = [sample for sample in samples if sample.split != "train" and sample.path.resolve() not in taken]
    return learn + others


def _hold_out(samples: list[Sample], fraction: float, seed: int) -> list[Sample]:
    """Moves some good training pictures to validation, where a category has none there.

    Which ones is decided by a hash of seed and file name, so that it depends neither on where the
    dataset lies nor on the order of the files; the views of one part stay together.
    """
    result = []
    for category in sorted({sample.category for sample in samples}):
        own = [sample for sample in samples if sample.category == category]
        good = [sample for sample in own if sample.split == "train" and sample.is_anomalous is False]
        has_validation = any(sample.split == "validation" and sample.is_anomalous is False for sample in own)
        parts = sorted({_part(sample) for sample in good}, key=lambda part: _hash(seed, part))
        count = 0 if has_validation or len(parts) < 2 else max(1, round(fraction * len(parts)))
        held_out = set(parts[:count])
        chosen = {sample.path for sample in good if _part(sample) in held_out}
        result += [replace(sample, split="validation") if sample.path in chosen else sample for sample in own]
    return result


def _part(sample: Sample) -> str:
    return sample.part or sample.path.name


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}/{text}".encode()).digest()


def _sentence(data: Dataset, category: str) -> str:
    learn = f"{_count(len(data.train) + len(data.validation), 'good picture')} to learn from"
    if data.validation:
        learn += f" ({len(data.validation)} of them held out to calibrate)"
    labels = Counter(sample.is_anomalous for sample in data.test)
    test = [
        f"{labels[key]} {word}"
        for key, word in ((False, "good"), (True, "defective"), (None, "unlabelled"))
        if labels[key]
    ]
    tested = f"{' and '.join(test)} to test" if test else "none to test"
    return f"{data.title}, category {category}: {learn}, {tested}{_masks(data.test)}."


def _masks(test: Iterable[Sample]) -> str:
    defective = [sample for sample in test if sample.is_anomalous]
    with_mask = sum(bool(sample.masks) for sample in defective)
    if not defective:
        return ""
    if with_mask == len(defective):
        return ", masks for all"
    return f", masks for {with_mask} of {len(defective)}" if with_mask else ", no masks"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


__all__ = ["Dataset", "Layout", "Split", "open_dataset", "read_batches", "read_image", "read_mask"]
