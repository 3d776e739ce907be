"""Opening datasets: categories, what is held out, what is said, what is refused, reading in order."""

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from blemish import registry
from blemish.dataset import BAD_WORDS, GOOD_WORDS, MASK_FOLDERS, Dataset, open_dataset
from blemish.errors import ConfigError, DatasetError, ImageError
from blemish.reading import read_batches, read_image, read_mask
from blemish.rows import word
from blemish.types import Failure, Preprocessing, Sample
from trees import BAD, GOOD, MASK, SIZE, SQUARE, TREES, grow, mvtec, picture, some

DOCS = Path(__file__).parents[1] / "docs" / "data.md"
SMALL = Preprocessing((32, 32))


def refusal(root: Path, layout: str = "auto", **options: object) -> str:
    with pytest.raises(DatasetError) as caught:
        open_dataset(layout, root, **options)
    return str(caught.value).replace(f"{root}", "ROOT")


def names(samples: list[Sample]) -> list[str]:
    return [f"{sample.path.parent.name}/{sample.path.name}" for sample in samples]


def test_all_categories_one_or_several(tmp_path: Path) -> None:
    grow(tmp_path, {**mvtec("bottle"), **mvtec("cable"), **mvtec("pill")})
    assert open_dataset("auto", tmp_path).categories == ["bottle", "cable", "pill"]
    assert open_dataset("auto", str(tmp_path), category="cable").categories == ["cable"]
    assert open_dataset("auto", tmp_path, category=["pill", "bottle", "pill"]).categories == ["bottle", "pill"]
    assert open_dataset("auto", tmp_path, category=[]).categories == ["bottle", "cable", "pill"]
    twice = open_dataset("auto", tmp_path, category=["pill", "pill"])
    assert twice.samples == open_dataset("auto", tmp_path, category="pill").samples


def test_of_is_one_category(tmp_path: Path) -> None:
    grow(tmp_path, {**mvtec("bottle"), **mvtec("cable", train=9)})
    data = open_dataset("auto", tmp_path)
    assert {sample.category for sample in data.of("cable").samples} == {"cable"}
    assert len(data.of("bottle").samples) + len(data.of("cable").samples) == len(data.samples)
    assert data.of("screw").samples == ()


def test_a_root_of_dots_has_its_real_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, mvtec("bottle"))
    monkeypatch.chdir(tmp_path / "bottle")
    assert open_dataset("auto", ".").categories == ["bottle"]
    monkeypatch.chdir(tmp_path / "bottle" / "train")
    assert open_dataset("auto", "..").categories == ["bottle"]


def test_a_link_keeps_the_name_that_was_typed(tmp_path: Path) -> None:
    grow(tmp_path, mvtec("bottle"))
    (tmp_path / "flask").symlink_to(tmp_path / "bottle")
    assert open_dataset("auto", tmp_path / "flask").categories == ["flask"]


