"""Long lists in little memory: items are kept as compressed text, a page of them at a time.

Names of pictures are alike, so that one takes a tenth of what it takes as an object, and ten million
fit where one million would.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar, overload

from blemish.types import Sample

Item = TypeVar("Item")
PAGE = 512
"""Items that are compressed together; so many are objects at a time."""


class Packed(Sequence[Item], Generic[Item]):
    """Items that never change, made anew whenever they are looked at; looking at them in order is quick.

    >>> numbers = Packed(range(10**4), str, int)
    >>> len(numbers), numbers[7], sum(numbers), numbers.size < 50_000
    (10000, 7, 49995000, True)
    """

    def __init__(self, items: Iterable[Item], to_line: Callable[[Item], str], from_line: Callable[[str], Item]) -> None:
        """The items, each taken once.

        Args:
            items: Any number.
            to_line: What an item is as text, in one line.
            from_line: The item that a line stands for.
        """
        self._from_line = from_line
        self._pages: list[bytes] = []
        self._count = 0
        self._open: tuple[int, list[Item]] = (-1, [])
        lines: list[str] = []
        for item in items:
            lines.append(to_line(item))
            if len(lines) == PAGE:
                self._close(lines)
        if lines:
            self._close(lines)

    def _close(self, lines: list[str]) -> None:
        self._pages.append(zlib.compress("\n".join(lines).encode("utf-8", "surrogateescape")))
        self._count += len(lines)
        lines.clear()

    @property
    def size(self) -> int:
        """Bytes that the items take."""
        return sum(map(len, self._pages))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        for page in range(len(self._pages)):
            yield from self._read(page)

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...

    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(self._count))]
        page, inside = divmod(range(self._count)[place], PAGE)
        if self._open[0] != page:
            self._open = page, self._read(page)
        return self._open[1][inside]

    def _read(self, page: int) -> list[Item]:
        text = zlib.decompress(self._pages[page]).decode("utf-8", "surrogateescape")
        return [self._from_line(line) for line in text.split("\n")]


def packed_samples(samples: Iterable[Sample]) -> Packed[Sample]:
    """The samples, packed."""
    return Packed(samples, sample_line, sample_from)


def sample_line(sample: Sample) -> str:
    """A sample as one line of text."""
    masks = [str(mask) for mask in sample.masks]
    known = (sample.category, sample.split, sample.is_anomalous, sample.defect, sample.part, sample.view)
    return json.dumps([str(sample.path), masks, *known])


def sample_from(line: str) -> Sample:
    """The sample that a line stands for."""
    path, masks, category, split, is_anomalous, defect, part, view = json.loads(line)
    return Sample(
        path=Path(path),
        masks=tuple(map(Path, masks)),
        category=category,
        split=split,
        is_anomalous=is_anomalous,
        defect=defect,
        part=part,
        view=view,
    )
