"""The decision by peaks: what a few labelled defects add to the detectors' own scores."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from blemish.nn import peaks
from blemish.nn.forest import Forest, ForestConfig
from blemish.nn.map_features import features
from blemish.nn.peaks import Layout, Peaks
from blemish.types import Prediction

CHANNELS = (2, 3, 4)
DEPTH = 27
SIDE = 8
SHAPE = (64, 64)


def layout(bases: int = 1, components: int = 1) -> Layout:
    return peaks.layout(CHANNELS, bases, components, SHAPE)


def pictures(count: int, defective: np.ndarray, seed: int, *, direction: float, loudness: float = 1.5):
    """Maps (N, 64, 64) and patches (N, 9, 8, 8): each picture has a spot, defects a louder one of its own look."""
    draw = np.random.default_rng(seed)
    patches = draw.normal(size=(count, DEPTH, SIDE, SIDE)).astype(np.float32)
    maps = draw.random((count, *SHAPE)).astype(np.float32)
    for number in range(count):
        top, left = draw.integers(0, SIDE - 1, 2)
        height = 3 + draw.normal() + loudness * defective[number]
        maps[number, 8 * top : 8 * top + 16, 8 * left : 8 * left + 16] += max(height, 0)
        patches[number, [0, 3, 6], top : top + 2, left : left + 2] += direction * defective[number]
    return maps, patches


def table(maps: np.ndarray, patches: np.ndarray, labels=None, components: int = 1, masks=None) -> np.ndarray:
    labels = [np.zeros(SHAPE, np.uint8)] * len(maps) if labels is None else labels
    masks = [np.zeros((1, 1), bool)] * len(maps) if masks is None else masks
    levels = peaks.levels_of([Prediction(maps, maps.max((1, 2)))], labels, components)
    return peaks.rows(levels, patches, maps, labels, masks)


def margins(decision: Peaks | Forest, rows: np.ndarray) -> np.ndarray:
    return decision(torch.from_numpy(rows)).numpy()


def compared(direction: float) -> dict[str, float]:
    """The mean AUROC of ten labelled defects' worth of learning, on pictures not learned from."""
    found: dict[str, list[float]] = {"alone": [], "forest": [], "peaks": []}
    for seed in range(4):
        learned, tested = np.arange(90) >= 80, np.arange(400) >= 200
        maps, patches = pictures(90, learned, seed, direction=direction)
        new, others = pictures(400, tested, 100 + seed, direction=direction)
        statistics = [np.stack([features([m], np.zeros(SHAPE, np.uint8), 1) for m in each]) for each in (maps, new)]
        forest = Forest.grown(statistics[0], learned, 8.0, 0, ForestConfig(trees=20))
        decision = Peaks.learned(table(maps, patches), learned, layout(), 0)
        scores = {
            "alone": new.max((1, 2)),
            "forest": margins(forest, statistics[1]),
            "peaks": margins(decision, table(new, others)),
        }
        for name, own in scores.items():
            found[name].append(roc_auc_score(tested, own))
    return {name: float(np.mean(own)) for name, own in found.items()}


def test_ten_labels_help_where_a_forest_hurts():
    found = compared(direction=1.5)
    assert found["forest"] < found["alone"] - 0.02
    assert found["peaks"] > found["alone"] + 0.05


def test_labels_that_say_nothing_cost_less_than_in_a_forest():
    found = compared(direction=0.0)
    assert found["forest"] < found["peaks"] - 0.03
    assert found["peaks"] > found["alone"] - 0.02


@pytest.fixture(scope="module")
def learned():
    defective = np.arange(60) >= 50
    maps, patches = pictures(60, defective, 0, direction=2.0)
    rows = table(maps, patches)
    return Peaks.learned(rows, defective, layout(), 0), rows, defective


def test_a_higher_score_of_a_base_is_never_less_abnormal(learned):
    decision, rows, _ = learned
    higher = rows.copy()
    ladder = np.linspace(-5, 50, 40)
    found = []
    for level in ladder:
        higher[:, 0] = level
        found.append(margins(decision, higher))
    assert all((one < other).all() for one, other in itertools.pairwise(found))


def test_the_unit_of_a_base_does_not_matter(learned):
    decision, rows, defective = learned
    other = rows.copy()
    other[:, 0] = 1000 * other[:, 0] - 7000  # all negative: log-odds, say
    again = Peaks.learned(other, defective, layout(), 0)
    np.testing.assert_allclose(margins(again, other), margins(decision, rows), rtol=1e-3, atol=1e-3)


def test_good_pictures_held_out_are_the_zero_of_the_margin(learned):
    decision, _, _ = learned
    maps, patches = pictures(300, np.zeros(300, bool), 7, direction=0)
    found = margins(decision, table(maps, patches))
    assert abs(found.mean()) < 0.5
    votes = decision.contributions(torch.from_numpy(table(maps, patches))).numpy()
    np.testing.assert_allclose(votes.std(0), [1, 0.5, 0.5, 0.5, 0], rtol=0.35)


def test_gain_says_what_sets_labelled_defects_apart():
    defective = np.arange(60) >= 50
    maps, patches = pictures(60, defective, 0, direction=0.0, loudness=0)
    patches[50:, 2:5] += 2  # channels of the middle stride alone
    gain = Peaks.learned(table(maps, patches), defective, layout(), 0).gain
    assert gain.sum().item() == pytest.approx(1)
    assert int(gain.argmax()) == 2
    assert gain[2] > 0.6
    assert len(peaks.names(["a"], 1)) == len(gain)


