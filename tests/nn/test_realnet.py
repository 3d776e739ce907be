import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from blemish.nn.realnet import Discriminator, FeatureSelection, ResidualSelection, Simple, selection_losses
from waves import check, fill, wave


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_simple_has_the_values_of_the_reference():
    net = fill(Simple(8), 0.1).eval()
    feature = wave(1, 8, 16, 16, offset=5.0)
    assert count(net) == 39_456
    with torch.inference_mode():
        made = net(feature)
    entries = {(0, 0, 0, 0): 0.54448, (0, 0, 0, 1): 1.02975, (0, 1, 2, 3): -0.352508, (0, 7, 14, 5): 0.47826}
    check(made, total=208.338, absolute=866.787, at=entries, within=2e-5)


@pytest.mark.parametrize(("channels", "expected"), [(256, 40_307_712), (512, 161_224_704)])
def test_simple_has_the_parameters_of_the_paper(channels, expected):
    with torch.device("meta"):
        assert count(Simple(channels)) == expected


def test_discriminator_has_the_values_of_the_reference():
    net = fill(Discriminator(512), 0.1)
    assert count(net) == 5_872_662
    residual = wave(1, 512, 16, 16, offset=5.0)
    with torch.inference_mode():
        logits = net.eval()(residual, (64, 64))
    entries = {(0, 0, 0, 0): -0.00546109, (0, 1, 0, 1): 0.340307, (0, 0, 32, 32): -0.174372, (0, 1, 63, 3): 0.196338}
    check(logits, total=3612.5, absolute=4904.82, at=entries, within=2e-4)
    probability = logits.softmax(1)[:, 1]
    check(probability, total=3049.18, absolute=3049.18, at={(0, 0, 1): 0.594055, (0, 32, 32): 0.79445}, within=2e-4)
    with torch.no_grad():
        logits = net.train()(residual, (64, 64))
    check(logits, total=1919.05, absolute=1919.05, at={(0, 1, 32, 32): 0.134577, (0, 0, 0, 1): 0.0679244}, within=2e-4)
    norm = net.first[1]
    check(norm.running_mean, total=-0.281944, absolute=41.5879, at={(0,): -0.292262, (127,): -0.286154}, within=2e-4)
    check(norm.running_var, total=130.519, absolute=130.519, at={(0,): 1.00401, (127,): 1.00263}, within=2e-4)


def test_a_small_discriminator_too():
    net = fill(Discriminator(16), 0.1)
    assert count(net) == 63_510
    residual = wave(1, 16, 8, 8, offset=5.0)
    with torch.inference_mode():
        logits = net.eval()(residual, (32, 48))
    entries = {(0, 0, 0, 0): 0.0340182, (0, 1, 0, 1): 0.236694, (0, 1, 16, 24): 0.26216, (0, 1, 31, 3): 0.0705531}
    check(logits, total=547.217, absolute=581.129, at=entries, within=4e-5)
    probability = logits.softmax(1)[:, 1]
    check(probability, total=818.067, absolute=818.067, at={(0, 0, 1): 0.553829, (0, 16, 24): 0.543459}, within=4e-5)
    with torch.no_grad():
        logits = net.train()(residual, (32, 48))
    entries = {(0, 0, 0, 0): 0.0743875, (0, 1, 0, 1): 0.230527, (0, 0, 16, 24): 0.360174, (0, 1, 16, 24): 0.219108}
    check(logits, total=781.992, absolute=781.992, at=entries, within=4e-5)
    norm = net.first[1]
    check(norm.running_mean, total=0.0631137, absolute=4.25117, at={(0,): 0.042411, (127,): 0.0544185}, within=4e-5)
    check(norm.running_var, total=115.962, absolute=115.962, at={(0,): 0.905349, (127,): 0.907663}, within=4e-5)


def residuals(batch: int, channels: int, side: int, offset: float) -> torch.Tensor:
    """The input of the reference's run: waves with a gain for each channel and one hot pixel."""
    made = wave(batch, channels, side, side, offset=offset).square()
    for b in range(batch):
        for c in range(channels):
            made[b, c] *= (1 + (5 * c + 3 * b) % 7) / 7
            made[b, c].view(-1)[(11 * c + 5 * b) % (side * side)] += ((3 * c + 2 * b) % 11) / 5
    return made


STEPS = [
    # train, input, picks by maximum and by mean, sum of what is picked, sum of logits, of their size, running mean
    (True, 0, [[7, 14, 3, 23], [10, 6, 13, 18]], [[17, 21, 12, 15], [16, 0, 22, 14]],
     375.934, 2323.04, 21664.7, 6.61712),
    (False, 0, [[7, 14, 3, 23], [6, 10, 13, 18]], [[17, 21, 1, 15], [22, 16, 18, 9]],
     419.551, 1105.88, 8642.77, 6.61712),
    (False, 1, [[7, 14, 23, 3], [10, 13, 2, 22]], [[20, 15, 12, 11], [18, 16, 22, 0]],
     472.447, 935.472, 3301.25, 6.61712),
    (True, 1, [[7, 14, 23, 19], [10, 13, 21, 2]], [[20, 12, 5, 15], [16, 0, 18, 22]],
     416.27, 1587.23, 29629.3, 7.43866),
    (False, 0, [[7, 14, 19, 23], [6, 10, 13, 17]], [[17, 21, 5, 1], [19, 0, 14, 7]],
     330.734, 634.621, 11139.1, 7.43866),
]  # fmt: skip


