"""Exported artifacts: every model and format gives what its detector gives, and needs no torch for it."""

import json
import shutil
import subprocess
import sys
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import openvino
import pytest
from PIL import Image

import blemish
import textures
from blemish import artifact, exporting, images, judging
from blemish.artifact import Export, Predictor, read_header
from blemish.detector import infer
from blemish.errors import ArtifactError, ConfigError, ExportError
from blemish.types import Batch, Prediction, Sample
from shell import call

SUFFIXES = [".onnx", ".xml"]


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of an export, to be damaged."""

    def get(suffix):
        file = exported("patchcore", suffix)
        for part in file.parent.glob(f"{file.stem}.*"):
            shutil.copy(part, tmp_path)
        return tmp_path / file.name

    return get


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("model", ["patchcore", "realnet", "invad", "tocoad"])
def test_pictures_of_any_number_get_the_scores_of_the_detector(model, suffix, exported, fitted):
    predictor = blemish.load(exported(model, suffix))
    for count in (1, 2, 3, 7):
        batch = np.stack(
            [np.random.default_rng([count, item]).random((3, 64, 64), np.float32) for item in range(count)]
        )
        batch[0] *= 0.1
        before, after = infer(fitted(model), batch), predictor.predict(batch)
        np.testing.assert_allclose(after.anomaly_map, before.anomaly_map, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after.image_score, before.image_score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_proof_is_in_the_header(suffix, exported):
    parity = read_header(exported("patchcore", suffix)).parity
    assert parity.batches == exporting.BATCHES
    assert parity.pictures == parity.decisions == sum(exporting.BATCHES)
    assert 0 < parity.map_difference < parity.tolerance == 1e-3
    assert parity.flipped == 0


def test_onnx_itself_accepts_the_file_and_reads_our_header(exported):
    file = exported("patchcore", ".onnx")
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    (entry,) = [each for each in model.metadata_props if each.key == "blemish"]
    assert json.loads(entry.value) == json.loads(read_header(file).to_json())
    (image,) = model.graph.input
    sides = image.type.tensor_type.shape.dim
    assert (sides[0].dim_param != "", [side.dim_value for side in sides[1:]]) == (True, [3, 64, 64])


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "timm", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("command", ["predict", "score"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_predict_and_score_need_no_torch(suffix, command, exported, cloth, tmp_path):
    place, option = {"predict": ("cloth/test", "--json-lines"), "score": ("", "--csv")}[command]
    words = [command, str(exported("patchcore", suffix)), str(cloth / place), option]
    written = {}
    for how, start in (("without", WITHOUT), ("with", "import sys")):
        out = tmp_path / how
        last = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
        code = f"{start}\n{last}\nfrom blemish.cli import main\nmain({[*words, str(out)]})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("False")  # not imported, even where it is there
        written[how] = out.read_text()
    assert written["with"] == written["without"]
    bad = [line for line in written["with"].splitlines() if "test/blob" in line]
    assert ["defective" in line for line in bad] == [True] * 6


def _off(run, change):
    def other(batch):
        found = run(batch)
        return Prediction(*change(found.anomaly_map.copy(), found.image_score.copy(), len(batch)))

    return other


def _one_pixel(anomaly_map, image_score, count):
    if count == 5:
        anomaly_map[3, 10, 20] *= 1.01
    return anomaly_map, image_score


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_one_pixel, "anomaly_map of its own size, noise .in a batch of 5. .* at row 10, column 20"),
        (lambda maps, scores, count: (maps, scores * 1.01), "image_score of 640x480 with a patch .in a batch of 1."),
        (lambda maps, scores, count: (maps, scores * np.nan), "image_score .* is nan instead of"),
        (lambda maps, scores, count: (maps[:1], scores[:1]), r"anomaly_map of shape \(1, 64, 64\); expected \(2,"),
    ],
)
def test_a_difference_is_an_error_that_says_where(change, said, fitted):
    detector = fitted("patchcore")
    header = artifact.Header("patchcore", {}, detector.fitted)
    other = Predictor(header, _off(lambda batch: infer(detector, batch), change))
    with pytest.raises(ExportError, match=said):
        exporting.prove(detector, other, "fp32", Export())


@pytest.mark.parametrize(("factor", "flipped"), [(1.0002, 1), (1.000002, 0)])
def test_flipped_decisions_are_counted_but_not_for_rounding_on_the_threshold(fitted, cloth, factor, flipped):
    detector = fitted("patchcore")
    header = artifact.Header("patchcore", {}, detector.fitted)
    threshold = Predictor(header, lambda batch: infer(detector, batch)).decider().reject.value

    def nudged(batch):  # what lies on the threshold comes to lie above it
        found = infer(detector, batch)
        on = np.isclose(found.image_score, threshold, rtol=1e-5)
        return Prediction(found.anomaly_map, np.where(on, found.image_score * factor, found.image_score))

    samples = blemish.open_dataset("auto", cloth).validation
    how = Export(pictures=tuple(sample.path for sample in samples))
    parity = exporting.prove(detector, Predictor(header, nudged), "fp32", how)
    assert parity.flipped == flipped
    assert parity.pictures == 8 + len(samples)


def test_a_model_that_fixes_the_batch_size_is_refused(fitted, tmp_path, monkeypatch):
    detector = fitted("patchcore")
    forward = type(detector).forward

    def fixed(self, image):
        return forward(self, image.reshape(len(image), 3, 64, 64))

    monkeypatch.setattr(type(detector), "forward", fixed)
    with pytest.raises(ExportError, match="PatchCore can't be exported"):
        blemish.save(detector, tmp_path / "part.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_looks_at_views_together_is_refused(tmp_path):
    from blemish.models.mvad import MVAD

    detector = MVAD(MVAD.presets["tiny"], "random")
    with pytest.raises(ExportError, match="MVAD looks at the views of a part together, which no exported graph does"):
        exporting.to_onnx(detector)


def test_a_model_that_works_with_artifacts_is_refused():
    from blemish.models.segad import SegAD

    detector = SegAD(SegAD.presets["tiny"], "random")
    with pytest.raises(ExportError, match="SegAD works with whole artifacts.* --base part.onnx"):
        exporting.to_onnx(detector)


def test_openvino_judges_several_batches_at_a_time_and_gives_the_same_in_order(exported, cloth, tmp_path):
    predictor = blemish.load(exported("patchcore", ".xml"))
    files = sorted((cloth / "cloth").rglob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_text("not a picture")
    files.insert(9, broken)
    samples = [Sample(path=file, category="", split="test", is_anomalous=None) for file in files]
    failures, failures_before = [], []
    found = list(judging.judge(predictor, samples, failures))
    one_by_one = Predictor(predictor.header, predictor.predict)
    before = list(judging.judge(one_by_one, samples, failures_before))
    assert failures == failures_before
    assert [failure.path for failure in failures] == [broken]
    assert [each.sample.path for each in found] == [file for file in files if file != broken]
    for one, other in zip(found, before, strict=True):
        assert (one.scored.decision, len(one.scored.regions)) == (other.scored.decision, len(other.scored.regions))
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.scored.image_score, other.scored.image_score, rtol=1e-5)
        np.testing.assert_array_equal(one.image, other.image)


def test_who_leaves_a_stream_early_or_asks_again_gets_the_same(exported):
    predictor = blemish.load(exported("patchcore", ".xml"))
    images = [np.random.default_rng(item).random((1 + item % 3, 3, 64, 64), np.float32) for item in range(12)]
    batches = [Batch(image, (), ()) for image in images]
    first, prediction = next(iter(predictor.stream(batches, [])))
    assert first is batches[0]
    kept = prediction.anomaly_map.copy()
    again = list(predictor.stream(iter(batches), []))
    np.testing.assert_array_equal(prediction.anomaly_map, kept)  # no request writes into what was given out
    assert [batch for batch, _ in again] == batches
    for batch, found in again:
        np.testing.assert_allclose(found.anomaly_map, predictor.predict(batch.images).anomaly_map, rtol=1e-5, atol=1e-6)
    assert list(predictor.stream([], [])) == []


def test_an_error_of_the_reader_comes_through_a_stream(exported):
    def broken():
        yield Batch(np.zeros((1, 3, 64, 64), np.float32), (), ())
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(blemish.load(exported("patchcore", ".xml")).stream(broken(), []))


def test_int8_is_calibrated_proven_and_scored(fitted, cloth, tmp_path, capsys):
    blemish.save(fitted("patchcore"), tmp_path / "part.blemish")
    words = ["export", tmp_path / "part.blemish", tmp_path / "part.xml", "--precision", "int8"]
    assert call(*words) == 2
    assert "expected --calibration FOLDER with good pictures" in capsys.readouterr().err.replace("\n", " ")
    assert call(*words, "--data", cloth) == 0
    said = capsys.readouterr().out
    header = read_header(tmp_path / "part.xml")
    parity = header.parity
    assert parity.sentence() in said
    assert (parity.precision, parity.tolerance) == ("int8", exporting.TOLERANCE["int8"])
    assert 1e-3 < parity.map_difference < parity.tolerance  # it is not fp32 in disguise
    assert set(parity.metrics) == {"image_auroc", "pixel_ap"}
    before, after = parity.metrics["image_auroc"]
    assert before == after == 1
    assert "On the test set: image_auroc 1.0000 -> 1.0000, pixel_ap" in said
    data = blemish.open_dataset("auto", cloth)
    scored = blemish.score(blemish.load(tmp_path / "part.xml"), data).results.mean
    assert scored["pixel_ap"] == pytest.approx(parity.metrics["pixel_ap"][1], abs=1e-6)
    graph = (tmp_path / "part.xml").read_text()
    assert 'type="FakeQuantize"' in graph


def test_auto_takes_the_next_precision_where_the_first_is_too_far_off(fitted, cloth, tmp_path, monkeypatch, caplog):
    from blemish.formats import openvino

    how = Export("auto", tuple(sample.path for sample in blemish.open_dataset("auto", cloth).validation))
    monkeypatch.setattr(openvino, "_fastest_first", lambda: ["fp16", "fp32"])
    for tolerance, taken in ((0.1, "fp16"), (1e-9, "fp32")):
        monkeypatch.setitem(exporting.TOLERANCE, "fp16", tolerance)
        blemish.save(fitted("patchcore"), tmp_path / "part.xml", how)
        assert read_header(tmp_path / "part.xml").parity.precision == taken
    assert "the fp16 export differs" in caplog.text


def test_less_than_fp32_is_proven_on_pictures_of_parts(fitted, cloth, tmp_path):
    with pytest.raises(ConfigError, match="fp16 must be proven on pictures of parts, .* expected --pictures FOLDER"):
        blemish.save(fitted("patchcore"), tmp_path / "part.xml", Export("fp16"))
    assert not list(tmp_path.iterdir())
    detector = fitted("patchcore")
    header = artifact.Header("patchcore", {}, detector.fitted)
    good = tuple(sample.path for sample in blemish.open_dataset("auto", cloth).validation)
    known = {images.to_chw(images.read(path), detector.fitted.preprocessing).tobytes() for path in good}

    def proof(precision, of_parts, of_made):
        """The proof of an export whose maps are the detector's, times a factor."""

        def other(batch):
            found = infer(detector, batch)
            factors = np.array([of_parts if image.tobytes() in known else of_made for image in batch], np.float32)
            return Prediction(found.anomaly_map * factors[:, None, None], found.image_score)

        return exporting.prove(detector, Predictor(header, other), precision, Export(pictures=good))

    for refused in (("fp32", 1, 1.5), ("fp32", 1.5, 1), ("fp16", 1.5, 1), ("fp16", 1, np.nan)):
        with pytest.raises(ExportError, match=f"the {refused[0]} export differs: anomaly_map"):
            proof(*refused)
    parity = proof("fp16", 1, 1.5)
    assert (parity.map_difference, *parity.made_differences) == (0, pytest.approx(0.5), 0)
    assert "(accepted: 0.02 on pictures of parts; on made ones 0.5 and 0)" in parity.sentence()


