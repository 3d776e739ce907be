"""SegAD: features and draws of the published code, and the detector from base to artifact."""

import hashlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import blemish
import textures
from blemish import artifact
from blemish.components import numbered
from blemish.dataset import Dataset
from blemish.defects import with_defects
from blemish.detector import infer
from blemish.errors import ArtifactError, ConfigError, DatasetError, ShapeError
from blemish.models.segad import SEEDS, SegAD, draw_defects
from blemish.nn.forest import Forest, ForestConfig
from blemish.nn.map_features import features
from blemish.parts import part_of
from blemish.reading import read_image
from blemish.types import Prediction


def waves(number: int) -> np.ndarray:
    """A map (12, 10) float32."""
    return (np.sin(0.1 * (np.arange(120) + 1) + 5.0 + 0.5 * number) ** 2).reshape(12, 10).astype(np.float32)


LABELS = np.zeros((12, 10), np.uint8)
LABELS[3:9, 2:8] = 2
# fmt: off
AROUND = [0.999416, 0.204166, -1.46392, 0.47931, 0.998858, -0.0756225, -1.51627, 0.490724]
CONSTANT = [0.25, np.nan, np.nan, 0.25] * 2
INSIDE = [0.953996, -0.264864, -1.48885, 0.47407, 0.999742, 0.367189, -1.50845, 0.488375]
# fmt: on


def test_features_are_those_of_the_published_code():
    maps = [waves(0), waves(1)]
    expected = [*AROUND, *[0] * 8, *INSIDE, 0.99998, 0.99998]
    np.testing.assert_allclose(features(maps, LABELS, 3), expected, rtol=2e-5, atol=1e-6)
    for each in maps:
        each[LABELS == 2] = 0.25
    expected = [*AROUND, *[0] * 8, *CONSTANT, 0.99998, 0.999549]
    np.testing.assert_allclose(features(maps, LABELS, 3), expected, rtol=2e-5, atol=1e-6)


def test_features_of_four_pixels():
    small = np.array([[0, 1], [2, 3]], np.float32)
    found = features([small], np.ones((2, 2), np.uint8), 2)
    np.testing.assert_allclose(found, [0, 0, 0, 0, 2.985, 0, -1.36, 1.5, 3], atol=1e-6)
    one_pixel = features([small], np.array([[0, 0], [0, 1]], np.uint8), 2)
    np.testing.assert_array_equal(one_pixel[4:8], [3, np.nan, np.nan, 3])
    nearly = features([np.array([[0.3, 0.3], [0.3, 0.30001]], np.float32)], np.zeros((2, 2), np.uint8), 1)
    np.testing.assert_allclose(nearly[1:3], [1.14953, -0.674623], rtol=1e-3)


@pytest.mark.parametrize(("parts", "bases", "width"), [(2, 1, 9), (2, 2, 18), (6, 1, 25), (8, 2, 66)])
def test_as_many_features_as_published(parts, bases, width):
    assert len(features([waves(0)] * bases, LABELS // 2, parts)) == width


def test_the_form_of_the_paper_has_a_supervised_score_and_no_maxima():
    found = features([waves(0)] * 4, LABELS, 7, global_max=False, supervised=0.5)
    assert len(found) == 113
    assert found[-1] == 0.5


def test_label_maps_are_brought_to_the_size_of_each_map():
    large = np.repeat(np.repeat(LABELS, 2, 0), 2, 1)
    np.testing.assert_array_equal(features([waves(0)], large, 3), features([waves(0)], LABELS, 3))
    with pytest.raises(ShapeError, match="component 2; expected 0 to 1"):
        features([waves(0)], LABELS, 2)


def test_labels_are_numbered_by_value():
    picture = np.repeat(np.array([[255, 0], [128, 255]], np.uint8)[:, :, None], 3, 2)
    np.testing.assert_array_equal(numbered(picture, "x"), [[2, 0], [1, 2]])
    with pytest.raises(ShapeError, match="JPEG"):
        numbered(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8), "photo.jpg")


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (100, "6f7564fc399fab7e8d26425d9fcf2e7d21ecd616f4c71ed1401640123c671701"),
        (60, "25987e9c1ff2000836191b16c9ccb9bc376f011ffe2a603a750830a0817d6493"),
    ],
)
def test_the_ten_draws_are_the_published_ones(count, expected):
    draws = [sorted(draw_defects(count, 10, seed)) for seed in SEEDS]
    text = ";".join(",".join(map(str, draw)) for draw in draws)
    assert hashlib.sha256(text.encode()).hexdigest() == expected
    assert draw_defects(100, 10, 333) == [23, 71, 29, 83, 60, 46, 51, 35, 77, 12]
    with pytest.raises(DatasetError, match="can't be drawn"):
        draw_defects(10, 10, 333)


