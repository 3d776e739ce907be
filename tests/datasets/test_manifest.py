"""Manifests: what the columns mean, and every way in which one can be wrong."""

import json
from pathlib import Path

import pytest

from blemish.dataset import Dataset, open_dataset
from blemish.errors import DatasetError
from blemish.types import Sample
from trees import BAD, GOOD, MASK, grow, some

PICTURES = {**some("g{}.png", 5, GOOD), **some("b{}.png", 3, BAD), **some("m{}.png", 3, MASK), "sub/g.png": GOOD}


def write(folder: Path, text: str, name: str = "manifest.csv") -> Path:
    return grow(folder, {**PICTURES, name: text}) / name


def opened(folder: Path, text: str, name: str = "manifest.csv") -> dict[str, Sample]:
    """What a manifest says of its pictures, by their names, before any is held out."""
    data = open_dataset("auto", write(folder, text, name))
    return {sample.path.relative_to(folder).as_posix(): sample for sample in data.samples}


def refusal(folder: Path, text: str, name: str = "manifest.csv") -> str:
    write(folder, text, name)
    with pytest.raises(DatasetError) as caught:
        open_dataset("auto", folder / name)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder / name), "FILE").replace(str(folder), "ROOT")


# row of split, label, defect, mask → split, is_anomalous, defect, masks; splits before any is held out
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (",,,", ("train", False, "", ())),
        (",good,,", ("train", False, "", ())),
        (",0,,", ("train", False, "", ())),
        (",bad,,", ("test", True, "bad", ())),
        (",NG,,", ("test", True, "NG", ())),
        (",1,,", ("test", True, "1", ())),
        (",,dent,", ("test", True, "dent", ())),
        (",bad,dent,m0.png", ("test", True, "dent", ("m0.png",))),
        (",bad,,m0.png;m1.png", ("test", True, "bad", ("m0.png", "m1.png"))),
        (",bad,,m0.png ; m1.png;", ("test", True, "bad", ("m0.png", "m1.png"))),
        (",good,,m0.png", ("train", False, "", ())),
        (",unknown,,", ("test", None, "", ())),
        ("test,,,", ("test", None, "", ())),
        ("test,Good,,", ("test", False, "", ())),
        ("TRAIN,,,", ("train", False, "", ())),
        ("train,bad,,", ("train", True, "bad", ())),
        ("val,,,", ("validation", False, "", ())),
        ("validation,unlabelled,,", ("validation", None, "", ())),
    ],
)
def test_columns(tmp_path: Path, row: str, expected: tuple[str, bool | None, str, tuple[str, ...]]) -> None:
    sample = opened(tmp_path, f"path,split,label,defect,mask\nb0.png,{row}\n")["b0.png"]
    masks = tuple(mask.name for mask in sample.masks)
    assert (sample.split, sample.is_anomalous, sample.defect, masks) == expected


def test_only_paths_are_good_pictures_to_learn_from(tmp_path: Path) -> None:
    data = open_dataset("auto", write(tmp_path, "path\n" + "".join(f"g{i}.png\n" for i in range(5))))
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 1, 0)
    assert data.categories == [tmp_path.name]


def test_part_view_and_category(tmp_path: Path) -> None:
    samples = opened(tmp_path, "path,part,view,category\ng0.png,p1,top,lid\ng1.png,p1,side,lid\ng2.png,,,\n")
    assert [(s.part, s.view, s.category) for s in samples.values()] == [
        ("p1", "top", "lid"),
        ("p1", "side", "lid"),
        ("", "", tmp_path.name),
    ]


def test_json_lines_say_the_same_as_csv(tmp_path: Path) -> None:
    rows = [
        {"path": "g0.png", "label": "good", "category": "lid"},
        {"path": "sub/g.png", "split": "test", "label": 0, "part": 7, "view": "top"},
        {"path": "b0.png", "label": 1, "mask": ["m0.png", "m1.png"]},
        {"path": "b1.png", "defect": "dent", "mask": "m2.png", "part": None},
    ]
    text = "\n\n".join(map(json.dumps, rows)) + "\n"
    table = "path,split,label,defect,mask,category,part,view\n" + (
        "g0.png,,good,,,lid,,\nsub/g.png,test,0,,,,7,top\nb0.png,,1,,m0.png;m1.png,,,\nb1.png,,,dent,m2.png,,,\n"
    )
    assert opened(tmp_path, text, "list.jsonl") == opened(tmp_path, table)


