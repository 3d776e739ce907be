import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from blemish.errors import MetricError
from blemish.map_files import collect, evaluate_files, list_files
from blemish.metric import Options

GOOD, BAD = np.zeros((6, 8), np.uint8), np.pad(np.full((2, 3), 255, np.uint8), ((2, 2), (2, 3)))


def write(path: Path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif array.dtype == np.uint16:
        cv2.imwrite(str(path), array)
    else:
        Image.fromarray(array).save(path)


def ramp(dtype=np.float32, scale=1):
    return (np.arange(48).reshape(6, 8) * scale).astype(dtype)


@pytest.fixture
def folders(tmp_path):
    """Two categories with maps of all kinds; good pictures with and without masks."""
    files = {
        "cup/good/000": (".npy", ramp(np.float64), None),
        "cup/good/001": (".npy", ramp(np.float16) / 2, GOOD),
        "cup/dent/000": (".tiff", ramp() + BAD, BAD),
        "cup/dent/001": (".npy", ramp()[None], BAD),
        "nut/test/good/000": (".png", ramp(np.uint8), None),
        "nut/test/scratch/000": (".png", ramp(np.uint16, 1000), BAD),
    }
    for key, (suffix, anomaly_map, mask) in files.items():
        write(tmp_path / f"maps/{key}{suffix}", anomaly_map)
        if mask is not None:
            write(tmp_path / f"masks/{key}_mask.png", mask)
    return tmp_path / "maps", tmp_path / "masks"


def test_two_folders(folders):
    results = evaluate_files(*folders)
    assert results.metrics.keys() == {"cup", "nut"}
    assert results.by_defect["cup"].keys() == {"dent"}
    assert results.by_defect["nut"].keys() == {"scratch"}
    assert results.metrics["cup"]["image_auroc"] == 0.875
    assert 0.5 < results.metrics["nut"]["pixel_auroc"] < 1
    assert (results.protocol, results.mode) == ("default", "exact")


def test_flat_folders(tmp_path):
    for name, mask in (("a", BAD), ("b", GOOD)):
        write(tmp_path / f"maps/{name}.npy", ramp() + mask)
        write(tmp_path / f"masks/{name}.npy", mask > 0)
    results = evaluate_files(tmp_path / "maps", tmp_path / "masks", mode="streaming")
    assert results.metrics["maps"]["image_auroc"] == 1
    assert results.by_defect["maps"].keys() == {"defective"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_manifest(tmp_path, suffix):
    rows = [
        {"map": "a.npy", "mask": "a.png", "label": "defective", "image_score": 5, "defect": "dent", "part": "1"},
        {"map": "b.npy", "mask": None, "label": "good", "image_score": 7, "defect": None, "part": "1"},
        {"map": "c.npy", "mask": None, "label": "good", "image_score": None, "defect": None, "part": "2"},
    ]
    for name in "abc":
        write(tmp_path / f"{name}.npy", ramp(scale=0.1))
    write(tmp_path / "a.png", BAD)
    manifest = tmp_path / f"pump{suffix}"
    if suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    manifest.write_text("\n".join(lines) + "\n")
    results = evaluate_files(manifest)
    assert results.metrics["pump"]["image_auroc"] == 0.5
    assert results.metrics["pump"]["part_auroc"] == 1
    assert results.by_defect["pump"].keys() == {"dent"}


def test_collected_in_two_runs(folders):
    files = list_files(*folders)
    halves = collect(files[::2], mode="streaming") + collect(files[1::2], mode="streaming")
    assert halves.compute() == evaluate_files(*folders, mode="streaming")


def test_maps_with_nan_are_not_an_error(folders):
    write(folders[0] / "cup/dent/001.npy", ramp() * np.nan)
    results = evaluate_files(*folders)
    assert "values that are not finite (1 of 4 maps)" in results.undefined["cup"]["aupro"]
    assert "not finite" in results.undefined["cup"]["image_auroc"]
    assert "aupro" in results.metrics["nut"]


def damaged(path):
    path.write_bytes(b"not a picture")


def zipped(path):
    with path.open("wb") as opened:
        np.savez(opened, GOOD)


FAULTS = {
    "shapes": (
        lambda root: [write(root / f"masks/cup/dent/00{n}_mask.png", BAD[:4]) for n in (0, 1)],
        r"000.tiff: the anomaly map has shape \(6, 8\) and the mask \(4, 8\); expected .* with 2 of 6 pictures",
    ),
    "not binary": (
        lambda root: write(root / "masks/cup/dent/001_mask.png", BAD // 2 + ramp(np.uint8)),
        r"cup/dent/001.npy: the mask is not binary, it holds \d+; expected 0 and 1, or 0 and 255.* 1 of 6",
    ),
    "empty mask": (
        lambda root: write(root / "masks/cup/dent/001_mask.png", GOOD),
        r"001.npy: it is labelled defective, but its mask .*001_mask.png marks no pixel; expected .*--protocol ader",
    ),
    "good with a mask": (
        lambda root: write(root / "masks/cup/good/001_mask.png", BAD),
        r"cup/good/001.npy: it is labelled good, but its mask marks 6 pixels",
    ),
    "no mask": (
        lambda root: (root / "masks/cup/dent/001_mask.png").unlink(),
        r"map cup/dent/001 has no mask in .*masks \(maps without one: 1\)",
    ),
    "no map": (
        lambda root: (root / "maps/cup/dent/001.npy").unlink(),
        r"mask cup/dent/001 has no map in .*maps \(masks without one: 1\)",
    ),
    "twice": (
        lambda root: write(root / "maps/cup/dent/001.png", ramp(np.uint8)),
        r"cup/dent/001.png is there twice, with another suffix \(such files: 1\)",
    ),
    "colours": (
        lambda root: write(root / "maps/nut/test/good/000.png", np.dstack([ramp(np.uint8)] * 2 + [BAD])),
        r"000.png: it has shape \(6, 8, 3\); expected one plane",
    ),
    "damaged picture": (lambda root: damaged(root / "maps/nut/test/good/000.png"), "can't be read as a picture"),
    "damaged array": (
        lambda root: damaged(root / "maps/cup/good/000.npy"),
        r"000.npy: it can't be read; expected numbers in .npy",
    ),
    "empty array": (
        lambda root: (root / "maps/cup/good/000.npy").write_bytes(b""),
        r"000.npy: it can't be read; expected numbers in .npy",
    ),
    "zipped array": (
        lambda root: zipped(root / "maps/cup/good/000.npy"),
        r"000.npy: it can't be read; expected numbers in .npy",
    ),
    "text": (
        lambda root: np.save(root / "maps/cup/good/000.npy", np.full((6, 8), "x")),
        r"000.npy: it holds <U1; expected numbers",
    ),
    "nothing": (
        lambda root: [path.unlink() for path in root.rglob("*.*")],
        r"holds no maps \(0 files\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_folders(folders, fault):
    make, message = FAULTS[fault]
    make(folders[0].parent)
    with pytest.raises(MetricError, match=message):
        evaluate_files(*folders)


def test_masks_decide_in_the_reference_protocol(folders):
    for name, mask in (("dent/001", GOOD), ("good/001", BAD)):
        write(folders[1] / f"cup/{name}_mask.png", mask)
    results = evaluate_files(*folders, options=Options(protocol="ader"))
    assert results.protocol == "ader"
    assert results.metrics["cup"]["image_auroc"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("map,mask,score\na.npy,,1\n", 'm.csv, row 1: no column named "score"'),
        ("mask\na.png\n", "row 1: the columns are mask; expected .map. among them"),
        ("map,label\na.npy,god\n", 'row 2: no label named "god". Did you mean "good"'),
        ("map,label\n../a.npy,good\n", 'row 2: "../a.npy" leads out of'),
        ("map,label\na.npy,good,1\n", "row 2: has 3 cells; expected 2"),
        ("map,image_score\na.npy,high\n", 'row 2: the image_score is "high"; expected a number'),
        ("map,label\na.npy,good\na.npy,good\n", "a.npy: it is there twice; expected every path once.* 1 of 2"),
        ("map\na.npy\n", "a.npy: it has neither a label nor a mask"),
        ("map,label\nabsent.npy,good\n", "row 2: there is no file .absent.npy."),
        ("map,label\n", "holds no maps"),
    ],
)
def test_bad_manifests(tmp_path, text, message):
    write(tmp_path / "a.npy", ramp())
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(MetricError, match=message):
        evaluate_files(tmp_path / "m.csv")


def test_what_is_neither(tmp_path):
    (tmp_path / "m.jsonl").write_text("{")
    for arguments, message in (
        ((tmp_path / "m.jsonl",), "expected one JSON object a line"),
        ((tmp_path / "m.jsonl", tmp_path), "leave out"),
        ((tmp_path,), "is not a manifest"),
        ((tmp_path, tmp_path / "absent"), "absent is not a folder"),
    ):
        with pytest.raises(MetricError, match=message):
            evaluate_files(*arguments)
