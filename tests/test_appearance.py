import numpy as np
import pytest

from blemish.appearance import NAMES, appearance


def test_each_number_sees_what_it_is_called_after():
    random = np.random.default_rng(0)
    image = random.uniform(0.3, 0.6, (3, 32, 32)).astype(np.float32)
    plain = appearance(image)
    assert tuple(plain) == NAMES
    assert plain["brightness"] == pytest.approx(image.mean(), rel=1e-5)
    assert appearance(image + 0.2)["brightness"] == pytest.approx(plain["brightness"] + 0.2, abs=1e-5)
    assert appearance(image + 0.2)["contrast"] == pytest.approx(plain["contrast"], abs=1e-5)
    assert appearance(0.5 * image)["contrast"] == pytest.approx(0.5 * plain["contrast"], rel=1e-4)
    blurred = (image + np.roll(image, 1, 1) + np.roll(image, 1, 2)) / 3
    assert appearance(blurred)["sharpness"] < 0.6 * plain["sharpness"]
    image[0] += 0.1
    assert appearance(image)["warmth"] == pytest.approx(plain["warmth"] + 0.1, abs=1e-5)
