import pytest
import torch

import blemish
import textures
from blemish.detector import DetectorConfig
from blemish.errors import ConfigError, DatasetError
from blemish.reading import digest
from blemish.training import choose_device, generator


@pytest.mark.parametrize("size", [(31, 256), (256, 8193), (0, 0)])
def test_image_size_has_limits(size):
    with pytest.raises(ConfigError, match=r"--image-size is .*; expected 32 to 8192 pixels a side, for example 256"):
        DetectorConfig(image_size=size)


def test_generators_follow_seed_and_item():
    def draw(*key: int) -> float:
        return float(torch.rand(1, generator=generator(*key)))

    assert draw(0, 1) == draw(0, 1)
    assert len({draw(0, 1), draw(0, 2), draw(1, 1), draw(0, 1, 0), draw(0, 1, 1)}) >= 4


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match='--device is "tpu"'):
        choose_device("tpu")


def test_one_good_picture_is_too_few(tmp_path):
    data = blemish.open_dataset("auto", textures.write(tmp_path, train=1))
    with pytest.raises(DatasetError, match="at least 2 good training pictures"):
        blemish.create("patchcore", preset="tiny").fit(data)


@pytest.mark.parametrize(("split", "said"), [("train", "to learn from"), ("validation", "held out to calibrate cloth")])
def test_pictures_that_cannot_be_read_are_told_before_anything_is_learned(tmp_path, monkeypatch, split, said):
    data = blemish.open_dataset("auto", textures.write(tmp_path, train=5))
    for sample in getattr(data, split):
        sample.path.write_bytes(b"")
    detector = blemish.create("patchcore", preset="tiny")
    monkeypatch.setattr(detector, "learn", lambda *_: pytest.fail("it has learned"))
    with pytest.raises(DatasetError, match=rf"good pictures .*{said}, none of \d can be read .*is empty"):
        detector.fit(data)


def test_the_test_set_is_not_looked_at(tmp_path):
    root = textures.write(tmp_path)
    data = blemish.open_dataset("auto", root)
    for sample in data.test:
        sample.path.unlink()
    assert blemish.create("patchcore", preset="tiny").fit(data).fitted is not None


def test_learned_from_holds_the_training_pictures_and_no_other(tmp_path):
    data = blemish.open_dataset("auto", textures.write(tmp_path))
    fitted = blemish.create("patchcore", preset="tiny").fit(data).fitted
    assert fitted is not None
    digests = {sample: digest(sample.path) for sample in data.samples}
    assert set(fitted.learned_from) == {digests[sample] for sample in data.train}


def test_deep_pictures_measure_a_rule(tmp_path):
    import numpy as np
    from PIL import Image

    root = textures.write(tmp_path, train=4, test=1)
    for path in root.rglob("*/good/*.png"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        Image.fromarray(grey).save(path)
    trained = blemish.create("patchcore", preset="tiny").fit(blemish.open_dataset("auto", root))
    assert trained.fitted is not None
    rule = trained.fitted.preprocessing.intensity
    assert rule is not None
    assert (rule.low, rule.high) == (0, 4095)