def test_what_a_model_calls_sensitive_stays_in_floating_point(fitted, cloth, tmp_path):
    from blemish.models.realnet import RealNet

    good = tuple(sample.path for sample in blemish.open_dataset("auto", cloth).train)
    blemish.save(fitted("realnet"), tmp_path / "part.xml", Export("int8", calibration=good))
    graph = ET.parse(tmp_path / "part.xml").getroot()  # noqa: S314
    rounded = {layer.get("id") for layer in graph.iter("layer") if layer.get("type") == "FakeQuantize"}
    names = {layer.get("id"): layer.get("name") for layer in graph.iter("layer")}
    after = [names[edge.get("to-layer")] for edge in graph.iter("edge") if edge.get("from-layer") in rounded]
    assert any(name.startswith("network.reconstruction.") for name in after)
    assert not any(name.startswith(RealNet.sensitive) for name in after)
    parity = read_header(tmp_path / "part.xml").parity
    done, of = parity.products
    assert 0 < done < of
    assert parity.sentence().startswith(f"int8 ({done} of {of} filters and products, all else in fp32) against")


def test_what_the_device_has_no_units_for_is_computed_in_fp32(exported, monkeypatch, caplog):
    from blemish.formats import openvino

    monkeypatch.setattr(openvino, "_capabilities", lambda core, name: {"fp32"})
    file = exported("patchcore", ".xml")
    network = openvino._Network(openvino._read(file)[0], "bf16", "cpu")
    assert "CPU has no units for bf16 here" in caplog.text
    batch = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    np.testing.assert_array_equal(network.run(batch).anomaly_map, blemish.load(file).predict(batch).anomaly_map)


