"""Parts: which pictures are views of one part."""

import re
from collections.abc import Sequence

from blemish.types import Sample


def places_of_parts(samples: Sequence[Sample]) -> list[list[int]]:
    """The places of the views of each part among the samples; parts in order of their first view.

    Views are in their own order, numbers as numbers. A picture that belongs to no part is one.
    """
    places: dict[tuple[str, str, str], list[int]] = {}
    for place, sample in enumerate(samples):
        key = (sample.category, sample.part, "" if sample.part else str(sample.path))
        places.setdefault(key, []).append(place)
    return [sorted(own, key=lambda place: view_order(samples[place])) for own in places.values()]


def view_order(sample: Sample) -> tuple[list[tuple[int, str]], str]:
    """What views of one part are sorted by: C2 comes before C10."""
    pieces = re.split(r"(\d+)", sample.view)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces], str(sample.path)
