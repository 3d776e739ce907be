"""Parts: which pictures are views of one part, and what to do where views are missing or there twice.

A picture that belongs to no part is a part of its own.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from blemish.errors import ConfigError, DatasetError, count_of
from blemish.types import Sample

MissingViews = Literal["keep", "drop", "error"]
"""Parts that lack views are kept (models that look at views together look past what lacks), left out, or refused."""


def part_of(sample: Sample) -> tuple[str, str, str]:
    """What all views of one part have in common, and no other picture has."""
    return sample.category, sample.part, "" if sample.part else str(sample.path)


def places_of_parts(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """The places of the views of each part among the samples; parts in order of their first view.

    Views are in their own order, numbers as numbers. Of pictures that belong to no part nothing is remembered.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.part:
            places.setdefault((sample.category, sample.part), []).append(place)
    for place, sample in enumerate(samples):
        if not sample.part:
            yield [place]
        elif own := places.pop((sample.category, sample.part), []):
            yield sorted(own, key=lambda view: view_order(samples[view]))


def whole_parts(samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """The places of samples in batches of `size` that tear no part apart; a larger part is a batch alone."""
    batch: list[int] = []
    for part in places_of_parts(samples):
        if batch and len(batch) + len(part) > size:
            yield batch
            batch = []
        batch += part
    if batch:
        yield batch


def view_order(sample: Sample) -> tuple[list[tuple[int, str]], str]:
    """What views of one part are sorted by: C2 comes before C10."""
    pieces = re.split(r"(\d+)", sample.view)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces], str(sample.path)


def with_views(samples: Sequence[Sample], pattern: str) -> list[Sample]:
    """The samples with parts and views as a pattern finds them in their paths.

    Args:
        samples: Pictures.
        pattern: A regular expression with a group `part` and a group `view`, looked for in the name of
            each picture, or else in its whole path, the suffix left out.

    Raises:
        ConfigError: it is no such pattern.
        DatasetError: it fits no picture.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f'--view-pattern "{pattern}" is no regular expression ({error}).') from error
    if not {"part", "view"} <= set(compiled.groupindex):
        raise ConfigError(
            f'--view-pattern is "{pattern}"; expected groups named part and view, such as (?P<part>.+)_C(?P<view>\\d+).'
        )
    found, tried = [], []
    for sample in samples:
        name = sample.path.with_suffix("").as_posix()
        match = compiled.search(sample.path.stem) or compiled.search(name)
        if match is None or not match["part"]:
            tried.append("/".join(sample.path.parts[-2:]))  # names alone may be the same for all parts
            found.append(sample)
        else:
            found.append(replace(sample, part=match["part"], view=match["view"] or ""))
    if samples and len(tried) == len(samples):
        raise DatasetError(
            f'--view-pattern "{pattern}" fits none of {count_of(len(samples), "picture")}; it was tried on '
            f"{', '.join(tried[:3])}, for example."
        )
    return found


def check_views(samples: Sequence[Sample], missing: MissingViews = "keep") -> list[Sample]:
    """The samples of the parts that may be used.

    Args:
        samples: Pictures; in each category, the views that any of its parts has are those expected.
            Views without a name are not looked at.
        missing: What becomes of parts that lack views.

    Raises:
        DatasetError: a part has a view twice; or one lacks views and must not.
    """
    expected: dict[str, set[str]] = {}
    for sample in samples:
        if sample.part and sample.view:
            expected.setdefault(sample.category, set()).add(sample.view)
    left_out: set[tuple[str, str, str]] = set()
    for part in places_of_parts(samples):
        own = [samples[place] for place in part]
        first = own[0]
        if not first.part:
            continue
        _refuse_twice(own)
        lack = expected.get(first.category, set()) - {sample.view for sample in own}
        if lack and missing == "error":
            raise DatasetError(
                f"part {first.part} of {first.category} has no view {', '.join(sorted(lack))}; expected all of "
                f"{', '.join(sorted(expected[first.category]))}. Add it, or use --missing-views keep or drop."
            )
        if lack and missing == "drop":
            left_out.add(part_of(first))
    return [sample for sample in samples if part_of(sample) not in left_out]


def _refuse_twice(views: Iterable[Sample]) -> None:
    own = list(views)
    view, count = max(Counter(sample.view for sample in own).items(), key=lambda pair: (bool(pair[0]), pair[1]))
    if view and count > 1:
        same = [str(sample.path) for sample in own if sample.view == view]
        raise DatasetError(
            f'part {own[0].part} of {own[0].category} has view "{view}" {count} times ({same[0]}, {same[1]}); expected '
            "each view once. Keep one of them, or give the parts different names."
        )


@dataclass(frozen=True, slots=True)
class Views:
    """How pictures are joined to parts."""

    pattern: str = ""
    """Regular expression with groups `part` and `view`, for the names of pictures; empty: as the layout says."""
    missing: MissingViews = "keep"
    """What becomes of parts that lack views."""

    def join(self, samples: list[Sample]) -> list[Sample]:
        """The samples with their parts and views, those that may be used."""
        return check_views(with_views(samples, self.pattern) if self.pattern else samples, self.missing)
