from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import blemish
import textures
from blemish import cli, detector
from blemish.commands.synthesize_preview import Preview
from blemish.errors import ConfigError, DatasetError
from blemish.formats import native
from blemish.models.realnet import RealNet, RealNetConfig, _network
from blemish.nn.fusion import Fusion, average_precision, image_score, image_scores
from blemish.nn.realnet import Network, ResidualSelection, segmentation_loss
from blemish.synthesis.perlin import Recipe
from blemish.synthesis.sources import parse
from waves import check, fill, wave


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def paper(**changes: object) -> RealNet:
    config = detector.configure(RealNet.presets["paper"], changes)
    assert isinstance(config, RealNetConfig)
    with torch.device("meta"):
        return RealNet(config, "random")


def indices(model: RealNet) -> int:
    return sum(value.numel() for name, value in model.features.named_buffers() if name.startswith("index"))


def test_the_paper_has_the_size_of_the_paper():
    model = paper()
    assert count(model.backbone) == 66_834_240
    assert count(model.network.reconstruction) == 518_236_160
    assert count(model.network.discriminators["picked"]) == 5_872_662
    assert indices(model) == 1_536
    assert count(model) + indices(model) == 590_944_598
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == 524_108_822


def test_its_variants_have_the_size_of_the_paper():
    joined = paper(blocks=(4, 4, 16, 16))
    assert count(joined.network.reconstruction) == 932_554_752
    assert count(joined) + indices(joined) == 1_005_263_190
    simple = paper(reconstruction="simple")
    assert count(simple.network.reconstruction) == 403_064_832
    assert count(simple) + indices(simple) == 475_773_270


def test_shapes_of_the_paper():
    model = paper().eval()
    features = model.features(model.backbone(torch.empty(2, 3, 256, 256, device="meta")))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (256, 64, 64),
        (512, 32, 32),
        (512, 16, 16),
        (256, 8, 8),
    ]
    seen: list[Tensor] = []
    for part in (model.network.selection, model.network.discriminators["picked"]):
        part.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    (logits,), _, _ = model.network(features, (256, 256))
    assert [tuple(tensor.shape) for tensor in seen] == [(2, 1536, 64, 64), (2, 512, 64, 64)]
    assert logits.shape == (2, 2, 256, 256)


def small_network() -> tuple[Network, list[Tensor], list[Tensor], Tensor]:
    config = RealNetConfig(
        strides=(4, 8),
        planes=(64, 64),
        blocks=(4, 8),
        residuals="picked",
        attention=(2,),
        maxima=6,
        means=6,
        momentum=0.9,
        discriminator=(128, 32, 8, 4),
    )
    network = _network(config, [64, 64]).train()
    for part in network.reconstruction:
        assert count(part) == 764_352
        fill(part, 0.05)
    fill(network.discriminators["picked"], 0.1)
    damaged = [wave(2, 64, 8, 8, offset=5.0), wave(2, 64, 4, 4, offset=6.0)]
    good = [damaged[0] - 0.5 * wave(2, 64, 8, 8, offset=7.0), damaged[1] - 0.5 * wave(2, 64, 4, 4, offset=8.0)]
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, 5:15, 8:20] = True
    mask[1, 20:28, 2:9] = True
    return network, damaged, good, mask


def test_a_training_step_has_the_values_and_gradients_of_the_reference():
    network, damaged, good, mask = small_network()
    (logits,), restored, _ = network(damaged, (32, 32))
    check(restored[0], total=-13.7975, absolute=4711.16, at={(0, 0, 0, 0): 0.698414}, within=1e-4)
    check(restored[1], total=1.57212, absolute=693.256, at={(0, 0, 0, 0): 0.330195}, within=1e-4)
    check(logits, total=886.572, absolute=1583.15, at={(0, 0, 0, 0): 0.0841258}, within=2e-4)
    segmentation = segmentation_loss(logits, mask)
    distance = sum(((made - feature) ** 2).mean() for made, feature in zip(restored, good, strict=True))
    assert segmentation.item() == pytest.approx(1.03149, rel=1e-4)
    assert float(distance.detach()) == pytest.approx(2.35568, rel=1e-5)
    (segmentation + distance).backward()
    first, second = network.reconstruction
    norms = {
        first.input_blocks[0].weight: 142.097,
        first.out[2].weight: 15.2823,
        second.out[2].weight: 14.0051,
        network.discriminators["picked"].units.units[0][1].weight: 3.46207,
        network.discriminators["picked"].third[2].bias: 0.78978,
    }
    for parameter, expected in norms.items():
        assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-3)
    whole = torch.stack([parameter.grad.norm() for parameter in network.parameters()]).norm()
    assert whole.item() == pytest.approx(663.499, rel=1e-3)


