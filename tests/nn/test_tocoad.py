import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from blemish.nn.backbone import Backbone
from blemish.nn.tocoad import (
    COLLAPSED,
    DECAY,
    Head,
    Mirror,
    Tuned,
    Tuning,
    Weights,
    distance,
    focal_loss,
    spread,
    symmetric_loss,
)

STRIDES = (4, 8, 16)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_focal_loss_is_that_of_the_paper():
    logits, mask = 3 * torch.randn(2, 5, 6, generator=seeded(0)), torch.rand(2, 5, 6, generator=seeded(1)) > 0.7
    share = torch.where(mask, logits.sigmoid(), 1 - logits.sigmoid()).double()
    weight = torch.where(mask, 0.3, 0.7).double()
    expected = (-weight * (1 - share) ** 2 * share.log()).mean()
    assert focal_loss(logits, mask, 0.3, 2.0).item() == pytest.approx(expected.item(), rel=1e-4)


def test_without_exponent_the_focal_loss_is_half_the_cross_entropy():
    logits, mask = torch.randn(4, 8, 8, generator=seeded(0)), torch.rand(4, 8, 8, generator=seeded(1)) > 0.5
    expected = 0.5 * F.binary_cross_entropy_with_logits(logits, mask.float())
    torch.testing.assert_close(focal_loss(logits, mask, 0.5, 0.0), expected)


def test_what_is_certain_costs_nothing_and_is_no_error():
    logits = torch.tensor([100.0, -100.0, 100.0], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([True, False, False]))
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * 100 / 3)
    assert logits.grad.isfinite().all()


def test_the_contrast_compares_each_view_with_the_other():
    prediction, target = (torch.randn(6, 4, generator=seeded(seed)) for seed in range(2))
    (p1, p2), (z1, z2) = prediction.split(3), target.split(3)
    expected = -0.5 * (F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)).mean()
    torch.testing.assert_close(symmetric_loss(prediction, target), expected)
    assert symmetric_loss(target.roll(3, 0), target).item() == pytest.approx(-1)


def test_no_gradient_reaches_the_stopped_branch():
    prediction, target = (torch.randn(6, 4, generator=seeded(seed), requires_grad=True) for seed in range(2))
    symmetric_loss(prediction, target).backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None


def test_the_spread_of_embeddings():
    wide = torch.randn(400, 64, generator=seeded(0))
    assert spread(wide).item() == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(8, 64)).item() == pytest.approx(0, abs=1e-6)
    assert spread(100 * wide).item() == pytest.approx(spread(wide).item(), abs=1e-5)  # length does not count


def test_distances_count_in_the_variance_of_what_was_before():
    before = [torch.randn(2, 3, 8, 8, generator=seeded(0)), 50 * torch.randn(2, 3, 4, 4, generator=seeded(1))]
    assert distance(before, before).item() == 0
    moved = [feature + 0.5 * feature.std() for feature in before]
    assert distance(moved, before).item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (65, 79), (32, 200)])
