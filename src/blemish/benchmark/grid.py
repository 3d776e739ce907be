"""What a benchmark runs: options, and the cells that they span."""

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from blemish import __version__
from blemish.dataset import Dataset, open_dataset
from blemish.errors import ConfigError, bad_option, not_among
from blemish.headers import from_plain
from blemish.metric import Mode, Protocol, all_metrics
from blemish.types import Sample

Setting: TypeAlias = Mapping[str, Any]
"""Options of a model by name; and `preset` to start from, and `models` it is meant for."""
DEFAULT = "default"
"""The name of the only setting where none is given."""


def parse_settings(words: Sequence[str]) -> dict[str, Setting]:
    """Settings from words like `fine={patch_stride=4, strides=[4, 8]}`, whose values are TOML.

    Raises:
        ConfigError: a word is not of that form.
    """
    found: dict[str, Setting] = {}
    for word in words:
        try:
            read = tomllib.loads(word)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                f'--settings "{word}" can\'t be read ({error}); expected NAME={{KEY=VALUE, ...}}.'
            ) from error
        found |= _check_settings(read)
    return found


def _check_settings(found: Any) -> dict[str, Setting]:
    if not isinstance(found, dict) or not all(isinstance(setting, dict) for setting in found.values()):
        raise ConfigError(f"settings are {found!r}; expected tables of options by name, [settings.NAME] in TOML.")
    return found


