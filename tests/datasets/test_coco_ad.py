"""COCO-AD: what is built from COCO's annotations, and what is refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle
from PIL import Image

from blemish import images
from blemish.dataset import open_dataset
from blemish.datasets import coco_ad
from blemish.errors import DatasetError
from blemish.reading import read_mask
from trees import TREES, grow

IDS = [
    [*range(1, 12), *range(13, 22)],
    [*range(22, 26), 27, 28, *range(31, 45)],
    [*range(46, 66)],
    [67, 70, *range(72, 83), *range(84, 91)],
]
"""Numbers of the abnormal classes of each split, as published."""
SIZE = (48, 64)
FILES = "annotations/instances_{}.json"


def rectangle(generator: random.Random) -> tuple[list[float], np.ndarray]:
    """A polygon with corners between pixels, and what it covers when they are cut down and its outline is painted."""
    top, left = generator.randrange(SIZE[0] - 9), generator.randrange(SIZE[1] - 9)
    bottom, right = top + generator.randrange(1, 8), left + generator.randrange(1, 8)
    rest = [generator.random() * 0.99 for _ in range(4)]
    x0, y0, x1, y1 = left + rest[0], top + rest[1], right + rest[2], bottom + rest[3]
    covered = np.zeros(SIZE, bool)
    covered[top : bottom + 1, left : right + 1] = True
    return [x0, y0, x1, y0, x1, y1, x0, y1], covered


def runs(covered: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, the first of pixels outside."""
    flat = covered.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def annotation(generator: random.Random, number: int, picture: int) -> tuple[dict[str, Any], np.ndarray]:
    """An annotation of any kind, and what it covers."""
    kind = generator.choice([number for ids in IDS for number in ids])
    own = {"id": number, "image_id": picture, "category_id": kind, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1}
    parts = [rectangle(generator) for _ in range(generator.choice([1, 1, 2]))]
    covered = np.any([part[1] for part in parts], axis=0)
    form = generator.random()
    if form < 0.7:
        return own | {"segmentation": [part[0] for part in parts]}, covered
    shape: dict[str, Any] = {"size": list(SIZE), "counts": runs(covered)}
    if form > 0.85:
        packed = rle.encode(np.asfortranarray(covered.astype(np.uint8)))
        shape["counts"] = packed["counts"].decode()
    return own | {"segmentation": shape, "iscrowd": 1}, covered


def make(root: Path, train: int = 200, val: int = 120, seed: int = 0) -> dict[tuple[int, int], np.ndarray]:
    """Writes a set like COCO; {(picture of val2017, class): what is covered}. A tenth of it is not annotated."""
    generator = random.Random(seed)  # noqa: S311 - nothing secret
    categories = [{"id": number, "name": f"class {number}"} for ids in IDS for number in ids]
    generator.shuffle(categories)
    truth: dict[tuple[int, int], np.ndarray] = {}
    Image.new("RGB", SIZE[::-1], (90, 120, 150)).save(root / "one.jpg")
    content = (root / "one.jpg").read_bytes()
    for part, count in (("train2017", train), ("val2017", val)):
        (root / part).mkdir()
        listed, annotations = [], []
        for picture in range(1, count + 1):
            name = f"{picture:012}.jpg"
            (root / part / name).write_bytes(content)
            listed.append({"id": picture, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            for _ in range(generator.randrange(1, 4) if picture % 10 else 0):
                found, covered = annotation(generator, len(annotations) + 1, picture)
                annotations.append(found)
                if part == "val2017":
                    key = (picture, found["category_id"])
                    truth[key] = truth.get(key, False) | covered
        generator.shuffle(listed)
        file = root / FILES.format(part)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": categories}))
    return truth


def classes(root: Path, part: str) -> dict[int, set[int]]:
    """{picture: its classes}, of pictures that have any."""
    found: dict[int, set[int]] = {}
    for item in json.loads((root / FILES.format(part)).read_text())["annotations"]:
        found.setdefault(item["image_id"], set()).add(item["category_id"])
    return found


def test_splits_of_a_few_hundred_pictures(tmp_path: Path) -> None:
    truth = make(tmp_path)
    out = tmp_path / "out"
    said = coco_ad.prepare(tmp_path, out)
    train, val = classes(tmp_path, "train2017"), classes(tmp_path, "val2017")
    assert (len(train), len(val)) == (180, 108)
    for number, ids in enumerate(IDS):
        name = f"split_{number}"
        data = open_dataset("auto", out, category=name)
        learned = {int(sample.path.stem) for sample in data.train + data.validation}
        assert learned == {picture for picture, found in train.items() if not found & {*ids}}
        bad = {int(sample.path.stem): sample for sample in data.test if sample.is_anomalous}
        assert set(bad) == {picture for picture, found in val.items() if found & {*ids}}
        assert {int(sample.path.stem) for sample in data.test} == set(val)
        for picture, sample in bad.items():
            own = {key[1]: covered for key, covered in truth.items() if key[0] == picture and key[1] in ids}
            assert np.array_equal(read_mask(sample, SIZE), np.any(list(own.values()), axis=0)), sample.path
            assert int(sample.defect.split()[1]) in own
        counts = f"{len(learned)} good pictures to learn from, {len(val) - len(bad)} good and {len(bad)} abnormal"
        assert said[number].startswith(f"{name}: {counts} to test; abnormal are class {ids[0]}, ")
        assert said[number].endswith(f", class {ids[-1]}.")
    assert "train2017: 20 pictures without annotations left out." in said
    assert not (out / "pictures").exists(), "nothing is copied unless asked"


def test_kind_of_defect_is_what_covers_most(tmp_path: Path) -> None:
    make(tmp_path, 10, 10)
    change(tmp_path, lambda found: found.update(annotations=[
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 5, 0, 5, 5]]},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [[9, 9, 30, 9, 30, 30]]},
        {"id": 3, "image_id": 1, "category_id": 90, "segmentation": [[0, 0, 40, 0, 40, 40]]},
    ]))  # fmt: skip
    coco_ad.prepare(tmp_path, tmp_path / "out")
    (sample,) = [sample for sample in coco_ad.read(tmp_path / "out", "split_0") if sample.is_anomalous]
    assert sample.defect == "class 2"


