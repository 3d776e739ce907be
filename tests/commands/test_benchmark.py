"""blemish benchmark, as typed."""

import pytest

import textures
from blemish import command
from blemish.benchmark import Outcome, cell
from blemish.commands import benchmark
from shell import call


@pytest.fixture
def in_process(monkeypatch):
    """Runs cells in this process; a list of those that were run."""
    ran = []

    def run(cells, out, jobs=1):
        for own in cells:
            ran.append(own)
            if own.seed == 13:
                yield Outcome(own, out / own.folder, reason="fit: DatasetError: bad luck.")
                continue
            cell.fit(out / own.folder, own)
            cell.score(out / own.folder, own)
            yield from benchmark_run([own], out.parent)

    def benchmark_run(cells, out):
        import json

        from blemish.headers import from_plain

        for own in cells:
            folder = next(out.rglob(own.folder))
            fit, scores = (json.loads((folder / name).read_text()) for name in (cell.FIT, own.scores))
            yield Outcome(own, folder, from_plain(cell.Fit, fit), from_plain(cell.Scores, scores))

    monkeypatch.setattr(benchmark, "run", run)
    return ran


def test_flags(in_process, tmp_path, capsys):
    root = textures.write(tmp_path, train=8)
    words = [root, "--models", "patchcore", "--seeds", "0,13", "--preset", "tiny", "--device", "cpu"]
    settings = ["--settings", "few={coreset_size=9}", "--out", tmp_path / "runs", "--beside", "visa"]
    assert call("benchmark", *words, *settings) == command.SOME_FAILED
    said = capsys.readouterr().out
    assert [(own.seed, own.config["coreset_size"]) for own in in_process] == [(0, 9), (13, 9)]
    assert "2 of 2: patchcore, few, cloth, seed 13 failed: fit: DatasetError: bad luck." in said
    assert "Figures published of visa" in said
    assert (tmp_path / "runs/table.html").exists()


def test_file_and_flags_that_win(in_process, tmp_path, capsys):
    root = textures.write(tmp_path / "here/parts", train=8)
    file = tmp_path / "here/grid.toml"
    file.write_text(
        f'data = "{root.name}"\nseeds = [13, 14]\npreset = "tiny"\ndevice = "cpu"\nout = "runs"\n'
        "[settings.few]\ncoreset_size = 9\n"
    )
    assert call("benchmark", file, "--seeds", "13") == command.FAILED
    assert [(own.seed, own.setting) for own in in_process] == [(13, "few")]
    assert f"Written: {tmp_path}/here/runs/table.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DATA", "--models", "pathcore"], 'Did you mean "patchcore"?'),
        (["DATA", "--beside", "vissa"], 'Did you mean "visa"?'),
        (["DATA", "--settings", "few=9"], "expected tables of options"),
        (["GRID"], 'grid.toml: no option named "modells". Did you mean "models"?'),
        (["GRID", "GRID"], "there are 2 tables of options"),
        (["nowhere.toml"], "nowhere.toml can't be read as TOML"),
        (["nowhere"], "nowhere does not exist"),
        ([], "there is no data"),
    ],
)
def test_refusals(words, message, data, tmp_path, capsys):
    (tmp_path / "grid.toml").write_text("modells = 1")
    places = {"DATA": data, "GRID": tmp_path / "grid.toml"}
    assert call("benchmark", *(places.get(word, word) for word in words)) == command.FAILED
    assert message in capsys.readouterr().err
