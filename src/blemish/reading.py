"""Reading the pictures of samples, ahead of whoever looks at them; one that can't be read stops no other."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path

import numpy as np

from blemish import images
from blemish.errors import ImageError, ShapeError
from blemish.parts import whole_parts
from blemish.types import Batch, Failure, Preprocessing, Sample


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
    pending: deque[tuple[Sample, Future[tuple[images.Floats, tuple[int, int]]]]] = deque()
    waiting = iter(samples)
    try:
        for batch_size in sizes:
            ahead = batch_size + 2 * workers - len(pending)
            pending.extend(
                (sample, pool.submit(read_image, sample.path, preprocessing)) for sample in islice(waiting, ahead)
            )
            if not pending:
                return
            good: list[tuple[Sample, images.Floats, tuple[int, int]]] = []
            for sample, future in [pending.popleft() for _ in range(min(batch_size, len(pending)))]:
                try:
                    good.append((sample, *future.result()))
                except (ImageError, ShapeError) as error:
                    failures.append(Failure(sample.path, str(error)))
            if good:
                found, pictures, own_sizes = zip(*good, strict=True)
                yield Batch(np.stack(pictures), found, own_sizes)
    finally:
        pool.shutdown(cancel_futures=True)  # nothing is read on for a caller who has left


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