def test_detached_residuals_leave_the_reconstruction_alone():
    network, damaged, _, mask = small_network()
    network.detach = True
    segmentation_loss(network(damaged, (32, 32))[0][0], mask).backward()
    assert all(parameter.grad is None for parameter in network.reconstruction.parameters())
    assert network.discriminators["picked"].third[2].bias.grad is not None


def test_an_untrained_reconstruction_leaves_the_features_as_residuals():
    torch.manual_seed(0)
    config = RealNetConfig(strides=(4,), planes=(64,), blocks=(4,), maxima=64, means=0)
    network = _network(config, [64]).eval()
    feature = wave(1, 64, 8, 8, offset=5.0)
    seen: list[Tensor] = []
    network.selection.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    _, restored, _ = network([feature], (32, 32))
    assert restored[0].abs().max() == 0
    torch.testing.assert_close(seen[0], feature.square(), rtol=0, atol=0)


def test_losses_of_the_reference():
    logits = 2 * wave(2, 2, 6, 6, offset=5.0)
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[0, 1:4, 2:5] = True
    mask[1, 5, 5] = True
    assert segmentation_loss(logits, mask).item() == pytest.approx(0.655407, rel=1e-5)
    assert segmentation_loss(logits, mask, 2.0).item() == pytest.approx(0.447566, rel=1e-4)


def test_scores_of_the_reference():
    def sine(step: float, *shape: int) -> Tensor:
        numbers = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64).view(shape)
        return (0.5 + 0.5 * torch.sin(step * numbers + 5.0)).float()

    square, slow, wide = sine(0.1, 2, 32, 32), sine(0.0027, 2, 32, 32), sine(0.1, 2, 24, 40)
    assert image_score(square, 16).tolist() == pytest.approx([0.512607, 0.512633], abs=2e-6)
    assert image_score(slow, 16).tolist() == pytest.approx([0.835135, 0.885358], abs=2e-6)
    assert image_score(wide, 16).tolist() == pytest.approx([0.517, 0.516998], abs=2e-6)
    block = torch.zeros(1, 256, 256)
    block[0, 30:46, 100:116] = 1
    assert image_score(block, 16).item() == 1
    for top, left in ((0, 0), (0, 240), (240, 0), (240, 240)):  # the 241 places of each side end at the border
        corner = torch.zeros(1, 256, 256)
        corner[0, top : top + 16, left : left + 16] = 1
        assert image_score(corner, 16).item() == 1


def test_average_precision_is_that_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    draw = torch.Generator().manual_seed(0)
    scores, positive = torch.rand(500, generator=draw), torch.rand(500, generator=draw) > 0.8
    expected = average_precision_score(positive.numpy(), scores.numpy())
    assert average_precision(scores, positive) == pytest.approx(expected)


def tiny(**changes: object) -> RealNet:
    made = blemish.create("realnet", preset="tiny", config={"steps": 6, "evaluations": 2, **changes}, device="cpu")
    assert isinstance(made, RealNet)
    return made


