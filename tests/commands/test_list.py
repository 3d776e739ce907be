import pytest

from shell import call


@pytest.mark.parametrize(
    ("what", "name"),
    [("models", "patchcore"), ("datasets", "mvtec"), ("metrics", "aupro"), ("formats", "native"),
     ("backbones", "tf_efficientnet_lite0")],
)  # fmt: skip
def test_everything_is_listed(what, name, capsys):
    assert call("list", what) == 0
    assert name in capsys.readouterr().out
