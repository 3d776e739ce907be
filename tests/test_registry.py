import subprocess
import sys

import pytest

from blemish import registry
from blemish.errors import ConfigError


def test_a_near_miss_is_suggested():
    with pytest.raises(ConfigError, match='no model named "pathcore". Did you mean "patchcore"?'):
        registry.load("models", "pathcore")


@pytest.mark.parametrize("folder", ["models", "datasets", "metrics", "formats", "commands"])
def test_every_plug_in_describes_itself_in_a_line(folder):
    assert registry.names(folder)
    for name in registry.names(folder):
        description = registry.describe(folder, name)
        assert 10 < len(description) <= 120, name


def test_listing_and_describing_imports_none():
    code = (
        "import sys; from blemish import registry\n"
        "[registry.describe('models', name) for name in registry.names('models')]\n"
        "sys.exit(any(module == 'torch' or module.startswith('blemish.models.') for module in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_entry_points_of_other_packages_count(monkeypatch):
    from importlib.metadata import EntryPoint

    def points(group: str) -> list[EntryPoint]:
        return [EntryPoint("mine", "json", group)] if group == "blemish.models" else []

    monkeypatch.setattr(registry, "entry_points", points)
    assert "mine" in registry.names("models")
    assert registry.load("models", "mine").__name__ == "json"
