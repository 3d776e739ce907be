import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from blemish import registry
from blemish.errors import ConfigError, MetricError
from blemish.metric import Evaluation, Options, all_metrics, evaluate, histogram
from blemish.metric import evaluation as evaluation_module
from blemish.metric import evidence as metric
from blemish.metric.histogram import Cells, to_keys, to_values
from blemish.types import Sample


def sample(name, is_anomalous=None, *, defect="", part="", category="cup"):
    return Sample(path=Path(name), category=category, split="test", is_anomalous=is_anomalous, defect=defect, part=part)


def pictures(number=12, size=16, seed=0):
    """Maps with spread-out and with repeated values, masks, and what is known of each picture."""
    generator = np.random.default_rng(seed)
    maps = generator.normal(size=(number, size, size)).astype(np.float32)
    maps[::3] = np.clip(maps[::3], -0.5, 0.5)
    masks = np.zeros(maps.shape, bool)
    masks[::2, 2:6, 3:8] = generator.random((len(masks[::2]), 4, 5)) > 0.3
    defects = [("", "dent", "scratch")[index % 3] for index in range(number)]
    return [
        (sample(f"{index:02d}", bool(mask.any()), defect=defect, part=str(index // 4)), float(one.max()), one, mask)
        for index, (one, mask, defect) in enumerate(zip(maps, masks, defects, strict=True))
    ]


def collected(chosen, mode="streaming", *, intervals=False):
    evaluation = Evaluation(mode, intervals=intervals)
    for picture in chosen:
        evaluation.add(*picture)
    return evaluation


def content(evaluation, tmp_path):
    path = tmp_path / "state.safetensors"
    evaluation.save(path)
    return path.read_bytes()


@pytest.fixture
def few_cells(monkeypatch):
    """So little room that even tiny sets are counted in wide cells, often."""
    monkeypatch.setattr(evaluation_module, "CELLS", 48)
    monkeypatch.setattr(evaluation_module, "_PENDING_PIXELS", 600)


def test_names_of_the_design():
    names = {f"{level}_{name}" for level in ("image", "pixel", "part") for name in ("auroc", "ap", "f1_max")}
    names |= {f"pixel_{name}" for name in ("f1_02_08", "acc_02_08", "iou_02_08", "iou_max")}
    assert names | {"aupro", "aupimo", "fpr_at_95_tpr", "mad", "mad_image", "mad_pixel"} <= all_metrics().keys()


@pytest.mark.parametrize("plugin", registry.names("metrics"))
def test_contract_of_metric_files(plugin):
    module = registry.load("metrics", plugin)
    assert registry.describe("metrics", plugin)
    for one in module.METRICS:
        assert all_metrics()[one.name] is one, "the name is taken twice"
        assert one.description
        assert "\n" not in one.description
        assert one.variants.keys() <= metric.PROTOCOLS.keys()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_keys_are_ranks(values):
    array = np.array(values, np.float32)
    keys = to_keys(array)
    assert (to_values(keys) == array).all()
    assert ((array[1:] > array[:-1]) == (keys[1:] > keys[:-1])).all()


KEYS = st.lists(st.one_of(st.integers(0, 2**32 - 1), st.integers(0xBF7FFF00, 0xBF800100)), max_size=60)


@given(shards=st.lists(KEYS, min_size=1, max_size=5), budget=st.sampled_from([1, 4, 32]))
@settings(deadline=None)
def test_cells_do_not_depend_on_order(shards, budget):
    def grown(parts):
        cells = Cells.empty(1)
        for part in parts:
            cells = cells.plus(np.array(part, np.uint32)).coarsened(budget)
        return cells

    whole = grown([list(itertools.chain.from_iterable(shards))])
    one_by_one, merged = grown(shards[::-1]), grown(shards[:1]) + grown(shards[1:])
    for other in (one_by_one, merged.coarsened(budget)):
        for name in ("keys", "weights", "shifts"):
            assert np.array_equal(getattr(other, name), getattr(whole, name))
        assert other.last == whole.last == max(map(int, itertools.chain.from_iterable(shards)), default=-1)
    assert whole.weights.sum() == sum(map(len, shards))
    pages = np.unique(np.searchsorted(histogram._PAGES, whole.keys, side="right")).size
    assert whole.keys.size <= max(budget, pages)


@pytest.mark.usefixtures("few_cells")
@pytest.mark.parametrize("mode", ["streaming", "auto", "exact"])
def test_any_split_gives_the_same_bits(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_module, "EXACT_PIXELS", 2000)
    everything = pictures()
    expected = content(collected(everything, mode), tmp_path)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(everything))
        cuts = sorted(np.random.default_rng(seed).integers(0, len(order), 2))
        parts = [collected([everything[i] for i in part], mode) for part in np.split(order, cuts)]
        assert content((parts[0] + parts[1]) + parts[2], tmp_path) == expected
        assert content(parts[2] + (parts[1] + parts[0]), tmp_path) == expected
        assert content(collected([everything[i] for i in order], mode), tmp_path) == expected


@pytest.mark.usefixtures("few_cells")
def test_auto_becomes_streaming(monkeypatch):
    everything = pictures()
    assert collected(everything, "auto").compute().mode == "exact"
    monkeypatch.setattr(evaluation_module, "EXACT_PIXELS", 2000)
    auto, streaming = collected(everything, "auto"), collected(everything, "streaming")
    assert auto.compute() == streaming.compute()
    assert auto.compute().mode == "streaming"
    largest = max(state.normal.spread.keys.size for state in auto._states.values())
    assert largest < 200


@pytest.mark.usefixtures("few_cells")
def test_resumed_from_a_file(tmp_path):
    everything = pictures()
    path = tmp_path / "half.safetensors"
    collected(everything[:5]).save(path)
    resumed = Evaluation.load(path)
    for picture in everything[5:]:
        resumed.add(*picture)
    assert content(resumed, tmp_path) == content(collected(everything), tmp_path)
    assert resumed.compute() == collected(everything).compute()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["half.safetensors", "state.safetensors"]


def test_what_is_not_a_saved_evaluation(tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "text").write_text("no")
    save_file({"a": np.zeros(1)}, tmp_path / "other")
    for name, message in (("text", "can't be read"), ("absent", "can't be read"), ("other", "not an evaluation")):
        with pytest.raises(MetricError, match=message):
            Evaluation.load(tmp_path / name)


def test_what_can_not_be_merged():
    everything = pictures()
    with pytest.raises(MetricError, match=r"03 is in both evaluations, as 2 pictures are"):
        collected(everything[:5]) + collected(everything[3:])
    with pytest.raises(MetricError, match="mode"):
        collected(everything[:5]) + collected(everything[5:], "exact")


BAD = np.zeros((4, 4))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ((sample("x", True), 1, BAD, np.ones((4, 5))), r"x: the anomaly map has shape \(4, 4\) and the mask \(4, 5\)"),
        ((sample("x", True), 1, BAD, BAD + 0.5), r"x: the mask is not binary, it holds 0.5"),
        ((sample("x", True), 1, BAD, np.arange(16).reshape(4, 4)), r"x: the mask is not binary, it holds 1;"),
        ((sample("x", False), 1, BAD, np.eye(4)), r"x: it is labelled good, but its mask marks 4 pixels"),
        ((sample("x"), 1, BAD, None), r"x: it has neither a label nor a mask"),
        ((sample("there", False), 1), r"there: it is there twice"),
        ((sample("x", False), 1, BAD[None]), r"x: the anomaly map has shape \(1, 4, 4\)"),
        ((sample("x", True), 1, BAD, BAD[0]), r"x: the mask has shape \(4,\)"),
        ((sample("x", True), 1, np.array([["a"]])), r"x: the anomaly map has shape \(1, 1\) of <U1"),
    ],
)
def test_pictures_that_can_not_be_evaluated(picture, message):
    evaluation = Evaluation()
    evaluation.add(sample("there", False), 1.0)
    with pytest.raises(MetricError, match=message):
        evaluation.add(*picture)
    evaluation.add(sample("x", True), 2.0)  # nothing of the bad picture stayed
    assert evaluation.compute().metrics["cup"]["image_auroc"] == 1


