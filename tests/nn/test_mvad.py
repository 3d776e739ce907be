from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blemish.nn.mvad import Block, Bottleneck, Selecting, Selector, Student, others_of, position_embedding
from goldens_mvad import CASES
from waves import check, fill, wave

PAPER = Selecting(mask_padding=False, per_head_scale=False)
CHANNELS, BLOCKS, DEPTHS = (64, 128, 256), (1, 2, 4), (6, 4, 3)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def five(parts: int) -> torch.Tensor:
    return others_of([number // 5 for number in range(5 * parts)])


def with_windows(side: int, **changes: object) -> Selecting:
    """A choice whose number of windows is set, whatever the map."""
    kind = type("Fixed", (Selecting,), {"windows": lambda self, size: side})
    return kind(**{**vars(PAPER), **changes})


@pytest.mark.parametrize(
    ("channels", "side", "total", "absolute", "at"),
    [
        (64, 16, 7922.98, 9088.67, {(0, 0): 0.382683, (0, 33): 0.92388, (1, 32): 0.707107, (255, 63): 0.999999}),
        (128, 8, 3995.55, 4539.65, {(0, 0): 0.707107, (8, 0): 1, (8, 64): 0.707107, (63, 127): 1}),
        (16, 12, 948.204, 1306.48, {(0, 9): 0.866025, (1, 8): 0.866025, (12, 0): 0.866025, (143, 15): 0.99998}),
        (16, 13, 1112.33, 1542.17, {(0, 0): 0.464723, (13, 0): 0.822984, (168, 7): 0.99998}),
    ],
)
def test_position_embedding_has_the_values_of_the_reference(channels, side, total, absolute, at):
    made = position_embedding((side, side), channels)
    assert made.shape == (side, side, channels)
    check(made.flatten(0, 1), total=total, absolute=absolute, at=at, within=2e-6)


def test_position_embedding_at_one_place():
    made = position_embedding((13, 13), 16)[2, 3]
    expected = [0.992709, 0.120537, 0.144489, 0.935016, -0.354605]
    assert made[[0, 1, 2, 8, 9]].tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("top", "views", "expected"),
    [(4, 5, [14, 9, 6]), (2, 5, [13, 8, 5]), (8, 5, [16, 10, 6]), (4, 3, [16, 10, 6])],
)
def test_window_grids_are_those_of_the_closed_form(top, views, expected):
    how = Selecting(top=top, views=views)
    assert [how.windows((side, side)) for side in (64, 32, 16)] == expected
    assert how.windows((1, 7)) == 1


def run(case, **changes):
    how = with_windows(case.windows, top=case.top, **changes)
    feature = wave(5 * case.parts, 16, case.side, case.side, offset=5.0).permute(0, 2, 3, 1)
    selector, query = Selector(how), feature + position_embedding((case.side, case.side), 16)
    return selector, query, selector.cut(feature), five(case.parts)


@pytest.mark.parametrize("name", CASES)
def test_selection_has_the_values_of_the_reference(name):
    case = CASES[name]
    selector, query, source, others = run(case)
    assert count(selector) == 0
    places, is_there = selector.choose(selector.cut(query).means, source, others)
    assert is_there.all()
    grid = case.windows**2
    for view in range(5):
        for part in range(case.parts):
            other, window = places[5 * part + view] // grid - 5 * part, places[5 * part + view] % grid
            slot = other - (other > view).long()
            found = (slot * grid + window).tolist()
            assert [set(one) for one in found] == [set(one) for one in case.chosen[view][part]]
    made = selector(query, source, others).unflatten(0, (case.parts, 5))
    last = case.side - 1
    for view, (total, absolute, first, final) in enumerate(case.views):
        ends = {(0, 0, 0, 0): first, (case.parts - 1, last, last, 15): final}
        check(made[:, view], total=total, absolute=absolute, at=ends, within=2e-6)


def plain(query, feature, others, windows, how):
    """Selection and attention as the paper says them, a window, a head and a token at a time."""
    size = query.shape[1]
    step = -(-size // windows)
    spans = [range(number * step, (number + 1) * step) for number in range(windows)]
    places = [[(y, x) for y in down for x in across] for down in spans for across in spans]
    made, channels = torch.zeros_like(query), query.shape[3]
    width = channels // how.heads

    def tokens(image, window):
        real = [place for place in places[window] if max(place) < size]
        rows = [image[place] for place in real]
        if not how.mask_padding:
            rows += [torch.zeros(channels, dtype=image.dtype)] * (step * step - len(real))
        return real, rows

    for number, image in enumerate(query):
        views = [other for other in others[number].tolist() if other >= 0]
        candidates = [tokens(feature[view], window)[1] for view in views for window in range(windows**2)]
        candidates = [torch.stack(rows) for rows in candidates if rows]
        for window in range(windows**2):
            real, rows = tokens(image, window)
            if not real or not candidates:
                continue
            asking = torch.stack(rows).mean(0)
            order = sorted(candidates, key=lambda keys, asking=asking: -float(asking @ keys.mean(0)))
            keys = torch.cat(order[: how.top])
            for place in real:
                for head in range(how.heads):
                    part = slice(head * width, (head + 1) * width)
                    scale = (width if how.per_head_scale else channels) ** -0.5
                    weights = torch.softmax(scale * keys[:, part] @ image[place][part], 0)
                    made[number][place][part] = weights @ keys[:, part]
    return made


@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize(
    ("side", "windows", "parts"),
    [(6, 3, "aaabb"), (7, 3, "abaab"), (5, 4, "aabcb")],  # whole windows; part of one is padding; all of one is
)
def test_selection_is_that_of_a_plain_loop(side, windows, parts, mask_padding):
    generator = torch.Generator().manual_seed(0)
    how = with_windows(windows, top=3, heads=2, mask_padding=mask_padding, per_head_scale=mask_padding)
    feature = torch.randn(len(parts), side, side, 8, generator=generator, dtype=torch.double)
    query = feature + position_embedding((side, side), 8)
    selector, others = Selector(how), others_of(parts)
    made = selector(query, selector.cut(feature), others)
    torch.testing.assert_close(made, plain(query, feature, others, windows, how), rtol=1e-5, atol=1e-6)


def full(query, feature, others, scale, padding=0):
    """Attention of all tokens to all tokens of the other views, 8 heads; zeros are added to what is looked at."""
    made = []
    for number, row in enumerate(others.tolist()):
        keys = torch.cat([feature[other].flatten(0, 1) for other in row])
        keys = F.pad(keys, (0, 0, 0, padding * len(row))).unflatten(1, (8, -1)).transpose(0, 1)
        asked = query[number].flatten(0, 1).unflatten(1, (8, -1)).transpose(0, 1)
        made.append((torch.softmax(scale * asked @ keys.transpose(1, 2), 2) @ keys).transpose(0, 1).flatten(1))
    return torch.stack(made).view_as(query)


def test_all_windows_chosen_is_attention_to_all_tokens():
    _, query, _, others = run(CASES["A1"])
    feature = query - position_embedding((12, 12), 16)
    every = Selector(with_windows(2, top=16))
    made = every(query, every.cut(feature), others)
    torch.testing.assert_close(made, full(query, feature, others, 16**-0.5), rtol=1e-5, atol=1e-6)


def test_padding_that_is_not_masked_takes_part_as_zeros():
    _, query, _, others = run(CASES["A2"])
    feature = query - position_embedding((13, 13), 16)
    every, masked = (Selector(with_windows(4, top=64, mask_padding=mask)) for mask in (False, True))
    made = every(query, every.cut(feature), others)
    torch.testing.assert_close(made, full(query, feature, others, 16**-0.5, padding=256 - 169), rtol=1e-5, atol=1e-6)
    clean = masked(query, masked.cut(feature), others)
    torch.testing.assert_close(clean, full(query, feature, others, 16**-0.5), rtol=1e-5, atol=1e-6)
    assert (made - clean).abs().max() > 0.05


def test_the_order_of_the_other_views_changes_nothing():
    selector, query, source, others = run(CASES["A3"])
    torch.testing.assert_close(
        selector(query, source, others[:, [2, 0, 3, 1]]), selector(query, source, others), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("mask_padding", [True, False])
def test_a_part_sees_the_same_whatever_parts_are_beside_it(mask_padding):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(6, 9, 9, 16, generator=generator)
    selector = Selector(replace(PAPER, top=4, mask_padding=mask_padding))
    parts = ["a", "b", "a", "b", "a", "c"]
    together = selector(feature, selector.cut(feature), others_of(parts))
    for part in "abc":
        own = feature[[number for number, name in enumerate(parts) if name == part]]
        alone = selector(own, selector.cut(own), others_of([part] * len(own)))
        seen = together[[number for number, name in enumerate(parts) if name == part]]
        torch.testing.assert_close(seen, alone, rtol=1e-5, atol=1e-6)
    assert not together[5].any()  # it is alone


@pytest.mark.parametrize(
    ("channels", "side", "routing", "total"), [(64, 64, 49.172, 363), (128, 32, 16.796, 123), (256, 16, 6.636, 36.495)]
)
def test_selection_multiplies_as_often_as_that_of_the_paper(channels, side, routing, total):
    selector, feature = Selector(PAPER), torch.zeros(5, side, side, channels)
    source = selector.cut(feature)

    def mega(call, *inputs):
        # Not fused, since fused attention on a CPU is not counted by every version of torch.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call(*inputs)
        return counter.get_total_flops() / 2e6

    assert mega(selector.choose, source.means, source, five(1)) == pytest.approx(routing, abs=1e-3)
    assert mega(selector, feature, source, five(1)) == pytest.approx(total, rel=2e-3)


BLOCK = {
    "A": (12, 2, 2, 1034.98, 11276.8, {(0, 0, 0, 0): -1.20601, (1, 1, 2, 3): 1.3104, (2, 8, 6, 10): -1.42541}),
    "A-pad": (13, 4, 4, 1213.78, 13244.3, {(0, 0, 0, 0): -1.08404, (1, 1, 2, 3): -0.134184, (2, 8, 6, 11): -1.39456}),
}
TWICE = {"A": (1037.08, 11222.8, 1.14974), "A-pad": (1216.38, 13173.7, -0.248172)}


@pytest.mark.parametrize("name", BLOCK)
def test_block_has_the_values_of_the_reference(name):
    side, windows, top, total, absolute, at = BLOCK[name]
    block = fill(Block(16, with_windows(windows, top=top), 0.1, 0.1), 0.1).eval()
    raw = wave(5, 16, side, side, offset=5.0).permute(0, 2, 3, 1)
    position, source = position_embedding((side, side), 16), block.selector.cut(raw)
    once = block(raw, position, source, five(1))
    check(once.permute(0, 3, 1, 2), total=total, absolute=absolute, at=at, within=1e-5)
    total, absolute, value = TWICE[name]
    twice = block(once, position, source, five(1)).permute(0, 3, 1, 2)
    check(twice, total=total, absolute=absolute, at={(1, 1, 2, 3): value}, within=1e-5)


@pytest.fixture(scope="module")
def filled() -> Bottleneck:
    return fill(Bottleneck(CHANNELS, BLOCKS, PAPER, (0.1, 0.1)), 0.1).eval()


@torch.no_grad()
def test_fusion_has_the_values_of_the_reference(filled):
    maps = [wave(5, wide, 16 >> number, 16 >> number, offset=5 + 0.1 * number) for number, wide in enumerate(CHANNELS)]
    seen = {}
    for name in ("down.0", "down.1", "side.0", "side.1", "join"):
        filled.get_submodule(name).register_forward_hook(lambda _, __, made, name=name: seen.update({name: made}))
    code = filled.fuse(maps)
    p1, p2 = seen["down.0"] + seen["side.0"], seen["down.1"] + seen["side.1"]
    check(seen["down.0"], total=12918.3, absolute=12918.3, at={(0, 0, 0, 0): 0.218031}, within=1e-5)
    check(p1, total=81402.3, absolute=81402.3, at={(4, 127, 7, 7): 0.864895}, within=1e-4)
    check(p2, total=19085.3, absolute=19085.3, at={(0, 1, 1, 0): 0.239758}, within=1e-4)
    check(seen["join"], total=16954.1, absolute=16954.1, at={(4, 255, 3, 3): 2.22687}, within=1e-4)
    check(code, total=76694.9, absolute=76694.9, at={(0, 0, 0, 0): 19.5699, (0, 1, 1, 0): 19.6552}, within=1e-3)


@torch.no_grad()
def test_bottleneck_has_the_values_of_the_reference(filled):
    maps = [wave(5, wide, 64 >> number, 64 >> number, offset=5 + 0.1 * number) for number, wide in enumerate(CHANNELS)]
    enhanced = filled.exchange(maps, five(1))
    for made, total, absolute, first, value in zip(
        enhanced,
        (11862.6, 5892.29, 3107.12),
        (1.09212e6, 565739, 282672),
        (-0.334134, 0.825709, 1.032),
        (0.948981, 1.53639, -0.546816),
        strict=True,
    ):
        check(made, total=total, absolute=absolute, at={(0, 0, 0, 0): first, (1, 1, 2, 3): value}, within=2e-5)
    code = filled.fuse(enhanced)
    assert code.shape == (5, 512, 8, 8)
    check(code, total=2.8975e6, absolute=2.8975e6, at={(0, 0, 0, 0): 24.5066, (1, 1, 2, 3): 56.091}, within=2e-3)


@torch.no_grad()
def test_student_has_the_values_of_the_reference():
    student = fill(Student(CHANNELS, DEPTHS, signed=False), 0.1).eval()
    finest, middle, coarsest = student(wave(2, 512, 2, 2, offset=5.0))
    check(finest, total=6.63414e7, absolute=6.63414e7, at={(0, 1, 1, 0): 121.629, (1, 3, 2, 1): 0}, within=0.1)
    assert finest.flatten()[[8192, 16384, 24576]].tolist() == pytest.approx([440.602, 413.771, 362.62], abs=0.1)
    check(middle, total=2395.03, absolute=2395.03, at={(0, 1, 1, 0): 0}, within=1e-5)
    check(coarsest, total=1278.64, absolute=1278.64, at={(0, 1, 1, 0): 0.543107, (1, 3, 2, 1): 0.221881}, within=1e-5)


def test_parts_have_the_parameters_of_the_paper():
    with torch.device("meta"):
        bottleneck, student = Bottleneck(CHANNELS, BLOCKS, PAPER, (0.1, 0.1)), Student(CHANNELS, DEPTHS, signed=False)
    assert count(bottleneck.code) == 939_520
    assert [count(each) for each in bottleneck.down] == [73_728 + 256, 294_912 + 512]
    assert [count(each) for each in bottleneck.side] == [16_512 + 256, 65_792 + 512]
    assert count(bottleneck.join) == 65_792 + 512
    assert [count(scale) for scale in bottleneck.scales] == [33_344, 264_448, 2_106_368]
    assert count(bottleneck) == 3_862_464
    assert len(list(bottleneck.parameters())) == 104
    assert [count(stage) for stage in student.stages] == [4_001_280, 1_296_640, 472_704]
    assert count(student) == 5_770_624
    assert len(list(student.parameters())) == 87
    assert sum(buffer.numel() for buffer in bottleneck.buffers()) == 7_695
    assert sum(buffer.numel() for buffer in student.buffers()) == 7_581


def test_weights_are_drawn_as_the_reference_draws_them():
    torch.manual_seed(0)
    student = Student(CHANNELS, DEPTHS, signed=False)
    first = student.stages[0][0].layers
    assert first[0].weight.std().item() == pytest.approx(0.0180, abs=2e-4)
    assert first[0].weight.abs().max().item() <= 1 / 32
    assert first[3].weight.std().item() == pytest.approx(0.0295, abs=2e-4)


def test_another_view_changes_the_code_and_gradients_reach_what_is_trained():
    torch.manual_seed(0)
    bottleneck = Bottleneck((16, 24), (1, 2), Selecting(top=2), (0.0, 0.0)).eval()
    features = [torch.randn(3, 16, 8, 8, requires_grad=True), torch.randn(3, 24, 4, 4)]
    code = bottleneck(features, others_of("aab"))
    with torch.no_grad():
        changed = [features[0].clone(), features[1]]
        changed[0][1] += 1.0
        again = bottleneck(changed, others_of("aab"))
    assert not torch.allclose(again[0], code[0])
    torch.testing.assert_close(again[2], code[2])
    code[0].square().sum().backward()
    reached = features[0].grad.abs().sum((1, 2, 3))
    assert reached[0] > 0
    assert reached[1] > 0  # through the tokens that the first view looks at
    assert reached[2] == 0
    assert all(parameter.grad is not None for parameter in bottleneck.parameters())


def test_a_view_counts_less_than_what_it_sees_and_alone_as_ever():
    torch.manual_seed(0)
    raw, others, position = torch.randn(3, 4, 4, 16), others_of("aab"), position_embedding((4, 4), 16)
    block = Block(16, Selecting(top=2, own=0.2), 0.0, 0.0).eval()
    plain = Block(16, Selecting(top=2), 0.0, 0.0).eval()
    plain.load_state_dict(block.state_dict())
    source, given = block.selector.cut(raw), []
    block.norm_seen.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    made, equal = (one(raw, position, source, others) for one in (block, plain))
    torch.testing.assert_close(given[0], 0.2 * raw + block.selector(raw + position, source, others))
    torch.testing.assert_close(made[2], equal[2], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(made[:2], equal[:2], rtol=1e-2)


def test_attention_is_dropped_for_whole_views_and_the_rest_is_scaled():
    torch.manual_seed(0)
    how = with_windows(2, top=2)
    block = Block(16, how, 0.0, 0.5).train()
    seen = []
    block.norm_seen.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    raw = torch.randn(40, 4, 4, 16)
    source, others, position = block.selector.cut(raw), five(8), torch.zeros(4, 4, 16)
    block(raw, position, source, others)
    ratio = ((seen[0] - raw) / block.selector(raw, source, others)).flatten(1)
    assert {round(float(each.median())) for each in ratio} == {0, 2}
    for each in ratio:
        torch.testing.assert_close(each, each.median().expand_as(each).round(), rtol=1e-2, atol=1e-2)
    pairs = ratio.median(1).values.round().view(8, 5)
    assert (pairs.min(1).values != pairs.max(1).values).any()  # not the five views of a part together
