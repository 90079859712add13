"""Images that are in both parts are counted, whatever their data set keeps; what is not compared is said."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.datasets._decoding import Decoder, FilePixels
from scenarios.datasets.base import ArrayPixels, ImageDataset
from scenarios.duplicates import SharedImages, shared_images


def part(pixels, **details) -> ImageDataset:
    source = ArrayPixels(pixels) if isinstance(pixels, np.ndarray) else pixels
    return ImageDataset(source, [0] * source.shape[0], ["a"], identity={"name": "toy"}, **details)


@st.composite
def two_parts(draw):
    """Few grey levels and few pixels, so that images meet by chance; also sizes that are no multiple of eight."""
    side = draw(st.sampled_from([1, 2, 3]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (3, side, side)
    pool = generator.integers(0, 2, (draw(st.integers(1, 6)), *shape), dtype=np.uint8)
    return [pool[generator.integers(0, len(pool), draw(st.integers(0, 8)))] for _ in range(2)]


@given(two_parts())
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_comparing_every_pair(parts):
    train, test = parts
    found = shared_images(part(train), part(test))
    assert found.compared == "pixels"
    assert found.total == len(test)
    assert found.test_images == sum(any(np.array_equal(image, other) for other in train) for image in test)
    assert found.train_images == sum(any(np.array_equal(image, other) for other in test) for image in train)


def test_one_pixel_makes_another_image_wherever_it_is():
    image = np.zeros((1, 3, 5, 5), np.uint8)
    others = np.repeat(image, 75, 0).reshape(75, 75)
    others[np.arange(75), np.arange(75)] = 1
    assert shared_images(part(image), part(others.reshape(75, 3, 5, 5))).test_images == 0
    assert shared_images(part(image), part(image)).test_images == 1


def test_sixty_thousand_images_take_less_than_a_second():
    images = np.random.default_rng(0).integers(0, 2**63, (60_000, 384), dtype=np.uint64).view(np.uint8)
    images = images.reshape(-1, 3, 32, 32)
    images[59_000] = images[3]
    train, test = part(images[:50_000]), part(images[50_000:])
    started = time.perf_counter()
    found = shared_images(train, test)
    assert time.perf_counter() - started < 1
    assert (found.test_images, found.train_images) == (1, 1)
    assert found.notice is not None
    assert found.notice.startswith("1 of 10,000 test images are in the training part, too (pixel for pixel, 1 training")


def test_hashes_of_files_serve_where_pixels_are_not_in_memory():
    files = [FilePixels([Path(f"{number}.png") for number in range(2)], Decoder(4, "bicubic"))] * 2
    known = [
        part(source, file_digests=digests) for source, digests in zip(files, (["a", "b"], ["b", "b"]), strict=True)
    ]
    assert shared_images(*known) == SharedImages("files", 2, 1, 2)
    unknown = shared_images(part(files[0]), part(files[1]))
    assert unknown.compared is None
    assert unknown.notice is not None
    assert "dataset.cache=none" in unknown.notice
    assert shared_images(part(np.zeros((1, 3, 4, 4), np.uint8)), part(files[1])).compared is None