def test_nothing_to_evaluate():
    with pytest.raises(MetricError, match="0 pictures"):
        Evaluation().compute()
    with pytest.raises(MetricError, match="3 anomaly maps, 2 masks and no image scores"):
        evaluate(np.zeros((3, 2, 2)), np.zeros((2, 2, 2)))


EMPTY, SPOT = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
RAMP = np.arange(16, dtype=np.float32).reshape(4, 4)


@pytest.mark.parametrize("mode", ["exact", "streaming"])
@pytest.mark.parametrize(
    ("chosen", "name", "reason"),
    [
        ([(sample("a"), 1, RAMP, EMPTY)], "image_auroc", "there are no defective pictures"),
        ([(sample("a"), 1, RAMP, EMPTY)], "aupro", "no pixel is marked defective"),
        ([(sample("a"), 1, RAMP, SPOT)], "image_auroc", "there are no good pictures"),
        ([(sample("a"), 1, RAMP, SPOT)], "aupimo", "there are no good pictures with maps"),
        ([(sample("a"), 1, RAMP, ~EMPTY)], "pixel_ap", "every pixel is marked defective"),
        (
            [(sample("a", True), 1, RAMP, None), (sample("b", False), 0, RAMP)],
            "pixel_auroc",
            "no pixel is marked defective (defective pictures without a mask: 1)",
        ),
        ([(sample("a", True), 1), (sample("b", False), 0)], "aupro", "there are no anomaly maps"),
        (
            [(sample("a"), 1, RAMP, SPOT), (sample("b"), 0, RAMP * np.nan, EMPTY)],
            "aupro",
            "the map of b has values that are not finite (1 of 2 maps)",
        ),
        (
            [(sample("a"), np.nan, RAMP, SPOT), (sample("b"), 0, RAMP, EMPTY)],
            "image_ap",
            "the score of a is not finite (1 of 2 pictures)",
        ),
        (
            [(sample("a"), 1, RAMP * 0, SPOT)],
            "pixel_iou_02_08",
            "all map values are 0, so that no range can be divided",
        ),
    ],
)
def test_undefined_with_a_reason(mode, chosen, name, reason):
    evaluation = collected(chosen, mode)
    evaluation.add(sample("good", False, category="whole"), 0.0, RAMP)
    evaluation.add(sample("bad", True, category="whole"), 1.0, RAMP + SPOT, SPOT)
    results = evaluation.compute()
    assert results.undefined["cup"][name] == reason
    assert name not in results.metrics["cup"]
    assert results.mean[name] == results.metrics["whole"][name]
    assert all(np.isfinite(list(values.values())).all() for values in results.metrics.values())