class TestRefusals:
    def test_nothing_there(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "no") == "ROOT does not exist; expected a folder of pictures or a manifest."

    def test_empty_folder(self, tmp_path: Path) -> None:
        assert refusal(tmp_path) == (
            "ROOT does not have any known layout (found: nothing). Put good pictures into train/good, "
            "or see docs/data.md for the layouts and manifests that are understood."
        )

    def test_unknown_folder(self, tmp_path: Path) -> None:
        grow(tmp_path, {f"{letter}.txt": "?" for letter in "abcdefghij"})
        assert "(found: a.txt, b.txt, c.txt, d.txt, e.txt, f.txt, g.txt, h.txt and 2 more)" in refusal(tmp_path)

    def test_another_file(self, tmp_path: Path) -> None:
        grow(tmp_path, {"one.png": GOOD})
        assert refusal(tmp_path / "one.png") == (
            "ROOT does not have any known layout; expected a folder of pictures, "
            "or a manifest ending in .csv or .jsonl."
        )

    def test_another_layout(self, tmp_path: Path) -> None:
        grow(tmp_path, mvtec("bottle"))
        assert refusal(tmp_path, "visa").startswith('ROOT does not have the layout "visa" (found: bottle).')

    def test_two_layouts(self, tmp_path: Path) -> None:
        grow(tmp_path, {**mvtec("bottle"), **TREES["kolektor_sdd2"].files})
        assert refusal(tmp_path) == "ROOT could be any of kolektor, mvtec; name one with --dataset."
        assert open_dataset("kolektor", tmp_path).categories == ["KolektorSDD2"]

    def test_category_typo(self, tmp_path: Path) -> None:
        grow(tmp_path, {**mvtec("bottle"), **mvtec("cable")})
        expected = 'ROOT: no category named "botle". Did you mean "bottle"? Known: bottle, cable.'
        assert refusal(tmp_path, category="botle") == expected
        assert refusal(tmp_path, category=["cable", "botle"]) == expected

    def test_no_such_layout(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r'no dataset layout named "mvtech". Did you mean "mvtec"\?'):
            open_dataset("mvtech", tmp_path)

    @pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
    def test_fraction(self, tmp_path: Path, fraction: float) -> None:
        with pytest.raises(ConfigError, match=r"--validation-fraction is .*; expected a share between 0 and 1"):
            open_dataset("auto", tmp_path, validation_fraction=fraction)


class TestRequireTrain:
    def message(self, root: Path) -> str:
        data = open_dataset("auto", root)
        with pytest.raises(DatasetError) as caught:
            data.require_train()
        return str(caught.value)

    def test_missing_folder(self, tmp_path: Path) -> None:
        grow(tmp_path, mvtec("bottle"))
        shutil.rmtree(tmp_path / "bottle" / "train")
        expected = (
            "bottle has no train/good folder (found: ground_truth, test). Blemish learns from good pictures there: "
            "move some in, or name your folder with --train-dir."
        )
        assert self.message(tmp_path) == expected
        assert self.message(tmp_path / "bottle") == expected
        assert len(open_dataset("auto", tmp_path).test) == 6

    def test_empty_folder(self, tmp_path: Path) -> None:
        grow(tmp_path, {**mvtec("bottle", train=0), "bottle/train/good/a.gif": "?", **mvtec("cable")})
        assert self.message(tmp_path) == (
            "bottle has no pictures in train/good (found: a.gif). Blemish learns from good pictures there: "
            "move some in, or name your folder with --train-dir."
        )
        open_dataset("auto", tmp_path, category="cable").require_train()

    def test_nothing_but_empty_folders(self, tmp_path: Path) -> None:
        (tmp_path / "bottle" / "train" / "good").mkdir(parents=True)
        assert self.message(tmp_path).startswith("bottle has no pictures in train/good (found: nothing).")

    def test_only_bad_pictures_in_a_folder(self, tmp_path: Path) -> None:
        grow(tmp_path, some("screws/bad/{}.png", 2, BAD))
        assert self.message(tmp_path / "screws").startswith("screws has no good folder (found: bad).")

    def test_manifest_without_good_rows(self, tmp_path: Path) -> None:
        grow(tmp_path, {"a.png": BAD, "manifest.csv": "path,label,category\na.png,bad,lid\n"})
        assert self.message(tmp_path) == (
            f"lid has no good pictures to learn from in {tmp_path}. "
            "Add some, or name a folder of good pictures with --train-dir."
        )

    def test_no_samples_at_all(self) -> None:
        with pytest.raises(DatasetError, match="parts has no pictures; expected good ones to learn from"):
            Dataset("By hand", Path("parts"), ()).require_train()


