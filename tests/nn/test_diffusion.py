import hashlib

import pytest
import torch
from torch import nn

from blemish.nn.diffusion import NoiseUNet, NoisyClassifier, time_features
from waves import check, fill, wave

PAPER = (256, (1, 1, 2, 2, 4, 4), (8, 16, 32))
CLASSIFIER = (128, (1, 1, 2, 2, 4, 4), (8, 16, 32))
UNET_HASHES = {
    1000: (553_838_086, 567, "a578ceeaaa7287ec5892766ca3260fdb5ce01320a8aec17bc993e2724e445afc"),
    15: (552_829_446, 567, "89b52ee02b174bdd7153eceec6d120637fe938710fdec4947de3c5a89bbdc35c"),
    12: (552_826_374, 567, "0d80d3330053bf7b038931691d869cdf2e5549ef728592f0fdbfee6f3d0fed72"),
    6: (552_820_230, 567, "85f6eae2d75fbb62cd14a724ecacc1b738c63781e2b2bd6f5bba2695402ee119"),
    3: (552_817_158, 567, "c9ded88e6e919985e088d65f5ea972d19aae7c84176f396e241ab3af93821fac"),
    None: (552_814_086, 566, "7851a44e799b06acd518dc9daf8a6d4d9e66b26f2d0b42dee136945b8958bc67"),
}
CLASSIFIER_HASHES = {
    1000: (54_096_360, 249, "77ce8a63d484d4227bc9c07834b49488ba55de54104b1b518b0b714adac7efaf"),
    15: (53_591_055, 249, "5259e450e0a08d54b2481bf959e4abc1cc9f8a33c5248ff1b23ee372d0bf0812"),
    12: (53_589_516, 249, "80add943018769e1d8b38da278c466579b6dc03b2977a70cc89990c9c9b3badd"),
    6: (53_586_438, 249, "cabf1dabc701a29ffbdf60777e1389e61b7e61d747a49e43a51c7f6683e8ffce"),
    3: (53_584_899, 249, "6bc79b55613bf9bc52ed443495a9fbe59f0f7a13df1081716fc2c6db51e319a6"),
}


def facts(net: nn.Module) -> tuple[int, int, str]:
    """Parameters, number of tensors, and the hash of their names and shapes."""
    state = net.state_dict()
    names = "\n".join(f"{name}:{tuple(value.shape)}" for name, value in state.items())
    count = sum(parameter.numel() for parameter in net.parameters())
    return count, len(state), hashlib.sha256(names.encode()).hexdigest()


@pytest.mark.parametrize("classes", UNET_HASHES)
def test_names_and_shapes_of_the_paper(classes):
    with torch.device("meta"):
        net = NoiseUNet(*PAPER, classes)
    assert facts(net) == UNET_HASHES[classes]
    assert len(net.input_blocks) == len(net.output_blocks) == 18


@pytest.mark.parametrize("classes", CLASSIFIER_HASHES)
def test_names_and_shapes_of_the_classifier(classes):
    with torch.device("meta"):
        assert facts(NoisyClassifier(*CLASSIFIER, classes, (8, 8))) == CLASSIFIER_HASHES[classes]


def test_values_of_the_reference():
    net = fill(NoiseUNet(64, (1, 1, 2), (4, 2), 3), 0.05).eval()
    assert facts(net) == (5_559_942, 307, "c4ba41314f68744fc7da03fe85761d69eee2e3c8a0a8d9db7bc5c6700ca204bc")
    with torch.inference_mode():
        made = net(wave(1, 3, 32, 32, offset=5.0), torch.tensor([37]), torch.tensor([1]))
    entries = {
        (0, 0, 0, 0): -0.514853,
        (0, 0, 0, 1): -0.638549,
        (0, 3, 5, 7): 0.373803,
        (0, 5, 16, 10): 1.17343,
        (0, 5, 31, 31): -0.43245,
    }
    check(made, total=-264.404, absolute=3881.9, at=entries, within=2e-4)
    check(made[:, :3], total=785.779, absolute=1896.37, at={(0, 2, 31, 31): 0.35798}, within=2e-4)
    check(made[:, 3:], total=-1050.18, absolute=1985.53, at={(0, 0, 0, 0): 0.403906}, within=2e-4)


def test_values_of_the_reference_without_classes():
    net = fill(NoiseUNet(64, (1, 1, 2), (4, 2)), 0.05).eval()
    assert facts(net) == (5_559_174, 306, "198086a82f825b072403d85aacc2a05c33a15d22067fc7efcf9ad1b4302b13ab")
    with torch.inference_mode():
        made = net(wave(1, 3, 32, 32, offset=5.0), torch.tensor([37]))
    entries = {(0, 0, 0, 0): -0.493335, (0, 0, 0, 1): -0.535242, (0, 3, 5, 7): -0.888358, (0, 5, 16, 10): 0.0878958}
    check(made, total=-317.055, absolute=3791.76, at=entries, within=5e-4)


def test_time_features_of_the_reference():
    entries = {(0, 0): 0.765414, (0, 1): -0.863692, (0, 32): -0.643538, (0, 63): 0.00493401}
    check(time_features(torch.tensor([37]), 64), total=21.8251, absolute=38.2466, at=entries, within=2e-5)


def test_values_of_the_classifier():
    net = fill(NoisyClassifier(64, (1, 1, 2), (4, 2), 5, (8, 8)), 0.08).eval()
    assert facts(net) == (2_397_829, 145, "6b70400acc58a68416c374543c8af1042b4468c9c27fb1d7808343acbefe7583")
    image = wave(1, 3, 32, 32, offset=5.0).requires_grad_()
    logits = net(image, torch.tensor([37]))
    torch.testing.assert_close(
        logits.detach(), torch.tensor([[1.0652, 1.04186, 0.965869, 0.841152, 0.674227]]), rtol=0, atol=1e-5
    )
    logits.log_softmax(1)[:, 1].sum().backward()
    entries = {(0, 0, 0, 0): 3.06314e-06, (0, 0, 0, 1): 5.23347e-06, (0, 1, 5, 6): -6.98564e-05}
    check(image.grad, total=-0.00478486, absolute=0.290231, at=entries, within=2e-8)


def test_a_new_one_gives_nothing():
    net = NoiseUNet(32, (1, 2), (2,), 2)
    assert net(wave(2, 3, 16, 16, offset=5.0), torch.tensor([0, 999]), torch.tensor([0, 1])).abs().max() == 0


def test_squares_of_pixels_are_channels_of_one_position():
    net = fill(NoiseUNet(32, (1, 2), (2,), 2, patch=2), 0.05).eval()
    assert net.input_blocks[0][0].weight.shape == (32, 12, 3, 3)
    assert net.out[2].weight.shape == (24, 32, 3, 3)
    sides = []
    net.input_blocks[0].register_forward_hook(lambda _, given, made: sides.append((given[0].shape, made.shape)))
    image = wave(2, 3, 16, 24, offset=5.0)
    with torch.inference_mode():
        made = net(image, torch.tensor([37]), torch.tensor([1]))
        assert sides == [((2, 12, 8, 12), (2, 32, 8, 12))]
        assert made.shape == (2, 6, 16, 24)
        # What the last convolution says of a position's 24 channels are the 2 x 2 pixels of 6 maps there.
        with torch.no_grad():
            net.out[2].weight.zero_()
            net.out[2].bias.copy_(torch.arange(24.0))
        told = net(image, torch.tensor([37]), torch.tensor([1]))
    assert told[0, :, 4:6, 2:4].flatten().tolist() == list(range(24))
