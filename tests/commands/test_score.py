import json

from blemish import command
from blemish.errors import OutputError
from shell import call


def test_score_writes_table_json_csv_and_html(artifact, data, tmp_path, capsys):
    outputs = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "html")}
    options = [word for kind, file in outputs.items() for word in (f"--{kind}", file)]
    assert call("score", artifact, data, *options, "--resamples", 20) == 0
    values = json.loads(outputs["json"].read_text())
    assert values["metrics"]["cloth"]["image_auroc"] == values["mean"]["image_auroc"] == 1
    assert len(outputs["csv"].read_text().splitlines()) == 1 + 12
    assert "<html" in outputs["html"].read_text()
    assert values["intervals"]["cloth"]["image_auroc"] == [1, 1]
    assert "cloth, 95 % intervals over pictures: image_auroc 1.0000 to 1.0000" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_loses_no_scores(artifact, data, tmp_path, monkeypatch, capsys):
    from blemish import report

    def full(*_: object, **__: object) -> None:
        raise OutputError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(report, "write", full)
        assert call("score", artifact, data) == command.FAILED
    assert "cloth" in capsys.readouterr().out
    (kept,) = (tmp_path / "cache/blemish/score").iterdir()
    assert len((kept / "scores.jsonl").read_text().splitlines()) == 12
    assert call("score", artifact, data) == 0
    assert not kept.exists()