def test_components_find_what_the_maximum_can_not():
    """Noise around the part is louder than the defects on it."""
    draw = np.random.default_rng(0)
    labels = np.zeros((32, 32), np.uint8)
    labels[8:24, 8:24] = 1
    defective = np.arange(120) % 2 == 1
    maps = draw.random((120, 32, 32)).astype(np.float32)
    maps[:, labels == 1] *= 0.3
    maps[defective, 12:16, 12:16] += 0.3
    rows = np.stack([features([each], labels, 2) for each in maps])
    forest = Forest.grown(rows[:60], defective[:60], 1.0, 0, ForestConfig(trees=20))
    margin = forest(torch.from_numpy(rows[60:])).numpy()
    assert roc_auc_score(defective[60:], rows[60:, -1]) < 0.75
    assert roc_auc_score(defective[60:], margin) > 0.95


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Cloth, a folder of defects beside it, and a base fitted on half of it."""
    root = textures.write(tmp_path_factory.mktemp("cloth"), train=24)
    folder = root.parent / f"{root.name}-defects"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(textures.blob(9000 + number)[0]).save(folder / f"{number}.png")
    data = blemish.open_dataset("auto", root, validation_fraction=0.5)
    blemish.save(blemish.create("patchcore", preset="tiny", device="cpu").fit(data), folder / "base.blemish")
    return root


def defects(root: Path) -> Path:
    return root.parent / f"{root.name}-defects"


@pytest.fixture(scope="module")
def data(root) -> Dataset:
    return with_defects(blemish.open_dataset("auto", root), defects(root))


def create(root: Path, **changes) -> blemish.Detector:
    config = {"base": (str(defects(root) / "base.blemish"),), "depth": 2, **changes}
    return blemish.create("segad", preset="tiny", config=config, device="cpu")


@pytest.fixture(scope="module", params=["peaks", "forest"])
def fitted(request, root, data):
    return create(root, decision=request.param).fit(data)


def test_what_was_saved_is_what_was_trained_and_holds_its_base(root, data, fitted, tmp_path):
    blemish.save(fitted, tmp_path / "s.blemish")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "s.blemish", tmp_path / "elsewhere/s.blemish")
    predictor = blemish.load(tmp_path / "elsewhere/s.blemish", device="cpu")
    report = blemish.score(predictor, data)
    metrics = report.results.metrics["cloth"]
    assert metrics["image_auroc"] == 1.0
    assert metrics["fpr_at_95_tpr"] == 0
    assert metrics["pixel_auroc"] > 0.95
    batch = np.random.default_rng(0).random((2, 3, 64, 64)).astype(np.float32)
    before, after = infer(fitted, batch), predictor.predict(batch)
    np.testing.assert_array_equal(before.anomaly_map, after.anomaly_map)
    np.testing.assert_array_equal(before.image_score, after.image_score)
    assert str(root) not in predictor.header.to_json()


def test_the_same_seed_gives_the_same_decision(root, data, fitted):
    other = create(root, decision=fitted.config.decision).fit(data)
    for name, value in fitted.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=0)


def test_bases_and_defects_are_remembered_as_learned(root, data, fitted):
    base = blemish.load(defects(root) / "base.blemish").header.fitted.learned_from
    assert set(base) < set(fitted.fitted.learned_from)
    assert len(fitted.fitted.learned_from) == 12 + 6 + 5
    assert len(fitted.fitted.calibrations["cloth"].image_scores) == 6


def test_probability_grows_with_the_margin(fitted, data):
    predictor = artifact.predictor(fitted)
    kinds = [[sample.path for sample in data.test if sample.is_anomalous is kind] for kind in (False, True)]
    good, bad = (float(np.median(predictor.predict(paths).image_score)) for paths in kinds)
    low, high = fitted.probability(torch.tensor([good, bad])).tolist()
    assert 0 < low < 0.5 < high < 1
    assert len(fitted.names()) == len(fitted.decision.gain) == {"peaks": 5, "forest": 5}[fitted.config.decision]


def test_aligned_and_found_components(root, data, tmp_path):
    picture = np.zeros(textures.SIZE, np.uint8)
    picture[:, 40:] = 200
    Image.fromarray(picture).save(tmp_path / "parts.png")
    static = create(root, components=f"static:{tmp_path / 'parts.png'}").fit(data)
    assert static.components.static.shape == (64, 64)
    assert static.decision.level_span.shape == (2, 1, 2)
    found = create(root, components="foreground", decision="forest").fit(data)
    assert len(found.names()) == len(found.decision.gain) == 9
    blemish.save(static, tmp_path / "s.blemish")
    (tmp_path / "parts.png").unlink()
    assert blemish.load(tmp_path / "s.blemish").predict(data.test[0].path).image_score.shape == (1,)


def test_clusters_are_parts_of_the_picture_and_the_same_in_each(root, data, tmp_path):
    detector = create(root, components="cluster:3", decision="forest").fit(data)
    assert len(detector.names()) == len(detector.decision.gain) == 13
    blemish.save(detector, tmp_path / "s.blemish")
    loaded = blemish.load(tmp_path / "s.blemish", device="cpu")
    batch = np.random.default_rng(0).random((2, 3, 64, 64)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(batch).image_score, infer(detector, batch).image_score)
    with pytest.raises(ConfigError, match="--components"):
        create(root, components="cluster:1")


def test_a_base_that_has_learned_all_good_pictures_is_refused(root, data):
    seen = with_defects(blemish.open_dataset("auto", root, validation_fraction=0.5), defects(root))
    only = [sample for sample in seen.samples if sample.split != "validation" or sample.is_anomalous]
    with pytest.raises(DatasetError, match="12 of 12 good pictures trained the base"):
        create(root).fit(Dataset("x", root, tuple(only), ("cloth",)))


def test_too_few_defects_and_no_base_are_refused(root, data):
    with pytest.raises(DatasetError, match="0 labelled defects"):
        create(root).fit(blemish.open_dataset("auto", root))
    with pytest.raises(ConfigError, match="--base"):
        create(root, base=()).fit(data)
    with pytest.raises(ArtifactError, match=r"nothing\.blemish: no such file"):
        create(root, base=("nothing.blemish",)).fit(data)
    with pytest.raises(ConfigError, match="--components"):
        create(root, components="static:")
    with pytest.raises(ConfigError, match="--image-size 64x64"):
        create(root, image_size=(32, 32)).fit(data)


def test_a_forest_without_a_split_is_refused(root, data):
    with pytest.raises(DatasetError, match="3 good and 5 defective pictures give the forest nothing to split on"):
        create(root, calibration_fraction=0.75, decision="forest").fit(data)


def test_without_defects_good_pictures_are_disturbed(root, data):
    good = blemish.open_dataset("auto", root)
    detector = create(root, disturbed=4).fit(good)
    assert len(detector.decision.filters) == 4
    assert detector.fitted.gain is None  # what was made says nothing of real defects
    folded = create(root, disturbed=6, out_of_fold=2).fit(data)
    assert len(folded.decision.filters) == 6 + 5
    assert folded.fitted.gain.defective == 5
    with pytest.raises(ConfigError, match="--disturbed is -1"):
        create(root, disturbed=-1)


def test_only_the_forest_needs_xgboost(root, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    assert create(root).fit(data).fitted is not None
    with pytest.raises(ConfigError, match="XGBoost"):
        create(root, decision="forest").fit(data)


def test_the_paper_decides_by_a_forest_and_the_default_by_peaks():
    assert {name: preset.decision for name, preset in SegAD.presets.items()} == {
        "paper": "forest",
        "small": "peaks",
        "tiny": "peaks",
    }


def test_an_artifact_whose_decision_is_of_other_rows_is_refused(fitted):
    other = create_like(fitted)
    state = fitted.state_dict()
    name = "decision.level_span" if fitted.config.decision == "peaks" else "decision.feature"
    state[name] = state[name].new_full((2, 3, 1) if fitted.config.decision == "peaks" else state[name].shape, 99)
    with pytest.raises(ValueError, match="expected|feature that there is not"):
        other.restore(state)


def test_an_artifact_of_an_earlier_version_is_to_be_made_anew(fitted):
    state = {name.replace("decision.", "forest."): value for name, value in fitted.state_dict().items()}
    state["forest.start"] = torch.zeros(1)
    without_probe = {name: value for name, value in fitted.state_dict().items() if name != "decision.probe"}
    for older in [state] + [without_probe] * (fitted.eye is not None):
        with pytest.raises(ArtifactError, match="earlier version of Blemish"):
            create_like(fitted).restore(older)


def create_like(fitted: blemish.Detector) -> blemish.Detector:
    """A new one that has learned nothing, of the same configuration."""
    return blemish.create("segad", config=fitted.config, backbone_weights="random", device="cpu")


def test_copies_of_defects_leave_the_test(root, tmp_path):
    data = blemish.open_dataset("auto", root)
    bad = [sample for sample in data.test if sample.is_anomalous]
    for sample in bad[:2]:
        shutil.copy(sample.path, tmp_path)
    found = with_defects(data, tmp_path)
    assert len(found.train_defects) == 2
    assert [sample for sample in found.test if sample.is_anomalous] == bad[2:]
    with pytest.raises(DatasetError, match="not a folder"):
        with_defects(data, tmp_path / "nowhere")


def test_masks_of_defects_are_found_and_learned_from(root, data, tmp_path):
    plain, marked = tmp_path / "cloth/test/bad", tmp_path / "cloth/ground_truth/bad"
    plain.mkdir(parents=True)
    marked.mkdir(parents=True)
    for number in range(5):
        picture, mask = textures.blob(9000 + number)
        Image.fromarray(picture).save(plain / f"{number}.png")
        if number:
            Image.fromarray(mask).save(marked / f"{number}_mask.png")
    opened = with_defects(blemish.open_dataset("auto", root), plain)
    assert [len(sample.masks) for sample in opened.train_defects] == [0, 1, 1, 1, 1]
    detector = create(root).fit(opened)
    assert detector.fitted.remarks == (
        "4 of 5 labelled defects have masks, which say what the defect itself looks like.",
        "The backbone that sees the peaks is the one that base.blemish has run anyway.",
    )
    without = create(root, masks=False).fit(opened)
    assert without.fitted.remarks[0].startswith("0 of 5 labelled defects")
    assert not torch.equal(detector.decision.filters, without.decision.filters)
    torch.testing.assert_close(without.decision.filters, create(root).fit(data).decision.filters)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(marked / "2_mask.png")
    again = create(root).fit(opened)
    assert [failure.path.name for failure in again.failures] == ["2.png"]
    assert "expected the same size" in again.failures[0].reason
    assert len(again.decision.filters) == 4


def test_masks_beside_the_pictures_are_no_pictures(root, tmp_path):
    Image.fromarray(textures.blob(1)[0]).save(tmp_path / "a.png")
    Image.fromarray(textures.blob(1)[1]).save(tmp_path / "a_mask.png")
    (found,) = with_defects(blemish.open_dataset("auto", root), tmp_path).train_defects
    assert [mask.name for mask in found.masks] == ["a_mask.png"]


def test_a_classifier_of_the_whole_picture_beside_the_maps(root, data, tmp_path):
    detector = create(root, decision="forest", classifier=True).fit(data)
    assert detector.names()[-1] == "classifier of the whole picture"
    assert len(detector.decision.gain) == 6
    blemish.save(detector, tmp_path / "s.blemish")
    batch = np.random.default_rng(0).random((2, 3, 64, 64)).astype(np.float32)
    expected, found = infer(detector, batch), blemish.load(tmp_path / "s.blemish", device="cpu").predict(batch)
    np.testing.assert_array_equal(found.image_score, expected.image_score)
    with pytest.raises(ConfigError, match="--classifier goes with --decision forest"):
        create(root, classifier=True)


def test_a_picture_whose_map_is_not_a_number_is_never_good(fitted, monkeypatch):
    broken = np.full((1, 64, 64), np.nan, np.float32)
    for base in fitted._bases().predictors:
        monkeypatch.setattr(base, "shown", None)
        monkeypatch.setattr(base, "predict_parts", lambda image, parts: Prediction(broken, np.ones(1)))
    monkeypatch.setattr(fitted._bases(), "shown", None)
    assert np.isnan(infer(fitted, np.zeros((1, 3, 64, 64), np.float32)).image_score).all()


def labelled(root: Path, data: Dataset, folder: Path) -> Path:
    """A label map for each picture, laid out like the pictures: the left half is another component."""
    for number, sample in enumerate(data.samples):
        picture = np.zeros(textures.SIZE, np.uint8)
        picture[:, :40] = 7
        base = root if root in sample.path.parents else defects(root)
        file = folder / sample.path.relative_to(base)
        file.parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            np.save(file.with_suffix(".npy"), picture.astype(np.int32))
        else:
            Image.fromarray(picture).save(file)
    return folder


def test_label_maps_are_found_by_the_folders_of_their_pictures(root, data, tmp_path):
    folder = labelled(root, data, tmp_path / "labels")
    detector = create(root, components=f"folder:{folder}").fit(data)
    assert detector.decision.level_span.shape == (2, 1, 2)
    assert detector.failures == []
    blemish.save(detector, tmp_path / "s.blemish")
    predictor = blemish.load(tmp_path / "s.blemish", device="cpu")
    sample = data.test[0]
    static = detector.components.labels(np.zeros((3, 64, 64), np.float32), sample.path)
    assert (static[:, :32] == 1).all()
    assert not static[:, 32:].any()
    assert predictor.predict(sample.path).image_score.shape == (1,)
    assert blemish.score(predictor, data).results.metrics["cloth"]["image_auroc"] == 1.0
    with pytest.raises(ConfigError, match="found by the files of pictures"):
        predictor.predict(np.zeros((1, 3, 64, 64), np.float32))


def test_pictures_whose_label_map_does_not_fit_are_named(root, data, tmp_path):
    folder = labelled(root, data, tmp_path / "labels")
    file = next(folder.rglob("cloth/train/good/*"))
    lost = next(path for path in sorted(folder.rglob("cloth/train/good/*")) if path != file)
    lost.unlink()
    file.unlink()
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(file.with_suffix(".png"))
    detector = create(root, components=f"folder:{folder}").fit(data)
    reasons = {failure.path.stem: failure.reason for failure in detector.failures}
    assert "has no label map in" in reasons[lost.stem]
    assert "has 10x10 pixels and the picture 72x80" in reasons[file.stem]
    blemish.save(detector, tmp_path / "s.blemish")
    tested = [sample for sample in data.test if "good" in sample.path.parts]
    strange = next(folder.rglob(f"cloth/test/good/{tested[0].path.stem}.*"))
    strange.unlink()
    Image.fromarray(np.full(textures.SIZE, 9, np.uint8)).save(strange.with_suffix(".png"))
    next(folder.rglob(f"cloth/test/good/{tested[1].path.stem}.*")).unlink()
    report = blemish.score(blemish.load(tmp_path / "s.blemish", device="cpu"), data)
    assert [failure.path for failure in report.failures] == [tested[0].path, tested[1].path]
    assert "the value 9, which no map had" in report.failures[0].reason
    with pytest.raises(DatasetError, match="no such folder"):
        create(root, components=f"folder:{tmp_path / 'nowhere'}").fit(data)


def test_one_label_map_for_two_pictures_is_refused(root, data, tmp_path):
    Image.fromarray(np.zeros(textures.SIZE, np.uint8)).save(tmp_path / "000.png")
    good, twin = (root / "cloth" / folder / "000.png" for folder in ("train/good", "test/good"))
    samples = [replace(data.test[0], path=path) for path in (good, twin)]
    with pytest.raises(DatasetError, match="both find the label map"):
        create(root, components=f"folder:{tmp_path}").components.usable(samples, [])


def test_maps_out_of_fold_let_all_good_pictures_teach(root, data):
    detector = create(root, out_of_fold=2).fit(data)
    base = blemish.load(defects(root) / "base.blemish").header.fitted.learned_from
    assert len(detector.fitted.learned_from) == 12 + 5
    assert set(base) < set(detector.fitted.learned_from)
    assert len(detector.fitted.calibrations["cloth"].image_scores) == 12
    assert detector.fitted.gain.good == 12
    with pytest.raises(DatasetError, match="12 good pictures trained the base and 12 did not"):
        create(root, out_of_fold=7).fit(data)
    with pytest.raises(ConfigError, match="--out-of-fold is 1"):
        create(root, out_of_fold=1)


def test_what_decides_is_known(fitted, data):
    assert sum(fitted.fitted.importance.values()) == pytest.approx(1)
    assert list(fitted.fitted.importance) == sorted(
        fitted.fitted.importance, key=fitted.fitted.importance.__getitem__, reverse=True
    )
    bad = next(sample for sample in data.test if sample.is_anomalous)
    predictor = artifact.predictor(fitted)
    (words,) = predictor.explain(read_image(bad.path, predictor.preprocessing)[0][None], [part_of(bad)])
    assert "base.blemish" in words or "likeness to labelled defects" in words
    assert "(+" in words


def test_what_labels_brought_is_kept(fitted):
    gain = fitted.fitted.gain
    assert (gain.base, gain.good, gain.defective, gain.max_false_reject) == ("base.blemish", 6, 5, 0.01)
    assert gain.without.auroc == 1.0
    assert not gain.is_recommended  # what is perfect already gets no better