Settings: TypeAlias = Annotated[
    Mapping[str, Setting],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME={KEY=VALUE,...}",
        instance_from_str=parse_settings,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [f"{name}={json.dumps(setting)}" for name, setting in value.items()],
    ),
]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Models x data x categories x settings x seeds, and how to run them."""

    data: Annotated[Positional[tuple[Path, ...]], arg(metavar="DATA...")] = ()
    """Folders of pictures, or manifests; or one file ending in .toml with all these options."""
    models: tuple[str, ...] = ("patchcore",)
    """Names of blemish list models, with commas between them."""
    categories: tuple[str, ...] = ()
    """Which ones, with commas between them; all that are found if not given."""
    seeds: tuple[int, ...] = (0,)
    """With commas between them; each decides what is held out and what is drawn."""
    preset: str = "small"
    """Named configuration that every setting starts from, unless it names its own."""
    settings: Settings = field(default_factory=dict)
    """Options of the models that are tried beside each other, a name for each set."""
    together: bool = False
    """One model for all categories of a folder, in place of one for each."""
    dataset: str = "auto"
    """Name of the layout of all the data, if it should not be recognised."""
    protocol: Protocol = "default"
    """How metrics are computed: our way, or that of published tables."""
    mode: Mode = "auto"
    """Keep all map values, or count them in bounded memory."""
    metrics: tuple[str, ...] = ()
    """Columns of the tables; see blemish list metrics."""
    beside: str = ""
    """A dataset whose published figures are shown, too: mvtec_ad, visa, coco_ad, ..."""
    jobs: int = 1
    """Cells that run at the same time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    backbone_weights: str = "default"
    """default (embedded, or downloaded for other backbones), random, or a file."""
    out: Path = Path("benchmark")
    """Folder for the tables and the cells."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise bad_option("jobs", self.jobs, "1 or more")
        for name, choices in (("protocol", get_args(Protocol)), ("mode", get_args(Mode))):
            if getattr(self, name) not in choices:
                raise ConfigError(not_among(name, getattr(self, name), choices))
        for name in ("models", "seeds"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is empty; expected at least one.")
        for name in self.metrics:
            if name not in all_metrics():
                raise ConfigError(not_among("metric", name, all_metrics()))


def read_grid(file: Path) -> Grid:
    """The grid that a TOML file describes: keys are the options; paths are relative to the file's folder.

    Raises:
        ConfigError: it can't be read, or has an unknown key or a value that does not fit.
    """
    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} can't be read as TOML ({error}).") from error
    defaults = {item.name: getattr(Grid(), item.name) for item in dataclasses.fields(Grid)}
    values = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in defaults:
            raise ConfigError(f"{file}: {not_among('option', key, defaults)}")
        values[name] = _fitting(value, defaults[name], name, file)
    try:
        return Grid(**values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _fitting(value: Any, default: Any, name: str, file: Path) -> Any:
    """The value as the option wants it; one alone stands for a list of one."""
    if name == "settings":
        return _check_settings(value)
    if isinstance(default, tuple):
        kind = {"data": str, "seeds": int}.get(name, str)
        items = value if isinstance(value, list) else [value]
        if all(type(item) is kind for item in items):
            return tuple(file.parent / item for item in items) if name == "data" else tuple(items)
    elif isinstance(default, Path) and isinstance(value, str):
        return file.parent / value
    elif type(value) is type(default):
        return value
    raise ConfigError(f"{file}: {name} is {value!r}; expected something like {_example(name, default)}.")


def _example(name: str, default: Any) -> str:
    examples = {"data": '["parts"]', "models": '["patchcore"]', "seeds": "[0, 1]"}
    return examples.get(name, '["…"]' if isinstance(default, tuple) else json.dumps(default, default=str))


@dataclass(frozen=True)
class Cell:
    """One fit and one score, and all that they depend on."""

    model: str
    setting: str
    config: Mapping[str, Any]
    """The model's whole configuration, as plain values."""
    data: str
    """The folder or manifest, absolute."""
    layout: str
    categories: tuple[str, ...]
    together: bool
    seed: int
    device: str
    backbone_weights: str
    learned: str
    """Fingerprint of the pictures that are learned from and calibrated on."""
    tested: str
    """Fingerprint of the pictures that are tested."""
    protocol: Protocol
    mode: Mode
    version: str = __version__

    @property
    def name(self) -> str:
        """What a person calls it."""
        setting = "" if self.setting == DEFAULT else f", {self.setting}"
        what = f"all of {Path(self.data).name} together" if self.together else self.categories[0]
        return f"{self.model}{setting}, {what}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """A name that no other cell has: what a person calls it, and a hash of all that the fit depends on."""
        words = (self.model, self.setting, Path(self.data).stem, *(() if self.together else self.categories))
        plain = re.sub(r"[^\w.]+", "_", "-".join(words))[:100]
        return f"{plain}-seed{self.seed}-{self._key('setting', 'tested', 'protocol', 'mode')}"

    @property
    def scores(self) -> str:
        """The file of its scores, named after all that they depend on beside the fit."""
        return f"scores-{self._key('setting', 'learned', 'device')}.json"

    def _key(self, *without: str) -> str:
        plain = {name: value for name, value in asdict(self).items() if name not in without}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]


def cells_of(grid: Grid) -> list[Cell]:
    """All cells, in the order of the table; every option of every model is checked before anything runs.

    Raises:
        ConfigError: no data, no such model, preset, category or option, or two cells that are the same.
        DatasetError: data that can't be opened, or has nothing to learn from.
    """
    if not grid.data:
        raise ConfigError("there is no data; name folders of pictures, or a .toml file that does.")
    cells = []
    for root in grid.data:
        opened = [(seed, _open(grid, root, seed)) for seed in grid.seeds]
        for model, setting, config in _configured(grid):
            for seed, data in opened:
                parts = [tuple(data.categories)] if grid.together else [(name,) for name in data.categories]
                cells += [_cell(grid, data, (model, setting, config), seed, names) for names in parts]
    # By their names, because a setting that says the same as another is another row of the table.
    names = [(cell.setting, cell.folder) for cell in cells]
    for cell, name in zip(cells, names, strict=True):
        if names.count(name) > 1:
            raise ConfigError(f"{cell.name}: is in the grid twice; name every model, folder and seed once.")
    return cells


def _open(grid: Grid, root: Path, seed: int) -> Dataset:
    data = open_dataset(grid.dataset, root, category=grid.categories, seed=seed)
    for names in [data.categories] if grid.together else [[name] for name in data.categories]:
        data.of(*names).require_train()
    return data


def _configured(grid: Grid) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Model, setting and whole configuration of every row of the table."""
    from blemish import detector

    for model in grid.models:
        kind = detector.find(model)
        for name, setting in (grid.settings or {DEFAULT: {}}).items():
            wanted = setting.get("models", [model])
            if model not in ([wanted] if isinstance(wanted, str) else wanted):
                continue
            preset = detector.preset_of(kind, model, setting.get("preset", grid.preset))
            changes = {key: value for key, value in setting.items() if key not in {"models", "preset"}}
            try:
                detector.configure(preset, changes)
                config = from_plain(type(preset), {**asdict(preset), **changes})
            except (ConfigError, TypeError) as error:
                raise ConfigError(f'setting "{name}" of {model}: {error}') from error
            yield model, name, json.loads(json.dumps(asdict(config)))


def _cell(
    grid: Grid, data: Dataset, what: tuple[str, str, dict[str, Any]], seed: int, categories: tuple[str, ...]
) -> Cell:
    model, setting, config = what
    own = data.of(*categories)
    return Cell(
        model=model,
        setting=setting,
        config=config | {"seed": seed},
        data=str(data.root.absolute()),
        layout=grid.dataset,
        categories=categories,
        together=grid.together,
        seed=seed,
        device=grid.device,
        backbone_weights=grid.backbone_weights,
        learned=_fingerprint([*own.train, *own.validation]),
        tested=_fingerprint(own.test),
        protocol=grid.protocol,
        mode=grid.mode,
    )


def _fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of which pictures these are and what is known of them; of their content it sees the size."""
    key = hashlib.sha256()
    for sample in samples:
        sizes = [path.stat().st_size if path.exists() else -1 for path in (sample.path, *sample.masks)]
        key.update(repr((sample, sizes)).encode("utf-8", "surrogateescape"))
    return key.hexdigest()[:16]
