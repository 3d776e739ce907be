import subprocess
import sys

import pytest

import blemish


def test_every_public_name_exists_and_is_lazy():
    for name in blemish.__all__:
        assert getattr(blemish, name) is not None
    assert set(blemish.__all__) == set(blemish._MODULE_OF)
    assert set(dir(blemish)) == {*blemish.__all__, "__version__"}


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="reelnet"):
        blemish.reelnet  # noqa: B018


def test_modules_are_there_without_an_import():
    code = "import blemish; blemish.images.to_batch; blemish.metric.evaluate"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("line", ["import blemish", "from blemish.cli import run; run(['--help'])"])
def test_importing_and_helping_brings_no_heavy_package(line):
    code = f"import sys\n{line}\nsys.exit(bool({{'torch', 'timm', 'matplotlib', 'cv2', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
