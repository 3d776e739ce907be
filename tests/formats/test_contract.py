"""What every artifact format must do. A new format is tested by existing."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import blemish
from blemish import registry
from blemish.artifact import read_header
from blemish.errors import ArtifactError, OutputError

pytestmark = pytest.mark.parametrize("name", registry.names("formats"))


@pytest.fixture(scope="module")
def detector(fitted):
    return fitted("patchcore")


@pytest.fixture
def file(name, exported, tmp_path):
    """A copy, to be damaged."""
    made = exported("patchcore", registry.load("formats", name).SUFFIX)
    for part in made.parent.glob(f"{made.stem}.*"):
        shutil.copy(part, tmp_path)
    return tmp_path / made.name


@pytest.mark.parametrize("count", [1, 2, 5])
def test_scores_are_those_of_the_detector(file, detector, count, name):
    from blemish.detector import infer

    batch = np.random.default_rng(count).random((count, 3, 64, 64), np.float32)
    before, after = infer(detector, batch), blemish.load(file).predict(batch)
    np.testing.assert_allclose(after.anomaly_map, before.anomaly_map, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.image_score, before.image_score, rtol=1e-4, atol=1e-5)


def test_threads_get_what_is_theirs(file, name):
    predictor, batches = blemish.load(file), np.random.default_rng(0).random((8, 1, 3, 64, 64), np.float32)
    alone = [predictor.predict(batch).image_score for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = [found.image_score for found in pool.map(predictor.predict, [*batches] * 5)]
    np.testing.assert_allclose(together, alone * 5, rtol=1e-5)


def test_the_header_is_the_same_whatever_the_format(file, detector, name):
    assert read_header(file).fitted == blemish.load(file).header.fitted == detector.fitted


def test_nothing_but_the_artifact_is_left(exported, name):
    made = exported("patchcore", registry.load("formats", name).SUFFIX)
    assert made.is_file()
    assert {path.stem for path in made.parent.iterdir()} <= {"patchcore", "realnet", "invad", "tocoad"}


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_no_artifact(file, kept, name):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ArtifactError, match="is not an artifact of Blemish, or is damaged"):
        blemish.load(file)


def test_a_folder_that_cannot_be_made_is_named(detector, tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    suffix = registry.load("formats", name).SUFFIX
    with pytest.raises(OutputError, match="can't be written"):
        blemish.save(detector, tmp_path / "file" / f"part{suffix}")
