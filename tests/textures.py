"""A miniature dataset with defects that any detector must find: bright blobs on a woven texture."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (72, 80)


def texture(seed: int) -> np.ndarray:
    """A good picture (H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    down, across = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij")
    weave = np.sin(down / 2 + random.uniform(0, 6)) * np.sin(across / 2 + random.uniform(0, 6))
    picture = 120 + 40 * weave[:, :, None] * np.array([1.0, 0.9, 0.8]) + random.normal(0, 4, (*SIZE, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def blob(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bad picture (H, W, 3) uint8 and its mask (H, W) uint8."""
    random = np.random.default_rng(seed)
    picture = texture(seed).astype(float)
    centre = random.integers(18, 54, 2)
    down, across = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij")
    mask = (down - centre[0]) ** 2 + (across - centre[1]) ** 2 < 8**2
    picture[mask] = (230, 60, 40)
    return np.clip(picture, 0, 255).astype(np.uint8), mask.astype(np.uint8) * 255


def write(root: Path, category: str = "cloth", train: int = 16, test: int = 6) -> Path:
    """The dataset in MVTec layout below `root`, which is returned."""
    for folder in ("train/good", "test/good", "test/blob", "ground_truth/blob"):
        (root / category / folder).mkdir(parents=True)
    offset = sum(map(ord, category))
    for number in range(train):
        Image.fromarray(texture(offset + number)).save(root / category / f"train/good/{number:03}.png")
    for number in range(test):
        Image.fromarray(texture(offset + 500 + number)).save(root / category / f"test/good/{number:03}.png")
        bad, mask = blob(offset + 1000 + number)
        Image.fromarray(bad).save(root / category / f"test/blob/{number:03}.png")
        Image.fromarray(mask).save(root / category / f"ground_truth/blob/{number:03}_mask.png")
    return root
