"""Sets of drawn pictures in a folder: written one by one, resumable, with a manifest; laid out as SIA.

DIR/manifest.jsonl                one line a picture, as soon as it is there
DIR/CATEGORY/000000.png           the pictures, lossless
DIR/masks/CATEGORY/000000.png     where the strength changed them: 255
DIR/confidence/CATEGORY/000000.png  how surely, 0 to 254; 128 and more is in the mask
"""

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import cv2
import numpy as np

from blemish import engine, images
from blemish.engine import Cluster, Files, Work
from blemish.errors import DatasetError, OutputError, bad_option
from blemish.files import appending, locked, replacing, write_bytes
from blemish.images import Picture
from blemish.progress import bar
from blemish.reading import read_batches
from blemish.rows import Finder
from blemish.synthesis.pictures import to_bytes
from blemish.synthesis.sampling import AT_ONCE, Drawing, Drawn, class_of, draw
from blemish.synthesis.sdas import SUFFIX, DiffusionModel, load
from blemish.types import Failure, Preprocessing, Sample

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which pictures a set shall have."""

    category: str = ""
    """One that the model knows; may be left out where it knows one only."""
    count: int = 16
    """How many pictures."""
    first: int = 0
    """Number of the first one: parts of a set can be made on several machines."""
    init: Path | None = None
    """Folder of real good pictures to start from, so that the change stays aligned with the part."""

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("first", 0)):
            if getattr(self, name) < least:
                raise bad_option(name, getattr(self, name), f"{least} or more")


@dataclass(frozen=True)
class Written:
    """What came of a run."""

    drawn: int
    """Pictures that were made now."""
    found: int
    """Pictures that an earlier run had made."""
    failures: list[Failure]
    """Real pictures to start from that could not be read."""


Made: TypeAlias = tuple[int, dict[str, Any], Mapping[str, bytes]]
"""The number of a picture, its line of the manifest, and the contents of its files by their names in the folder."""


@dataclass(frozen=True)
class Actors:
    """Who draws, where it is not this process."""

    model: Path
    """The model's file."""
    cluster: Cluster


def write(
    folder: Path,
    model: DiffusionModel,
    model_hash: str,
    wanted: Wanted,
    drawing: Drawing,
    actors: Actors | None = None,
) -> Written:
    """Draws the pictures that are not in `folder` yet.

    Args:
        folder: Where the set lies, or shall lie.
        model: What draws.
        model_hash: Of its file, for the manifest.
        wanted: Which pictures.
        drawing: How.
        actors: Who draws; this process if not given.

    Raises:
        ConfigError: the model does not know the category.
        OutputError: another run writes there, the pictures there were drawn otherwise, or they can't be written.
    """
    label = class_of(model, wanted.category)
    category = model.known.categories[label]
    size = model.known.config.image_size
    real, names, failures = _real(wanted.init, Preprocessing(size, model.known.intensity))
    settings = {
        "model": model_hash,
        **{name: value for name, value in asdict(drawing).items() if name != "strength"},
        "strengths": list(drawing.span),
        "init": None if wanted.init is None else str(wanted.init),
    }
    with locked(folder):
        lines = read_manifest(folder, whole=False)
        done = _done(folder, lines, category, settings)
        numbers = range(wanted.first, wanted.first + wanted.count)
        remaining = [number for number in numbers if number not in done]
        _mend(folder, lines)
        made = _drawn(model, label, drawing, real, remaining)
        if actors is not None:
            made = _drawn_by(actors, _Task(model_hash, label, drawing), real, remaining)
        with appending(folder / MANIFEST) as add, bar("Draw", wanted.count) as drawn_bar:
            drawn_bar.advance(wanted.count - len(remaining))
            for number, line, contents in made:
                for name, content in contents.items():
                    write_bytes(folder / name, content)
                start = names[number % len(names)] if names else None
                add(json.dumps(line | settings | {"start": start}))
                drawn_bar.advance()
        if actors is not None:
            _sort(folder)
    return Written(len(remaining), wanted.count - len(remaining), failures)