class TestTrainDir:
    def test_replaces_what_the_layout_learns_from(self, tmp_path: Path) -> None:
        grow(tmp_path, {**mvtec("bottle"), **some("more/{}.png", 5, GOOD)})
        data = open_dataset("auto", tmp_path / "bottle", train_dir=tmp_path / "more")
        assert sorted(names(data.train + data.validation)) == [f"more/{i}.png" for i in range(5)]
        assert len(data.test) == 6

    def test_is_relative_to_the_root(self, tmp_path: Path) -> None:
        grow(tmp_path, {**mvtec("bottle", train=0), **some("bottle/extra/{}.png", 3, GOOD)})
        data = open_dataset("auto", tmp_path / "bottle", train_dir="extra")
        data.require_train()
        assert len(data.train) == 2

    def test_its_pictures_are_not_tested(self, tmp_path: Path) -> None:
        grow(tmp_path, mvtec("bottle", good=4))
        data = open_dataset("auto", tmp_path / "bottle", train_dir="test/good")
        assert len(data.train + data.validation) == 4
        assert {sample.is_anomalous for sample in data.test} == {True}

    @pytest.mark.parametrize(
        ("train_dir", "message"),
        [
            ("no", "--train-dir ROOT/no is not a folder; expected one of good pictures."),
            ("empty", "--train-dir ROOT/empty has no pictures (found: a.txt); expected good ones."),
            (
                "cable/train/good",
                "--train-dir holds one category, but there are 2: choose one with --category.",
            ),
        ],
    )
    def test_refusals(self, tmp_path: Path, train_dir: str, message: str) -> None:
        grow(tmp_path, {**mvtec("bottle"), **mvtec("cable"), "empty/a.txt": "?"})
        category = None if "cable" in train_dir else "bottle"
        assert refusal(tmp_path, train_dir=train_dir, category=category) == message


