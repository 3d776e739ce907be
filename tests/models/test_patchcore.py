import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import blemish
from blemish.errors import ConfigError
from blemish.models.patchcore import PatchCore, PatchCoreConfig
from blemish.nn.blur import gaussian_blur


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> PatchCore:
    import textures

    data = blemish.open_dataset("auto", textures.write(tmp_path_factory.mktemp("cloth")))
    detector = blemish.create("patchcore", preset="tiny", device="cpu").fit(data)
    assert isinstance(detector, PatchCore)
    return detector


def test_map_and_score_are_the_papers(fitted):
    """Equations 6 and 7, without blocks and without centring."""
    image = torch.rand(3, 3, 64, 64, generator=seeded(3))
    bank = fitted.memory_bank + fitted.centre
    with torch.inference_mode():
        prediction = fitted(image)
        patches = fitted.patches(image)
        distances = torch.cdist(patches.double(), bank.double().expand(3, -1, -1)).float()
        nearest = distances.amin(2)
        for number in range(3):
            where = int(nearest[number].argmax())
            entry = int(distances[number, where].argmin())
            around = torch.cdist(bank[entry : entry + 1], bank)[0].topk(9, largest=False).indices
            to_around = distances[number, where, around]
            weight = 1 - torch.exp(to_around[0] - to_around.logsumexp(0))
            expected = weight * nearest[number, where]
            torch.testing.assert_close(prediction.image_score[number], expected, rtol=1e-3, atol=1e-4)
        grid = F.interpolate(nearest.view(3, 1, 8, 8), size=(64, 64), mode="bilinear")
        torch.testing.assert_close(prediction.anomaly_map, gaussian_blur(grid, 2.0).squeeze(1), rtol=1e-3, atol=1e-3)


def test_embedding_joins_all_stages_on_one_grid(fitted):
    embedding = fitted.embed(fitted.see(torch.rand(1, 3, 72, 88, generator=seeded(0))))
    assert embedding.shape == (1, 24 + 40 + 112, 9, 11)


def test_bank_is_bounded_and_holds_training_patches(fitted):
    assert fitted.memory_bank.shape == (64, 176)
    assert fitted.neighbour_index.shape == (64, 9)
    assert fitted.neighbour_index[:, 0].tolist() == list(range(64))


def test_candidates_do_not_depend_on_the_batch_size(tmp_path):
    import textures

    data = blemish.open_dataset("auto", textures.write(tmp_path))
    banks = [
        blemish.create("patchcore", preset="tiny", config={"batch_size": size}, device="cpu").fit(data).memory_bank
        for size in (1, 7)
    ]
    torch.testing.assert_close(banks[0], banks[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("neighbourhood", 2),
        ("coreset_size", 0),
        ("patch_stride", 32),
        ("blur", -1.0),
        ("batch_size", 0),
        ("image_size", (8, 8)),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')} is .*expected"):
        PatchCoreConfig(**{field: value})
