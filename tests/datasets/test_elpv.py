"""The solar cells of elpv-dataset, beyond what every layout has to do."""

from pathlib import Path

import pytest

from blemish.dataset import open_dataset
from blemish.errors import DatasetError
from trees import TREES, grow


def test_every_third_good_cell_is_tested_and_doubtful_ones_are_left_out(tmp_path: Path) -> None:
    data = open_dataset("auto", grow(tmp_path, TREES["elpv"].files), category="mono")
    assert [sample.path.stem for sample in data.test if not sample.is_anomalous] == ["cell0002", "cell0005"]
    assert "cell0030" not in {sample.path.stem for sample in data.samples}


def test_the_real_cells() -> None:
    package = pytest.importorskip("elpv_dataset", reason="needs the package elpv-dataset")
    root = Path(package.__file__).parent
    data = open_dataset("auto", root)
    assert data.samples == open_dataset("elpv", root).samples
    found = {}
    for category in data.categories:
        own = data.of(category)
        bad = sum(bool(sample.is_anomalous) for sample in own.test)
        found[category] = (len(own.train) + len(own.validation), len(own.test) - bad, bad)
    assert found == {"mono": (392, 196, 313), "poly": (614, 306, 402)}


@pytest.mark.parametrize("row", ["images/cell0099.png 0.0 mono", "images/cell0000.png none mono", "x"])
def test_a_row_that_makes_no_sense(tmp_path: Path, row: str) -> None:
    table = grow(tmp_path, TREES["elpv"].files) / "data" / "labels.csv"
    table.write_text(table.read_text() + row + "\n")
    with pytest.raises(DatasetError) as caught:
        open_dataset("auto", tmp_path)
    assert f'{table}, row 13: "{row}" is not a picture of the folder images' in str(caught.value)


def test_another_labels_file_is_not_recognised(tmp_path: Path) -> None:
    grow(tmp_path, {**TREES["elpv"].files, "data/labels.csv": "name,label\n1,2\n"})
    with pytest.raises(DatasetError, match='does not have the layout "elpv"'):
        open_dataset("elpv", tmp_path)