def test_picks_are_those_of_the_reference():
    selection, net = ResidualSelection(24, 4, 4, momentum=0.9), fill(Discriminator(8), 0.1)
    inputs = []
    for shift in (0.0, 0.7):
        fine, coarse = residuals(2, 16, 8, 5.0 + shift), residuals(2, 8, 4, 6.0 + shift)
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=True)
        inputs.append(torch.cat([fine, coarse], dim=1))
    for train, which, maxima, means, total, logits_total, logits_size, running in STEPS:
        selection.train(train)
        net.train(train)
        before = selection.mean.clone(), selection.variance.clone()
        assert selection.pick(inputs[which]).tolist() == [a + b for a, b in zip(maxima, means, strict=True)]
        selection.mean, selection.variance = before  # once a step
        with torch.no_grad():
            picked = selection(inputs[which])
            logits = net(picked, (32, 32))
        assert picked.sum().item() == pytest.approx(total, rel=1e-5)
        assert logits.sum().item() == pytest.approx(logits_total, abs=2e-4 * logits_size)
        assert logits.abs().sum().item() == pytest.approx(logits_size, rel=2e-4)
        assert selection.mean.sum().item() == pytest.approx(running, rel=1e-5)


def test_hot_pixels_and_faint_shifts_are_picked_and_alone_get_gradients():
    residual = 0.1 + 0.01 * torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    selection = ResidualSelection(16, 1, 1, momentum=1.0)
    selection(residual)
    damaged = residual.clone()
    damaged[:, 3, 2, 5] += 1
    damaged[:, 9] += 0.02
    damaged.requires_grad_()
    picked = selection.eval()(damaged)
    assert selection.pick(damaged.detach()).tolist() == [[3, 9], [3, 9]]
    picked.sum().backward()
    assert damaged.grad is not None
    assert damaged.grad.sum((0, 2, 3)).nonzero().flatten().tolist() == [3, 9]
    torch.testing.assert_close(selection(damaged.flip(0)), picked.flip(0), rtol=0, atol=0)


def test_a_channel_may_be_picked_twice():
    residual = 0.1 + 0.01 * torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    selection = ResidualSelection(16, 2, 1, momentum=1.0)
    selection(residual)
    residual[:, 3] += 0.5
    residual[:, 3, 2, 5] += 1
    residual[:, 9, 2, 5] += 1
    picked = selection.eval()(residual)
    assert selection.pick(residual).tolist() == [[3, 9, 3], [3, 9, 3]]
    torch.testing.assert_close(picked, residual[:, [3, 9, 3]], rtol=0, atol=0)


def layers(base: int, shapes: list[tuple[int, int]], batch: int) -> tuple[list, list, torch.Tensor]:
    mask = torch.zeros(2, 1, base, base)
    for b in range(2):
        top, left = 4 * (b + 1) + 3 * batch, 2 + 5 * b + 2 * batch
        mask[b, 0, top : top + base // 2, left : left + base // 2 - 3] = 1
    clean, damaged = [], []
    for number, (channels, side) in enumerate(shapes):
        shape = (2, channels, side, side)
        good = wave(*shape, offset=5 + 0.3 * batch + 0.1 * number)
        steps = torch.arange(1, good.numel() + 1, dtype=torch.float64).view(shape)
        noise = (0.3 * torch.sin(0.37 * steps + 1 + 0.7 * batch)).float()
        gain = ((3 * torch.arange(channels) + 1) % channels / channels).view(1, -1, 1, 1)
        every = mask[:, :, :: base // side, :: base // side]
        clean.append(good)
        damaged.append(good + gain * every + noise)
    return damaged, clean, mask


def test_selection_is_that_of_the_reference():
    shapes = [(6, 8), (10, 4), (12, 2)]
    selection = FeatureSelection([6, 10, 12], (4, 8, 16), (3, 4, 5), (4, 8, 8))
    totals = [torch.zeros(channels) for channels, _ in shapes]
    for batch in (0, 1, 0):
        damaged, clean, mask = layers(32, shapes, batch)
        for total, one, other in zip(totals, selection.resample(damaged), selection.resample(clean), strict=True):
            total.add_(selection_losses(one, other, mask))
    selection.choose(totals)
    torch.testing.assert_close(
        selection.loss_0, torch.tensor([0.487482, 0.206711, 0.508446, 0.19581, 0.523403, 0.211295]), rtol=0, atol=2e-6
    )
    assert selection.index_0.tolist() == [1, 3, 5]
    assert selection.index_1.tolist() == [2, 6, 8, 9]
    assert selection.index_2.tolist() == [1, 3, 7, 9, 11]
    fine, coarse = selection(layers(32, shapes, 0)[0])
    check(fine, total=45.7033, absolute=280.566, at={(0, 0, 0, 0): -0.900246}, within=1e-5)
    check(coarse, total=47.3432, absolute=192.709, at={(0, 0, 0, 0): 1.03463}, within=1e-5)


def test_a_channel_that_equals_the_mask_ranks_first_whatever_its_scale():
    draw = torch.Generator().manual_seed(0)
    mask = (torch.rand(4, 1, 32, 32, generator=draw) > 0.9).float()
    clean = torch.zeros(4, 3, 32, 32)
    damaged = torch.cat([torch.rand(4, 2, 32, 32, generator=draw), mask], dim=1)
    loss = selection_losses(damaged, clean, mask)
    assert loss.argmin() == 2
    assert loss[2] < 1e-6
    scaled = selection_losses(damaged * torch.tensor([100.0, 1, 1]).view(1, 3, 1, 1), clean, mask)
    torch.testing.assert_close(scaled, loss, rtol=1e-3, atol=1e-5)


def test_losses_that_are_no_number_count_as_the_largest():
    selection = FeatureSelection([3], (4,), (2,), (4,))
    selection.choose([torch.tensor([0.5, float("nan"), 0.1])])
    assert selection.index_0.tolist() == [0, 2]
    assert selection.loss_0.tolist() == pytest.approx([0.5, 0.5, 0.1])