def test_parts_that_overlap_do_not_cancel_each_other(tmp_path: Path) -> None:
    make(tmp_path, 10, 10)
    square = [4, 4, 20, 4, 20, 20, 4, 20]
    one = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [square, square]}
    change(tmp_path, lambda found: found.update(annotations=[one]))
    coco_ad.prepare(tmp_path, tmp_path / "out")
    (sample,) = [sample for sample in coco_ad.read(tmp_path / "out", "split_0") if sample.is_anomalous]
    assert read_mask(sample, SIZE).sum() == 17 * 17


def test_copies_need_the_source_no_more(tmp_path: Path) -> None:
    coco, out = tmp_path / "coco", tmp_path / "out"
    coco.mkdir()
    make(coco, 20, 20)
    coco_ad.prepare(coco, out, copy=True)
    coco.rename(tmp_path / "gone")
    moved = out.rename(tmp_path / "moved")
    data = open_dataset("auto", moved, category="split_2")
    assert all(images.read(sample.path).shape == (*SIZE, 3) for sample in data.samples)
    assert len(list((moved / "pictures").rglob("*.jpg"))) == 36, "those without annotations are not needed"


def test_source_that_was_moved_is_named(tmp_path: Path) -> None:
    coco = tmp_path / "coco"
    coco.mkdir()
    make(coco, 10, 10)
    coco_ad.prepare(coco, tmp_path / "out")
    coco.rename(tmp_path / "gone")
    with pytest.raises(DatasetError, match="coco is not there any more; build it again: blemish prepare coco-ad"):
        open_dataset("auto", tmp_path / "out")


def test_building_again_gives_the_same(tmp_path: Path) -> None:
    make(tmp_path, 20, 20)
    coco_ad.prepare(tmp_path, tmp_path / "out")
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    coco_ad.prepare(tmp_path, tmp_path / "out")
    assert files == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_no_model_learns_two_splits(tmp_path: Path) -> None:
    root = grow(tmp_path, TREES["coco_ad"].files)
    open_dataset("auto", root, category="split_0").require_train()
    with pytest.raises(DatasetError, match="split_0 and split_3 together; choose one with --category"):
        open_dataset("auto", root).require_train()


def change(root: Path, alter: Callable[[dict[str, Any]], object], part: str = "val2017") -> None:
    file = root / FILES.format(part)
    found = json.loads(file.read_text())
    alter(found)
    file.write_text(json.dumps(found))


def shaped(shape: Any) -> Callable[[dict[str, Any]], object]:
    """Gives every annotation this shape."""
    return lambda found: [item.update(segmentation=shape) for item in found["annotations"]]


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda found: found["annotations"][3].update(category_id=12), "annotation 4 is of class 12, which is not the"),
        (
            lambda found: found["annotations"][3].update(image_id=999),
            "annotation 4 is of picture 999, which is not lis",
        ),
        (lambda found: found["categories"].pop(), "has 79 classes; expected COCO's 80"),
        (lambda found: found.pop("images"), "can't be read as COCO's instance annotations (KeyError: 'images')"),
        (lambda found: found.update(annotations=[7]), "can't be read as COCO's instance annotations"),
        (lambda found: found["images"][0].pop("height"), "can't be read as COCO's instance annotations"),
        (shaped([[1, 2, 3]]), "expected polygons as x, y"),
        (shaped([[1, 2, 3, 4]]), "a polygon of 2 corners; expected at least 3"),
        (shaped([[1, 2, 3, float("inf"), 3, 3]]), "expected at least 3 within the picture"),
        (shaped([]), "has no polygon"),
        (shaped(None), 'expected polygons, or run lengths with "size" and "counts"'),
        (shaped({"size": [64, 48], "counts": [64 * 48]}), "run lengths for (64, 48) pixels; expected those of the pic"),
        (shaped({"size": [48, 64], "counts": [64 * 47]}), "they cover 3008 pixels); expected 3072 pixels"),
        (shaped({"size": [48, 64], "counts": [-1, 3073]}), "run lengths can't be read"),
        (shaped({"size": [48, 64], "counts": 7}), "run lengths can't be read"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path: Path, alter: Any, message: str) -> None:
    make(tmp_path, 20, 20)
    change(tmp_path, alter)
    if "classes" in message:
        change(tmp_path, alter, "train2017")
    with pytest.raises(DatasetError) as caught:
        coco_ad.prepare(tmp_path, tmp_path / "out")
    assert message in str(caught.value)
    assert coco_ad.categories(tmp_path / "out") == [], "what is half built is not recognised"


