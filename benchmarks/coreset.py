"""Speed of the greedy coreset beside a plain implementation of the same algorithm, in one run.

    python benchmarks/coreset.py [--patches 40000] [--width 152] [--size 2000]

Prints steps a second of both and whether they chose the same patches.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from blemish.nn.coreset import greedy_coreset

Distance = Callable[[Tensor, Tensor], Tensor]


def by_product(points: Tensor, one: Tensor) -> Tensor:
    """Distances (N,) by a matrix product: the quickest there is for one step."""
    return torch.cdist(points, one).squeeze(1)


def by_difference(points: Tensor, one: Tensor) -> Tensor:
    """Distances (N,) from all differences, as implementations in use do."""
    return F.pairwise_distance(points, one)


def plain(points: Tensor, size: int, first: int, distance: Distance) -> list[int]:
    """Goes through all points for each choice."""
    chosen = [first]
    nearest = distance(points, points[first : first + 1])
    for _ in range(size - 1):
        index = int(nearest.argmax())
        chosen.append(index)
        nearest = torch.minimum(nearest, distance(points, points[index : index + 1]))
        nearest[index] = 0
    return chosen


def main() -> None:
    """Runs both and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=40_000)
    parser.add_argument("--width", type=int, default=152)
    parser.add_argument("--size", type=int, default=2_000)
    parser.add_argument("--plain-steps", type=int, default=200)
    options = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    # Patches of pictures lie near a subspace of far fewer dimensions than they have numbers.
    basis = torch.randn(24, options.width, generator=draw)
    points = torch.randn(options.patches, 24, generator=draw) @ basis
    points += 0.1 * torch.randn(options.patches, options.width, generator=draw)
    first = int(torch.randint(options.patches, (1,), generator=torch.Generator().manual_seed(1)))
    greedy_coreset(points[:2000], 100, torch.Generator())  # so that everything is warm
    rows = []
    start = time.perf_counter()
    ours = greedy_coreset(points, options.size, torch.Generator().manual_seed(1)).tolist()
    rows.append(("blemish", options.size / (time.perf_counter() - start)))
    for distance in (by_product, by_difference):
        start = time.perf_counter()
        theirs = plain(points, options.plain_steps, first, distance)
        name = f"plain, {distance.__name__.replace('_', ' ')}"
        rows.append((name, options.plain_steps / (time.perf_counter() - start)))
    print(f"{options.patches} patches of {options.width} numbers, {torch.get_num_threads()} threads")
    for name, rate in rows:
        print(f"{name:21} {rate:8.1f} steps/s, {rows[0][1] / rate:4.0f} times slower than the first")
    print(f"first {options.plain_steps} choices equal: {ours[: len(theirs)] == theirs}")


if __name__ == "__main__":
    main()
