"""Coresets: few points that lie close to all others, chosen greedily.

Source: Roth et al., arXiv 2106.08265, section 3.2 and algorithm 1.
"""

import torch
from torch import Tensor

from blemish.progress import Bar

POOL = 1024
"""Farthest points that the coreset is chosen among before all are looked at again."""


def squared_distances(points: Tensor, entries: Tensor) -> Tensor:
    """Squared Euclidean distances (N, M) between points (N, D) and entries (M, D); rounding may leave them below 0."""
    norms = points.square().sum(1, keepdim=True) + entries.square().sum(1)
    distances: Tensor = torch.addmm(norms, points, entries.T, alpha=-2)
    return distances


def project(patches: Tensor, width: int, draw: torch.Generator) -> Tensor:
    """Patches (N, D) in a random subspace (N, `width`) that nearly keeps distances; as they are if D is no larger."""
    if width >= patches.shape[1]:
        return patches
    directions = torch.randn(patches.shape[1], width, generator=draw) / width**0.5
    projected: Tensor = patches @ directions.to(patches)
    return projected


def greedy_coreset(points: Tensor, size: int, draw: torch.Generator, drawn: Bar | None = None) -> Tensor:
    """Indices (`size`,) of points (N, D) chosen greedily: each is the farthest from those before it.

    The result is that of the plain greedy k-center algorithm, which goes through all N points for
    each choice. Here only a pool of the farthest points is gone through: their distances are kept
    exact, those of the others can only have shrunk since the pool was made, so as long as the
    farthest in the pool is farther than any other was then, it is the farthest of all. When it no
    longer is, the choices made are applied to all points in one matrix product and a new pool is
    made. Fewer are chosen when all that is left are copies of chosen ones.

    Source: arXiv 2106.08265, algorithm 1; Gonzalez 1985.
    """
    size = min(size, len(points))
    points = points - points.mean(0)
    first = int(torch.randint(len(points), (1,), generator=draw))
    chosen = [first]
    nearest = squared_distances(points, points[first : first + 1]).squeeze(1)
    nearest[first] = 0
    while len(chosen) < size:
        far, index = nearest.topk(min(POOL, len(points)))
        picks = _greedy_in_pool(points[index], far, size - len(chosen))
        if not len(picks):
            break
        picked = index[picks]
        for block, rows in zip(nearest.split(16_384), points.split(16_384), strict=True):
            torch.minimum(block, squared_distances(rows, points[picked]).amin(1), out=block)
        nearest[picked] = 0
        chosen += picked.tolist()
        if drawn is not None:
            drawn.advance(len(picked))
    return torch.tensor(chosen, device=points.device)


def _greedy_in_pool(pool: Tensor, far: Tensor, count: int) -> Tensor:
    """Positions in the pool of at most `count` choices that are the farthest of all points, too.

    Args:
        pool: (P, D) the farthest points.
        far: (P,) their squared distances to what is chosen, descending.
        count: The number of choices still to make.
    """
    outside = far[-1] if count else far[0]
    norms = pool.square().sum(1)
    far = far.clone()
    smallest = norms.max() * 1e-6  # below the rounding of the distances: a copy
    picks: list[Tensor] = []
    while len(picks) < count:
        value, where = far.max(0)
        if value <= smallest or (picks and value < outside):
            break
        picks.append(where)
        to_pick = norms + norms[where] - 2 * (pool @ pool[where])
        far = torch.minimum(far, to_pick)
        far[where] = 0
    return torch.stack(picks) if picks else torch.zeros(0, dtype=torch.long, device=pool.device)
