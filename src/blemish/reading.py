"""Reading the pictures of samples, ahead of whoever looks at them; one that can't be read stops no other."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from typing import TypeAlias

import numpy as np

from blemish import images
from blemish.errors import ImageError, ShapeError
from blemish.parts import whole_parts
from blemish.types import Batch, Failure, Preprocessing, Sample

_Begun: TypeAlias = tuple[images.Floats, list[tuple[Sample, Future[tuple[int, int]]]]]
"""Memory (B, 3, H, W) for a batch, and its pictures that are being read into it."""


def read_batches(
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    batch_size: int,
    failures: list[Failure],
) -> Iterator[Batch]:
    """The pictures of `samples`, in order, read ahead by threads.

    A picture that can't be read is left out and added to `failures`; it never stops the others.

    Args:
        samples: What to read.
        preprocessing: Applied to each picture.
        batch_size: The number of pictures in a batch; fewer in the last, and where one failed.
        failures: Grows by the pictures that could not be read.
    """
    return _read(samples, preprocessing, repeat(batch_size), failures)


def read_parts(
    samples: Sequence[Sample], preprocessing: Preprocessing, batch_size: int, failures: list[Failure]
) -> Iterator[Batch]:
    """The same with all views of a part in one batch, which is larger where a part is; views follow on one another."""
    batches = list(whole_parts(samples, batch_size))
    ordered = [samples[place] for batch in batches for place in batch]
    return _read(ordered, preprocessing, map(len, batches), failures)


def _read(
    samples: Sequence[Sample], preprocessing: Preprocessing, sizes: Iterable[int], failures: list[Failure]
) -> Iterator[Batch]:
    """Batches of these sizes; what can't be read leaves them smaller."""
    workers = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers)
    waiting = iter(samples)

    def begin() -> Iterator[_Begun]:
        """Batches whose pictures are being read, each into its place."""
        for size in sizes:
            own = list(islice(waiting, size))
            if not own:
                return
            batch = np.empty((len(own), 3, *preprocessing.image_size), np.float32)
            reads = [pool.submit(_read_into, batch[at], sample.path, preprocessing) for at, sample in enumerate(own)]
            yield batch, list(zip(own, reads, strict=True))

    begun = begin()
    ahead: deque[_Begun] = deque()
    try:
        while True:
            while sum(len(reads) for _, reads in islice(ahead, 1, None)) < 2 * workers and (one := next(begun, None)):
                ahead.append(one)
            if not ahead:
                return
            batch, reads = ahead.popleft()
            good: list[tuple[int, Sample, tuple[int, int]]] = []
            for at, (sample, future) in enumerate(reads):
                try:
                    good.append((at, sample, future.result()))
                except (ImageError, ShapeError) as error:
                    failures.append(Failure(sample.path, str(error)))
            if good:
                places, found, own_sizes = zip(*good, strict=True)
                yield Batch(batch if len(good) == len(batch) else batch[list(places)], found, own_sizes)
    finally:
        pool.shutdown(cancel_futures=True)  # nothing is read on for a caller who has left


def _read_into(place: images.Floats, path: Path, preprocessing: Preprocessing) -> tuple[int, int]:
    """The (height, width) of the picture in a file, which is then in its place (3, H, W)."""
    picture = images.read(path)
    images.to_chw(picture, preprocessing, str(path), place)
    return picture.shape[0], picture.shape[1]


def read_image(path: Path, preprocessing: Preprocessing) -> tuple[images.Floats, tuple[int, int]]:
    """The picture in a file, (3, H, W) float32 in [0, 1], and its own (height, width).

    Raises:
        ImageError: it can't be read.
    """
    picture = images.read(path)
    return images.to_chw(picture, preprocessing, str(path)), (picture.shape[0], picture.shape[1])


def digest(path: Path) -> str:
    """A short fingerprint of a picture's file; "missing" for one that can't be opened: reading it says why."""
    try:
        return short(hashlib.sha256(images.read_content(path)).hexdigest())
    except ImageError:
        return "missing"


def short(sha256: str) -> str:
    """The fingerprint of a file's content whose SHA-256 is known."""
    return sha256[:16]


def read_mask(sample: Sample, size: tuple[int, int]) -> images.Bools | None:
    """Where the sample is defective, (H, W) at `size`; all False if it is good; None if unknown.

    Raises:
        ImageError: a mask can't be read or has another size than its picture.
    """
    if sample.masks:
        return images.read_mask(sample.masks, images.read_size(sample.path), size)
    return np.zeros(size, bool) if sample.is_anomalous is False else None
