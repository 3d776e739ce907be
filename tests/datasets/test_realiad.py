"""Real-IAD, beyond what every layout has to do."""

import json
from pathlib import Path

import pytest

from blemish.dataset import open_dataset
from blemish.errors import DatasetError
from trees import GOOD, MASK, TREES, grow, realiad


def test_views_of_a_part_are_joined_and_codes_are_apart(tmp_path: Path) -> None:
    data = open_dataset("auto", grow(tmp_path, TREES["realiad"].files), category="mint")
    parts: dict[str, list[str]] = {}
    for sample in data.samples:
        parts.setdefault(sample.part, []).append(sample.view)
    assert parts == {name: ["C1", "C2"] for name in ("NG/AK/S0001", "OK/S0001", "OK/S0002", "OK/S0003")}
    assert {sample.view: sample.is_anomalous for sample in data.test if sample.defect or "NG" in sample.part} == {
        "C1": True,
        "C2": False,
    }
    assert len({sample.part for sample in data.validation}) == 1
    assert len(data.validation) == 2


def test_defective_parts_to_learn_from_are_taken_as_good(tmp_path: Path) -> None:
    root = grow(tmp_path, TREES["realiad"].files)
    file = root / "mint.json"
    table = json.loads(file.read_text())
    table["train"] += [row for row in table["test"] if row["anomaly_class"] == "AK"]
    table["test"] = [row for row in table["test"] if row["anomaly_class"] == "OK"]
    file.write_text(json.dumps(table))
    data = open_dataset("realiad", root, category="mint")
    assert len(data.train + data.validation) == 6
    assert not any(sample.defect or sample.masks for sample in data.samples)


def test_a_list_or_a_size_of_pictures_is_chosen_by_its_folder(tmp_path: Path) -> None:
    root = grow(tmp_path, TREES["realiad_downloaded"].files)
    grow(root / "realiad_256/mint", realiad("mint"))
    with pytest.raises(DatasetError, match=r"mint has pictures in .*realiad_512.*realiad_256.*; open one of"):
        open_dataset("auto", root)
    for size in ("realiad_256", "realiad_512"):
        assert {size in str(sample.path) for sample in open_dataset("auto", root / size).samples} == {True}
    (root / "realiad_jsons/realiad_jsons_sv").mkdir()
    table = json.loads((root / "realiad_jsons/realiad_jsons/mint.json").read_text())
    for split in ("train", "test"):
        table[split] = [row for row in table[split] if "_C1_" in row["image_path"]]
    (root / "realiad_jsons/realiad_jsons_sv/mint.json").write_text(json.dumps(table))
    for path in (root / "realiad_256").rglob("*.jpg"):
        path.unlink()
    (root / "realiad_256").rename(root / "other")
    single = open_dataset("auto", root / "realiad_jsons/realiad_jsons_sv")
    assert {sample.view for sample in single.samples} == {"C1"}
    assert len(single.samples) == 4


@pytest.mark.parametrize("noise", ["0.0", "0.1", "0.2", "0.4"])
def test_lists_for_noisy_training_are_opened_by_their_folder(tmp_path: Path, noise: str) -> None:
    root = grow(tmp_path, TREES["realiad_downloaded"].files)
    table = json.loads((root / "realiad_jsons/realiad_jsons/mint.json").read_text())
    defective = [row for row in table["test"] if row["anomaly_class"] == "AK"]
    if noise != "0.0":
        table["train"] += defective
        table["test"] = [row for row in table["test"] if row["anomaly_class"] != "AK"]
    noisy = root / f"realiad_jsons/realiad_jsons_fuiad_{noise}"
    noisy.mkdir()
    (noisy / "mint.json").write_text(json.dumps(table))
    data = open_dataset("auto", noisy)
    taken = {sample.part for sample in (*data.train, *data.validation) if sample.part.startswith("NG/")}
    assert taken == ({"NG/AK/S0001"} if noise != "0.0" else set())


def test_numbers_of_parts_that_repeat_across_codes_are_other_parts(tmp_path: Path) -> None:
    root = grow(tmp_path, TREES["realiad"].files)
    table = json.loads((root / "mint.json").read_text())
    for row in [row for row in table["test"] if row["anomaly_class"] == "AK"]:
        other = {key: value and value.replace("AK", "HS") for key, value in row.items()}
        for name in filter(None, (other["image_path"], other["mask_path"])):
            grow(root / "mint", {name: GOOD if name == other["image_path"] else MASK})
        table["test"].append(other)
    (root / "mint.json").write_text(json.dumps(table))
    data = open_dataset("realiad", root, category="mint")
    numbered = {sample.part for sample in data.samples if sample.part.endswith("S0001")}
    assert numbered == {"OK/S0001", "NG/AK/S0001", "NG/HS/S0001"}
    assert all(len([one for one in data.samples if one.part == part]) == 2 for part in numbered)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"mask_path": null', '"mask": null', "mint.json, train 1: expected an object with anomaly_class"),
        (
            "NG_AK_C1_20231021.png",
            "gone.png",
            'mint.json, test 3: there is no mask ".*gone.png" in .*_gone_mask.png',
        ),
        ("OK/S0001/mint", "../pcb/OK/S0001/pcb", "mint.json, train 1: .* leads out of"),
        ('"normal_class"', '"normal"', "mint.json can't be read as a list of Real-IAD"),
        ('"test"', "]", "mint.json can't be read as a list of Real-IAD"),
    ],
)
def test_refusals(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = grow(tmp_path, TREES["realiad"].files) / "mint.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        open_dataset("auto", tmp_path, category="mint")