def test_constant_maps_rank_nothing():
    results = collected([(sample("a"), 1, RAMP * 0, SPOT), (sample("b"), 1, RAMP * 0, EMPTY)]).compute()
    found = results.metrics["cup"]
    assert found["pixel_auroc"] == 0.5
    assert found["image_auroc"] == 0.5
    assert found["aupro"] == pytest.approx(0.15)


def test_notes_on_masks():
    chosen = [
        (sample("a", True), 1, RAMP, None),
        (sample("b", True), 1, RAMP, EMPTY),
        (sample("c", True), 1, RAMP, SPOT),
    ]
    assert collected(chosen, "exact").compute().notes == [
        "cup: 1 of 3 defective pictures have no mask, so that their maps are left out of pixel metrics (a).",
        "cup: 1 of 3 defective pictures have a mask without defective pixels, so that all their pixels count "
        "as normal (b).",
    ]


def test_labels_come_from_masks_in_the_reference_protocol():
    chosen = [(sample("a", True), 0, RAMP, EMPTY), (sample("b", True), 1, RAMP, SPOT), (sample("c", False), 2, RAMP)]
    evaluation = collected(chosen)
    assert evaluation.compute().metrics["cup"]["image_auroc"] == 0
    assert evaluation.compute(Options(protocol="ader")).metrics["cup"]["image_auroc"] == 0.5


