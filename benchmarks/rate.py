"""How often something is done in a second; also for environments that have no Blemish."""

import time
from collections.abc import Callable


def per_second(work: Callable[[], int], rounds: int) -> float:
    """Pictures per second of work that says how many pictures it went through; the first round is not counted."""
    found = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        count = work()
        found.append(count / (time.perf_counter() - start))
    return max(found[1:])
