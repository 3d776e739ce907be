"""Which cells options span, and which options are refused before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from blemish.benchmark import Grid, cells_of, read_grid
from blemish.benchmark.grid import parse_settings
from blemish.errors import ConfigError, DatasetError
from trees import TREES, grow, mvtec


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    grow(tmp_path / "parts", {**mvtec("bottle"), **mvtec("cable")})
    return Grid(data=(tmp_path / "parts",), preset="tiny", device="cpu")


def test_every_combination_is_a_cell(grid: Grid) -> None:
    some = {"few": {"coreset_size": 9}, "paper": {"preset": "paper"}}
    cells = cells_of(replace(grid, seeds=(0, 7), settings=some))
    assert [cell.name for cell in cells] == [
        f"patchcore, {setting}, {category}, seed {seed}"
        for setting in ("few", "paper")
        for seed in (0, 7)
        for category in ("bottle", "cable")
    ]
    assert [cell.config["coreset_size"] for cell in cells] == [9] * 4 + [16_384] * 4
    assert [cell.config["seed"] for cell in cells] == [0, 0, 7, 7] * 2
    assert len({cell.folder for cell in cells}) == 8


def test_a_setting_may_be_for_some_models_only(grid: Grid) -> None:
    own = {"few": {"coreset_size": 9, "models": "patchcore"}, "short": {"models": ["realnet"], "steps": 5}}
    cells = cells_of(replace(grid, models=("patchcore", "realnet"), categories=("cable",), settings=own))
    assert [(cell.model, cell.setting) for cell in cells] == [("patchcore", "few"), ("realnet", "short")]


def test_together_is_one_cell_for_all_categories(grid: Grid) -> None:
    (cell,) = cells_of(replace(grid, together=True))
    assert cell.categories == ("bottle", "cable")
    assert cell.name == "patchcore, all of parts together, seed 0"


def test_folder_changes_with_what_the_fit_depends_on_and_with_nothing_else(grid: Grid, tmp_path: Path) -> None:
    (before,) = cells_of(replace(grid, categories=("bottle",)))

    def changed(**options: object) -> tuple[bool, bool]:
        (after,) = cells_of(replace(grid, categories=("bottle",), **options))
        return after.folder != before.folder, after.scores != before.scores

    assert changed() == (False, False)
    assert changed(out=tmp_path / "elsewhere", jobs=2, metrics=("aupro",), beside="visa") == (False, False)
    assert changed(protocol="ader") == (False, True), "another score of the same fit"
    assert changed(settings={"few": {"coreset_size": 9}}) == (True, True)
    assert changed(seeds=(1,)) == (True, True)
    assert changed(preset="small") == (True, True)
    assert changed(backbone_weights="random")[0]
    (tmp_path / "parts/bottle/test/good/000.png").unlink()
    assert changed() == (False, True), "tested on other pictures"
    (tmp_path / "parts/bottle/train/good/000.png").unlink()
    assert changed()[0], "learned from other pictures"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ("pathcore",)}, 'no model named "pathcore". Did you mean "patchcore"?'),
        ({"preset": "smal"}, 'no preset of patchcore named "smal". Did you mean "small"?'),
        ({"categories": ("botle",)}, 'no category named "botle". Did you mean "bottle"?'),
        (
            {"settings": {"few": {"coreset": 9}}},
            'setting "few" of patchcore: no option of PatchCoreConfig named "cores',
        ),
        ({"settings": {"few": {"neighbourhood": 2}}}, 'setting "few" of patchcore: --neighbourhood is 2'),
        ({"settings": {"few": {"image_size": 64}}}, 'setting "few" of patchcore: the options image_size 64 don\'t fit'),
        ({"seeds": (1, 1)}, "patchcore, bottle, seed 1: is in the grid twice"),
        ({"data": ()}, "there is no data; name folders of pictures"),
    ],
)
def test_refused_before_anything_runs(grid: Grid, options: dict, message: str) -> None:
    with pytest.raises((ConfigError, DatasetError)) as caught:
        cells_of(replace(grid, **options))
    assert message in str(caught.value)


def test_splits_of_coco_ad_are_never_learned_together(grid: Grid, tmp_path: Path) -> None:
    data = (grow(tmp_path / "coco", TREES["coco_ad"].files),)
    assert [cell.categories for cell in cells_of(replace(grid, data=data))] == [("split_0",), ("split_3",)]
    with pytest.raises(DatasetError, match="split_0 and split_3 together"):
        cells_of(replace(grid, data=data, together=True))


def test_file_holds_all_options(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        'data = "parts"\nmodels = ["patchcore", "realnet"]\nseeds = 3\njobs = 2\ntogether = true\nout = "runs"\n'
        'metrics = ["aupro"]\nbackbone-weights = "random"\n[settings.few]\ncoreset_size = 9\n'
    )
    assert read_grid(file) == Grid(
        data=(tmp_path / "parts",),
        models=("patchcore", "realnet"),
        seeds=(3,),
        jobs=2,
        together=True,
        out=tmp_path / "runs",
        metrics=("aupro",),
        backbone_weights="random",
        settings={"few": {"coreset_size": 9}},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modells = 1", 'no option named "modells". Did you mean "models"?'),
        ("seeds = ['0']", "seeds is ['0']; expected something like [0, 1]."),
        ("seeds = [true]", "seeds is [True]; expected something like [0, 1]."),
        ("jobs = '2'", "jobs is '2'; expected something like 1."),
        ("jobs = 0", "--jobs is 0; expected 1 or more."),
        ("seeds = []", "--seeds is empty"),
        ("protocol = 'aderr'", 'no protocol named "aderr". Did you mean "ader"?'),
        ("metrics = ['auprro']", 'no metric named "auprro". Did you mean "aupro"?'),
        ("settings = 5", "settings are 5; expected tables"),
        ("[settings]\nfew = 5", "settings are {'few': 5}; expected tables of options by name, [settings.NAME]"),
        ("jobs = ", "can't be read as TOML"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_grid(file)
    assert message in str(caught.value)


def test_settings_from_words() -> None:
    assert parse_settings(["few={coreset_size=9}", "wide={strides=[4, 8], preset='paper'}"]) == {
        "few": {"coreset_size": 9},
        "wide": {"strides": [4, 8], "preset": "paper"},
    }
    for word in ("few", "few=9", "few={a=1,}}"):
        with pytest.raises(ConfigError, match="expected"):
            parse_settings([word])