def test_spreadsheets_write_byte_order_marks_spaces_quotes_and_empty_rows(tmp_path: Path) -> None:
    text = '\ufeffPath , Label\r\n"g0.png", good \r\n,\r\n\r\n" b0.png ",NG\r\n'
    samples = opened(tmp_path, text)
    assert {name: sample.is_anomalous for name, sample in samples.items()} == {"g0.png": False, "b0.png": True}


def test_good_pictures_are_split_only_where_no_row_says_a_split(tmp_path: Path) -> None:
    rows = "".join(f"g{i}.png,good,\n" for i in range(5))

    def splits(last: str) -> list[str]:
        return [s.split for s in opened(tmp_path, f"path,label,split\n{rows}{last}\n").values() if not s.is_anomalous]

    assert splits("b0.png,bad,").count("test") == 1
    assert splits("b0.png,bad,test").count("test") == 0


def test_good_views_of_a_defective_part_are_tested_with_it(tmp_path: Path) -> None:
    rows = "".join(f"g{i}.png,good,p{i}\n" for i in range(5))
    data = open_dataset("auto", write(tmp_path, f"path,label,part\n{rows}b0.png,bad,p0\n"))
    assert "p0" not in {sample.part for sample in data.train + data.validation}
    assert len([sample for sample in data.test if sample.is_anomalous is False]) == 2


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.jsonl"])
def test_the_folder_of_a_manifest_can_be_opened(tmp_path: Path, name: str) -> None:
    write(tmp_path, "path\ng0.png\n" if name.endswith("csv") else '{"path": "g0.png"}\n', name)
    assert len(open_dataset("auto", tmp_path).samples) == 1


def test_paths_that_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "data"
    write(inside, f"path\nsub/../g0.png\n./g1.png\n{inside}/g2.png\nlink.png\nfolder/g.png\n")
    (inside / "link.png").symlink_to(inside / "g3.png")
    (inside / "folder").symlink_to(inside / "sub")
    monkeypatch.chdir(tmp_path)
    found = [sample.path.as_posix() for sample in open_dataset("auto", "data").samples]
    assert found == [f"data/{name}" for name in ("folder/g.png", "g0.png", "g1.png", "g2.png", "link.png")]


