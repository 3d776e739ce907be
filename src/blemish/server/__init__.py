"""The inspection server: artifacts behind HTTP, with a page for people and a record of every inspection.

A request passes the `gate`, is decoded and computed by an `inspector` (through a `batcher`, together
with what else is waiting), becomes a row of the `record`, and only then is answered.
"""

from blemish.server.app import Options, create_app
from blemish.server.connection import server_of
from blemish.server.gate import LOCAL, Limits
from blemish.server.inspector import Artifact
from blemish.server.record import Query, Record

__all__ = ["LOCAL", "Artifact", "Limits", "Options", "Query", "Record", "create_app", "server_of"]