@dataclass(frozen=True)
class _Task:
    model: str
    label: int
    drawing: Drawing


def _drawn(
    model: DiffusionModel, label: int, drawing: Drawing, real: Picture | None, numbers: Sequence[int]
) -> Iterator[Made]:
    begin = None if real is None else lambda number: real[number % len(real)]
    category = model.known.categories[label]
    for number, drawn in draw(model, label, numbers, drawing, begin):
        yield number, *_encoded(category, number, drawn)


def _drawn_by(actors: Actors, task: _Task, real: Picture | None, numbers: Sequence[int]) -> Iterator[Made]:
    """The same by actors, group by group as they are done; a group is what is computed at once."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(number // AT_ONCE, []).append(number)
    shared = {"model": actors.model.read_bytes()}
    if real is not None:
        opened = io.BytesIO()
        np.save(opened, real)
        shared["real"] = opened.getvalue()
    blocks = ((group, json.dumps(own)) for group, own in groups.items())
    waiting = set(numbers)
    make = partial(_drawing, task, actors.cluster.device)
    for _, found in engine.spread(blocks, make, shared, actors.cluster):
        lines = json.loads(found["lines"])
        for number, line in ((number, line) for number, line in lines if number in waiting):
            waiting.discard(number)
            places = (line[name] for name in ("path", "mask", "confidence"))
            yield number, line, {place: found[place] for place in places}


def _drawing(task: _Task, device: str, shared: Files) -> Work:
    """What an actor does with numbers, after it has loaded the model."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"model{SUFFIX}"
        file.write_bytes(shared["model"])
        model = load(file, device)
    real = np.load(io.BytesIO(shared["real"]), allow_pickle=False) if "real" in shared else None

    def work(text: str) -> Files:
        made = list(_drawn(model, task.label, task.drawing, real, json.loads(text)))
        contents = {name: content for _, _, own in made for name, content in own.items()}
        return contents | {"lines": json.dumps([(number, line) for number, line, _ in made]).encode()}

    return work


def _sort(folder: Path) -> None:
    """Puts the lines of the manifest in order: actors are done in any."""
    lines = read_manifest(folder)
    categories = list(dict.fromkeys(line["category"] for line in lines))
    lines.sort(key=lambda line: (categories.index(line["category"]), line["index"]))
    write_bytes(folder / MANIFEST, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def read_manifest(folder: Path, whole: bool = True) -> list[dict[str, Any]]:
    """The lines of a set's manifest.

    Args:
        folder: Of the set.
        whole: Whether the last line must be complete; a killed run may have left half of it.

    Raises:
        DatasetError: there is no manifest, or a line is no JSON object with path, category and index.
    """
    file = folder / MANIFEST
    if not file.is_file():
        if whole:
            raise DatasetError(f"{folder} has no {MANIFEST}; expected a folder written by blemish synthesize sample.")
        return []
    *lines, last = file.read_text("utf-8").split("\n")
    rows = []
    for number, line in enumerate([*lines, last] if whole and last else lines, start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "path": str(row["path"]), "category": str(row["category"]), "index": int(row["index"])})
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{file}, row {number}: expected a JSON object with path, category and index, as blemish synthesize "
                "sample writes it; take the row out, or choose another folder."
            ) from error
    return rows


