"""Maps and masks to evaluate, and slow, obvious implementations to compare with."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from skimage.measure import label

from blemish.metric import Evaluation, Results
from blemish.types import Sample

DATA = Path(__file__).parents[3] / "shared" / "data"


def evaluation(
    maps, masks, mode="exact", *, scores=None, parts=None, labels=None, defects=None, order=None, connectivity=8
):
    """All pictures in one category; a picture is anomalous where its mask says so."""
    result = Evaluation(mode, connectivity=connectivity)
    for index in range(len(maps)) if order is None else order:
        sample = Sample(
            path=Path(f"{index:04d}.png"),
            category="part",
            split="test",
            is_anomalous=bool(masks[index].any()) if labels is None else bool(labels[index]),
            defect=defects[index] if defects else "",
            part=parts[index] if parts else "",
        )
        score = maps[index].max() if scores is None else scores[index]
        result.add(sample, float(score), maps[index], masks[index])
    return result


def values(maps, masks, mode="exact", options=None, **more) -> dict[str, float]:
    return evaluation(maps, masks, mode, **more).compute(options).metrics["part"]


def images_only(scores, labels, parts=None, options=None) -> Results:
    result = Evaluation()
    for index, (score, is_anomalous) in enumerate(zip(scores, labels, strict=True)):
        part = "" if parts is None else str(parts[index])
        sample = Sample(
            path=Path(str(index)), category="part", split="test", is_anomalous=bool(is_anomalous), part=part
        )
        result.add(sample, float(score))
    return result.compute(options)


@st.composite
def maps_and_masks(draw, most=4, side=6):
    """A few tiny maps with many ties, and masks with both normal and defective pixels."""
    shape = (draw(st.integers(1, most)), draw(st.integers(1, side)), draw(st.integers(2, side)))
    value = st.one_of(
        st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 7.0]), st.floats(-1e6, 1e6, width=32), st.floats(0, 1, width=32)
    )
    maps = draw(npst.arrays(np.float32, shape, elements=value))
    masks = draw(npst.arrays(np.bool_, shape))
    masks[0, 0, 0], masks[0, 0, 1] = True, False
    return maps, masks


def brute_aupro(maps, masks, limit=0.3) -> float:
    """Every distinct value as a threshold, every region by itself."""
    regions = [
        maps[index][labels == number]
        for index in range(len(maps))
        for labels in [label(masks[index], connectivity=2)]
        for number in range(1, labels.max() + 1)
    ]
    normal = maps[~masks]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((float(np.mean(normal >= threshold)), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def brute_aupimo(maps, masks, steps=20000) -> float:
    """Every defective picture by itself: its recall at the lowest threshold that calls few enough good pixels."""
    good = np.sort(np.concatenate([maps[index].ravel() for index in range(len(maps)) if not masks[index].any()]))
    rates = np.exp((np.arange(steps) + 0.5) / steps * np.log(10) + np.log(1e-5))
    called = np.floor(rates * good.size * (1 + 1e-12)).astype(int)
    # The lowest threshold that calls at most `called` pixels lies just above the next good pixel.
    below = good[good.size - 1 - called]
    areas = []
    for index in range(len(maps)):
        if masks[index].any():
            defect = np.sort(maps[index][masks[index]])
            areas.append(np.mean(1 - np.searchsorted(defect, below, side="right") / defect.size))
    return float(np.mean(areas))


def real_masks(category: str, number: int, size: int = 256):
    """Masks of a real dataset, (N, size, size), evenly chosen; good pictures have empty ones."""
    root = DATA / category
    found = []
    for path in sorted((root / "test").rglob("*.*")):
        mask = root / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        if path.parent.name == "good" or mask.is_file():
            found.append(mask)
    chosen = [found[index] for index in np.linspace(0, len(found) - 1, number).astype(int)]
    masks = np.zeros((number, size, size), bool)
    for index, mask in enumerate(chosen):
        if mask.parent.name != "good":
            grey = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
            masks[index] = cv2.resize(grey, (size, size), interpolation=cv2.INTER_NEAREST) > 0
    return masks


def likely_maps(masks, seed=0):
    """What a middling detector might say of these masks: smooth noise, and blurred defects of any strength."""
    generator = np.random.default_rng(seed)
    size = masks.shape[1]
    maps = np.empty(masks.shape, np.float32)
    for index, mask in enumerate(masks):
        noise = sum(
            cv2.resize(generator.normal(size=(size // step, size // step)), (size, size), interpolation=cv2.INTER_CUBIC)
            for step in (4, 16, 64)
        )
        blurred = cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 3)
        maps[index] = noise / 1.7 + generator.uniform(1, 6) * blurred + 0.3 * generator.normal()
    return maps
