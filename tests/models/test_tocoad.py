from dataclasses import replace

import numpy as np
import pytest
import torch

import blemish
import textures
from blemish import detector
from blemish.detector import infer
from blemish.errors import ConfigError, DatasetError
from blemish.models import tocoad
from blemish.models.tocoad import LOST, ToCoAD, ToCoADConfig
from blemish.nn.tocoad import Tuning


def tiny(**changes: object) -> ToCoAD:
    made = blemish.create("tocoad", preset="tiny", config={"steps": 6, "batch_size": 2, **changes}, device="cpu")
    assert isinstance(made, ToCoAD)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return blemish.open_dataset("auto", textures.write(tmp_path_factory.mktemp("cloth"), train=6, test=1))


@pytest.fixture(scope="module")
def whole(data) -> ToCoAD:
    return tiny().fit(data)


@pytest.fixture(autouse=True)
def few_to_judge(monkeypatch):
    """What judges is looked at often, and few pictures will do for a test."""
    for name, value in {"VALIDATED": 2, "KNOWN": 4, "COMPARED": 4, "ENTRIES": 32}.items():
        monkeypatch.setattr(tocoad, name, value)


class Killed(Exception):
    """In place of a signal."""


def dying(function, after):
    """The function, which dies when it is called for the time after `after`, and how often it was called."""
    calls = []

    def called(*arguments, **named):
        calls.append(arguments)
        if len(calls) > after:
            raise Killed
        return function(*arguments, **named)

    return called, calls


@pytest.mark.parametrize(("stage", "steps", "left"), [("I", 2, (1, 3)), ("II", 2, (0, 1)), ("II", 0, (0, 3))])
def test_a_killed_fit_goes_on_to_the_same_weights(data, tmp_path, monkeypatch, stage, steps, left):
    with monkeypatch.context() as patch:
        whole = tiny().fit(data)
        state_of = ToCoAD.state_of
        patch.setattr(ToCoAD, "state_of", lambda self, data: replace(state_of(self, data), save_every=0.0))
        marks, _ = dying(tocoad.focal_loss, steps if stage == "I" else 99)
        tunes, _ = dying(Tuning.loss, steps if stage == "II" else 99)
        patch.setattr(tocoad, "focal_loss", marks)
        patch.setattr(Tuning, "loss", tunes)
        killed = tiny()
        killed.unfinished = tmp_path / "unfinished"
        with pytest.raises(Killed):
            killed.fit(data)
    marks, marked = dying(tocoad.focal_loss, 99)
    tunes, tuned = dying(Tuning.loss, 99)
    monkeypatch.setattr(tocoad, "focal_loss", marks)
    monkeypatch.setattr(Tuning, "loss", tunes)
    resumed = tiny()
    resumed.unfinished = killed.unfinished
    resumed.fit(data)
    assert (len(marked), len(tuned)) == left
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert resumed.fitted == whole.fitted
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]  # one file, which its owner deletes


def test_the_extractor_is_tuned_and_nothing_else_is_kept(data):
    model, frozen = tiny(select="last", tuning_rate=1e-3).fit(data), tiny()
    before, after = frozen.backbone.state_dict(), model.backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    stages = {stride: {id(each) for each in own} for stride, own in model.backbone.stages().items()}
    names = {id(each): name for name, each in model.backbone.named_parameters()}
    tuned = {names[each] for stride in model.config.tuned for each in stages[stride]}
    assert changed <= tuned
    assert len(changed) > 0.9 * len(tuned)  # and no running mean
    rest = {name for name in model.state_dict() if not name.startswith("backbone.")}
    assert rest == {"memory_bank", "centre", "neighbour_index"}
    assert model.backbone.strides == [4, 8, 16]


def test_without_contrast_and_guide_it_is_patchcore(data):
    config = ToCoAD.presets["tiny"]
    same = {"coreset_size": config.coreset_size, "candidates": config.candidates, "batch_size": 2}
    ours = tiny(contrast="none", guide=0.0).fit(data)
    theirs = blemish.create("patchcore", preset="tiny", config=same, device="cpu").fit(data)
    image = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    np.testing.assert_array_equal(infer(ours, image).anomaly_map, infer(theirs, image).anomaly_map)
    assert ours.outcome is None


def test_the_untuned_features_are_kept_where_tuning_does_harm(data, capsys):
    """A rate that destroys every feature: all later states are worse, or have collapsed."""
    model = tiny(tuning_rate=0.1).fit(data)
    assert model.outcome.best[0] == 0
    assert [step for step, _ in model.outcome.scores] == [0, 2, 3]
    before = tiny().backbone.state_dict()
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    said = " ".join(capsys.readouterr().err.split())
    assert "Stage II: 3 batches" in said
    assert "the weights of batch 0 are kept" in said


def test_a_collapse_is_said_and_not_kept(data, monkeypatch, capsys):
    loss = Tuning.loss

    def collapsing(self, batch):
        with torch.no_grad():
            for parameter in self.backbone.stages()[16]:
                parameter.zero_() if parameter.dim() > 1 else parameter.fill_(1.0)
        return loss(self, batch)

    monkeypatch.setattr(Tuning, "loss", collapsing)
    kept = tiny().fit(data)
    assert kept.outcome.scores[1:] == [(2, LOST), (3, LOST)]
    assert kept.outcome.best[0] == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "has collapsed" in said
    assert "by batch 2; other weights are kept" in said
    tiny(select="last").fit(data)
    said = " ".join(capsys.readouterr().err.split())
    assert "has collapsed" in said
    assert "at stride 16 of the spread they had" in said


