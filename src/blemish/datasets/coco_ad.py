"""COCO-AD as `blemish prepare coco-ad` builds it: photographs of everyday life, a quarter of the classes abnormal.

    <root>/
    ├─ coco_ad.json                                 where COCO's pictures are
    ├─ split_0.jsonl                                one row a picture, from COCO's folder; see `_COLUMNS`
    ├─ split_0/<stem>.png                           masks of the abnormal things in it
    └─ …                                            split_1, split_2, split_3

The categories are the splits. Things of 20 of COCO's 80 classes are abnormal in each, and learning
is from pictures without any of them; as what is abnormal in one split is normal in another, no
model may learn from two. The published figure is the mean over the four.

Source: arXiv 2404.10760 (COCO-AD); the pictures and annotations are COCO's, arXiv 1405.0312.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blemish import images
from blemish.errors import DatasetError, count_of
from blemish.files import check_writable, replacing, write_bytes, write_text
from blemish.progress import track
from blemish.rows import Finder, read_rows
from blemish.types import Sample

TITLE = "COCO-AD"
LEARNS_FROM = ""
APART = True

SPLITS, CLASSES = 4, 20
"""How many splits there are, and how many classes are abnormal in each."""
COUNTS: Mapping[str, tuple[int, int, int]] = {
    "split_0": (30_438, 1_291, 3_661),
    "split_1": (65_133, 2_785, 2_167),
    "split_2": (79_083, 3_328, 1_624),
    "split_3": (77_580, 3_253, 1_699),
}
"""Pictures that COCO 2017 gives: to learn from, good ones to test, abnormal ones to test."""

_INDEX, _PICTURES = "coco_ad.json", "pictures"
_COLUMNS = ("path", "split", "defect", "mask")
_TRAIN, _TEST = "train2017", "val2017"
_LISTED = {_TRAIN: 118_287, _TEST: 5_000}  # pictures that COCO's own files list
_KEYS = {"images", "annotations", "categories", "id", "name", "file_name", "height", "width", "image_id", "category_id"}
_SHAPE_KEYS = {"segmentation", "counts", "size"}
_NAMED = 3
_FAR = 2**20  # pixels; no polygon reaches so far


def categories(root: Path) -> list[str]:
    """The splits that were prepared in `root`."""
    if not (root / _INDEX).is_file():
        return []
    return [name for name in COUNTS if (root / f"{name}.jsonl").is_file()]


def read(root: Path, category: str) -> list[Sample]:
    """All pictures of one split."""
    find_picture, find_mask = Finder(_pictures_of(root)), Finder(root)
    samples = []
    for place, row in read_rows(root / f"{category}.jsonl", _COLUMNS):
        mask, split = row.get("mask", ""), row.get("split", "")
        if split not in {"train", "test"}:
            raise DatasetError(f'{place}: split is "{split}"; expected train or test.')
        samples.append(
            Sample(
                path=find_picture(row["path"], place),
                category=category,
                split="train" if split == "train" else "test",
                is_anomalous=bool(mask),
                defect=row.get("defect", ""),
                masks=(find_mask(mask, place),) if mask else (),
            )
        )
    return samples


def prepare(coco: Path, out: Path, *, copy: bool = False) -> list[str]:
    """Builds the four splits from COCO's annotations, and says what is in them, a sentence or two each.

    Abnormal in split k are the classes 20k to 20k + 19 in the order of their numbers. A picture is
    abnormal if one of its annotations, crowds included, is of such a class; pictures without any
    annotation are left out. Masks are as published: polygons are filled with their corners cut down
    to whole pixels and their outline painted, which makes them about half a pixel fatter than COCO's.

    Args:
        coco: COCO's folder, with `annotations`, `train2017` and `val2017`.
        out: The folder to build.
        copy: Whether to copy the pictures, so that `out` does not need `coco` any more.

    Raises:
        DatasetError: annotations or pictures are missing or damaged, or are COCO's own and give
            other numbers than those published.
    """
    from faster_coco_eval.core import mask as rle

    check_writable(out / _INDEX)
    train, test = (_read_instances(coco, part) for part in (_TRAIN, _TEST))
    if train.classes != test.classes:
        raise DatasetError(
            f"{coco}: the classes of {_TRAIN} and {_TEST} differ; expected those of one release of COCO."
        )
    splits = {name: _Split.of(number, train, test) for number, name in enumerate(COUNTS)}
    is_official = all(len(part.pictures) == _LISTED[part.name] for part in (train, test))
    notes = _check_counts(splits, coco) if is_official else []
    (out / _INDEX).unlink(missing_ok=True)  # what is half built is not recognised
    for name, split in splits.items():
        _write_split(out, name, split, test, rle)
    if copy:
        _copy(coco, out / _PICTURES, (train, test))
    place = _PICTURES if copy else str(coco.resolve())
    write_text(out / _INDEX, json.dumps({"coco_ad": 1, _PICTURES: place}) + "\n")
    return [*(split.sentence(name) for name, split in splits.items()), *notes, *train.notes, *test.notes]


@dataclass(frozen=True)
class _Picture:
    name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class _Instances:
    """What one of COCO's files says."""

    name: str
    file: Path
    classes: Mapping[int, str]
    """Names by number, in the order of the numbers."""
    pictures: Mapping[int, _Picture]
    annotations: Mapping[int, Sequence[Mapping[str, Any]]]
    """By picture, in the order of their numbers; every picture here has at least one."""
    notes: Sequence[str]

    def shows(self, picture: int, classes: Mapping[int, str]) -> bool:
        """Whether something of these classes is in a picture."""
        return any(annotation["category_id"] in classes for annotation in self.annotations[picture])


