import pytest
import torch

import blemish
import textures
from blemish import detector
from blemish.errors import ConfigError
from blemish.models.invad import InvAD, InvADConfig, distance_map
from blemish.nn.blur import gaussian_blur
from blemish.restoring import Restorer


def count(module: torch.nn.Module, *, trained: bool = False) -> int:
    return sum(value.numel() for value in module.parameters() if value.requires_grad or not trained)


@pytest.mark.parametrize(
    ("preset", "encoder", "total", "trained"),
    [("paper", 24_862_528, 95_631_088, 70_768_560), ("lite", 8_170_304, 17_146_544, 8_976_240)],
)
def test_the_paper_has_the_size_of_the_paper(preset, encoder, total, trained):
    with torch.device("meta"):
        model = InvAD(InvAD.presets[preset], "random")
    assert count(model.backbone) == encoder
    assert count(model) == total
    assert count(model, trained=True) == trained
    features = model.backbone(torch.empty(2, 3, 256, 256, device="meta"))
    restored = model.network.train()(features)
    assert [feature.shape for feature in features] == [feature.shape for feature in restored]


def test_the_paper_trains_as_the_paper():
    paper, lite = InvAD.presets["paper"], InvAD.presets["lite"]
    for config in (paper, lite):
        assert (config.expectation_steps, config.top_share) == (0, 0)  # ours
        assert config.learning_rate == 0.001 * config.batch_size / 8
        assert (config.betas, config.weight_decay, config.clip, config.schedule) == ((0, 0.99), 0, 5, "step")
        assert (config.epochs, config.precision, config.up_rate) == (300, "float32", 0.01)
    assert (paper.depth, paper.loss_weight, lite.depth, lite.loss_weight) == (2, 1, 4, 5)


def sine(*shape: int, offset: float) -> torch.Tensor:
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.37 * numbers + offset).float().view(shape)


@pytest.mark.parametrize(
    ("sigma", "mean", "largest", "entries"),
    [
        (0.0, 0.03079368, 0.03393770, (0.03353536, 0.02955883, 0.03349602)),
        (4.0, 0.03079368, 0.03190382, (0.03057766, 0.03039710, 0.03190382)),
    ],
)
def test_the_map_is_that_of_the_reference(sigma, mean, largest, entries):
    shapes = [(1, 4, 8, 8), (1, 8, 4, 4), (1, 16, 2, 2)]
    teacher = [sine(*shape, offset=offset) for shape, offset in zip(shapes, (0, 1, 2), strict=True)]
    restored = [sine(*shape, offset=offset) for shape, offset in zip(shapes, (0.1, 1.3, 1.7), strict=True)]
    restored[0] += 0.05
    made = gaussian_blur(distance_map(teacher, restored, (16, 16)), sigma, "mirror")[0, 0]
    assert made.mean().item() == pytest.approx(mean, abs=5e-7)
    assert made.max().item() == pytest.approx(largest, abs=5e-7)
    assert [made[place].item() for place in ((0, 0), (5, 9), (15, 15))] == pytest.approx(entries, abs=5e-7)


def test_coarser_stages_can_have_less_to_say_in_the_map():
    shapes = [(1, 4, 8, 8), (1, 8, 4, 4), (1, 16, 2, 2)]
    features, restored = ([sine(*shape, offset=start + at) for at, shape in enumerate(shapes)] for start in (0, 0.4))
    made = distance_map(features, restored, (8, 8), 0.5)[0, 0]
    # Each stage's vectors have length 1 times the root of its weight before they are one vector.
    long = [
        torch.cat(
            [
                0.5 ** (number / 2)
                * torch.nn.functional.interpolate(
                    feature / feature.norm(dim=1, keepdim=True), (8, 8), mode="bilinear", align_corners=True
                )
                for number, feature in enumerate(one)
            ],
            dim=1,
        )
        for one in (features, restored)
    ]
    torch.testing.assert_close(made, 1 - torch.cosine_similarity(*long)[0], rtol=0, atol=2e-6)
    assert not torch.allclose(made, distance_map(features, restored, (8, 8))[0, 0], atol=1e-4)


