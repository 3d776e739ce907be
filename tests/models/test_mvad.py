from dataclasses import replace

import pytest
import torch

import blemish
import textures
from blemish import detector
from blemish.errors import ConfigError
from blemish.models.mvad import MVAD, Batch, distance_map
from blemish.nn.blur import gaussian_blur
from blemish.nn.mvad import others_of
from blemish.types import Sample
from waves import check, fill, wave


def count(module: torch.nn.Module, *, trained: bool = False) -> int:
    return sum(value.numel() for value in module.parameters() if value.requires_grad or not trained)


def tiny(**changes: object) -> MVAD:
    made = blemish.create("mvad", preset="tiny", config={"steps": 6, **changes}, device="cpu")
    assert isinstance(made, MVAD)
    return made


def views(data, most=3):
    """The same pictures as views of parts, one view lacking in the last."""

    def joined(sample):
        number = int(sample.path.stem)
        return replace(sample, part=f"{sample.path.parent}/{number // most}", view=f"C{number % most + 1}")

    return replace(data, samples=tuple(map(joined, data.samples)))


@pytest.fixture
def data(tmp_path):
    return blemish.open_dataset("auto", textures.write(tmp_path / "data", train=14, test=2))


def test_the_paper_has_the_size_of_the_paper():
    with torch.device("meta"):
        model = MVAD(MVAD.presets["paper"], "random")
    assert count(model.backbone) == 8_170_304
    assert count(model.network.bottleneck) == 3_862_464
    assert count(model.network.student) == 5_770_624
    assert count(model) == 17_803_392
    assert count(model, trained=True) == 9_633_088