def test_peaks_are_the_highest_places_and_each_component_has_its_share(monkeypatch):
    monkeypatch.setattr(peaks, "SEEN", 4)
    maps = np.zeros((1, *SHAPE), np.float32)
    maps[0, :32] = 10 + np.arange(64)  # the upper half is louder everywhere
    maps[0, 40:48, 16:24] = 1
    patches = np.zeros((1, DEPTH, SIDE, SIDE), np.float32)
    patches[0, 0] = np.arange(64).reshape(SIDE, SIDE)
    halves = (np.arange(64)[:, None] >= 32).repeat(64, 1).astype(np.uint8)
    one = layout().cut(torch.from_numpy(table(maps, patches)))
    two = layout(components=2).cut(torch.from_numpy(table(maps, patches, [halves], 2)))
    assert one.peaks[0, :, 0].tolist() == [7, 15, 23, 31]
    assert two.peaks[0, :3, 0].tolist() == [7, 15, 42]
    assert two.pieces[0].tolist() == [0, 0, 1, 1]


def test_a_mask_says_which_patches_show_the_defect(monkeypatch):
    monkeypatch.setattr(peaks, "SEEN", 4)
    maps = np.zeros((3, *SHAPE), np.float32)
    maps[:, :8, :32] = 1  # the first four patches
    patches = np.tile(np.arange(64, dtype=np.float32).reshape(1, 1, SIDE, SIDE), (3, DEPTH, 1, 1))
    masks = [np.zeros((32, 32), bool) for _ in maps]
    masks[0][4:8, 12:20] = True  # patches 11 and 12; half of the picture's size
    masks[0][0:1, 0:4] = True  # a quarter of patch 0
    masks[1][0, 0] = True  # a sixteenth of patch 0 is all there is
    cut = layout().cut(torch.from_numpy(table(maps, patches, masks=masks)))
    assert cut.others[:, :, 0].tolist() == [[11, 11, 12, 12], [0, 0, 0, 0], [0, 21, 42, 63]]
    np.testing.assert_allclose(cut.covered, [[0.25, 0, 0, 0], [0.0625, 0, 0, 0], [-1] * 4])


def test_masks_help_where_the_map_misses_the_defect():
    """Maps point anywhere; a mask shows what to look for all the same."""
    draw = np.random.default_rng(0)
    defective = np.arange(320) >= 160
    patches = draw.normal(size=(320, DEPTH, SIDE, SIDE)).astype(np.float32)
    patches[defective, 4, 5:7, 5:7] += 2.2
    maps = draw.random((320, *SHAPE)).astype(np.float32)
    masks = [np.zeros(SHAPE, bool) for _ in maps]
    for mask in itertools.compress(masks, defective):
        mask[40:56, 40:56] = True
    learn, test = np.r_[0:80, 160:170], np.r_[80:160, 170:320]
    rows, found = table(maps, patches, masks=masks), {}
    for name, own in (("without", layout().unmarked(rows)), ("with", rows)):
        decision = Peaks.learned(own[learn], defective[learn], layout(), 0)
        found[name] = roc_auc_score(defective[test], margins(decision, rows[test]))
    assert found["with"] > found["without"] + 0.12


def test_noise_around_the_part_does_not_hide_what_is_on_it():
    draw = np.random.default_rng(0)
    labels = np.zeros(SHAPE, np.uint8)
    labels[16:48, 16:48] = 1
    defective = np.arange(260) >= 130
    maps = draw.random((260, *SHAPE)).astype(np.float32)
    maps *= np.where(labels == 1, 0.1, draw.uniform(0.5, 2, (260, 1, 1))).astype(np.float32)
    maps[defective, 24:32, 24:32] += 0.3
    patches = draw.normal(size=(260, DEPTH, SIDE, SIDE)).astype(np.float32)
    patches[defective, 0, 3, 3] += 3
    learn = np.r_[0:60, 130:140]
    test = np.setdiff1d(np.arange(260), learn)
    found = {}
    for count in (1, 2):
        rows = table(maps, patches, [labels if count == 2 else np.zeros_like(labels)] * 260, count)
        decision = Peaks.learned(rows[learn], defective[learn], layout(components=count), 0)
        found[count] = roc_auc_score(defective[test], margins(decision, rows[test]))
    assert found[2] > 0.95
    assert found[2] > found[1] + 0.1


def test_a_component_that_a_picture_lacks_does_not_count():
    defective = np.arange(60) >= 50
    maps, patches = pictures(60, defective, 0, direction=2.0)
    labels = [np.zeros(SHAPE, np.uint8) for _ in maps]
    for each in labels[1:]:
        each[:8] = 1
    rows = table(maps, patches, labels, 2)
    assert np.isnan(rows[0, 1])
    decision = Peaks.learned(rows, defective, layout(components=2), 0)
    assert np.isfinite(margins(decision, rows)).all()


def test_what_was_learned_of_other_rows_is_refused(learned):
    decision, _, _ = learned
    with pytest.raises(ValueError, match=r"level_span has shape \(2, 1, 1\); expected \(2, 2, 1\)"):
        decision.check(layout(bases=2))
    decision.check(layout())


def test_two_of_each_kind_are_enough_to_learn_something():
    defective = np.array([False, False, True, True])
    maps, patches = pictures(4, defective, 0, direction=3.0)
    rows = table(maps, patches)
    assert np.isfinite(margins(Peaks.learned(rows, defective, layout(), 0), rows)).all()
    alone = Peaks.learned(rows[:3], defective[:3], layout(), 0)
    assert alone.weight.tolist() == [1, 0, 0, 0, 0]
    assert np.isfinite(margins(alone, rows)).all()