def test_a_healthy_tuning_says_nothing_of_a_collapse(data, capsys):
    tiny().fit(data)
    assert "collapsed" not in capsys.readouterr().err


def test_budgets_are_those_of_both_stages():
    config = detector.configure(ToCoAD.presets["small"], {"steps": 100, "pretraining": 0.25, "minutes": 8.0})
    assert isinstance(config, ToCoADConfig)
    first, second = config.stage(0.25, 80), config.stage(0.75, 80)
    assert (first.steps, second.steps) == (25, 75)
    assert (first.config.minutes, second.config.minutes) == (2.0, 6.0)
    by_epochs = detector.configure(config, {"steps": None, "minutes": None, "epochs": 4.0})
    assert by_epochs.stage(0.25, 80).steps == 10  # one epoch of 80 pictures, 8 at a time


def test_the_paper_is_as_far_as_it_is_known():
    config = ToCoAD.presets["paper"]
    assert (config.backbone, config.layers, config.contrast, config.loss, config.generator, config.gamma) == (
        "wide_resnet50_2.tv_in1k", (16, 32), "simsiam", "focal", "perlin", 2.0,
    )  # fmt: skip
    assert (config.distill, config.fuse, config.select, config.guide) == (0.0, 0.0, "last", 1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"contrast": "byol", "generator": "cutpaste"},
        {"contrast": "none", "generator": "seamless", "loss": "ce"},
        {"guide": 0.0, "distill": 0.0, "layers": (8, 16)},
        {"jitter": 0.0, "mirror": False, "epochs": 1.0, "steps": None, "weights": "float16"},
        {"deep": True, "mirrored": (4, 8, 16), "depths": (1, 2), "fuse": 0.5, "batch_size": 1},
        {"backbone": "resnet18", "strides": (8, 16), "tuned": (16,)},
    ],
    ids=str,
)
def test_options_work(data, changes):
    own = dict(changes)
    weights = "random" if "backbone" in own else "default"
    config = {"steps": 4, "batch_size": 2, **own}
    model = blemish.create("tocoad", preset="tiny", config=config, backbone_weights=weights, device="cpu").fit(data)
    assert model.outcome.step > 0
    assert infer(model, np.zeros((1, 3, 64, 64), np.float32)).anomaly_map.shape == (1, 64, 64)


def test_the_discriminative_network_may_have_its_say(data, whole, tmp_path):
    model = tiny(fuse=0.5).fit(data)
    image = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    fused = infer(model, image)
    assert (model.fusion.spread != 1).all()
    assert np.abs(fused.anomaly_map - infer(whole, image).anomaly_map).max() > 0.1
    blemish.save(model, tmp_path / "part.blemish")
    loaded = blemish.load(tmp_path / "part.blemish", device="cpu").predict(image)
    np.testing.assert_array_equal(loaded.anomaly_map, fused.anomaly_map)
    np.testing.assert_array_equal(loaded.image_score, fused.image_score)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"contrast": "none", "guide": -1.0}, ConfigError, "--guide is -1.0; expected 0"),
        ({"pretraining": 1.0}, ConfigError, "--pretraining is 1.0"),
        ({"tuning_rate": 0.0}, ConfigError, "--tuning-rate is 0.0"),
        ({"width": 2}, ConfigError, "--width is 2"),
        ({"layers": ()}, ConfigError, "--layers"),
        ({"layers": (12,)}, ConfigError, "none at 12"),
        ({"tuned": ()}, ConfigError, "--tuned"),
        ({"mirrored": (4, 16)}, ConfigError, "each twice the one before"),
        ({"depths": (1, 1)}, ConfigError, "one for each doubling"),
        ({"sources": ""}, ConfigError, "--sources"),
        ({"sources": "texture:/nowhere"}, DatasetError, "does not exist"),
        ({"clean_share": 1.5}, ConfigError, "--clean-share is 1.5; expected 0 to 1"),
        ({"patch_stride": 32}, ConfigError, "--patch-stride is 32; expected one of --strides"),
        ({"learning_rate": 0.0}, ConfigError, "--learning-rate is 0.0"),
        ({"steps": None}, ConfigError, "has no end"),
        ({"foreground": "paper"}, ConfigError, "no recipe for the category cloth"),
        ({"backbone": "vit_tiny_patch16_224"}, ConfigError, "can't mirror it.*resnet50"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, ConfigError, "can't be mirrored.*resnet50"),
        ({"backbone": "resnet19"}, ConfigError, 'Did you mean "resnet18"'),
    ],
    ids=str,
)
def test_what_can_not_be_learned_is_said(data, changes, error, message):
    with pytest.raises(error, match=message):
        tiny(**changes).fit(data)


def test_one_picture_is_too_few_to_fuse(tmp_path):
    few = blemish.open_dataset("auto", textures.write(tmp_path, train=2, test=1))  # one is held out to calibrate
    assert tiny().fit(few).fitted is not None
    with pytest.raises(DatasetError, match="--fuse is 0.5, and no good picture is left"):
        tiny(fuse=0.5).fit(few)