@dataclass(frozen=True)
class _Split:
    """The numbers of its abnormal classes and of its pictures."""

    abnormal: Mapping[int, str]
    train: Sequence[_Picture]
    good: Sequence[int]
    bad: Sequence[int]

    @classmethod
    def of(cls, number: int, train: _Instances, test: _Instances) -> "_Split":
        """The split of that number."""
        abnormal = dict(list(train.classes.items())[CLASSES * number : CLASSES * (number + 1)])
        learn = [train.pictures[picture] for picture in train.annotations if not train.shows(picture, abnormal)]
        bad = [picture for picture in test.annotations if test.shows(picture, abnormal)]
        return cls(abnormal, learn, sorted({*test.annotations} - {*bad}), bad)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Pictures to learn from, good ones to test, abnormal ones to test."""
        return len(self.train), len(self.good), len(self.bad)

    def sentence(self, name: str) -> str:
        """What is in it."""
        train, good, bad = self.counts
        return (
            f"{name}: {count_of(train, 'good picture')} to learn from, {good} good and {bad} abnormal to test; "
            f"abnormal are {', '.join(self.abnormal.values())}."
        )


def _pictures_of(root: Path) -> Path:
    index = root / _INDEX
    try:
        found = json.loads(index.read_text("utf-8"))
        place = root / str(found[_PICTURES])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{index} can't be read ({error}); build it again: blemish prepare coco-ad") from error
    if not place.is_dir():
        raise DatasetError(f"{index}: {place} is not there any more; build it again: blemish prepare coco-ad")
    return place


def _read_instances(coco: Path, name: str) -> _Instances:
    file = coco / "annotations" / f"instances_{name}.json"
    if not file.is_file():
        raise DatasetError(f"{file} is not there; expected COCO's instance annotations beside the pictures.")
    # Shapes are most of the 450 MB of train2017, and only the abnormal things of the test are drawn.
    wanted = _KEYS | (_SHAPE_KEYS if name == _TEST else set())
    try:
        found = json.loads(file.read_bytes(), object_hook=lambda item: {key: item[key] for key in item.keys() & wanted})
        classes = {int(item["id"]): str(item["name"]) for item in found["categories"]}
        pictures = {
            int(item["id"]): _Picture(str(item["file_name"]), (int(item["height"]), int(item["width"])))
            for item in found["images"]
        }
        annotations = _by_picture(found["annotations"], pictures, classes, file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{file} can't be read as COCO's instance annotations ({type(error).__name__}: {error}); download it again."
        ) from error
    if len(classes) != SPLITS * CLASSES:
        raise DatasetError(f"{file} has {len(classes)} classes; expected COCO's {SPLITS * CLASSES}.")
    notes = _match_files(coco / name, pictures, annotations)
    return _Instances(name, file, dict(sorted(classes.items())), pictures, annotations, notes)


def _by_picture(
    found: Iterable[Mapping[str, Any]], pictures: Mapping[int, _Picture], classes: Mapping[int, str], file: Path
) -> dict[int, list[Mapping[str, Any]]]:
    grouped: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in found:
        picture, kind = annotation["image_id"], annotation["category_id"]
        if picture not in pictures:
            raise DatasetError(f"{file}: annotation {annotation['id']} is of picture {picture}, which is not listed.")
        if kind not in classes:
            raise DatasetError(
                f"{file}: annotation {annotation['id']} is of class {kind}, which is not there; expected one of the "
                f'{len(classes)} numbers in its "categories", {min(classes)} to {max(classes)}.'
            )
        grouped[picture].append(annotation)
    return dict(sorted(grouped.items()))


def _match_files(
    folder: Path, pictures: Mapping[int, _Picture], annotated: Mapping[int, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """What was left out, in sentences; raises `DatasetError` where annotated pictures are not there."""
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [pictures[number].name for number in annotated if pictures[number].name not in files]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
        raise DatasetError(
            f"{folder} lacks {len(missing)} of the {len(annotated)} annotated pictures ({named}); expected all of "
            "them: unpack the archive of pictures there."
        )
    bare = len(pictures) - len(annotated)
    unlisted = len(
        {name for name in files if images.is_picture(Path(name))} - {item.name for item in pictures.values()}
    )
    notes = [f"{folder.name}: {count_of(bare, 'picture')} without annotations left out."] if bare else []
    return notes + (
        [f"{folder.name}: {count_of(unlisted, 'picture')} not listed by the annotations left out."] * (unlisted > 0)
    )


def _check_counts(splits: Mapping[str, _Split], coco: Path) -> list[str]:
    """Nothing, or what is said of small differences; raises `DatasetError` where the benchmark would be another."""
    notes = []
    for name, split in splits.items():
        (train, good, bad), expected = split.counts, COUNTS[name]
        if (train, good + bad) != (expected[0], sum(expected[1:])):
            raise DatasetError(
                f"{coco}: {name} has {train} pictures to learn from and {good + bad} to test, and COCO-AD "
                f"{expected[0]} and {sum(expected[1:])}; these are not COCO 2017's annotations: download them again."
            )
        if bad != expected[2]:
            notes.append(f"{name} has {bad} abnormal test pictures, where {expected[2]} are reported of COCO-AD.")
    return notes


def _write_split(out: Path, name: str, split: _Split, test: _Instances, rle: Any) -> None:
    rows = [{"path": f"{_TRAIN}/{picture.name}", "split": "train"} for picture in split.train]
    rows += [{"path": f"{_TEST}/{test.pictures[number].name}", "split": "test"} for number in split.good]
    for number in track(split.bad, f"Masks of {name}", len(split.bad)):
        picture = test.pictures[number]
        mask, kind = _draw(picture, test.annotations[number], split.abnormal, (test.file, rle))
        target = f"{name}/{Path(picture.name).stem}.png"
        write_bytes(out / target, images.encode(mask * np.uint8(255)))
        rows.append({"path": f"{_TEST}/{picture.name}", "split": "test", "defect": kind, "mask": target})
    write_text(out / f"{name}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def _draw(
    picture: _Picture, annotations: Sequence[Mapping[str, Any]], abnormal: Mapping[int, str], source: tuple[Path, Any]
) -> tuple[NDArray[np.uint8], str]:
    """The union (H, W) of the abnormal things, and the class that covers most of it."""
    file, rle = source
    union = np.zeros(picture.size, np.uint8)
    areas: Counter[str] = Counter()
    for annotation in annotations:
        if annotation["category_id"] not in abnormal:
            continue
        place = f"{file}: annotation {annotation.get('id')} of {picture.name}"
        shape = annotation.get("segmentation")
        drawn = _polygons(shape, picture, place) if isinstance(shape, list) else _runs(shape, picture, place, rle)
        areas[abnormal[annotation["category_id"]]] += int(np.count_nonzero(drawn))
        union |= drawn
    return union, areas.most_common(1)[0][0]


def _polygons(polygons: Sequence[Any], picture: _Picture, place: str) -> NDArray[np.uint8]:
    drawn = np.zeros(picture.size, np.uint8)
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64).reshape(-1, 2)
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{place}: {error}; expected polygons as x, y, x, y, ...") from error
        if len(points) < 3 or not (np.abs(points) < _FAR).all():
            raise DatasetError(f"{place}: a polygon of {len(points)} corners; expected at least 3 within the picture.")
        # One at a time, because overlapping ones would cancel each other.
        cv2.fillPoly(drawn, [points.astype(np.int32)], 1)
    if not polygons:
        raise DatasetError(f"{place}: has no polygon; expected at least one.")
    return drawn


def _runs(shape: Any, picture: _Picture, place: str, rle: Any) -> NDArray[np.uint8]:
    """A mask of run lengths, column by column, plain or compressed."""
    try:
        size, counts = tuple(shape["size"]), shape["counts"]
    except (KeyError, TypeError) as error:
        raise DatasetError(f'{place}: expected polygons, or run lengths with "size" and "counts".') from error
    if size != picture.size:
        raise DatasetError(f"{place}: run lengths for {size} pixels; expected those of the picture, {picture.size}.")
    try:
        is_plain = isinstance(counts, list)
        if is_plain and (min(counts) < 0 or sum(counts) != picture.size[0] * picture.size[1]):
            raise ValueError(f"they cover {sum(counts)} pixels")
        packed = rle.frPyObjects(shape, *size) if is_plain else {"size": list(size), "counts": counts}
        return np.ascontiguousarray(rle.decode(packed), np.uint8)
    except Exception as error:  # the library raises whatever it likes
        raise DatasetError(
            f"{place}: run lengths can't be read ({error}); expected {picture.size[0] * picture.size[1]} pixels."
        ) from error


def _copy(coco: Path, target: Path, parts: Iterable[_Instances]) -> None:
    for part in parts:
        for number in track(part.annotations, f"Copy {part.name}", len(part.annotations)):
            source = coco / part.name / part.pictures[number].name
            copied = target / part.name / source.name
            if not copied.is_file() or copied.stat().st_size != source.stat().st_size:
                with replacing(copied) as temporary:
                    shutil.copyfile(source, temporary)
