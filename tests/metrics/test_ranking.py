import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from metrics.cases import images_only, maps_and_masks, values


def f1_max(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    total = precision + recall
    return np.max(2 * precision * recall / np.where(total > 0, total, 1))


ORACLES = {"auroc": roc_auc_score, "ap": average_precision_score, "f1_max": f1_max}


@pytest.mark.parametrize("mode", ["exact", "streaming"])
@given(case=maps_and_masks())
@settings(max_examples=60, deadline=None)
def test_pixels_as_scikit_learn(mode, case):
    maps, masks = case
    found = values(maps, masks, mode)
    for name, oracle in ORACLES.items():
        assert found[f"pixel_{name}"] == pytest.approx(oracle(masks.ravel(), maps.ravel()), abs=1e-9), name


SCORES = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-1e9, 1e9)), st.booleans(), st.integers(0, 3)),
    min_size=2,
    max_size=20,
)


@given(rows=SCORES)
@settings(max_examples=100, deadline=None)
def test_images_and_parts_as_scikit_learn(rows):
    scores, labels, parts = (np.array(column) for column in zip(*rows, strict=True))
    results = images_only(scores, labels, parts)
    found, undefined = results.metrics["part"], results.undefined["part"]
    part_scores = np.array([scores[parts == part].max() for part in np.unique(parts)])
    part_labels = np.array([labels[parts == part].any() for part in np.unique(parts)])
    for level, level_scores, level_labels in (("image", scores, labels), ("part", part_scores, part_labels)):
        for name, oracle in ORACLES.items():
            if level_labels.all() or not level_labels.any():
                assert f"{level}_{name}" not in found
                assert undefined[f"{level}_{name}"].startswith("there are no ")
            else:
                expected = oracle(level_labels, level_scores)
                assert found[f"{level}_{name}"] == pytest.approx(expected, abs=1e-9), (level, name)


@given(case=maps_and_masks())
@settings(max_examples=40, deadline=None)
def test_a_monotone_rescaling_changes_nothing(case):
    maps, masks = case
    ranks = np.unique(maps, return_inverse=True)[1].reshape(maps.shape)
    names = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_iou_max", "aupro", "aupimo", "image_auroc")
    expected = values(maps, masks)
    for rescaled in (ranks, 1e-30 * ranks, 1 - 2.0**-24 * ranks[::-1, ::-1, ::-1].max() + 2.0**-24 * ranks, 1.2**ranks):
        for mode in ("exact", "streaming"):
            found = values(np.asarray(rescaled, np.float32), masks, mode)
            assert [found.get(name) for name in names] == pytest.approx([expected.get(name) for name in names])
