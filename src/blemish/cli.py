"""The command line: finds the command that is meant, and turns errors into a sentence and an exit status.

What a command must be is written in `command.py`; this module knows none of them by name but for
the order in which they are listed.
"""

import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence

from rich.console import Console

from blemish import __version__, distributed, options, registry
from blemish.command import FAILED, say
from blemish.errors import BlemishError, ConfigError, not_among

FIRST = ("fit", "predict", "score")
"""The main job, listed before all else."""
HELP = ("-h", "--help", "help")
EXTRAS = {
    "torch": "train",
    "timm": "train",
    "faster_coco_eval": "coco",
    "onnxruntime": "runtime",
    "openvino": "runtime",
    "onnx": "export",
    "onnxscript": "export",
    **dict.fromkeys(("starlette", "uvicorn", "python_multipart", "sqlalchemy", "prometheus_client"), "serve"),
    "scipy": "drift",
    **dict.fromkeys(("ray", "pyarrow", "fsspec"), "scale"),
}
"""Optional packages, and the extra that brings them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 1 done but some pictures could not be used, 2 not done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what the terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(run([word for word in given if word != "--debug"]))
    except (BlemishError, ModuleNotFoundError) as error:
        if "--debug" in given:
            traceback.print_exc()
        elif isinstance(error, ModuleNotFoundError):
            error = missing(error)
        Console(stderr=True).print(f"{type(error).__name__}: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has left, which is their right
        sys.exit(0)
    except OSError as error:  # of the machine, and so nothing that a traceback explains
        if "--debug" in given:
            traceback.print_exc()
        place = f"{error.filename}: " if error.filename else ""
        said = f"{type(error).__name__}: {place}{error.strerror or error}; see to permissions and free space."
        Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)
        sys.exit(FAILED)


def run(arguments: Sequence[str]) -> int:
    """The exit status of the command in `arguments`.

    Raises:
        BlemishError: it can't be done; the message says why.
    """
    if not arguments or arguments[0] in HELP:
        say(usage(commands()))
        return 0
    if arguments[0] == "--version":
        say(f"blemish {__version__}")
        return 0
    siblings = {name: file for name, file in commands().items() if name.startswith(f"{arguments[0]} ")}
    if siblings and (not arguments[1:] or arguments[1] in HELP):
        say(usage(siblings))
        return 0 if arguments[1:] else FAILED
    name = find(arguments)
    words = options.with_config_file(list(arguments[len(name.split()) :]))
    module = registry.load("commands", commands()[name])
    if distributed.asked() and not getattr(module, "TOGETHER", False):
        raise ConfigError(
            f"blemish {name} runs in one process, and torchrun has started {os.environ['WORLD_SIZE']}; start it "
            "without torchrun."
        )
    command = module.COMMAND
    if not isinstance(command, type):
        command = command(words)
    return int(options.parse(command, f"blemish {name}", words)())


def commands() -> dict[str, str]:
    """{the words of a command: its plug-in}, the main job first."""
    names = {" ".join(file.split("_", 1)).replace("_", "-"): file for file in registry.names("commands")}
    return {name: names[name] for name in (*FIRST, *sorted(set(names).difference(FIRST)))}


def find(arguments: Sequence[str]) -> str:
    """The command that the first words name.

    Raises:
        ConfigError: there is none; the message suggests the nearest one.
    """
    known = commands()
    for count in (2, 1):
        if (name := " ".join(arguments[:count])) in known:
            return name
    siblings = [name for name in known if name.startswith(f"{arguments[0]} ")]
    if siblings:
        raise ConfigError(not_among("command", " ".join(arguments[:2]), siblings))
    raise ConfigError(not_among("command", arguments[0], {name.split()[0] for name in known}))


def usage(names: Mapping[str, str]) -> str:
    """What these commands are, a line each: the words that are typed and what comes of them."""
    lines = [registry.describe("commands", file).removesuffix(".").partition(": ") for file in names.values()]
    width = max(len(typed) for typed, *_ in lines)
    listed = "\n".join(f"  {typed:{width}}  {what}" for typed, _, what in lines)
    return f"""\
usage: blemish COMMAND [OPTIONS]

Finds defects in pictures of manufactured parts: learns from good ones what good looks like.

{listed}

Each has --help, and takes --config FILE.toml (option names and values) and --debug (tracebacks).
New here? Type: blemish demo"""


def missing(error: ModuleNotFoundError) -> ConfigError:
    """What to install when an optional package is not there; any other missing module is raised as it is."""
    if error.name not in EXTRAS:
        raise error
    return ConfigError(f'this needs {error.name}, which is not installed: pip install "blemish[{EXTRAS[error.name]}]"')