def test_another_onnx_file_is_no_artifact(tmp_path):
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "part.onnx")
    (tmp_path / "text.onnx").write_text("not protobuf at all, but long enough to look like some fields")
    for name in ("part", "text"):
        with pytest.raises(ArtifactError, match="is not an artifact"):
            blemish.load(tmp_path / f"{name}.onnx")


def test_an_xml_needs_its_own_bin(copy, tmp_path):
    file = copy(".xml")
    weights = file.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="does not hold the weights of patchcore.xml"):
        blemish.load(file)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"patchcore\.bin: no such file"):
        blemish.load(file)
    (tmp_path / "other.xml").write_text("<note>hello</note>")
    (tmp_path / "other.bin").write_text("")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        blemish.load(tmp_path / "other.xml")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_device_that_is_not_there_is_named(suffix, exported):
    with pytest.raises(ConfigError, match='--device is "tpu"'):
        blemish.load(exported("patchcore", suffix), device="tpu")


def test_the_command_exports_proves_and_says_so(fitted, cloth, tmp_path, capsys, caplog):
    blemish.save(fitted("patchcore"), tmp_path / "part.blemish")
    good = cloth / "cloth/test/good"
    Image.fromarray(textures.texture(1)).save(tmp_path / "odd.bmp")
    words = ["export", tmp_path / "part.blemish", tmp_path / "part.xml", "--pictures", good, tmp_path / "odd.bmp"]
    assert call(*words, "--precision", "bf16") == 0
    said = capsys.readouterr().out
    # What the processor has no units for runs in fp32, and is not called otherwise.
    ran = "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"
    assert f"{ran} against the detector, on 15 pictures in batches of 1, 2, 4, 5" in said
    header = read_header(tmp_path / "part.xml")
    assert header.parity.sentence() in said
    assert (header.parity.precision, header.parity.computed) == (ran, ran)
    assert ("CPU has no units for bf16 here" in caplog.text) == (ran == "fp32")
    assert len(header.source) == 64
    assert header.versions == read_header(tmp_path / "part.blemish").versions
    with pytest.raises(ArtifactError, match="is an export itself"):
        artifact.export(tmp_path / "part.xml", tmp_path / "again.onnx")
    with pytest.raises(ConfigError, match="expected fp32 for .onnx"):
        artifact.export(tmp_path / "part.blemish", tmp_path / "part.onnx", Export("bf16"))
    with pytest.raises(ConfigError, match="are for .onnx and .xml"):
        artifact.export(tmp_path / "part.blemish", tmp_path / "same.blemish", Export("bf16"))
    assert {path.name for path in tmp_path.iterdir()} == {"part.blemish", "part.xml", "part.bin", "odd.bmp"}


def test_deep_pictures_go_through_the_proof_where_there_is_a_rule_for_them():
    from blemish.images import to_chw
    from blemish.types import Intensity, Preprocessing

    for rule, kind in ((Intensity(0, 4095), np.uint16), (Intensity(-2.5, 1), np.float32)):
        preprocessing = Preprocessing((64, 64), rule)
        made = exporting.made_pictures(preprocessing)
        assert kind in {picture.dtype.type for picture in made.values()}
        for name, picture in made.items():
            assert to_chw(picture, preprocessing, name).shape == (3, 64, 64)
