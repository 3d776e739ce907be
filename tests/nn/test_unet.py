import hashlib

import pytest
import torch

from blemish.nn.unet import GroupNorm, UNet
from waves import check, fill, wave


def test_values_and_names_of_the_reference():
    net = fill(UNet(64, 32), 0.1).eval()
    feature = wave(1, 64, 16, 16, offset=5.0)
    names = "\n".join(f"{name}:{tuple(value.shape)}" for name, value in net.state_dict().items())
    assert hashlib.sha256(names.encode()).hexdigest() == (
        "cea932a92ca6c921e12580db2f6b0622df04258621a5e7a887f3992bcfe4602a"
    )
    assert sum(parameter.numel() for parameter in net.parameters()) == 3_250_944
    with torch.inference_mode():
        made = net(feature)
    entries = {(0, 0, 0, 0): -0.898752, (0, 0, 0, 1): -1.47058, (0, 1, 2, 3): 1.3541, (0, 32, 8, 8): -2.34671}
    check(made, total=63.1021, absolute=21697.8, at=entries, within=3e-4)
    residual = (feature - made).square()
    check(residual, total=57998.5, absolute=57998.5, at={(0, 63, 14, 5): 6.6346, (0, 32, 8, 8): 9.81747}, within=2e-3)


def test_a_new_one_gives_nothing():
    assert UNet(64, 32)(wave(1, 64, 16, 16, offset=5.0)).abs().max() == 0


@pytest.mark.parametrize(("channels", "count"), [(256, 51_846_144), (512, 207_271_936)])
def test_parameters_of_the_paper(channels, count):
    with torch.device("meta"):
        net = UNet(channels, channels // 2)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


def test_group_norm_is_that_of_torch_in_each_memory_layout():
    ours, theirs = fill(GroupNorm(4, 8), 0.1), fill(torch.nn.GroupNorm(4, 8), 0.1)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = []
        for norm in (ours, theirs):
            feature = wave(2, 8, 5, 6, offset=1.0).contiguous(memory_format=layout).requires_grad_()
            made = norm(feature)
            made.square().sum().backward()
            found.append([made, feature.grad, norm.weight.grad, norm.bias.grad])
            norm.zero_grad()
        assert found[0][0].is_contiguous(memory_format=layout)
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
