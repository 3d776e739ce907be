import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import blemish
import textures
from blemish.errors import ArtifactError, ConfigError
from blemish.nn.diffusion import NoiseUNet, NoisyClassifier
from blemish.synthesis import sampling, sdas, sdas_training
from blemish.synthesis.diffusion import noise_schedule
from blemish.synthesis.sdas import PRESETS, DiffusionConfig, DiffusionModel, Known

TINY = replace(PRESETS["tiny"], steps=4, image_size=(16, 16), precision="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    textures.write(root, "cloth", train=6, test=1)
    textures.write(root, "felt", train=5, test=1)
    return blemish.open_dataset("auto", root)


@pytest.fixture(scope="module")
def trained(data):
    return sdas_training.fit(data, replace(TINY, classifier_steps=3), "cpu")


def test_it_learns_to_see_noise(data):
    found = sdas_training.fit(data.of("cloth"), replace(TINY, steps=40), "cpu")
    first, last = found.outcome.losses[0][1]["noise"], found.outcome.losses[-1][1]["noise"]
    assert found.outcome.step == 40
    assert last < 0.5 < first
    assert found.outcome.best is not None
    assert found.model.known.steps == 40
    assert len(found.model.known.learned_from) == len(data.of("cloth").train)


def test_it_learns_the_velocity_too(data):
    config = replace(TINY, predicts="velocity", patch=2, steps=40)
    with_it = sdas_training.fit(data, config, "cpu", watch=draw_one)
    losses = [parts["noise"] for _, parts in with_it.outcome.losses]
    assert losses[-1] < 0.7 * losses[0]
    model, x, time = with_it.model, torch.randn(2, 3, 16, 16), torch.tensor([900])
    with torch.no_grad():
        velocity = model.network(x, time, torch.tensor([0]))[:, :3]
        noise = model(x, time, torch.tensor([0]))[:, :3]
    kept = noise_schedule().alphas_cumprod[900].float()
    torch.testing.assert_close(noise, (1 - kept).sqrt() * x + kept.sqrt() * velocity)


def draw_one(model: DiffusionModel) -> None:
    """As the command does while a model learns: without gradients."""
    with torch.inference_mode():
        list(sampling.draw(model, 0, [0], sampling.Drawing(strength=(0.0, 0.0), steps=2)))


def test_a_file_gives_the_same_model_back(trained, tmp_path):
    sdas.save(trained.model, tmp_path / "good.diffusion")
    back = sdas.load(tmp_path / "good.diffusion", "cpu")
    assert back.known == trained.model.known
    assert back.known.categories == ("cloth", "felt")
    assert not back.training
    for name, value in trained.model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_a_killed_training_goes_on_to_the_same_weights(data, trained, tmp_path):
    config = replace(TINY, classifier_steps=3, evaluations=3)
    calls: list[int] = []

    def kill(model: DiffusionModel) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    places = sdas_training.Places(unfinished=tmp_path / "state")
    whole = sdas_training.fit(data, config, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdas_training, "Unfinished", partial(sdas_training.Unfinished, save_every=0))
        with pytest.raises(KeyboardInterrupt):
            sdas_training.fit(data, config, "cpu", places, kill)
    resumed = sdas_training.fit(data, config, "cpu", places)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    assert (tmp_path / "state").is_file()
    assert (tmp_path / "state.classifier").is_file()
    sdas_training.forget(places)
    assert not list(tmp_path.iterdir())


def test_batches_depend_on_their_number_alone(data):
    learn = sdas_training.Pictures(
        sdas_training.read_groups(data.train, sdas_training.Preprocessing((32, 32)), "whole", []), (), 3
    )
    together = sdas_training._noisy(learn, data.categories, range(8), sdas_training.TRAIN)
    alone = [sdas_training._noisy(learn, data.categories, range(n, n + 1), sdas_training.TRAIN) for n in range(8)]
    for part, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(part, torch.cat(parts))
    assert set(together.label.tolist()) == {0, 1}
    assert together.image.min() >= -1
    assert together.image.max() <= 1


def test_grey_pictures_and_colours_are_told_apart(trained):
    assert trained.model.known.grey == ()
    pictures = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    assert (sdas.to_pictures(sdas.to_image(pictures)) == pictures.numpy()).all()


def test_networks_know_how_bright_a_picture_is():
    def change(groups: int) -> float:
        torch.manual_seed(0)
        network = DiffusionModel(Known(replace(TINY, groups=groups), ("cloth",))).network.eval()
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        noisy, time = torch.randn(4, 3, 32, 32), torch.full((4,), 500)
        with torch.inference_mode():
            dark, bright = (network(image, time, torch.tensor([0])) for image in (noisy, noisy + 0.5))
        return float((bright - dark)[:, :3].mean((2, 3)).abs().mean())

    assert change(PRESETS["small"].groups) > 20 * change(32)  # 32 channels in 32 groups: each loses its mean


def test_the_paper_has_its_network():
    config = PRESETS["paper"]
    assert config.groups == 32
    assert config.counted(3629 / config.batch_size).steps == 60484
    assert (config.batch_size * config.accumulate, config.learning_rate, config.clip, config.average) == (
        60,
        1e-4,
        1.0,
        0.9999,
    )
    assert (config.classifier_batch_size, config.precision) == (40, "float32")
    with torch.device("meta"):
        model = DiffusionModel(Known(config, tuple(map(str, range(15))), has_classifier=True))
    assert sum(parameter.numel() for parameter in model.network.parameters()) == 552_829_446
    assert sum(parameter.numel() for parameter in model.classifier.parameters()) == 53_591_055


# What guidance's own code calls its tensors, of a U-Net of one level after the first: listed by hand.
NAMES = (
    "time_embed.0.weight",
    "time_embed.0.bias",
    "time_embed.2.weight",
    "time_embed.2.bias",
    "label_emb.weight",
    "input_blocks.0.0.weight",
    "input_blocks.0.0.bias",
    "input_blocks.1.0.in_layers.0.weight",
    "input_blocks.1.0.in_layers.0.bias",
    "input_blocks.1.0.in_layers.2.weight",
    "input_blocks.1.0.in_layers.2.bias",
    "input_blocks.1.0.emb_layers.1.weight",
    "input_blocks.1.0.emb_layers.1.bias",
    "input_blocks.1.0.out_layers.0.weight",
    "input_blocks.1.0.out_layers.0.bias",
    "input_blocks.1.0.out_layers.3.weight",
    "input_blocks.1.0.out_layers.3.bias",
    "input_blocks.3.0.in_layers.0.weight",
    "input_blocks.3.0.out_layers.3.bias",
    "input_blocks.4.0.skip_connection.weight",
    "input_blocks.4.0.skip_connection.bias",
    "input_blocks.4.1.norm.weight",
    "input_blocks.4.1.norm.bias",
    "input_blocks.4.1.qkv.weight",
    "input_blocks.4.1.qkv.bias",
    "input_blocks.4.1.proj_out.weight",
    "input_blocks.4.1.proj_out.bias",
    "middle_block.0.in_layers.0.weight",
    "middle_block.1.qkv.weight",
    "middle_block.2.out_layers.3.bias",
    "output_blocks.0.0.skip_connection.weight",
    "output_blocks.0.1.proj_out.bias",
    "output_blocks.2.2.in_layers.2.weight",
    "output_blocks.5.0.out_layers.3.bias",
    "out.0.weight",
    "out.0.bias",
    "out.2.weight",
    "out.2.bias",
)


def checkpoint(classes: int, width: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        name: torch.randn_like(value) for name, value in NoiseUNet(width, (1, 2), (2,), classes).state_dict().items()
    }


def test_a_checkpoint_of_1000_classes_is_taken_over_by_its_names(data, tmp_path):
    state = checkpoint(1000)
    assert set(NAMES) <= set(state)
    torch.save(state, tmp_path / "256x256_diffusion.pt")
    places = sdas_training.Places(weights=tmp_path / "256x256_diffusion.pt")
    found = sdas_training.fit(data, replace(TINY, steps=1, learning_rate=1e-12), "cpu", places)
    (report,) = found.reports
    own = found.model.network.state_dict()
    assert f"took {len(own) - 1} of {len(own)} tensors" in report
    assert "new and random: label_emb.weight (1000x128 there, 2x128 here)" in report
    for name, value in own.items():
        if name != "label_emb.weight":
            torch.testing.assert_close(value, state[name], atol=1e-6, rtol=0)


def test_a_checkpoint_without_classes_and_one_of_the_classifier_fit(data, tmp_path):
    state = {name: value for name, value in checkpoint(2).items() if name != "label_emb.weight"}
    save_file(state, tmp_path / "uncond.safetensors")
    torch.manual_seed(2)
    save_file(NoisyClassifier(32, (1, 2), (2,), 1000, (8, 8)).state_dict(), tmp_path / "classifier.safetensors")
    model = DiffusionModel(Known(TINY, ("a", "b"), has_classifier=True))
    first = sdas.take_over(model.network, sdas.read_checkpoint(tmp_path / "uncond.safetensors", "--weights"), "one")
    assert "label_emb.weight (none there, 2x128 here)" in first
    second = sdas.take_over(
        model.classifier, sdas.read_checkpoint(tmp_path / "classifier.safetensors", "--classifier-weights"), "two"
    )
    assert "out.2.c_proj.weight (1000x64x1 there, 2x64x1 here)" in second


def test_ones_own_model_is_a_checkpoint_too(trained, tmp_path):
    sdas.save(trained.model, tmp_path / "good.diffusion")
    network = DiffusionModel(Known(TINY, ("a", "b", "c"))).network
    report = sdas.take_over(network, sdas.read_checkpoint(tmp_path / "good.diffusion", "--weights"), "good")
    assert "label_emb.weight (2x128 there, 3x128 here)" in report


def test_a_checkpoint_that_predicts_something_else_is_refused(data, trained, tmp_path):
    sdas.save(trained.model, tmp_path / "noise.diffusion")
    places = sdas_training.Places(weights=tmp_path / "noise.diffusion")
    with pytest.raises(ConfigError, match="whose network predicts noise; expected one that predicts velocity"):
        sdas_training.fit(data, replace(TINY, predicts="velocity"), "cpu", places)


def test_a_checkpoint_of_other_sizes_names_the_first_tensors_that_differ():
    network = NoiseUNet(32, (1, 2), (2,), 3)
    with pytest.raises(ConfigError) as raised:
        sdas.take_over(network, checkpoint(1000, 64), "big.pt")
    message = str(raised.value)
    assert "weights big.pt:" in message
    assert "time_embed.0.weight (256x64 there, 128x32 here), time_embed.0.bias (256 there, 128 here)" in message
    assert "--preset paper" in message
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for broken in ({}, {**checkpoint(3), "extra.weight": torch.ones(1)}):
        with pytest.raises(ConfigError, match=r"none (there|here)|\(1 there, none here\)"):
            sdas.take_over(network, broken, "big.pt")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_checkpoint_that_is_not_there_or_runs_code_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--weights is .*no.pt, and there is no such file"):
        sdas.read_checkpoint(tmp_path / "no.pt", "--weights")
    torch.save({"a": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(ConfigError, match="Files that need code to be run are refused"):
        sdas.read_checkpoint(tmp_path / "code.pt", "--weights")
    (tmp_path / "half.diffusion").write_text("hello")
    with pytest.raises(ConfigError, match=r"--weights is .*half.diffusion, which can't be read"):
        sdas.read_checkpoint(tmp_path / "half.diffusion", "--weights")


def test_what_is_refused_is_refused_before_pictures_are_read(data, tmp_path, monkeypatch):
    def read(*_: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(sdas_training, "read_groups", read)
    with pytest.raises(ConfigError, match="no such file"):
        sdas_training.fit(data, TINY, "cpu", sdas_training.Places(weights=tmp_path / "no.pt"))
    with pytest.raises(ConfigError, match='--device is "nowhere"'):
        sdas_training.fit(data, TINY, "nowhere")


def test_the_classifier_has_batches_of_its_own(data, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        sdas_training, "classifier_loss", lambda logits, label: sizes.append(len(label)) or logits.square().mean()
    )
    sdas_training.fit(data, replace(TINY, steps=1, classifier_steps=2, classifier_batch_size=3), "cpu")
    assert sizes == [3, 3]


def test_files_that_are_no_models_are_refused(trained, tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        sdas.load(tmp_path / "no.diffusion")
    (tmp_path / "text.diffusion").write_text("hello")
    save_file({"a": torch.ones(1)}, tmp_path / "other.diffusion")
    header = json.dumps({"version": 1, "config": {"width": 32, "colour": 1}, "categories": ["a"]})
    save_file({"a": torch.ones(1)}, tmp_path / "fields.diffusion", {"blemish_diffusion": header})
    header = json.dumps({"version": 1, "config": {"width": 32}, "categories": ["a"]})
    save_file({"a": torch.ones(1)}, tmp_path / "tensors.diffusion", {"blemish_diffusion": header})
    sdas.save(trained.model, tmp_path / "whole.diffusion")
    content = (tmp_path / "whole.diffusion").read_bytes()
    (tmp_path / "half.diffusion").write_bytes(content[: len(content) // 2])
    for name in ("text", "other", "fields", "tensors", "half"):
        with pytest.raises(ArtifactError, match=f"{name}.diffusion is not a diffusion model"):
            sdas.load(tmp_path / f"{name}.diffusion")
    save_file({"a": torch.ones(1)}, tmp_path / "new.diffusion", {"blemish_diffusion": '{"version": 2}'})
    with pytest.raises(ArtifactError, match="newer Blemish"):
        sdas.load(tmp_path / "new.diffusion")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 48}, "--width is 48"),
        ({"classifier_width": 33}, "--classifier-width is 33"),
        (
            {"multipliers": (1, 1), "attention": ()},
            "--width is 32; expected a multiple of 32",
        ),
        ({"attention": (8,)}, r"--attention is \(8,\)"),
        ({"multipliers": ()}, "--attention"),
        ({"image_size": (66, 64), "patch": 1}, "--image-size is 66x64; expected multiples of 4"),
        ({"image_size": (68, 64), "patch": 2}, "--image-size is 68x64; expected multiples of 8, for 3 levels"),
        ({"patch": 0}, "--patch is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"classifier_batch_size": 0}, "--classifier-batch-size is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"groups": 5}, "--groups is 5; expected a divisor of 32"),
        ({"groups": 0}, "--groups is 0"),
    ],
)
def test_configurations_without_sense_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(**fields)


def test_a_classifier_checkpoint_without_a_classifier_is_refused(data, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    places = sdas_training.Places(classifier_weights=tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="no classifier is trained"):
        sdas_training.fit(data, TINY, "cpu", places)
