import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from blemish.nn.invad import Decoder, Expectation, Fuser, StyledBlock, UpConv, upsample
from plain_invad import plain_decoder
from waves import wave

PAPER = ((256, 512, 1024), 2)
LITE = ((64, 128, 256), 4)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def filled(block: StyledBlock) -> StyledBlock:
    """The block with the weights of the reference's run, each filled with a wave."""
    styled = [convolution for convolution in (block.first, block.second) if hasattr(convolution, "factor")]
    first = block.first.convolution if len(styled) == 2 else block.first[0]
    parameters = [first.weight, first.bias, block.second.convolution.weight, block.second.convolution.bias]
    offsets = [0.0, 0.1, 0.2, 0.3, 0.4]
    parameters.append(block.skip.weight)
    for convolution in styled:
        parameters += [convolution.factor.weight, convolution.factor.bias]
        parameters += [convolution.shift.weight, convolution.shift.bias]
    offsets += [0.5 + 0.1 * number for number in range(len(parameters) - 5)]
    assert {id(parameter) for parameter in parameters} == {id(parameter) for parameter in block.parameters()}
    with torch.no_grad():
        for parameter, offset in zip(parameters, offsets, strict=True):
            parameter.copy_(wave(*parameter.shape, offset=offset))
    return block


def test_styled_block_has_the_values_of_the_reference():
    block = filled(StyledBlock(2, 3, 2))
    made = block(wave(1, 2, 4, 4, offset=1.0), wave(1, 2, 4, 4, offset=2.0))
    assert made.shape == (1, 3, 4, 4)
    assert made.sum().item() == pytest.approx(110.51111, abs=2e-4)
    assert made.abs().sum().item() == pytest.approx(123.02559, abs=2e-4)
    assert made[0, 0, 0, 0].item() == pytest.approx(4.34530, abs=1e-5)
    assert made[0, 2, 3, 3].item() == pytest.approx(3.09937, abs=1e-5)


def test_upsampling_block_has_the_values_of_the_reference():
    block = filled(StyledBlock(2, 3, 2, up=True))
    made = block(wave(1, 2, 4, 4, offset=1.0), wave(1, 2, 8, 8, offset=2.0))
    assert made.shape == (1, 3, 8, 8)
    assert made.sum().item() == pytest.approx(375.26251, abs=5e-4)
    assert made.abs().sum().item() == pytest.approx(431.83490, abs=5e-4)
    assert made[0, 0, 0, 0].item() == pytest.approx(2.58234, abs=1e-5)
    assert made[0, 2, 7, 7].item() == pytest.approx(-0.32138, abs=1e-5)


def test_upsampling_convolution_has_the_values_of_the_reference():
    layer = UpConv(2, 3).slowed(0.01)
    with torch.no_grad():
        layer.weight.copy_(100 * wave(3, 2, 3, 3, offset=0.0))
        layer.bias.copy_(wave(3, offset=0.1))
    made = F.leaky_relu(layer(wave(1, 2, 4, 4, offset=1.0)), 0.2)
    assert made.sum().item() == pytest.approx(173.57872, abs=3e-4)
    assert made[0, 0, 0, 0].item() == pytest.approx(1.13964, abs=1e-5)


SQUARE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
DOUBLED = {
    3: [
        [5.5, 8.875, 10.375, 8.5],
        [10.1875, 15.8125, 17.875, 14.3125],
        [13.1875, 19.9375, 22.0, 17.3125],
        [11.5, 17.125, 18.625, 14.5],
    ],
    1: [
        [0.5625, 0.9375, 1.3125, 1.125],
        [1.125, 1.75, 2.25, 1.875],
        [1.875, 2.75, 3.25, 2.625],
        [1.6875, 2.4375, 2.8125, 2.25],
    ],
}


@pytest.mark.parametrize("side", [3, 1])
def test_upsampling_path_has_the_values_of_the_reference(side):
    made = upsample(SQUARE, torch.ones(1, 1, side, side), torch.zeros(1))
    torch.testing.assert_close(made[0, 0], torch.tensor(DOUBLED[side]), rtol=0, atol=1e-5)


