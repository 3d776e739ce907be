"""A small training that can be stopped: the network learns the mean of the three colours."""

from collections.abc import Callable

from torch import Tensor, nn

from blemish.training import Plan, Unfinished, optimise
from blemish.types import Outcome


def train(
    module: nn.Module,
    batches: Callable[[int], Tensor],
    held_out: Tensor,
    plan: Plan,
    unfinished: Unfinished | None = None,
    stop: int | None = None,
) -> tuple[Outcome, int]:
    """What it came to, and how many batches were taken; a keyboard interrupt before batch `stop`."""
    taken = []

    def distance(images: Tensor) -> Tensor:
        return (module(images) - images.mean(1, keepdim=True)).square().mean()

    def loss(images: Tensor) -> dict[str, Tensor]:
        if len(taken) == stop:
            raise KeyboardInterrupt
        taken.append(images)
        return {"square": distance(images)}

    return optimise(loss, module, batches, plan, lambda: -float(distance(held_out)), unfinished), len(taken)