def test_a_killed_fit_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    data = blemish.open_dataset("auto", textures.write(tmp_path, train=8, test=1))
    whole = tiny().fit(data)
    killed, steps = tiny(), []
    killed.unfinished = tmp_path / "unfinished"
    loss = RealNet.loss

    def dying(self, batch):
        steps.append(batch)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return loss(self, batch)

    state_of = RealNet.state_of
    monkeypatch.setattr(RealNet, "state_of", lambda self, data: replace(state_of(self, data), save_every=0.0))
    monkeypatch.setattr(RealNet, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        killed.fit(data)
    resumed = tiny()
    resumed.unfinished = killed.unfinished
    resumed.fit(data)
    assert len(steps) == 5 + 2  # four were learned from, two were left
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert resumed.fitted == whole.fitted


def test_the_state_of_another_backbone_is_not_taken_up(tmp_path):
    data = blemish.open_dataset("auto", textures.write(tmp_path, train=4, test=1))
    prints = []
    for weights in ("default", "default", "random"):
        model = blemish.create("realnet", preset="tiny", config={"steps": 6}, backbone_weights=weights, device="cpu")
        model.unfinished = tmp_path / "unfinished"
        prints.append(model.state_of(data).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_the_preview_shows_what_is_taught():
    config = RealNetConfig()
    recipe = Recipe(sources=parse(config.sources))
    for name in ("few", "least_change", "redraw_empty"):
        assert getattr(recipe, name) == getattr(config, name), name
    assert Preview.sources == config.sources


def test_the_paper_trains_as_the_paper():
    config = RealNet.presets["paper"]
    assert (config.precision, config.schedule, config.clip, config.few, config.mirror) == (
        "float32", "constant", None, 0.0, False,
    )  # fmt: skip


def test_the_command_line_keeps_a_killed_fit_beside_the_artifact(tmp_path, monkeypatch):
    root, out = textures.write(tmp_path, train=4, test=1), tmp_path / "part.blemish"
    unfinished = tmp_path / "part.blemish.unfinished"
    words = ["fit", "realnet", str(root), "--out", str(out), "--preset", "tiny", "--steps", "2"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("blemish.artifact.save", killed)
        with pytest.raises(KeyboardInterrupt):
            cli.run(words)
    assert unfinished.exists()
    monkeypatch.setattr(RealNet, "loss", killed)  # nothing is left to learn
    assert cli.run(words) == 0
    assert out.exists()
    assert not unfinished.exists()


def test_channels_are_chosen_and_their_losses_kept(tmp_path):
    data = blemish.open_dataset("auto", textures.write(tmp_path, train=4, test=1))
    model = tiny(planes=(8, 40), steps=1, maxima=8, means=8, width=1.0).fit(data)
    losses, chosen = model.features.get_buffer("loss_0"), model.features.get_buffer("index_0")
    assert sorted(losses.argsort()[:8].tolist()) == chosen.tolist()
    assert losses.min() > 0
    kept = model.fitted.choices["channels at stride 4"]
    assert kept.kept == tuple(chosen.tolist())
    assert kept.losses == tuple((losses / model.config.afs_batches).tolist())
    assert model.fitted.training.step == 1


def test_the_artifact_lacks_channels_that_were_not_chosen(tmp_path):
    data = blemish.open_dataset("auto", textures.write(tmp_path, train=4, test=1))
    model = tiny(planes=(24, 16), steps=1).fit(data)
    assert len(model.fitted.choices["channels at stride 8"].kept) == 16
    blemish.save(model, tmp_path / "part.blemish")
    weights = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert weights["backbone.network.blocks.2.1.block.conv_pwl.weight"] == (16, 240, 1, 1)
    image = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    loaded, ours = (detector.infer(each, image) for each in (native.restore(tmp_path / "part.blemish"), model))
    np.testing.assert_array_equal(loaded.anomaly_map, ours.anomaly_map)
    np.testing.assert_array_equal(loaded.image_score, ours.image_score)
    with pytest.raises(ConfigError, match="fit a new one"):
        model.fit(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"balance": True},
        {"focal": 2.0},
        {"detach": True},
        {"epochs": 1.0, "steps": None},
        {"reconstruction": "unet"},
        {"map_values": "probability"},
        {"maxima": 0},
    ],
    ids=str,
)
def test_options_work(tmp_path, changes):
    data = blemish.open_dataset("auto", textures.write(tmp_path, train=5, test=1))
    model = tiny(**{"steps": 2, **changes}).fit(data)
    assert model.outcome is not None
    assert model.outcome.step > 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"strides": (4,)}, ConfigError, "differ in number"),
        ({"planes": (25, 40)}, ConfigError, "expected at most what the backbone has"),
        ({"maxima": 65}, ConfigError, "expected at most the 64 channels"),
        ({"maxima": 0, "means": 0}, ConfigError, "at least one"),
        ({"residuals": "all", "residual_weight": 0.5}, ConfigError, "expected 0 with --residuals all"),
        ({"reconstruction": "unet", "attention": (4,)}, ConfigError, "expected factors among the levels"),
        ({"sources": ""}, ConfigError, "--sources"),
        ({"sources": "texture:/nowhere"}, DatasetError, "does not exist"),
        ({"clean_share": 1.5}, ConfigError, "--clean-share is 1.5; expected 0 to 1"),
        ({"few": -0.1}, ConfigError, "--few is -0.1; expected 0 to 1"),
        ({"score_window": 0}, ConfigError, "--score-window is 0; expected more than nothing"),
        ({"steps": None}, ConfigError, "has no end"),
        ({"foreground": "paper"}, ConfigError, "no recipe for the category cloth"),
    ],
)
def test_what_can_not_be_learned_is_said(tmp_path, changes, error, message):
    data = blemish.open_dataset("auto", textures.write(tmp_path, train=3, test=1))
    with pytest.raises(error, match=message):
        tiny(**changes).fit(data)