def test_codes_of_coarser_stages_can_be_wider():
    config = InvADConfig(strides=(4, 8, 16), code_width=16, code_growth=2.0)
    assert config.code_widths == (16, 32, 64)
    with torch.device("meta"):
        model = InvAD(config, "random")
    codes = model.network.fuser.train()(model.backbone(torch.empty(1, 3, 64, 64, device="meta")))
    assert [code.shape[1:] for code in codes] == [(64, 4, 4), (32, 8, 8), (16, 16, 16)]
    assert InvAD.presets["paper"].code_widths == InvAD.presets["lite"].code_widths == (64, 64, 64)
    assert {InvAD.presets[name].map_decay for name in ("paper", "lite")} == {1.0}


def tiny(**changes: object) -> InvAD:
    made = blemish.create("invad", preset="tiny", config={"steps": 6, **changes}, device="cpu")
    assert isinstance(made, InvAD)
    return made


@pytest.fixture
def data(tmp_path):
    return blemish.open_dataset("auto", textures.write(tmp_path / "data", train=14, test=1))


def test_it_learns_and_the_backbone_does_not(data):
    model = tiny(steps=40)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    started = {name: value.clone() for name, value in model.network.state_dict().items()}
    model.fit(data)
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(not torch.equal(value, started[name]) for name, value in model.network.named_parameters())
    losses = [values["features"] for _, values in model.outcome.losses]
    assert losses[-1] < 0.7 * losses[0]


def test_a_picture_is_judged_by_what_goes_beyond_what_is_usual(data):
    model = tiny(steps=40, expectation_steps=40).fit(data)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = model.eval()(images)
    features = model.see(images)
    restored = model.network(features)
    # The two scales of 16 x 16 and 8 x 8 are looked at in 8 x 8 places; of the restored ones, the finer is.
    seen = torch.nn.functional.avg_pool2d(restored[0] / restored[0].norm(dim=1, keepdim=True), 2)
    usual, variance = model.expectation.layers(seen).chunk(2, dim=1)
    beyond = torch.zeros(2, 1, 8, 8)
    for number, pair in enumerate(zip(features, restored, strict=True)):
        distances = 1 - torch.cosine_similarity(*pair)[:, None]
        distances = torch.nn.functional.avg_pool2d(distances, 2) if number == 0 else distances
        deviation = variance[:, [number]].clamp(-4, 3).exp().sqrt()
        beyond += (distances.clamp(min=1e-3).log() - usual[:, [number]]) / deviation
    wide = torch.nn.functional.interpolate(beyond, (64, 64), mode="bilinear", align_corners=True)
    highest = (
        gaussian_blur(wide, 2.0, "mirror").flatten(1).sort(dim=1, descending=True).values[:, : round(0.03 * 64**2)]
    )
    torch.testing.assert_close(found.image_score, highest.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.anomaly_map, gaussian_blur(distance_map(features, restored, (64, 64)), 2.0, "mirror")[:, 0]
    )


def test_the_expectation_leaves_the_network_as_it_is(data):
    without, with_it = (tiny(steps=8, expectation_steps=steps).fit(data) for steps in (0, 20))
    for name, value in without.state_dict().items():
        torch.testing.assert_close(with_it.state_dict()[name], value, rtol=0, atol=0)
    assert any(name.startswith("expectation.") for name in with_it.state_dict())
    assert without.expectation is None


def test_cached_features_give_the_same_weights_in_float32(data, tmp_path, monkeypatch):
    changes = {"precision": "float32", "batch_size": 4}
    without = tiny(feature_cache="0", **changes).fit(data)
    with_cache = tiny(feature_cache_dir=str(tmp_path / "kept"), **changes).fit(data)

    def refuse(*_: object) -> None:
        raise AssertionError("the backbone was asked")

    learner = tiny(feature_cache_dir=str(tmp_path / "kept"), **changes)
    with monkeypatch.context() as patch:
        patch.setattr(InvAD, "_calibrate", lambda *_: without.fitted.calibrations["cloth"])
        patch.setattr(InvAD, "_see", lambda self, images: [torch.zeros(1, 1, 1, 1)] if not images.any() else refuse())
        learner.fit(data)
    for other in (with_cache, learner):
        for name, value in without.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def test_half_the_precision_takes_half_the_space_and_changes_little(data, tmp_path):
    sizes, weights = {}, {}
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        model = tiny(precision="float32", feature_precision=precision, feature_cache_dir=str(folder)).fit(data)
        sizes[precision] = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        weights[precision] = model.get_buffer("deviation_0")
    assert sizes["bfloat16"] < 0.52 * sizes["float32"]
    torch.testing.assert_close(weights["bfloat16"], weights["float32"], rtol=1e-2, atol=1e-3)
    assert not torch.equal(weights["bfloat16"], weights["float32"])


