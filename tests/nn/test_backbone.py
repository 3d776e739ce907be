import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from blemish.errors import ConfigError
from blemish.images import to_batch
from blemish.nn.backbone import DEFAULT, Backbone, embedded_weights
from blemish.nn.folding import folded
from blemish.types import Preprocessing


def are_alike(one, other):
    return float((one - other).detach().abs().max()) < 1e-4 * float(other.detach().std())


def test_embedded_weights_recognise_a_cat():
    from skimage.data import chelsea

    network = timm.create_model(DEFAULT).eval()
    network.load_state_dict(embedded_weights(DEFAULT))
    image = torch.from_numpy(to_batch(chelsea()[:, 75:375], Preprocessing((224, 224))))
    with torch.inference_mode():
        best = network((image - 0.5) / 0.5).softmax(1).topk(3).indices.squeeze(0)
    cats = {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    assert set(best.tolist()) == cats


def test_features_are_those_of_the_full_network():
    full = timm.create_model(DEFAULT, features_only=True).eval()
    full.load_state_dict(embedded_weights(DEFAULT), strict=False)
    backbone = Backbone(strides=(4, 16)).eval()
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = backbone(image)
        theirs = full((image - 0.5) / 0.5)
    assert backbone.channels == [24, 112]
    assert backbone.strides == [4, 16]
    for one, other in zip(ours, (theirs[1], theirs[3]), strict=True):
        assert are_alike(one, other)  # ours has its norms folded


def test_layers_that_nothing_depends_on_are_left_out():
    def size(*strides: int) -> int:
        return sum(parameter.numel() for parameter in Backbone(strides=strides, weights="random").parameters())

    assert size(4) < size(8) < size(16) < size(32)


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        (DEFAULT, 2),  # a block without a skip
        (DEFAULT, 16),
        ("resnet18", 8),
        ("resnet50", 32),
    ],
)
def test_a_narrow_backbone_gives_the_same_channels_with_fewer_weights(name, stride):
    backbone = Backbone(name, (stride,), "random").eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # such as training leaves them
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([1, 4, 5, 15])
    before, weights = backbone(image)[0], sum(value.numel() for value in backbone.parameters())
    assert backbone.narrow(kept)
    assert are_alike(backbone(image)[0], before[:, kept])
    assert backbone.channels == [4]
    assert sum(value.numel() for value in backbone.parameters()) < weights


@pytest.mark.parametrize("name", ["convnext_atto", "seresnet50"])
def test_blocks_whose_channels_mix_at_the_end_stay_whole(name):
    with torch.device("meta"):
        backbone = Backbone(name, (8,), "random")
    weights, channels = sum(value.numel() for value in backbone.parameters()), list(backbone.channels)
    assert not backbone.narrow(torch.arange(8))
    assert sum(value.numel() for value in backbone.parameters()) == weights
    assert backbone.channels == channels


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file(tmp_path, suffix):
    state = timm.create_model("resnet18").state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state}, file)
    backbone = Backbone("resnet18", (8,), str(file))
    torch.testing.assert_close(backbone.network.conv1.weight, state["conv1.weight"])


def test_files_that_hold_code_are_refused(tmp_path):
    torch.save(timm.create_model("test_resnet"), tmp_path / "model.pth")
    with pytest.raises(ConfigError, match="need code to be run are refused"):
        Backbone("test_resnet", (8,), str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    ("name", "strides", "weights", "message"),
    [
        ("tf_efficientnet_lite", (8,), "random", 'Did you mean "tf_efficientnet_lite[02]"'),
        ("resnet18", (3,), "random", "has no stride 3; expected some of"),
        ("resnet18", (8,), "nowhere.pth", "there is no such file"),
        ("resnet18", (8,), "default", "must be downloaded, and the model hub can't be reached"),
    ],
)
def test_what_cannot_be_had_is_said(name, strides, weights, message):
    with pytest.raises(ConfigError, match=message):
        Backbone(name, strides, weights)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="missing or of another shape"):
        Backbone("wide_resnet50_2", (8,), str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032), ("wide_resnet50_2", 66_834_240)],
)
def test_parameters_of_the_reference(name, count):
    with torch.device("meta"):
        backbone = Backbone(name, (4, 8, 16, 32), "random")
    assert sum(parameter.numel() for parameter in backbone.parameters()) == count