def test_the_mirror_gives_a_logit_for_each_pixel_of_any_size(size, deep):
    network = Mirror({4: 16, 8: 24, 16: 40}, (2, 1), deep=deep)
    features = {
        stride: torch.randn(2, channels, -(-size[0] // stride), -(-size[1] // stride), generator=seeded(stride))
        for stride, channels in {4: 16, 8: 24, 16: 40, 32: 9}.items()
    }
    assert network(features, size).shape == (2, *size)


def test_the_mirror_of_the_paper_is_that_of_a_wide_resnet():
    """Layer by layer: 3, 4 and 6 blocks of 1x1, 3x3 (2x2 where the size doubles) and 1x1, half as wide inside."""
    channels = {4: 256, 8: 512, 16: 1024, 32: 2048}
    with torch.device("meta"):
        network = Mirror(channels, (3, 4, 6), deep=True)
    assert [len(stage) for stage in network.stages] == [3, 4, 6]

    def block(come: int, go: int, first: bool) -> int:
        inner = go // 2
        whole = come * inner + (4 if first else 9) * inner**2 + inner * go + 4 * inner + 2 * go
        return whole + (4 * come * go + 2 * go if first else 0)

    for stage, (come, go) in zip(network.stages, [(2048, 1024), (2048, 512), (1024, 256)], strict=True):
        expected = block(come, go, True) + (len(stage) - 1) * block(go, go, False)
        assert sum(parameter.numel() for parameter in stage.parameters()) == expected


def tuning(weights: Weights | None = None, contrast: str = "simsiam", layers: tuple[int, ...] = (16,)) -> Tuning:
    torch.manual_seed(0)
    backbone = Backbone(strides=STRIDES).requires_grad_(False).eval()
    for parameter in backbone.stages()[16]:
        parameter.requires_grad_()
    channels = dict(zip(backbone.strides, backbone.channels, strict=True))
    discriminator = Mirror({stride: channels[stride] for stride in (4, 8, 16)}, (1, 1), deep=False)
    heads = {stride: Head(channels[stride], 16) for stride in layers} if contrast != "none" else {}
    return Tuning(backbone, discriminator, weights or Weights(1.0, 1.0), contrast, heads).train()


def batch(count: int = 3, size: int = 32) -> Tuned:
    mask = torch.zeros(count, size, size, dtype=torch.bool)
    mask[0, 8:16, 8:20] = True
    views = torch.rand(2 * count, 3, size, size, generator=seeded(1))
    return Tuned(torch.rand(count, 3, size, size, generator=seeded(0)), mask, views)


def step(model: Tuning, rate: float = 0.01) -> dict[str, Tensor]:
    parts = model.loss(batch())
    torch.stack(list(parts.values())).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad.sign())
    return parts


def test_only_what_is_tuned_changes():
    model = tuning()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = step(model)
    assert sorted(parts) == ["contrast", "distill", "guide"]
    assert parts["distill"].item() < 1e-9  # at the beginning
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    named = {name for name, _ in model.named_parameters()}
    tuned = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert {name for name in changed if name.startswith("backbone.")} <= {f"backbone.{name}" for name in tuned}
    assert len([name for name in changed if name.startswith("backbone.")]) > 0.9 * len(tuned)
    assert not any(name.startswith("discriminator.") for name in changed)  # neither weights nor running means
    assert all(parameter.grad is None for parameter in model.discriminator.parameters())
    assert {name for name in named if name.startswith("heads.")} <= changed
    assert model.loss(batch())["distill"].item() > 0


@pytest.mark.parametrize(
    ("weights", "contrast", "expected"),
    [
        (Weights(0.0, 0.0), "simsiam", {"contrast"}),
        (Weights(0.0, 0.5), "byol", {"contrast", "distill"}),
        (Weights(2.0, 0.0), "none", {"guide"}),
    ],
)
def test_parts_that_count_nothing_are_left_out(weights, contrast, expected):
    assert set(tuning(weights, contrast).loss(batch())) == expected


def test_the_guide_alone_moves_the_backbone():
    model = tuning(Weights(1.0, 0.0), "none")
    model.loss(batch())["guide"].backward()
    norms = [parameter.grad.norm() for parameter in model.backbone.parameters() if parameter.requires_grad]
    assert torch.stack(norms).norm() > 0


def test_the_target_of_byol_follows_slowly_and_gets_no_gradient():
    model = tuning(Weights(0.0, 0.0), "byol")
    assert model.target is not None
    step(model, 0.1)
    named = "projector.0.weight"
    before = model.target["heads"]["16"].get_parameter(named).clone()
    online = model.heads["16"].get_parameter(named).detach().clone()
    assert not torch.equal(before, online)
    model.loss(batch())["contrast"].backward()
    expected = before + (1 - DECAY) * (online - before)
    torch.testing.assert_close(model.target["heads"]["16"].get_parameter(named), expected)
    assert all(parameter.grad is None for parameter in model.target.parameters())


def test_a_collapse_is_seen():
    model = tuning()
    images = [torch.rand(4, 3, 64, 64, generator=seeded(seed)) for seed in range(2)]
    assert model.kept(images) == pytest.approx({4: 1.0, 8: 1.0, 16: 1.0}, abs=1e-4)
    with torch.no_grad():
        for module in model.backbone.network.blocks[-1].modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.zero_()
                module.bias.fill_(1.0)
        for parameter in model.backbone.stages()[16]:
            if parameter.dim() > 1:
                parameter.zero_()
    kept = model.kept(images)
    assert kept[16] < COLLAPSED
    assert kept[4] == pytest.approx(1, abs=1e-4)
