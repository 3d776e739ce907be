"""VisA as downloaded, beyond what every layout has to do."""

from pathlib import Path

import pytest

from blemish.dataset import open_dataset
from blemish.errors import DatasetError
from trees import TREES, grow

SPLIT = "split_csv/1cls.csv"


def test_the_split_file_decides(tmp_path: Path) -> None:
    grow(tmp_path, TREES["visa"].files)
    data = open_dataset("auto", tmp_path, category="candle")
    assert sorted(sample.path.name for sample in data.train + data.validation) == [f"{i:04}.JPG" for i in range(4)]
    table = tmp_path / SPLIT
    table.write_text(table.read_text().replace("candle,train,normal,candle/Data/Images/Normal/0003.JPG,\n", ""))
    assert len(open_dataset("auto", tmp_path, category="candle").samples) == len(data.samples) - 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("object,split", "object,part", "row 2: 'split' is unknown; expected the columns object, split, label"),
        ("pcb1,test,anomaly", "pcb1,test,broken", "row 17: 'broken' is unknown; expected the columns"),
        ("pcb1,test,anomaly", "pcb1,val,anomaly", "row 17: 'val' is unknown"),
        (
            "Normal/0000.JPG",
            "Normal/0009.JPG",
            'row 2: there is no picture "candle/Data/Images/Normal/0009.JPG"; unpack the whole archive again.',
        ),
    ],
)
def test_refusals(tmp_path: Path, old: str, new: str, message: str) -> None:
    table = grow(tmp_path, TREES["visa"].files) / SPLIT
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError) as caught:
        open_dataset("auto", tmp_path)
    assert f"{table}, {message}" in str(caught.value)