def test_annotations_without_pictures_are_refused(tmp_path: Path) -> None:
    make(tmp_path, 20, 20)
    (tmp_path / "val2017/000000000003.jpg").unlink()
    with pytest.raises(DatasetError, match=r"val2017 lacks 1 of the 18 annotated pictures \(000000000003.jpg\)"):
        coco_ad.prepare(tmp_path, tmp_path / "out")


def test_pictures_without_annotations(tmp_path: Path) -> None:
    make(tmp_path, 20, 20)
    (tmp_path / "val2017/000000000777.jpg").write_bytes((tmp_path / "one.jpg").read_bytes())
    said = coco_ad.prepare(tmp_path, tmp_path / "out")
    assert "val2017: 1 picture not listed by the annotations left out." in said
    (tmp_path / FILES.format("val2017")).unlink()
    with pytest.raises(DatasetError, match="instances_val2017.json is not there; expected COCO's instance annotations"):
        coco_ad.prepare(tmp_path, tmp_path / "out")


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    make(tmp_path, 20, 20)
    change(tmp_path, lambda found: [item.update(file_name="../one.jpg") for item in found["images"]])
    with pytest.raises(DatasetError, match="lacks 18 of the 18 annotated pictures"):
        coco_ad.prepare(tmp_path, tmp_path / "out")
    root = grow(tmp_path / "tree", TREES["coco_ad"].files)
    rows = root / "split_0.jsonl"
    rows.write_text(rows.read_text().replace("train2017/000000000001.jpg", "../../one.jpg"))
    with pytest.raises(DatasetError, match=r'row 2: "../../one.jpg" leads out of'):
        coco_ad.read(root, "split_0")


def test_counts_of_the_real_annotations_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 20, 20)
    monkeypatch.setattr(coco_ad, "_LISTED", {"train2017": 20, "val2017": 20})
    with pytest.raises(DatasetError, match=r"split_0 has \d+ pictures to learn from and 18 to test, and COCO-AD 30438"):
        coco_ad.prepare(tmp_path, tmp_path / "out")
    splits = [coco_ad._Split.of(number, *read(tmp_path)) for number in range(4)]
    right = {f"split_{number}": split.counts for number, split in enumerate(splits)}
    monkeypatch.setattr(coco_ad, "COUNTS", right)
    assert not any("reported" in line for line in coco_ad.prepare(tmp_path, tmp_path / "out"))
    train, good, bad = right["split_1"]
    monkeypatch.setattr(coco_ad, "COUNTS", right | {"split_1": (train, good - 1, bad + 1)})
    said = coco_ad.prepare(tmp_path, tmp_path / "out")
    assert f"split_1 has {bad} abnormal test pictures, where {bad + 1} are reported of COCO-AD." in said


def read(root: Path) -> list[Any]:
    return [coco_ad._read_instances(root, part) for part in ("train2017", "val2017")]


def test_published_counts_add_up() -> None:
    assert {good + bad for _, good, bad in coco_ad.COUNTS.values()} == {4952}


def test_coco8(real_data: Path, tmp_path: Path) -> None:
    """Real pictures with classes 51 55 56, 25, 64 86, 24 to learn from, and 28 1, 18, 19 64 1, 1 22 to test."""
    said = coco_ad.prepare(real_data / "coco8", tmp_path)
    counts = [(4, 0, 4), (2, 2, 2), (2, 3, 1), (3, 4, 0)]
    for number, (train, good, bad) in enumerate(counts):
        assert f"{train} good pictures to learn from, {good} good and {bad} abnormal to test" in said[number]
    assert "abnormal are person, bicycle, car, " in said[0]
    assert said[3].endswith("teddy bear, hair drier, toothbrush.")
    (sample,) = [sample for sample in coco_ad.read(tmp_path, "split_2") if sample.is_anomalous]
    assert (sample.path.name, sample.defect) == ("000000000049.jpg", "potted plant")
    drawn = images.read(sample.masks[0])[..., 0] > 0
    (plant,) = [
        item
        for item in json.loads((real_data / "coco8" / FILES.format("val2017")).read_text())["annotations"]
        if item["category_id"] == 64
    ]
    own = rle.decode(rle.merge(rle.frPyObjects(plant["segmentation"], *drawn.shape)))
    assert (drawn & (own > 0)).sum() >= 0.99 * own.sum()
    assert own.sum() < drawn.sum() < 1.2 * own.sum()
