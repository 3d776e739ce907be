"""Clusters of features: found, and the same in every picture."""

import torch

from blemish.nn.backbone import DEFAULT
from blemish.nn.clusters import Clusters, k_means


def test_k_means_finds_separate_heaps_largest_first():
    draw = torch.Generator().manual_seed(0)
    heaps = torch.tensor([[0.0, 9.0], [9.0, 0.0], [-9.0, -9.0]])
    points = torch.cat([heap + torch.randn(n, 2, generator=draw) for heap, n in zip(heaps, (20, 90, 50), strict=True)])
    torch.testing.assert_close(k_means(points, 3, draw), heaps[[1, 2, 0]], atol=0.8, rtol=0)


def test_more_centres_than_points_to_tell_apart_are_numbers():
    assert k_means(torch.ones(5, 2), 3, torch.Generator().manual_seed(0)).isfinite().all()


def test_a_part_keeps_its_number_wherever_it_lies():
    draw = torch.Generator().manual_seed(0)
    left = torch.zeros(1, 3, 64, 128)
    left[..., :64] = torch.rand(1, 3, 64, 64, generator=draw)
    right = left.flip(3)
    clusters = Clusters(DEFAULT, "default", 2).eval()
    with torch.inference_mode():
        clusters.learn([left, right], 2, draw)
        one, other = clusters(left), clusters(right)
    assert set(one.unique().tolist()) == {0, 1}
    assert (one == other.flip(2)).float().mean() > 0.85
    assert (one[..., 16:48] == one[0, 32, 32]).float().mean() > 0.9
    assert one[0, 32, 32] != one[0, 32, 96]