def test_features_of_another_backbone_or_rule_are_refused(data, tmp_path):
    folder = str(tmp_path / "kept")
    tiny(feature_cache_dir=folder, steps=1).fit(data)
    other = blemish.create(
        "invad", preset="tiny", config={"feature_cache_dir": folder}, device="cpu", backbone_weights="random"
    )
    with pytest.raises(ConfigError, match="features of another kind"):
        other.fit(data)
    with pytest.raises(ConfigError, match="intensity 8 bit there, 0:4095 here"):
        tiny(feature_cache_dir=folder, intensity=blemish.types.Intensity(0, 4095)).fit(data)
    with pytest.raises(ConfigError, match="image size 64x64 there, 96x64 here"):
        tiny(feature_cache_dir=folder, image_size=(96, 64)).fit(data)


def test_each_epoch_takes_each_picture_once_in_another_order(data):
    model = tiny(batch_size=4)

    class Numbers:
        batch = staticmethod(list)

        def __len__(self) -> int:
            return 11

    epochs = [[model._batch(Numbers(), 2 * epoch + step) for step in range(2)] for epoch in range(3)]
    for epoch in epochs:
        taken = [number for batch in epoch for number in batch]
        assert len(set(taken)) == 8
        assert set(taken) <= set(range(11))
    assert epochs[0] != epochs[1]
    assert epochs[0] == [model._batch(Numbers(), step) for step in range(2)]


def test_a_killed_fit_goes_on_to_the_same_weights(data, tmp_path, monkeypatch):
    whole = tiny().fit(data)
    killed, steps = tiny(), []
    killed.unfinished = tmp_path / "part.blemish.unfinished"
    loss = InvAD._loss

    def dying(self, batch):
        steps.append(batch)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return loss(self, batch)

    state = InvAD.state_of
    monkeypatch.setattr(InvAD, "state_of", lambda self, data: detector.replace(state(self, data), save_every=0.0))
    monkeypatch.setattr(InvAD, "_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        killed.fit(data)
    assert (tmp_path / "part.blemish.features").is_dir()
    resumed = tiny()
    resumed.unfinished = killed.unfinished
    resumed.fit(data)
    assert len(steps) == 5 + 2
    assert not (tmp_path / "part.blemish.features").exists()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (4, 16)}, "expected each twice the one before"),
        ({"strides": ()}, "expected each twice the one before"),
        ({"depth": 0}, "--depth is 0; expected more than 0"),
        ({"up_rate": -1.0}, "--up-rate is -1.0"),
        ({"top_share": 1.5}, "--top-share is 1.5"),
        ({"blur": float("nan")}, "--blur"),
        ({"feature_cache": "much"}, '--feature-cache is "much"; expected a size'),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_a_training_without_an_end_is_refused_before_anything_is_read(data, monkeypatch):
    monkeypatch.delattr(Restorer, "_see")
    with pytest.raises(ConfigError, match="has no end"):
        tiny(steps=None).fit(data)


def test_an_epoch_drops_the_last_batch():
    with torch.device("meta"):
        paper = InvAD(InvAD.presets["paper"], "random")
    assert paper.plan([None] * 3629).steps == 300 * 113  # MVTec AD
    assert paper.plan([None] * 20).steps == 300


def test_options_are_those_of_the_config():
    changed = detector.configure(InvAD.presets["small"], {"top_share": 0.01, "feature_cache": "8G"})
    assert isinstance(changed, InvADConfig)
    assert changed.top_share == 0.01


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("squares", lambda made, seen: (made - seen).square().mean()),
        ("cosine", lambda made, seen: 1 - cosines(made, seen)),
    ],
)
def test_losses_are_sums_over_the_maps(loss, expected):
    model = tiny(loss=loss, loss_weight=3.0, standardise=False)
    seen = [sine(2, channels, side, side, offset=2.0) for channels, side in ((24, 16), (40, 8))]
    restored = [made.detach() for made in model.network(seen)]
    wanted = 3 * sum(expected(made, own) for made, own in zip(restored, seen, strict=True))
    torch.testing.assert_close(model._loss(seen)["features"].detach(), wanted)


def cosines(made, seen):
    lengths = made.square().sum(1).sqrt() * seen.square().sum(1).sqrt()
    return ((made * seen).sum(1) / lengths).mean()
