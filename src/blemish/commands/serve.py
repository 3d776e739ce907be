"""serve ARTIFACT...: HTTP API, inspection page and record."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from tyro.conf import Positional, arg

from blemish.command import say
from blemish.errors import ConfigError, bad_option
from blemish.types import Policy

if TYPE_CHECKING:
    from blemish.server import Artifact, Record

TOKEN = "BLEMISH_TOKEN"  # noqa: S105 - the name of a variable


@dataclass(frozen=True)
class Serve:
    """Answer HTTP requests with scores, decisions and heatmaps, show them on a page, and write them down."""

    artifacts: Annotated[Positional[tuple[str, ...]], arg(metavar="ARTIFACT|NAME=ARTIFACT...")]
    """Made by blemish fit or blemish export; called like its file, or by the name before the equals sign."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8470
    """Port to listen on; 0 takes any that is free."""
    record: str = "inspections.sqlite"
    """Database of all inspections: a file, a URL such as postgresql+psycopg://user@host/database, or none."""
    keep: Path | None = None
    """Folder for the inspected pictures, so that the review list can show them."""
    watch: Path | None = None
    """Folder whose new pictures are inspected by the first artifact."""
    token: str = ""
    """What requests must bring as Authorization: Bearer TOKEN; better given in the variable BLEMISH_TOKEN."""
    max_false_reject: float | None = None
    """Another rate than the artifacts' own."""
    max_review: float | None = None
    """Another grey zone than the artifacts' own."""
    max_megabytes: float = 32.0
    """Size of a request, at most."""
    max_megapixels: float = 50.0
    """Size of a picture, at most."""
    waiting: int = 64
    """Pictures that may be in work; more are told to come again (429)."""
    timeout: float = 30.0
    """Seconds for a request to come in, and for it to be answered."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""

    def __call__(self) -> int:
        """Serves until it is stopped (Ctrl-C or SIGTERM); requests in work are answered first."""
        from blemish.server import LOCAL, Limits, Options, Record, create_app, server_of

        limits = Limits(
            max_megabytes=self.max_megabytes,
            max_megapixels=self.max_megapixels,
            waiting=self.waiting,
            timeout=self.timeout,
        )
        if self.watch is not None and not self.watch.is_dir():
            raise ConfigError(f"--watch {self.watch} is not a folder; name one that pictures are put into.")
        token = (self.token or os.environ.get(TOKEN, "")).strip()  # as headers are
        local = self.host in LOCAL
        served = self._load()
        options = Options(limits=limits, token=token, local=local, keep=self.keep, watch=self.watch)
        with self._listen() as listening:
            # Last, so that what does not start leaves no empty database.
            record = None if self.record == "none" else Record(self.record)
            server = server_of(create_app(served, record, options), limits)
            self._announce(served, record, listening.getsockname()[1], is_open=not (token or local))
            server.run([listening])
        return 0

    def _load(self) -> "list[Artifact]":
        from blemish import artifact
        from blemish.files import digest
        from blemish.server import Artifact

        found: dict[str, Artifact] = {}
        for word in self.artifacts:
            name, equals, file = word.partition("=")
            path = Path(file if equals else word)
            name = name if equals else path.stem
            if name in found:
                raise ConfigError(f'two artifacts are called "{name}"; give one another name: other={path}.')
            predictor = artifact.load(path, device=self.device)
            # The first picture would else wait until the network is compiled.
            predictor.predict(np.zeros((1, 3, *predictor.preprocessing.image_size), np.float32))
            own = predictor.policy
            policy = Policy(
                own.max_false_reject if self.max_false_reject is None else self.max_false_reject,
                own.max_review if self.max_review is None else self.max_review,
            )
            found[name] = Artifact(name, predictor, digest(path), policy)
        if not found:
            raise ConfigError("no artifact is named; type blemish serve part.blemish.")
        return list(found.values())

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        if not 0 <= self.port < 2**16:
            raise bad_option("port", self.port, "0 to 65535")
        try:
            listening = socket.create_server((self.host, self.port), family=family, backlog=2048)
            # What it accepts inherits this; else an answer in two pieces waits 40 ms for an acknowledgement.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return listening
        except OSError as error:
            raise ConfigError(
                f"can't listen on {self.host}, port {self.port} ({error.strerror or error}); choose another "
                "--port or --host."
            ) from error

    def _announce(self, served: "list[Artifact]", record: "Record | None", port: int, *, is_open: bool) -> None:
        for artifact in served:
            say(f"{artifact.name}: {artifact.predictor.header.model}, {', '.join(artifact.predictor.categories)}")
        say(f"Record: {record.name if record else 'none; inspections are not written down'}")
        if is_open:
            say(f"Anybody who reaches {self.host} can use this server: set a token in the variable {TOKEN}.")
        host = f"[{self.host}]" if ":" in self.host else self.host
        say(f"Open http://{host}:{port} (API: /docs). Ctrl-C stops it.")


COMMAND = Serve