def test_the_paper_trains_as_the_paper():
    config = MVAD.presets["paper"]
    assert config.learning_rate == 0.005 * 8 * 5 / 16
    assert (config.betas, config.weight_decay, config.clip, config.schedule) == ((0.9, 0.999), 1e-4, 5, "step")
    assert (config.epochs, config.precision, config.loss, config.loss_weight) == (100, "float32", "squares", 5)
    assert (config.dropout, config.drop_path, config.standardise) == (0.1, 0.1, False)
    with torch.device("meta"):
        model = MVAD(config, "random")
    parts = [
        Sample(path=None, category="a", split="train", is_anomalous=False, part=str(n // 5)) for n in range(36_465)
    ]
    assert model.plan(parts).steps == 91_100  # Real-IAD: 911 batches of 8 parts


def features(shapes):
    """Teacher's and student's, as the goldens have them."""
    teacher, student = [], []
    for number, shape in enumerate(shapes):
        m = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.double).view(shape)
        teacher.append(torch.sin(0.1 * m + 5 + 0.1 * number))
        student.append(0.5 * teacher[-1] + torch.sin(0.13 * m + 6 + 0.1 * number))
    return [one.float() for one in teacher], [one.float() for one in student]


A = ([(5, 16, 16, 16), (5, 32, 8, 8), (5, 64, 4, 4)], 64)
B = ([(10, 64, 16, 16), (10, 128, 8, 8), (10, 256, 4, 4)], 48)


@pytest.mark.parametrize(
    ("case", "total", "raw", "smooth", "scores"),
    [
        (
            A,
            3804.05,
            {(0, 0, 0, 0): 0.190481, (0, 0, 32, 32): 0.183341, (4, 0, 1, 2): 0.188756},
            {(0, 0, 0, 0): 0.194098, (0, 0, 32, 32): 0.182855, (4, 0, 1, 2): 0.188795},
            [0.198329, 0.195007, 0.193889, 0.190943, 0.19292],
        ),
        (
            B,
            4249.16,
            {(0, 0, 0, 0): 0.186728, (0, 0, 24, 24): 0.186288, (9, 0, 1, 2): 0.18556},
            {(0, 0, 0, 0): 0.185628, (0, 0, 24, 24): 0.185666, (9, 0, 1, 2): 0.186159},
            [0.186739, 0.185062, 0.187103, 0.184731, 0.186297, 0.185848, 0.185329, 0.185715, 0.184676, 0.186623],
        ),
    ],
)
def test_the_map_is_that_of_the_reference(case, total, raw, smooth, scores):
    shapes, size = case
    made = distance_map(*features(shapes), (size, size))
    check(made, total=total, absolute=total, at=raw, within=2e-6)
    blurred = gaussian_blur(made, 4.0, "mirror")
    check(blurred, total=total, absolute=total, at=smooth, within=2e-6)
    assert blurred.amax((1, 2, 3)).tolist() == pytest.approx(scores, abs=2e-6)


@pytest.mark.parametrize(("case", "expected"), [(A, 9.41422), (B, 9.37965)])
def test_the_loss_is_that_of_the_reference(case, expected, monkeypatch):
    teacher, student = features(case[0])
    model = tiny(standardise=False, loss="squares", loss_weight=5.0)
    monkeypatch.setattr(model, "_standardised", list)  # of other channels than the backbone has
    monkeypatch.setattr(model.network, "forward", lambda *_: student)
    assert model._loss(Batch(teacher, others_of(range(5)), 0))["features"].item() == pytest.approx(expected, abs=2e-5)
    monkeypatch.setattr(model.network, "forward", lambda *_: teacher)
    assert model._loss(Batch(teacher, others_of(range(5)), 0))["features"].item() == 0


@torch.no_grad()
def test_from_pictures_to_scores_it_is_the_reference():
    model = MVAD(MVAD.presets["paper"], "random").eval()
    for part in (model.backbone.network, model.network.bottleneck, model.network.student):
        fill(part, 0.1)
    seen = model.backbone.network(wave(5, 3, 256, 256, offset=5.0))
    restored = model.network(seen, others_of([0] * 5))
    expected = [(4.3412e8, 969.692), (1.05532e9, 1980.84), (2.87112e8, 1916.52)]
    expected += [(4.28797e10, 6651.46), (1.82237e6, 0.938694), (6.72047e6, 70.6956)]
    for made, (total, value) in zip([*seen, *restored], expected, strict=True):
        check(made, total=total, absolute=total, at={(1, 1, 2, 3): value}, within=1e-4 * abs(value))
    made = gaussian_blur(distance_map(seen, restored, (256, 256)), 4.0, "mirror")
    check(made, total=26225.3, absolute=26225.3, at={(0, 0, 0, 0): 0.0822371, (4, 0, 255, 255): 0.109083}, within=5e-6)
    scores = [0.113894, 0.114175, 0.114734, 0.11424, 0.114947]
    assert made.amax((1, 2, 3)).tolist() == pytest.approx(scores, abs=5e-6)


def test_it_learns_parts_and_the_backbone_does_not(data):
    model = tiny(steps=40)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    started = {name: value.clone() for name, value in model.network.named_parameters()}
    model.fit(views(data))
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(not torch.equal(value, started[name]) for name, value in model.network.named_parameters())
    losses = [values["features"] for _, values in model.outcome.losses]
    assert losses[-1] < 0.7 * losses[0]


def test_views_change_what_is_said_of_one_another(data):
    model = tiny().fit(views(data))
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(5, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        together = model(image, others_of("aaabb")).anomaly_map
        again = model(image[[4, 2, 0, 1, 3]], others_of("baaab")).anomaly_map
        torch.testing.assert_close(again, together[[4, 2, 0, 1, 3]], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(model(image[:3], others_of("aaa")).anomaly_map, together[:3], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(model(image).anomaly_map, together)
        torch.testing.assert_close(
            model(image, others_of("abcde")).anomaly_map, model(image).anomaly_map, rtol=1e-4, atol=1e-6
        )


def test_a_batch_holds_whole_parts_and_an_epoch_each_part_once(data):
    model = tiny(batch_size=6)
    samples = views(data).train

    class Numbers:
        batch = staticmethod(lambda numbers: numbers)

    Numbers.samples = samples
    batch = model.batches(Numbers())
    per_part = {}
    for sample in samples:
        per_part.setdefault(sample.part, []).append(sample)
    taken = []
    for step in range(len(per_part) // 2):
        numbers, others, *_ = batch(step)
        for number, row in zip(numbers, others.tolist(), strict=True):
            part = samples[number].part
            assert {samples[numbers[place]].view for place in row if place >= 0} == {
                sample.view for sample in per_part[part]
            } - {samples[number].view}
        taken += numbers
    assert len(set(taken)) == len(taken)
    assert {samples[number].part for number in taken} <= set(per_part)
    assert batch(1)[0] == model.batches(Numbers())(1)[0]


def test_a_killed_fit_goes_on_to_the_same_weights(data, tmp_path, monkeypatch):
    data = views(data)
    whole = tiny().fit(data)
    killed, steps = tiny(), []
    killed.unfinished = tmp_path / "part.blemish.unfinished"
    loss = MVAD._loss

    def dying(self, batch):
        steps.append(batch)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return loss(self, batch)

    state = MVAD.state_of
    monkeypatch.setattr(MVAD, "state_of", lambda self, data: detector.replace(state(self, data), save_every=0.0))
    monkeypatch.setattr(MVAD, "_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        killed.fit(data)
    resumed = tiny()
    resumed.unfinished = killed.unfinished
    resumed.fit(data)
    assert len(steps) == 5 + 2
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (1,)}, "expected 2 numbers of at least 0, one for each"),
        ({"depths": (0, 1)}, "expected 2 numbers of at least 1"),
        ({"views": 0}, "--views is 0; expected 1 or more"),
        ({"top_windows": 0}, "--top-windows is 0"),
        ({"drop_path": 1.0}, "--drop-path is 1.0; expected 0 to below 1"),
        ({"own": 0.0}, "--own is 0.0; expected more than 0"),
        ({"heads": 7}, "--heads is 7, but tf_efficientnet_lite0 has 24 channels at stride 4"),
        ({"loss_weight": 0.0}, "--loss-weight is 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)
