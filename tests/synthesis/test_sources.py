import numpy as np
import pytest
from PIL import Image

from blemish.errors import ConfigError, DatasetError
from blemish.synthesis import sources
from blemish.synthesis.sources import parse

PICTURES = np.zeros((2, 32, 40, 3), np.uint8)


def test_folders_are_read_and_a_category_has_its_own(tmp_path):
    for name, value in (("a.png", 10), ("bottle/b.png", 200)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((50, 60, 3), value, np.uint8)).save(tmp_path / name)
    (own,) = parse(f"sdas:{tmp_path}", "bottle")
    assert own.opacity == (0.5, 1.0)
    np.testing.assert_array_equal(own.give(PICTURES, 0, np.random.default_rng(0)).picture, 200)
    (every,) = parse(f"sdas:{tmp_path}=0.5", "cable")
    values = {int(every.give(PICTURES, 0, np.random.default_rng(number)).picture[0, 0, 0]) for number in range(20)}
    assert values == {10, 200}
    assert every.weight == 0.5
    (textures,) = parse(f"texture:{tmp_path}")
    made = [textures.give(PICTURES, 0, np.random.default_rng(number)).picture for number in range(10)]
    assert {picture.shape for picture in made} == {(32, 40, 3)}
    assert len({picture.tobytes() for picture in made}) > 5


@pytest.mark.parametrize("kind", ["sdas", "texture", "sdas_masked"])
def test_what_cannot_be_read_is_named_once_and_stops_nothing(tmp_path, caplog, kind):
    for folder in ("lid", "masks/lid"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("a", "b", "c"):
            Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "lid/b.png").write_bytes(b"")
    (source,) = parse(f"{kind}:{tmp_path}", "lid")
    for number in range(20):
        assert source.give(PICTURES, 0, np.random.default_rng(number)).picture.shape == (32, 40, 3)
    assert [record.getMessage() for record in caplog.records] == [
        f"Not blended in: {tmp_path}/lid/b.png: the file is empty (0 bytes)."
    ]
    for name in ("a", "c"):
        (tmp_path / f"lid/{name}.png").write_bytes(b"")
    (source,) = parse(f"{kind}:{tmp_path}", "lid")
    sources._read.cache_clear()
    with pytest.raises(DatasetError, match="none of 3 pictures in .*lid can be read"):
        source.give(PICTURES, 0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("slef", ConfigError, 'Did you mean "self"'),
        ("self=0", ConfigError, "expected a positive number"),
        ("self=much", ConfigError, "expected a positive number"),
        ("texture", ConfigError, "needs a folder"),
        ("texture:/nowhere", DatasetError, "does not exist"),
        ("texture:{empty}", DatasetError, "has no pictures"),
    ],
)
def test_what_can_not_be_a_source_is_said(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        parse(text.format(empty=tmp_path))