@pytest.mark.parametrize(
    ("name", "own"),
    [
        (DEFAULT, {4: ("conv_stem", "bn1", "blocks.0", "blocks.1"), 8: ("blocks.2",), 16: ("blocks.3", "blocks.4")}),
        ("resnet18", {4: ("conv1", "bn1", "layer1"), 8: ("layer2",), 16: ("layer3",)}),
        ("convnext_atto", {4: ("stem", "stages_0"), 8: ("stages_1",), 16: ("stages_2",)}),
    ],
)
def test_parameters_belong_to_the_stage_that_they_lead_to(name, own):
    with torch.device("meta"):
        backbone = Backbone(name, (4, 8, 16), "random")
    names = {id(parameter): name for name, parameter in backbone.network.named_parameters()}
    stages = backbone.stages()
    assert list(stages) == [4, 8, 16]
    for stride, beginnings in own.items():
        assert stages[stride]
        assert all(names[id(parameter)].startswith(beginnings) for parameter in stages[stride])
    assert sum(map(len, stages.values())) == len(names)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "resnet50", "convnext_atto"])
def test_folded_norms_change_nothing_but_rounding(name):
    torch.manual_seed(0)
    backbone = Backbone(name, (4, 8), "random").eval()
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    image = torch.rand(2, 3, 64, 64)
    plain = [feature.detach() for feature in backbone(image)]  # all its weights learn: nothing is folded
    backbone.requires_grad_(False)
    for one, other in zip(backbone(image), plain, strict=True):
        assert are_alike(one, other)
    assert not norms(folded(backbone.network))


def norms(network):
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]


def test_what_learns_is_not_folded_and_learns_as_before():
    torch.manual_seed(0)
    backbone = Backbone("tf_efficientnet_lite0", (4, 8)).eval().requires_grad_(False)
    for parameter in backbone.stages()[8]:
        parameter.requires_grad_()
    image = torch.rand(2, 3, 64, 64)
    found = {}
    for folds in (False, True):
        backbone.folds = folds
        backbone.zero_grad()
        backbone(image)[1].square().mean().backward()
        found[folds] = [parameter.grad for parameter in backbone.stages()[8]]
    for one, other in zip(found[True], found[False], strict=True):
        assert float((one - other).abs().max()) <= 1e-3 * float(other.abs().max())
    assert all(parameter.grad is None for parameter in backbone.stages()[4])
    assert 0 < len(norms(folded(backbone.network))) < len(norms(backbone.network))
    before = backbone(image)[1]
    torch.optim.SGD(backbone.stages()[8], lr=0.1).step()
    after = backbone(image)[1]
    assert not torch.equal(before, after)
    with torch.no_grad():  # all is folded
        assert are_alike(backbone(image)[1], after)


def test_folded_norms_follow_the_weights():
    backbone = Backbone("resnet18", (4, 8), "random").eval().requires_grad_(False)
    other = Backbone("resnet18", (4, 8), "random").eval().requires_grad_(False)
    image = torch.rand(1, 3, 64, 64)
    before, wanted = backbone(image), other(image)
    assert not torch.equal(before[1], wanted[1])
    backbone.load_state_dict(other.state_dict())
    assert torch.equal(backbone(image)[1], wanted[1])
    with torch.no_grad():
        backbone.network["conv1"].weight.mul_(2)
    assert not torch.equal(backbone(image)[1], wanted[1])
    assert backbone.state_dict().keys() == other.state_dict().keys()