def test_a_merged_kernel_gives_what_convolution_and_blur_give():
    torch.manual_seed(0)
    layer, feature = UpConv(5, 4), torch.randn(2, 5, 6, 7)
    torch.nn.init.normal_(layer.bias)
    plain = upsample(feature, layer.weight * layer.scale, layer.scaled_bias())
    merged, bias = layer.prepare()
    assert merged.shape == (5, 4, 6, 6)
    whole = F.conv_transpose2d(feature, merged, bias, stride=2, padding=2)
    torch.testing.assert_close(whole, plain, rtol=0, atol=1e-5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        quick = layer.eval()(feature.bfloat16())  # what inference in bfloat16 takes
    assert quick.dtype == torch.bfloat16
    assert (quick.float() - plain).abs().max() < 0.02 * plain.abs().max()
    assert not torch.equal(quick.float(), plain)


def test_a_slowed_layer_is_the_same_function_and_learns_slower():
    torch.manual_seed(0)
    quick, feature = UpConv(3, 3), torch.randn(2, 3, 4, 4)
    slow = UpConv(3, 3)
    slow.load_state_dict(quick.state_dict())
    slow.slowed(0.01)
    torch.testing.assert_close(slow(feature), quick(feature))
    moved = []
    for layer in (quick, slow):
        before = layer.prepare()[0].detach()
        optimiser = torch.optim.Adam([layer.weight], lr=0.01)
        layer(feature).square().sum().backward()
        optimiser.step()
        moved.append(layer.prepare()[0].detach() - before)
    torch.testing.assert_close(moved[1], 0.01 * moved[0], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("variant", "fuser", "decoder", "stages"),
    [
        (PAPER, 3_492_032, 67_276_528, [41_037_824, 13_030_400, 3_369_472]),
        (LITE, 452_864, 8_523_376, [5_576_704, 1_669_888, 482_688]),
    ],
    ids=["paper", "lite"],
)
def test_parts_have_the_parameters_of_the_paper(variant, fuser, decoder, stages):
    channels, depth = variant
    with torch.device("meta"):
        fusing, decoding = Fuser(channels), Decoder(channels, (16, 16), depth, [64] * 3, 16)
    downs = {256: [1_049_344, 1_050_112, 1_051_648], 64: [65_728, 65_920, 66_304]}
    assert [count(down) for down in fusing.down] == downs[channels[0]]
    assert count(fusing.join) == {256: 114_816, 64: 28_800}[channels[0]]
    assert count(fusing.bottleneck) == 4_544
    assert [count(code) for code in fusing.codes] == [73_856] * 3
    assert count(fusing) == fuser
    assert [count(style) for style in decoding.styles] == [46_160] * 3
    assert decoding.constant.numel() == channels[-1] * 256
    assert count(decoding.first) == {1024: 9_438_208, 256: 590_080}[channels[-1]]
    assert [count(stage) for stage in decoding.stages] == stages
    assert count(decoding) == decoder


def small_decoder() -> tuple[Decoder, list[torch.Tensor]]:
    torch.manual_seed(0)
    decoder = Decoder((6, 8, 10), (4, 4), 2, [16] * 3, 8)
    for parameter in decoder.parameters():  # so that biases take part
        torch.nn.init.normal_(parameter)
    return decoder, [torch.randn(3, 16, side, side) for side in (4, 8, 16)]


def test_decoder_is_that_of_grouped_convolutions_with_weights_of_each_picture():
    decoder, codes = small_decoder()
    made, plain = decoder(codes), plain_decoder(decoder, codes)
    for one, other in zip(made, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    weights = list(decoder.parameters())
    ours = torch.autograd.grad(sum(one.square().mean() for one in made), weights)
    theirs = torch.autograd.grad(sum(one.square().mean() for one in plain), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_what_does_not_depend_on_the_picture_is_computed_once(monkeypatch):
    decoder, codes = small_decoder()
    seen = []
    decoder.first.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    trained = [made.detach() for made in decoder.train()(codes)]
    decoder.eval()
    with torch.inference_mode():
        for _ in range(3):
            for one, other in zip(decoder(codes), trained, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert seen == [(1, 10, 4, 4)] * 2  # once for a batch in training, once for all in inference


def test_what_was_kept_is_forgotten_when_weights_change():
    decoder, codes = small_decoder()
    decoder.eval()
    other = Decoder((6, 8, 10), (4, 4), 2, [16] * 3, 8)
    with torch.inference_mode():
        before = decoder(codes)[0]
        decoder.load_state_dict(other.state_dict())
        torch.testing.assert_close(decoder(codes)[0], other.eval()(codes)[0], rtol=0, atol=0)
        assert not torch.equal(decoder(codes)[0], before)
    assert decoder.double()([code.double() for code in codes])[0].dtype == torch.float64


def test_a_new_decoder_gives_what_the_reference_gives():
    torch.manual_seed(0)
    channels, depth = LITE
    fuser, decoder = Fuser(channels).eval(), Decoder(channels, (16, 16), depth, [64] * 3, 16)
    features = [torch.randn(2, wide, 64 >> number, 64 >> number).relu() for number, wide in enumerate(channels)]
    with torch.no_grad():
        made = decoder(fuser(features))
    assert [one.shape for one in made] == [feature.shape for feature in features]
    for one in made:
        assert 0.85 < one.std() < 1.05
        assert 0.24 < one.mean() < 0.36


@pytest.mark.parametrize(
    ("variant", "fuser", "decoder", "first"),
    [(PAPER, 1.092, 32.268, 2.416), (LITE, 0.314, 5.014, 0.151)],
    ids=["paper", "lite"],
)
def test_parts_multiply_as_often_as_those_of_the_paper(variant, fuser, decoder, first):
    channels, depth = variant

    def giga(module, *inputs):  # the paper's counter knows no blur, and counts normalisation, a thousandth
        with FlopCounterMode(display=False) as counter:
            made = module(*inputs)
        return counter.get_total_flops() / 2e9, made

    with torch.device("meta"):
        fusing, decoding = Fuser(channels), Decoder(channels, (16, 16), depth, [64] * 3, 16)
        features = [torch.empty(1, wide, 64 >> number, 64 >> number) for number, wide in enumerate(channels)]
        by_fuser, codes = giga(fusing, features)
        by_decoder, _ = giga(decoding, codes)
        by_first, _ = giga(decoding.first, decoding.constant)
        by_styles = sum(giga(make, code)[0] for make, code in zip(decoding.styles, codes, strict=True))
    blurred = 16 * (64 * (32**2 + 64**2)) / 1e9
    assert by_fuser - blurred == pytest.approx(fuser, rel=2e-3)
    assert by_decoder == pytest.approx(decoder, rel=2e-3)
    assert by_first == pytest.approx(first, abs=5e-4)
    assert by_styles == pytest.approx(0.248, abs=5e-4)


def test_an_expectation_learns_the_mean_and_spread_of_log_distances():
    """Places of two kinds, told apart by what is restored alone: what is learned is the distribution of each."""
    torch.manual_seed(0)
    expectation = Expectation(4, 1)
    expectation.begin(torch.tensor([-2.0]))
    optimiser = torch.optim.Adam(expectation.parameters(), 0.003)
    truth = torch.tensor([[-3.0, 0.2], [-1.0, 0.6]])
    for _ in range(300):
        kind = torch.zeros(4, 1, 16, 16)
        kind[..., 8:] = 1
        mean, deviation = (torch.where(kind == 0, *truth[:, number]) for number in (0, 1))
        distances = (mean + deviation * torch.randn_like(kind)).exp()
        optimiser.zero_grad()
        expectation.loss(kind.expand(-1, 4, -1, -1), distances).backward()
        optimiser.step()
    expectation.eval()
    beyond, variance = expectation(kind.expand(-1, 4, -1, -1), (mean + 2 * deviation).exp())
    for columns, deviation in ((slice(2, 6), 0.2), (slice(10, 14), 0.6)):  # away from where the kinds meet
        assert beyond[..., columns].mean().item() == pytest.approx(2, abs=0.3)
        assert (variance[..., columns].mean() / 2).exp().item() == pytest.approx(deviation, rel=0.15)