def test_a_manifest_reached_by_a_link_may_use_its_own_folder(tmp_path: Path) -> None:
    write(tmp_path / "real", "path\ng0.png\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(open_dataset("auto", tmp_path / "link").samples) == 1


LEADS_OUT = "leads out of ROOT; expected a path inside it."
NO_FILE = "in ROOT; expected the path of a picture from there."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\n../x.png\n", f'FILE, row 2: "../x.png" {LEADS_OUT}'),
        ("path\ng0.png\nsub/../../x.png\n", f'FILE, row 3: "sub/../../x.png" {LEADS_OUT}'),
        ("path\n/etc/passwd\n", f'FILE, row 2: "/etc/passwd" {LEADS_OUT}'),
        ("path\noutside.png\n", f'FILE, row 2: "outside.png" {LEADS_OUT}'),
        ("path\nelsewhere/x.png\n", f'FILE, row 2: "elsewhere/x.png" {LEADS_OUT}'),
        ("path,mask,label\nb0.png,../x.png,bad\n", f'FILE, row 2: "../x.png" {LEADS_OUT}'),
        ("path\ngone.png\n", f'FILE, row 2: there is no file "gone.png" {NO_FILE}'),
        ("path\nsub\n", f'FILE, row 2: there is no file "sub" {NO_FILE}'),
        ("path\ng0\0.png\n", f'FILE, row 2: there is no file "g0\0.png" {NO_FILE}'),
        ("path\nround.png\n", f'FILE, row 2: there is no file "round.png" {NO_FILE}'),
        ("path,mask,label\nb0.png,m0.png;m9.png,bad\n", f'FILE, row 2: there is no file "m9.png" {NO_FILE}'),
        ("path,label\n,good\n", f'FILE, row 2: there is no file "" {NO_FILE}'),
        ("path\ng0.png\ng1.png\n./g0.png\n", "FILE, row 4: ROOT/g0.png is in FILE, row 2 already; keep one of them."),
        (
            "path,label\ng0.png,goood\n",
            'FILE, row 2: no label named "goood". Did you mean "good"? Known: 0, 1, abnormal, accept, ',
        ),
        (
            "path,split\ng0.png,tset\n",
            'FILE, row 2: no split named "tset". Did you mean "test"? Known: test, train, val, validation.',
        ),
        (
            "path,lable\ng0.png,good\n",
            'FILE, row 1: no column named "lable". Did you mean "label"? '
            "Known: category, defect, label, mask, part, path, split, view.",
        ),
        ("label,split\ngood,train\n", 'FILE, row 1: the columns are label, split; expected "path" among them'),
        ("path,path\na,b\n", 'FILE, row 1: the columns are path, path; expected "path" among them, and each once.'),
        ("path;label\ng0.png;good\n", "FILE, row 1: there is ';' between the cells; expected commas."),
        ("path\tlabel\ng0.png\tgood\n", r"FILE, row 1: there is '\t' between the cells; expected commas."),
        ("path,label\ng0.png\n", "FILE, row 2: has 1 cells; expected 2 like the first row."),
        ("path\ng0.png,good\n", "FILE, row 2: has 2 cells; expected 1 like the first row."),
        ('path\n"g0.png\n', "FILE, row 2: unexpected end of data; expected cells with commas between them."),
        ("path\n", 'FILE lists no pictures; expected a column "path" and a row for each picture.'),
        ("", "FILE lists no pictures"),
    ],
)
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    root = tmp_path / "data"
    grow(tmp_path, {"x.png": GOOD, "data/sub/g.png": GOOD})
    (root / "outside.png").symlink_to(tmp_path / "x.png")
    (root / "elsewhere").symlink_to(tmp_path)
    (root / "round.png").symlink_to(root / "round.png")
    assert refusal(root, text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "g0.png"}\n{"path": \n', "FILE, row 2: Expecting value"),
        ('["g0.png"]\n', 'FILE, row 1: expected a JSON object like {"path": "good/1.png", "label": "good"}.'),
        ('{"label": "good"}\n', 'FILE, row 1: the columns are label; expected "path" among them, and each once.'),
        ('{"path": "g0.png", "kind": "x"}\n', 'FILE, row 1: no column named "kind".'),
        ('{"path": {"a": 1}}\n', 'FILE, row 1: path is {"a": 1}; expected text.'),
        ('{"path": ["g0.png"]}\n', 'FILE, row 1: path is ["g0.png"]; expected text.'),
        ('{"path": "g0.png", "label": 0.5}\n', 'FILE, row 1: no label named "0.5".'),
        ('{"path": "g0.png", "label": true}\n', 'FILE, row 1: no label named "True".'),
        ("[" * 100_000, "FILE, row 1: "),
        ("\n", "FILE lists no pictures"),
    ],
)
def test_refusals_of_json_lines(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text, "list.jsonl").startswith(message)


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "").write_bytes("path\nGehäuse.png\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"manifest\.csv can't be read \(.*\); expected a text file in UTF-8"):
        open_dataset("auto", tmp_path)


def test_a_changed_manifest_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path, "path\ng0.png\n")
    assert len(open_dataset("auto", tmp_path).samples) == 1
    file.write_text("path\ng0.png\ng1.png\n")
    assert len(open_dataset("auto", tmp_path).samples) == 2


def test_many_categories_parse_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "path,category\n" + "".join(f"g{i}.png,c{i}\n" for i in range(5)))
    reads = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: reads.append(self) or original(self, *a, **k))
    data: Dataset = open_dataset("manifest", file)
    assert len(data.categories) == 5
    assert [path.name for path in reads].count("manifest.csv") == 1
