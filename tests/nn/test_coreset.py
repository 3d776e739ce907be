import pytest
import torch

from blemish.nn.coreset import greedy_coreset, project, squared_distances


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_greedy(points: torch.Tensor, size: int, first: int) -> list[int]:
    """Algorithm 1 of the paper, word by word, in double precision."""
    points = points.double()
    chosen = [first]
    while len(chosen) < size:
        distances = torch.cdist(points, points[chosen]).amin(1)
        if distances.max() == 0:
            break
        chosen.append(int(distances.argmax()))
    return chosen


@pytest.mark.parametrize(("count", "width", "size"), [(300, 5, 40), (6000, 8, 60), (5000, 3, 25), (50, 4, 50)])
def test_coreset_is_that_of_the_plain_algorithm(count, width, size):
    points = torch.randn(count, width, generator=seeded(count))
    first = int(torch.randint(count, (1,), generator=seeded(7)))
    assert greedy_coreset(points, size, seeded(7)).tolist() == plain_greedy(points, size, first)


def test_coreset_is_right_when_the_pool_runs_dry():
    """Far fewer distinct places than the pool is large, so that others must be looked at again and again."""
    places = torch.randn(40, 6, generator=seeded(0)) * 100
    points = places.repeat_interleave(300, 0) + torch.randn(12_000, 6, generator=seeded(1))
    first = int(torch.randint(len(points), (1,), generator=seeded(7)))
    chosen = greedy_coreset(points, 80, seeded(7)).tolist()
    assert chosen == plain_greedy(points, 80, first)


def test_coreset_stops_at_copies():
    points = torch.randn(10, 4, generator=seeded(0)).repeat(200, 1)
    chosen = greedy_coreset(points, 100, seeded(0))
    assert sorted((chosen % 10).tolist()) == list(range(10))


def test_coreset_of_one_point():
    assert greedy_coreset(torch.ones(1, 3), 5, seeded(0)).tolist() == [0]


def test_projection_keeps_distances_nearly():
    points = torch.randn(200, 512, generator=seeded(0))
    before, after = (torch.pdist(value) for value in (points, project(points, 128, seeded(1))))
    assert ((after / before) - 1).abs().mean() < 0.06
    assert project(points, 512, seeded(1)) is points


def test_squared_distances():
    one, other = torch.randn(7, 5, generator=seeded(0)), torch.randn(4, 5, generator=seeded(1))
    torch.testing.assert_close(squared_distances(one, other), torch.cdist(one, other) ** 2, rtol=1e-4, atol=1e-4)