class TestHoldOut:
    def test_share_and_seed(self, tmp_path: Path) -> None:
        grow(tmp_path, mvtec("bottle", train=40))
        data = open_dataset("auto", tmp_path)
        assert (len(data.train), len(data.validation)) == (32, 8)
        assert len(open_dataset("auto", tmp_path, validation_fraction=0.5).validation) == 20
        assert len(open_dataset("auto", tmp_path, validation_fraction=0.001).validation) == 1
        assert len(open_dataset("auto", tmp_path, validation_fraction=0.999).train) == 1
        assert names(open_dataset("auto", tmp_path, seed=1).validation) != names(data.validation)
        assert names(open_dataset("auto", tmp_path, seed=0).validation) == names(data.validation)

    def test_does_not_depend_on_where_the_dataset_lies(self, tmp_path: Path) -> None:
        grow(tmp_path, mvtec("bottle", train=20))
        expected = names(open_dataset("auto", tmp_path).validation)
        shutil.copytree(tmp_path / "bottle", tmp_path / "elsewhere" / "flask")
        assert names(open_dataset("auto", tmp_path / "elsewhere").validation) == expected
        assert names(open_dataset("auto", tmp_path / "elsewhere" / "flask").validation) == expected

    def test_is_nobody_elses_picture(self, tmp_path: Path) -> None:
        grow(tmp_path, mvtec("bottle", train=20))
        data = open_dataset("auto", tmp_path)
        parts = [{sample.path for sample in split} for split in (data.train, data.validation, data.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(data.samples)
        assert all(sample.is_anomalous is False for sample in data.validation)

    def test_one_picture_is_learned_from(self, tmp_path: Path) -> None:
        grow(tmp_path, mvtec("bottle", train=1))
        data = open_dataset("auto", tmp_path)
        assert (len(data.train), len(data.validation)) == (1, 0)

    def test_views_of_a_part_stay_together(self, tmp_path: Path) -> None:
        rows = [f'{{"path": "{part}_{view}.png", "part": "{part}"}}' for part in range(10) for view in range(3)]
        files = {f"{part}_{view}.png": GOOD for part in range(10) for view in range(3)}
        data = open_dataset("auto", grow(tmp_path, {**files, "manifest.jsonl": "\n".join(rows)}))
        held_out = {sample.part for sample in data.validation}
        assert len(held_out) == 2
        assert len(data.validation) == 6
        assert not held_out & {sample.part for sample in data.train}

    def test_pictures_of_one_name_in_several_folders_are_different(self, tmp_path: Path) -> None:
        data = open_dataset("auto", grow(tmp_path, TREES["kolektor_sdd"].files) / "KolektorSDD")
        assert len(data.validation) == 2


# fmt: off
SENTENCES = {
    "mvtec_ad_category":
        "MVTec layout, category bottle: 6 good pictures to learn from (1 of them held out to calibrate), "
        "3 good and 3 defective to test, masks for all.",
    "mvtec_without_masks":
        "MVTec layout, category tube: 4 good pictures to learn from (1 of them held out to calibrate), "
        "2 good and 3 defective to test, masks for 1 of 3.",
    "mvtec_ad_2":
        "MVTec layout, category can: 6 good pictures to learn from (2 of them held out to calibrate), "
        "2 good, 3 defective and 5 unlabelled to test, masks for all.",
    "vad_repacked":
        "MVTec layout, category vad: 4 good pictures to learn from (1 of them held out to calibrate) and "
        "2 labelled defects, 2 good and 3 defective to test, no masks; 1 of the defective ones are of kinds that "
        "are not among the labelled.",
    "folder_good_only":
        "Folder of pictures, category screws: 5 good pictures to learn from (1 of them held out to calibrate), "
        "none to test.",
    "folder_good_and_bad":
        "Folder of pictures, category screws: 8 good pictures to learn from (2 of them held out to calibrate), "
        "2 good from the same folder and 3 defective to test, masks for 2 of 3.",
}
# fmt: on


@pytest.mark.parametrize("name", SENTENCES)
def test_sentence(name: str, tmp_path: Path) -> None:
    root = grow(tmp_path, TREES[name].files) / TREES[name].root
    assert open_dataset("auto", root).sentences() == [SENTENCES[name]]


@pytest.mark.parametrize(("gone", "said"), [("scratch", "3 good and no"), ("good", "no good and 3")])
def test_sentence_says_which_kind_lacks_in_test(tmp_path: Path, gone: str, said: str) -> None:
    shutil.rmtree(grow(tmp_path, mvtec("bottle")) / "bottle" / "test" / gone)
    assert f", {said} defective to test" in open_dataset("auto", tmp_path).sentences()[0]


class TestReadBatches:
    def samples(self, folder: Path, number: int) -> list[Sample]:
        grow(folder, some("{:03}.png", number, GOOD))
        paths = [folder / f"{7 * i % number:03}.png" for i in range(number)]  # in an order that is not sorted
        assert len(set(paths)) == number
        return [Sample(path=path, category="c", split="test", is_anomalous=False) for path in paths]

    @pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
    def test_keeps_the_order(self, tmp_path: Path, batch_size: int) -> None:
        samples = self.samples(tmp_path, 23)
        failures: list[Failure] = []
        batches = list(read_batches(samples, SMALL, batch_size, failures))
        assert [sample for batch in batches for sample in batch.samples] == samples
        assert not failures
        for batch in batches:
            assert len(batch.samples) == len(batch.images) <= batch_size
            assert np.array_equal(
                batch.images, np.stack([read_image(sample.path, SMALL)[0] for sample in batch.samples])
            )
            assert batch.images.flags.writeable

    def test_leaves_out_what_cannot_be_read_and_says_so(self, tmp_path: Path) -> None:
        samples = self.samples(tmp_path, 20)
        samples[0].path.write_bytes(b"")
        samples[7].path.write_text("not a picture")
        samples[8].path.write_bytes(samples[9].path.read_bytes()[:300])
        samples[19].path.unlink()
        failures: list[Failure] = []
        batches = list(read_batches(samples, SMALL, 4, failures))
        bad = [samples[i] for i in (0, 7, 8, 19)]
        assert [sample for batch in batches for sample in batch.samples] == [s for s in samples if s not in bad]
        assert [failure.path for failure in failures] == [sample.path for sample in bad]
        assert all(str(failure.path) in failure.reason for failure in failures)

    def test_a_batch_of_nothing_is_not_given(self, tmp_path: Path) -> None:
        samples = self.samples(tmp_path, 6)
        for sample in samples[:4]:
            sample.path.write_bytes(b"")
        failures: list[Failure] = []
        assert [len(batch.samples) for batch in read_batches(samples, SMALL, 2, failures)] == [2]
        assert len(failures) == 4
        assert list(read_batches([], SMALL, 2, [])) == []

    def test_stops_reading_for_a_caller_who_leaves(self, tmp_path: Path) -> None:
        samples = self.samples(tmp_path, 40)
        batches = read_batches(samples, SMALL, 2, [])
        assert len(next(batches).samples) == 2
        batches.close()  # type: ignore[attr-defined]


class TestReadMask:
    def sample(self, folder: Path, is_anomalous: bool | None, *masks: str) -> Sample:
        grow(folder, {"a.png": BAD, **dict.fromkeys(masks, MASK)})
        found = tuple(folder / mask for mask in masks)
        return Sample(path=folder / "a.png", category="c", split="test", is_anomalous=is_anomalous, masks=found)

    def test_defective(self, tmp_path: Path) -> None:
        mask = read_mask(self.sample(tmp_path, True, "m.png"), SIZE)
        assert mask is not None
        assert mask.dtype == bool
        assert np.array_equal(mask, picture(MASK) > 0)
        assert mask[SQUARE].all()

    def test_good_and_unknown(self, tmp_path: Path) -> None:
        good = read_mask(self.sample(tmp_path, False), (8, 9))
        assert good is not None
        assert good.shape == (8, 9)
        assert not good.any()
        assert read_mask(self.sample(tmp_path, True), (8, 9)) is None
        assert read_mask(self.sample(tmp_path, None), (8, 9)) is None

    def test_unreadable(self, tmp_path: Path) -> None:
        sample = self.sample(tmp_path, True, "m.png")
        sample.masks[0].write_bytes(b"")
        with pytest.raises(ImageError, match=r"m\.png: the file is empty"):
            read_mask(sample, SIZE)


def test_words_are_written_as_they_are_compared() -> None:
    assert all(word(name) == name for name in GOOD_WORDS | BAD_WORDS | MASK_FOLDERS)
    assert not GOOD_WORDS & BAD_WORDS


def test_opening_takes_time_in_proportion() -> None:
    """100,000 files take about two seconds; fewer here, as creating them takes longer than that."""
    with tempfile.TemporaryDirectory() as folder:
        for place, number in {"train/good": 16_000, "test/good": 2_000, "test/dent": 2_000}.items():
            Path(folder, "bottle", place).mkdir(parents=True)
            for i in range(number):
                os.close(os.open(f"{folder}/bottle/{place}/{i:06}.png", os.O_CREAT))
        start = time.process_time()
        said = open_dataset("auto", folder).sentences()
        assert time.process_time() - start < 4
    assert said[0].startswith("MVTec layout, category bottle: 16000 good pictures")


def test_docs_name_every_layout_and_word() -> None:
    text = DOCS.read_text("utf-8")
    assert [name for name in registry.names("datasets") if f"`{name}`" not in text] == []
    listed = {found for line in text.splitlines() for found in re.findall(r"`([a-z_0-9]+)`", line)}
    assert listed >= GOOD_WORDS | BAD_WORDS | MASK_FOLDERS


def test_a_folder_that_may_not_be_opened_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(folder: object) -> object:
        if folder == tmp_path:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(tmp_path) == "ROOT can't be opened (Permission denied); expected a folder to read."