def test_residuals_stand_out_in_their_own_measure():
    selection = ResidualSelection(2, 1, 1).eval()
    selection.mean.copy_(torch.tensor([1.0, 10.0]))
    selection.variance.copy_(torch.tensor([4.0, 25.0]))
    residual = torch.zeros(1, 2, 2, 2)
    residual[0, :, 0, 0] = torch.tensor([3.0, 20.0])  # one and two standard deviations
    residual[0, :, 1, 1] = torch.tensor([1e6, 10.0])  # counts as five
    surprise = selection.surprise(residual)
    assert surprise.shape == (1, 1, 2, 2)
    assert surprise[0, 0, 0, 0].item() == pytest.approx(1.5, abs=1e-4)
    assert surprise[0, 0, 1, 1].item() == pytest.approx(2.5, abs=1e-4)


def test_residuals_count_in_the_map_beside_the_discriminators():
    plain = tiny().eval()
    weighted, doubled = tiny(residual_weight=2.0).eval(), tiny(residual_weight=4.0).eval()
    picture = torch.rand(1, 3, 70, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = {}
        for name, model in {"plain": plain, "weighted": weighted, "doubled": doubled}.items():
            model.load_state_dict(plain.state_dict(), strict=False)
            maps[name] = model(picture).anomaly_map
    added = maps["weighted"] - maps["plain"]
    torch.testing.assert_close(maps["doubled"] - maps["plain"], 2 * added)
    assert added.shape == (1, 70, 64)
    assert added.abs().max() > 0.1


def test_opinions_are_measured_by_what_they_say_of_good_pictures():
    draw = torch.Generator().manual_seed(0)
    good = torch.rand(2, 40, 16, 16, generator=draw) * torch.tensor([1.0, 100.0])[:, None, None, None]
    fusion = Fusion(0.5, 0.25)
    scores = image_scores(good, 4)
    fusion.learn(good, scores)
    anomaly_map, score = fusion(good, scores)
    spread = good.flatten(1).std(1)
    torch.testing.assert_close(anomaly_map, good[0] / spread[0] + 0.5 * good[1] / spread[1])
    levels = [image_score(each, 4).log() for each in good]
    one, other = ((each - each.mean()) / (each.var(correction=0) + 0.04).sqrt() for each in levels)
    torch.testing.assert_close(score, one + 0.25 * other)
    alike, measured = Fusion(0.5), good * torch.tensor([7.0, 0.1])[:, None, None, None]
    alike.learn(measured, image_scores(measured, 4))  # the measure is not what counts
    torch.testing.assert_close(alike(measured, image_scores(measured, 4))[0], anomaly_map)
    assert fusion(torch.zeros(2, 1, 16, 16), torch.zeros(2, 1))[1].isfinite().all()


def test_good_pictures_decide_how_much_residuals_count(tmp_path):
    data = blemish.open_dataset("auto", textures.write(tmp_path, train=12, test=1))
    model = tiny(steps=2, residual_weight=0.3).fit(data)
    assert (model.fusion.spread != 1).all()
    assert (model.fusion.middle != 0).all()
    again = tiny(steps=2, residual_weight=0.3).fit(data)
    torch.testing.assert_close(model.fusion.middle, again.fusion.middle, rtol=0, atol=0)
