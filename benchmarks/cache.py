"""Where decoded images stay, side by side in one run: `dataset.cache=none`, `ram` and `mmap`.

    python benchmarks/cache.py                                       # 3,000 generated JPEGs of 320x256
    python benchmarks/cache.py --root /path/to/class/folders --size 64 --train-per-class 50

Two starts each, as two runs after one another would have them: the first finds no file of `mmap`, the second finds it.
Then every round reads all training images once in batches of random images, in an order of the three drawn anew, so
that a busy machine slows all of them alike; the table gives the median.

    start    seconds until the data set is ready; all three read, hash and check every file
    images/s of the batches, as uint8 tensors: what a loader of one process gets before any transform
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from scenarios.datasets import ImageDataset, load_dataset
from scenarios.datasets._image_files import CacheMode
from scenarios.datasets.image_folder import ImageFolderSettings

MODES: tuple[CacheMode, ...] = ("none", "ram", "mmap")
BATCH = 64


def photographs(folder: Path, count: int) -> None:
    """JPEGs in two class folders, with broad shapes and fine grain, about 30 kB each."""
    generator = np.random.default_rng(0)
    for number in range(count):
        shapes = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((320, 256))
        grain = generator.integers(-12, 13, (256, 320, 3))
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)


def started(mode: CacheMode, arguments: argparse.Namespace, root: Path, cache: Path) -> tuple[ImageDataset, float]:
    """The training part, and the seconds until it was there."""
    settings = ImageFolderSettings(
        root=str(root), cache=mode, cache_folder=str(cache), train_per_class=arguments.train_per_class
    )
    start = time.perf_counter()
    train, _ = load_dataset("image_folder", settings, image_size=arguments.size)
    return train, time.perf_counter() - start


def images_per_second(data: ImageDataset, order: np.ndarray) -> float:
    """One pass in batches."""
    start = time.perf_counter()
    for position in range(0, len(order), BATCH):
        data.images(order[position : position + BATCH])
    return len(order) / (time.perf_counter() - start)


def measure(arguments: argparse.Namespace, root: Path, cache: Path) -> Table:
    """The table of one data set."""
    draw = random.Random(0)
    starts: dict[str, list[float]] = {mode: [] for mode in MODES}
    parts: dict[str, ImageDataset] = {}
    for _ in range(2):
        for mode in MODES:
            parts[mode], seconds = started(mode, arguments, root, cache)
            starts[mode].append(seconds)
    count = len(parts["ram"])
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(arguments.rounds):
        order = np.random.default_rng(number).permutation(count)
        for mode in draw.sample(MODES, len(MODES)):
            rates[mode].append(images_per_second(parts[mode], order))
    table = Table(title=f"{count:,} training images at {arguments.size} px, {torch.get_num_threads()} threads")
    for column in ("cache", "first start", "second start", "images/s", "times none"):
        table.add_column(column, justify="left" if column == "cache" else "right")
    median = {mode: statistics.median(values) for mode, values in rates.items()}
    for mode in MODES:
        first, second = starts[mode]
        ratio = median[mode] / median["none"]
        table.add_row(mode, f"{first:.2f} s", f"{second:.2f} s", f"{median[mode]:,.0f}", f"{ratio:.1f}")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of class folders; left out: generated JPEGs")
    parser.add_argument("--size", type=int, default=224, help="side in pixels to which images are decoded")
    parser.add_argument("--train-per-class", type=int, help="training images used of each class")
    parser.add_argument("--images", type=int, default=3000, help="JPEGs generated where no root is given")
    parser.add_argument("--rounds", type=int, default=3, help="passes over the training images for each cache")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cache-benchmark-") as work:
        root = arguments.root
        if root is None:
            root = Path(work) / "images"
            photographs(root, arguments.images)
        Console().print(measure(arguments, root, Path(work) / "cache"))


if __name__ == "__main__":
    main()