def test_each_kind_of_defect_against_all_good():
    scores = {"a": (0.1, ""), "b": (0.5, ""), "c": (0.3, "dent"), "d": (0.9, "scratch"), "e": (0.9, "")}
    evaluation = Evaluation()
    for name, (score, defect) in scores.items():
        evaluation.add(sample(name, name in "cde", defect=defect), score)
    by_defect = evaluation.compute().by_defect["cup"]
    found = {defect: values["image_auroc"] for defect, values in by_defect.items()}
    assert found == {"dent": 0.5, "scratch": 1.0, "defective": 1.0}


def test_torch_tensors_and_arrays_of_all_kinds():
    masks = np.stack([SPOT, EMPTY])
    maps = np.stack([RAMP, RAMP / 2])
    expected = evaluate(maps, masks, [3, 1])
    tensors = torch.tensor(maps, requires_grad=True), torch.tensor(masks), torch.tensor([3.0, 1.0])
    for same in (
        tensors,
        (maps.astype(np.float64), masks.astype(np.uint8) * 255, (3, 1)),
        (list(maps.astype(np.float16)), list(masks.astype(float)), None),
    ):
        assert evaluate(*same).metrics == expected.metrics
    assert evaluate(torch.tensor(maps).bfloat16(), masks, [3, 1]).metrics.keys() == expected.metrics.keys()


def test_torch_is_not_imported():
    code = "import sys, blemish.metric as m; m.all_metrics(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_intervals_as_from_a_plain_bootstrap(mode):
    everything = [(sample(one.path, mask.any()), *rest, mask) for one, *rest, mask in pictures(160, 8)]
    everything = [(one, score, values + mask * np.float32(0.8), mask) for one, score, values, mask in everything]
    scores = np.array([score for _, score, _, _ in everything])
    labels = np.array([one.is_anomalous for one, *_ in everything])
    results = collected(everything, mode, intervals=True).compute(Options(resamples=400))

    maps, masks = (np.stack(column) for column in list(zip(*everything, strict=True))[2:])
    generator = np.random.default_rng(1)
    drawn = [generator.integers(0, 160, 160) for _ in range(300)]
    for name, values in (
        ("image_auroc", [roc_auc_score(labels[draw], scores[draw]) for draw in drawn]),
        ("pixel_auroc", [roc_auc_score(masks[draw].ravel(), maps[draw].ravel()) for draw in drawn]),
    ):
        low, high = results.intervals["cup"][name]
        assert low < results.metrics["cup"][name] < high
        wide = np.subtract(*np.quantile(values, (0.975, 0.025)))
        assert 0.7 * wide < high - low < 1.4 * wide  # 64 groups estimate the width to about a tenth
    assert results.intervals.keys() == {"cup"}
    assert results.intervals["cup"].keys() <= results.metrics["cup"].keys() | results.undefined["cup"].keys()
    again = collected(everything[::-1], mode, intervals=True).compute(Options(resamples=20))
    assert again.intervals == collected(everything, mode, intervals=True).compute(Options(resamples=20)).intervals


def test_intervals_of_parts():
    scores = itertools.chain.from_iterable([0.1 * part, 0.05 * part] for part in range(40))
    everything = [
        (sample(str(index), index // 2 % 3 == 0, part=str(index // 2)), score) for index, score in enumerate(scores)
    ]
    results = collected(everything, intervals=True).compute(Options(resamples=50))
    low, high = results.intervals["cup"]["part_auroc"]
    assert low < results.metrics["cup"]["part_auroc"] < high


def test_intervals_must_be_collected():
    with pytest.raises(MetricError, match="intervals=True"):
        collected(pictures()).compute(Options(resamples=10))


def test_the_first_of_several_bad_pictures():
    maps, masks = np.zeros((4, 3, 3)), [np.zeros((3, 3)), np.zeros((3, 2)), np.full((3, 3), 7), np.zeros((2, 3))]
    message = r"picture 1: the anomaly map .* The same is wrong with 2 of 4 pictures\."
    with pytest.raises(MetricError, match=message):
        evaluate(maps, masks)


def test_options_that_do_not_exist():
    with pytest.raises(ConfigError, match='no protocol named "adr". Did you mean "ader"'):
        Options(protocol="adr")
    with pytest.raises(ConfigError, match="--aupro-limit is 0; expected more than 0"):
        Options(aupro_limit=0)
    with pytest.raises(ConfigError, match='no mode named "exakt"'):
        Evaluation("exakt")
