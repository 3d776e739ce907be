"""Miniature dataset trees, one for each layout and each of its variants.

`grow(tmp_path, TREES["mvtec_ad"].files)` writes one; a good picture is a soft stripe pattern, a bad
one has a bright square in it, and its mask is that square.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

GOOD, BAD, MASK, BLANK = "<good>", "<bad>", "<mask>", "<blank>"
"""What a file of a tree is; any other text is the file's own content."""

SIZE = (40, 56)
"""(height, width) of every picture and mask."""

SQUARE = (slice(10, 22), slice(30, 42))
"""Where bad pictures are bad."""


class Counts(NamedTuple):
    """How many pictures of a category there are on disk, before any is held out."""

    train: int
    """Good ones to learn from."""
    good: int
    """Good ones to test."""
    bad: int
    """Defective ones to test."""
    masks: int
    """Defective ones to test that have a mask."""
    validation: int = 0
    unlabelled: int = 0


@dataclass(frozen=True)
class Tree:
    """A layout on disk and what should be found in it."""

    layout: str
    files: Mapping[str, str]
    """Content by path: GOOD, BAD, MASK, BLANK or text."""
    categories: Mapping[str, Counts]
    """What is found, by category."""
    root: str = ""
    """What to open, from the folder of the tree."""


def grow(folder: Path, files: Mapping[str, str]) -> Path:
    """Writes the files below `folder` and returns it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content in (GOOD, BAD, MASK, BLANK):
            Image.fromarray(picture(content, name)).save(path)
        else:
            path.write_text(content, "utf-8")
    return folder


def picture(content: str, name: str = "") -> np.ndarray:
    """A picture (H, W, 3) or a mask (H, W) uint8; `name` seeds its noise."""
    if content in (MASK, BLANK):
        mask = np.zeros(SIZE, np.uint8)
        mask[SQUARE] = 255 if content == MASK else 0
        return mask
    random = np.random.default_rng(zlib.crc32(name.encode()))
    stripes = 110 + 30 * np.sin(np.arange(SIZE[1]) / 3)[None, :, None] + random.normal(0, 4, (*SIZE, 3))
    if content == BAD:
        stripes[SQUARE] = 240
    return np.clip(stripes, 0, 255).astype(np.uint8)


def some(pattern: str, number: int, content: str) -> dict[str, str]:
    """`number` files whose names count from 0 where `pattern` has {}.

    >>> some("train/good/{:03}.png", 2, GOOD)
    {'train/good/000.png': '<good>', 'train/good/001.png': '<good>'}
    """
    return {pattern.format(i): content for i in range(number)}


def mvtec(category: str, train: int = 6, good: int = 3, bad: int = 3) -> dict[str, str]:
    """The files of an MVTec AD category with one kind of defect and masks for all."""
    return {
        **some(f"{category}/train/good/{{:03}}.png", train, GOOD),
        **some(f"{category}/test/good/{{:03}}.png", good, GOOD),
        **some(f"{category}/test/scratch/{{:03}}.png", bad, BAD),
        **some(f"{category}/ground_truth/scratch/{{:03}}_mask.png", bad, MASK),
    }


def _visa(category: str) -> str:
    rows = [f"{category},train,normal,{category}/Data/Images/Normal/{i:04}.JPG," for i in range(4)]
    rows += [f"{category},test,normal,{category}/Data/Images/Normal/{i:04}.JPG," for i in range(4, 6)]
    rows += [
        f"{category},test,anomaly,{category}/Data/Images/Anomaly/{i:03}.JPG,{category}/Data/Masks/Anomaly/{i:03}.png"
        for i in range(3)
    ]
    return "\n".join(rows) + "\n"


def _coco_split(number: int, *, train: int, test: int, bad: int) -> str:
    rows = [{"path": f"train2017/{i:012}.jpg", "split": "train"} for i in range(train)]
    rows += [{"path": f"val2017/{i:012}.jpg", "split": "test"} for i in range(bad, test)]
    rows += [
        {"path": f"val2017/{i:012}.jpg", "split": "test", "defect": "cat", "mask": f"split_{number}/{i:012}.png"}
        for i in range(bad)
    ]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


_MANIFEST = {
    **some("shots/a{}.png", 4, GOOD),
    **some("shots/b{}.png", 2, GOOD),
    **some("shots/c{}.png", 2, BAD),
    "truth/c0-left.png": MASK,
    "truth/c0-right.png": BLANK,
}


def realiad(category: str) -> dict[str, str]:
    """Pictures of Real-IAD in the folder of a category: three good parts and a pitted one, two views each."""
    files = {
        f"OK/S000{part}/{category}_000{part}_OK_C{view}_20231021.jpg": GOOD for part in (1, 2, 3) for view in (1, 2)
    }
    bad = f"NG/AK/S0001/{category}_0001_NG_AK_C{{}}_20231021"
    return files | {f"{bad.format(1)}.jpg": BAD, f"{bad.format(1)}.png": MASK, f"{bad.format(2)}.jpg": GOOD}


def realiad_list(category: str) -> str:
    """The list of them: the third good part is tested, and the pit shows in one view only."""

    def row(path: str, code: str, mask: str | None = None) -> dict[str, str | None]:
        return {"category": category, "anomaly_class": code, "image_path": path, "mask_path": mask}

    paths = [path for path in realiad(category) if path.endswith(".jpg")]
    train = [row(path, "OK") for path in paths if ("S0001" in path and "OK" in path) or "S0002" in path]
    test = [row(path, "OK") for path in paths if "S0003" in path]
    test += [
        row(path, "AK", path.replace(".jpg", ".png") if "_C1_" in path else None) for path in paths if "NG" in path
    ]
    return json.dumps({"meta": {"prefix": f"{category}/", "normal_class": "OK"}, "train": train, "test": test})


TREES: dict[str, Tree] = {
    "mvtec_ad": Tree(
        "mvtec",
        {**mvtec("bottle"), **mvtec("cable", train=5), "license.txt": "free", "bottle/train/good/Thumbs.db": "?"},
        {"bottle": Counts(6, 3, 3, 3), "cable": Counts(5, 3, 3, 3)},
    ),
    "mvtec_ad_category": Tree("mvtec", mvtec("bottle"), {"bottle": Counts(6, 3, 3, 3)}, root="bottle"),
    "mvtec_without_masks": Tree(
        "mvtec",
        {
            **some("tube/train/good/{}.PNG", 4, GOOD),
            **some("tube/test/good/{}.png", 2, GOOD),
            **some("tube/test/dent/{}.Jpeg", 3, BAD),
            "tube/ground_truth/dent/1.bmp": MASK,
        },
        {"tube": Counts(4, 2, 3, 1)},
    ),
    "btad": Tree(
        "mvtec",
        {
            **some("01/train/ok/{:04}.bmp", 4, GOOD),
            **some("01/test/ok/{:04}.bmp", 2, GOOD),
            **some("01/test/ko/{:04}.bmp", 3, BAD),
            **some("01/ground_truth/ko/{:04}.png", 3, MASK),
            **some("03/train/ok/{:04}.bmp", 4, GOOD),
            **some("03/test/ko/{:04}.bmp", 2, BAD),
            **some("03/ground_truth/ko/{:04}.bmp", 2, MASK),
        },
        {"01": Counts(4, 2, 3, 3), "03": Counts(4, 0, 2, 2)},
    ),
    "mvtec_3d_ad": Tree(
        "mvtec",
        {
            **some("bagel/train/good/rgb/{:03}.png", 4, GOOD),
            **some("bagel/train/good/xyz/{:03}.tiff", 4, GOOD),
            **some("bagel/validation/good/rgb/{:03}.png", 2, GOOD),
            **some("bagel/test/good/rgb/{:03}.png", 2, GOOD),
            **some("bagel/test/good/gt/{:03}.png", 2, BLANK),
            **some("bagel/test/hole/rgb/{:03}.png", 3, BAD),
            **some("bagel/test/hole/gt/{:03}.png", 3, MASK),
            **some("bagel/test/hole/xyz/{:03}.tiff", 3, BAD),
        },
        {"bagel": Counts(4, 2, 3, 3, validation=2)},
    ),
    "mvtec_loco": Tree(
        "mvtec",
        {
            **some("pushpins/train/good/{:03}.png", 4, GOOD),
            **some("pushpins/validation/good/{:03}.png", 2, GOOD),
            **some("pushpins/test/good/{:03}.png", 2, GOOD),
            **some("pushpins/test/logical_anomalies/{:03}.png", 2, BAD),
            **some("pushpins/test/structural_anomalies/{:03}.png", 2, BAD),
            **some("pushpins/ground_truth/logical_anomalies/000/{:03}.png", 2, MASK),
            **some("pushpins/ground_truth/logical_anomalies/001/{:03}.png", 1, MASK),
            **some("pushpins/ground_truth/structural_anomalies/001/{:03}.png", 1, MASK),
            "pushpins/defects_config.json": "[]",
        },
        {"pushpins": Counts(4, 2, 4, 3, validation=2)},
    ),
    "mvtec_ad_2": Tree(
        "mvtec",
        {
            **some("can/train/good/{:03}_regular.png", 4, GOOD),
            **some("can/validation/good/{:03}_regular.png", 2, GOOD),
            **some("can/test_public/good/{:03}_regular.png", 2, GOOD),
            **some("can/test_public/bad/{:03}_overexposed.png", 3, BAD),
            **some("can/test_public/ground_truth/bad/{:03}_overexposed_mask.png", 3, MASK),
            **some("can/test_private/{:03}_regular.png", 3, BAD),
            **some("can/test_private_mixed/{:03}_mixed.png", 2, GOOD),
        },
        {"can": Counts(4, 2, 3, 3, validation=2, unlabelled=5)},
    ),
    "vad": Tree(
        "vad",
        {
            **some("vad/train/good/{}.png", 4, GOOD),
            **some("vad/train/bad/{}.png", 2, BAD),
            **some("vad/test/good/{}.png", 2, GOOD),
            **some("vad/test/bad/{}.png", 2, BAD),
            **some("vad/test/bad_unseen_defects/{}.png", 1, BAD),
            "vad/low_shot_train.json": '{"0": ["1.png"], "1": ["0.png"]}',
        },
        {f"vad-{protocol}": Counts(4, 2, 3, 0) for protocol in ("one-class", "high-shot", "low-shot-0", "low-shot-1")},
    ),
    "vad_repacked": Tree(
        "mvtec",
        {
            **some("vad/train/good/{}.png", 4, GOOD),
            **some("vad/train/bad/{}.png", 2, BAD),
            **some("vad/test/good/{}.png", 2, GOOD),
            **some("vad/test/bad/{}.png", 2, BAD),
            **some("vad/test/bad_unseen_defects/{}.png", 1, BAD),
        },
        {"vad": Counts(4, 2, 3, 0)},
    ),
    "autovi": Tree(
        "mvtec",
        {
            **some("tank_screw/train/good/{:04}.png", 4, GOOD),
            **some("tank_screw/test/good/{:04}.png", 2, GOOD),
            **some("tank_screw/test/missing/{:04}.png", 2, BAD),
            **{f"tank_screw/ground_truth/missing/{i:04}/0000.png": MASK for i in range(2)},
        },
        {"tank_screw": Counts(4, 2, 2, 2)},
    ),
    "visa_prepared": Tree(
        "mvtec",
        {
            **some("candle/train/good/{:04}.JPG", 4, GOOD),
            **some("candle/test/good/{:04}.JPG", 2, GOOD),
            **some("candle/test/bad/{:03}.JPG", 3, BAD),
            **some("candle/ground_truth/bad/{:03}.png", 3, MASK),
        },
        {"candle": Counts(4, 2, 3, 3)},
    ),
    "visa_prepared_2cls": Tree(
        "mvtec",
        {
            **some("candle/train/good/{:04}.JPG", 4, GOOD),
            **some("candle/train/bad/{:03}.JPG", 2, BAD),
            **some("candle/test/good/{:04}.JPG", 2, GOOD),
            **some("candle/test/bad/{:03}.JPG", 3, BAD),
            **some("candle/ground_truth/train/bad/{:03}.png", 2, MASK),
            **some("candle/ground_truth/test/bad/{:03}.png", 3, MASK),
        },
        {"candle": Counts(4, 2, 3, 3)},
    ),
    "bmad": Tree(
        "mvtec",
        {
            **some("Brain/train/good/{}.png", 4, GOOD),
            **some("Brain/valid/good/img/{}.png", 2, GOOD),
            **some("Brain/valid/Ungood/img/{}.png", 1, BAD),
            **some("Brain/test/good/img/{}.png", 2, GOOD),
            **some("Brain/test/good/label/{}.png", 2, BLANK),
            **some("Brain/test/Ungood/img/{}.png", 3, BAD),
            **some("Brain/test/Ungood/label/{}.png", 3, MASK),
        },
        {"Brain": Counts(4, 2, 3, 3, validation=2)},
    ),
    "visa": Tree(
        "visa",
        {
            "split_csv/1cls.csv": "object,split,label,image,mask\n" + _visa("candle") + _visa("pcb1"),
            "split_csv/2cls_fewshot.csv": "object,split,label,image,mask\n",
            **{
                name: content
                for category in ("candle", "pcb1")
                for name, content in {
                    **some(f"{category}/Data/Images/Normal/{{:04}}.JPG", 6, GOOD),
                    **some(f"{category}/Data/Images/Anomaly/{{:03}}.JPG", 3, BAD),
                    **some(f"{category}/Data/Masks/Anomaly/{{:03}}.png", 3, MASK),
                    f"{category}/image_anno.csv": "image,label,mask\n",
                }.items()
            },
        },
        {"candle": Counts(4, 2, 3, 3), "pcb1": Counts(4, 2, 3, 3)},
    ),
    "kolektor_sdd": Tree(
        "kolektor",
        {
            **{f"KolektorSDD/kos{k:02}/Part{i}.jpg": GOOD for k in (1, 2, 3) for i in range(5)},
            **{f"KolektorSDD/kos{k:02}/Part{i}_label.bmp": BLANK for k in (1, 2, 3) for i in range(5)},
            **{f"KolektorSDD/kos{k:02}/Part5.jpg": BAD for k in (1, 3)},
            **{f"KolektorSDD/kos{k:02}/Part5_label.bmp": MASK for k in (1, 3)},
        },
        {"KolektorSDD": Counts(12, 3, 2, 2)},
        root="KolektorSDD",
    ),
    "kolektor_sdd2": Tree(
        "kolektor",
        {
            **some("KolektorSDD2/train/1000{}.png", 4, GOOD),
            **some("KolektorSDD2/train/1000{}_GT.png", 4, BLANK),
            "KolektorSDD2/train/10009.png": BAD,
            "KolektorSDD2/train/10009_GT.png": MASK,
            **some("KolektorSDD2/test/2000{}.png", 3, GOOD),
            **some("KolektorSDD2/test/2000{}_GT.png", 3, BLANK),
            **some("KolektorSDD2/test/2001{}.png", 2, BAD),
            **some("KolektorSDD2/test/2001{}_GT.png", 2, MASK),
        },
        {"KolektorSDD2": Counts(4, 3, 2, 2)},
        root="KolektorSDD2",
    ),
    "elpv": Tree(
        "elpv",
        {
            **some("data/images/cell000{}.png", 6, GOOD),
            **some("data/images/cell001{}.png", 2, BAD),
            **some("data/images/cell002{}.png", 3, GOOD),
            "data/images/cell0030.png": BAD,
            "data/labels.csv": "".join(
                [f"images/cell000{i}.png  0.0                 mono\n" for i in range(6)]
                + [f"images/cell001{i}.png  1.0                 mono\n" for i in range(2)]
                + [f"images/cell002{i}.png  0.0                 poly\n" for i in range(3)]
                + ["images/cell0030.png  0.3333333333333333  mono\n"]
            ),
        },
        {"mono": Counts(4, 2, 2, 0), "poly": Counts(2, 1, 0, 0)},
        root="data",
    ),
    "coco_ad": Tree(
        "coco_ad",
        {
            "coco_ad.json": '{"coco_ad": 1, "pictures": "coco"}',
            **some("coco/train2017/{:012}.jpg", 6, GOOD),
            **some("coco/val2017/{:012}.jpg", 5, BAD),
            **some("split_0/{:012}.png", 3, MASK),
            **some("split_3/{:012}.png", 1, MASK),
            "split_0.jsonl": _coco_split(0, train=6, test=5, bad=3),
            "split_3.jsonl": _coco_split(3, train=4, test=5, bad=1),
        },
        {"split_0": Counts(6, 2, 3, 3), "split_3": Counts(4, 4, 1, 1)},
    ),
    "folder_good_only": Tree("folder", some("screws/{}.jpg", 5, GOOD), {"screws": Counts(5, 0, 0, 0)}, root="screws"),
    "folder_good_and_bad": Tree(
        "folder",
        {
            **some("screws/OK/{}.tif", 10, GOOD),
            **some("screws/Not OK/{}.tif", 3, BAD),
            **some("screws/masks/{}_mask.png", 2, MASK),
        },
        {"screws": Counts(8, 2, 3, 2)},
        root="screws",
    ),
    "folder_kinds_of_defects": Tree(
        "folder",
        {
            **some("screws/good/{}.png", 10, GOOD),
            **some("screws/dent/{}.png", 2, BAD),
            **some("screws/rust/{}.png", 2, BAD),
            **some("screws/ground_truth/dent/{}.png", 2, MASK),
            **some("screws/ground_truth/rust/{}/0.png", 1, MASK),
            "screws/overview.png": BAD,
        },
        {"screws": Counts(8, 2, 4, 3)},
        root="screws",
    ),
    "folder_bad_beside": Tree(
        "folder",
        {
            **some("screws/{}.png", 5, GOOD),
            **some("screws/bad/{}.png", 2, BAD),
            **some("screws/bad/{}_mask.png", 1, MASK),
        },
        {"screws": Counts(4, 1, 2, 1)},
        root="screws",
    ),
    "folder_of_categories": Tree(
        "folder",
        {
            **some("screws/good/{}.png", 5, GOOD),
            **some("screws/bad/{}.png", 2, BAD),
            **some("nuts/{}.png", 3, GOOD),
            "logo.png": GOOD,
        },
        {"screws": Counts(4, 1, 2, 0), "nuts": Counts(3, 0, 0, 0)},
    ),
    "manifest_csv": Tree(
        "manifest",
        {
            **_MANIFEST,
            "manifest.csv": "path,split,label,mask,category,part,view\n"
            + "".join(f"shots/a{i}.png,train,good,,lid,,\n" for i in range(4))
            + "".join(f"shots/b{i}.png,test,OK,,lid,p{i},top\n" for i in range(2))
            + "shots/c0.png,test,ng,truth/c0-left.png; truth/c0-right.png,lid,p7,top\n"
            + "shots/c1.png,test,ng,,lid,p7,side\n",
        },
        {"lid": Counts(4, 2, 2, 1)},
    ),
    "manifest_jsonl": Tree(
        "manifest",
        {
            **_MANIFEST,
            "list.jsonl": "".join(f'{{"path": "shots/a{i}.png", "category": "lid"}}\n' for i in range(4))
            + "".join(f'{{"path": "shots/b{i}.png", "label": 0, "category": "lid"}}\n' for i in range(2))
            + '{"path": "shots/c0.png", "defect": "dent", "mask": ["truth/c0-left.png"], "category": "lid"}\n'
            + '{"path": "shots/c1.png", "label": 1, "mask": null, "category": "lid"}\n',
        },
        {"lid": Counts(5, 1, 2, 1)},
        root="list.jsonl",
    ),
    "realiad": Tree(
        "realiad",
        {
            f"{name}{end}": content
            for name in ("mint", "pcb")
            for end, content in [
                (".json", realiad_list(name)),
                *((f"/{path}", content) for path, content in realiad(name).items()),
            ]
        },
        {"mint": Counts(4, 3, 1, 1), "pcb": Counts(4, 3, 1, 1)},
    ),
    "realiad_downloaded": Tree(
        "realiad",
        {
            "realiad_jsons/realiad_jsons/mint.json": realiad_list("mint"),
            **{f"realiad_512/mint/mint/{path}": content for path, content in realiad("mint").items()},
        },
        {"mint": Counts(4, 3, 1, 1)},
    ),
}
