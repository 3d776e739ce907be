import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from blemish.nn.blur import gaussian_blur


@pytest.mark.parametrize("size", [(40, 56), (5, 70), (1, 3)])
@pytest.mark.parametrize(("border", "mode"), [("repeat", "nearest"), ("mirror", "reflect")])
def test_blur_is_scipys(size, border, mode):
    image = np.random.default_rng(0).random(size, np.float32)
    ours = gaussian_blur(torch.from_numpy(image)[None, None], 2.5, border)[0, 0].numpy()
    np.testing.assert_allclose(ours, gaussian_filter(image, 2.5, mode=mode), rtol=1e-4)


def test_no_blur_is_the_image_itself():
    image = torch.rand(1, 1, 3, 4)
    assert gaussian_blur(image, 0) is image
