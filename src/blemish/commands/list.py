"""list models|datasets|metrics|formats|backbones: what there is, one line each."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from blemish import registry
from blemish.command import say

What = Literal["models", "datasets", "metrics", "formats", "backbones"]


@dataclass(frozen=True)
class List:
    """Say what there is, one line each."""

    what: Positional[What]

    def __call__(self) -> int:
        """Prints names and descriptions."""
        rows = _rows(self.what)
        width = max(len(name) for name, _ in rows)
        for name, description in rows:
            say(f"{name:{width}}  {description}")
        return 0


def _rows(what: What) -> list[tuple[str, str]]:
    if what == "metrics":
        from blemish.metric import all_metrics

        return [(metric.name, f"({metric.level}) {metric.description}") for metric in all_metrics().values()]
    if what == "backbones":
        from blemish.nn.backbone import EMBEDDED

        rows = [(name, f"weights on board, from the package {module}") for name, (module, _) in EMBEDDED.items()]
        return [*rows, ("any other", "of timm's networks with feature maps; weights are downloaded or given as a file")]
    return [(name, registry.describe(what, name)) for name in registry.names(what)]


COMMAND = List
