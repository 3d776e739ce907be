import json

from PIL import Image

from shell import call


def test_maps_that_were_written_can_be_evaluated(artifact, data, tmp_path, capsys):
    out = tmp_path / "maps"
    assert call("predict", artifact, data / "cloth/test", "--out-dir", out, "--maps") == 0
    masks = tmp_path / "masks" / "blob"
    masks.mkdir(parents=True)
    for file in (data / "cloth/ground_truth/blob").iterdir():
        Image.open(file).resize((64, 64), Image.Resampling.NEAREST).save(masks / file.name)
    assert call("metrics", out / "maps", tmp_path / "masks", "--json", tmp_path / "m.json") == 0
    values = json.loads((tmp_path / "m.json").read_text())
    assert values["mean"]["pixel_auroc"] > 0.95
    assert "pixel" in capsys.readouterr().out