def lay_out(source: Path, target: Path, name: str, quality: int | None) -> dict[str, int]:
    """Copies a set to where the code of RealNet looks for it: target/name/sdas/CATEGORY/rank0_I.png.

    Args:
        source: Folder of the set.
        target: The `data` folder.
        name: Of the data set there, such as MVTec-AD.
        quality: Of JPEG files like those of the published SIA (75); None keeps PNG, which is better.

    Returns:
        Category → how many pictures.

    Raises:
        ConfigError: no such quality.
        DatasetError: no such set, or a path in it leads out of it.
        OutputError: a file can't be written.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise bad_option("quality", quality, "1 to 100; the published set has 75")
    find, counts = Finder(source), dict[str, int]()
    rows = read_manifest(source)
    with bar("Lay out", len(rows)) as drawn:
        for number, row in enumerate(rows, start=1):
            path = find(row["path"], f"{source / MANIFEST}, row {number}")
            category = _checked(row["category"], source)
            place = target / name / "sdas" / category / f"rank0_{row['index']}"
            if quality is None:
                with replacing(place.with_name(f"{place.name}.png")) as temporary:
                    shutil.copyfile(path, temporary)
            else:
                write_bytes(place.with_name(f"{place.name}.jpg"), images.encode(images.read(path), "JPEG", quality))
            counts[category] = counts.get(category, 0) + 1
            drawn.advance()
    return counts


def _checked(category: str, source: Path) -> str:
    if category in {"", ".", ".."} or Path(category).name != category:
        raise DatasetError(f'{source / MANIFEST}: "{category}" is no name of a folder; expected that of a category.')
    return category


def _real(folder: Path | None, preprocessing: Preprocessing) -> tuple[Picture | None, list[str], list[Failure]]:
    """The real pictures to start from (N, H, W, 3) uint8, their names, and those that can't be read."""
    failures: list[Failure] = []
    if folder is None:
        return None, [], failures
    if not folder.is_dir():
        raise DatasetError(f"--init is {folder}, and there is no such folder; expected one of good pictures.")
    samples = [
        Sample(path=path, category="", split="train", is_anomalous=False) for path in images.list_pictures(folder)
    ]
    batches = list(read_batches(samples, preprocessing, 16, failures))
    if not batches:
        raise DatasetError(f"--init is {folder}, and no picture directly in it can be read; expected good ones.")
    pictures = np.stack([to_bytes(image) for batch in batches for image in batch.images])
    return pictures, [sample.path.name for batch in batches for sample in batch.samples], failures


def _done(folder: Path, lines: Iterable[dict[str, Any]], category: str, settings: dict[str, Any]) -> set[int]:
    """The numbers of the pictures that are there.

    Raises:
        OutputError: they were drawn otherwise.
    """
    done = set()
    for line in lines:
        if line["category"] != category:
            continue
        for name, value in settings.items():
            if line.get(name) != value:
                raise OutputError(
                    f"{folder} holds pictures of {category} that were drawn with {name} {line.get(name)}, not {value}; "
                    "choose another --out, or give the same options."
                )
        if all(place.is_file() for place in _places(folder, category, line["index"])):
            done.add(line["index"])
    return done


def _mend(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Takes half a line, left by a killed run, off the end of the manifest, and lines whose files are gone."""
    kept = [
        line for line in lines if all(place.is_file() for place in _places(folder, line["category"], line["index"]))
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in kept)
    if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_text("utf-8") != text:
        write_bytes(folder / MANIFEST, text.encode())


def _places(folder: Path, category: str, number: int) -> tuple[Path, Path, Path]:
    name = f"{number:06}.png"
    return folder / category / name, folder / "masks" / category / name, folder / "confidence" / category / name


def _encoded(category: str, number: int, drawn: Drawn) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The line of one picture in the manifest, and the contents of its files by their names in the folder."""
    mask = drawn.mask.astype(np.uint8) * 255
    sure = np.floor(drawn.confidence * 256).astype(np.uint8)
    path, mask_path, confidence_path = (place.as_posix() for place in _places(Path(), category, number))
    contents = {path: images.encode(drawn.picture), mask_path: _grey(mask), confidence_path: _grey(sure)}
    return {
        "path": path,
        "category": category,
        "index": number,
        "strength": round(drawn.strength, 6),
        "mask": mask_path,
        "confidence": confidence_path,
        "changed": round(float(drawn.mask.mean()), 6),
        "surety": round(drawn.surety, 6),
    }, contents


def _grey(values: Picture) -> bytes:
    return bytes(cv2.imencode(".png", values)[1].tobytes())
