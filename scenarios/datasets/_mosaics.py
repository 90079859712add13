"""Images of several labels, composed from images of one: two rows of two cells, black where a cell stays empty.

What is stated holds exactly: how many images have one, two, three or four labels, that no class is twice in an image,
and that a source image is used a second time only when all others of its class were used once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from scenarios.datasets._selection import describe_subset, training_subset
from scenarios.datasets.base import DatasetSettings, ImageDataset, Normalisation, PixelSource, array_dataset
from scenarios.errors import DataError

CELLS = 4
"""Cells of a mosaic: two rows of two."""

PART_KEYS = ("images_train", "images_test")
"""Settings with the number of mosaics of each part."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_Percent = Annotated[int, Field(ge=0, le=100)]
Percentages = Annotated[tuple[_Percent, _Percent, _Percent, _Percent], BeforeValidator(_as_tuple)]
"""Per cent of the mosaics with one, two, three and four labels."""


class MosaicSettings(DatasetSettings):
    """How mosaics are composed."""

    images_train: int = Field(1500, ge=10, le=1_000_000, description="training mosaics composed, before any subset")
    images_test: int = Field(400, ge=10, le=1_000_000, description="test mosaics composed")
    mosaic_seed: int = Field(0, ge=0, lt=2**63, description="seed of the composition")
    cardinality_pct: Percentages = Field(
        (25, 40, 25, 10), description="per cent of the mosaics with 1, 2, 3 and 4 labels, 100 together"
    )
    attraction_pct: int = Field(
        40,
        ge=0,
        le=100,
        description="per cent of the further labels drawn as partner of the label before, class c + classes/2 of c",
    )

    @field_validator("cardinality_pct")
    @classmethod
    def _complete(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if sum(value) != 100:
            raise ValueError(f"must be four numbers with the sum 100, their sum is {sum(value)}")
        return value

    @property
    def multi_label(self) -> bool:
        """True: a mosaic has up to four labels."""
        return True


def partner(class_id: int, num_classes: int) -> int | None:
    """The class that a class attracts: half the classes away, so that a stream rarely teaches both in one task.

    None for the last of an odd number of classes.
    """
    half = num_classes // 2
    if class_id >= 2 * half:
        return None
    return class_id + half if class_id < half else class_id - half


def compose(
    pixels: PixelSource,
    targets: np.ndarray,
    num_classes: int,
    settings: MosaicSettings,
    *,
    images: int,
    seed: Sequence[int],
    key: str = "images_train",
) -> tuple[np.ndarray, np.ndarray]:
    """Mosaics of whole images, a pure function of its arguments.

    The first labels of the mosaics are all classes equally often. Each further label is, with `attraction_pct` per
    cent, the partner of the label before it where the image lacks it, else any class that the image lacks. Cells are
    drawn at random.

    Args:
        pixels: square source images; only those drawn are read.
        targets: their class ids int64 `(sources,)`; a class without a source is in no mosaic.
        num_classes: number of classes, columns of the result.
        settings: cardinality and attraction.
        images: mosaics to compose, at least one a class.
        seed: entropy of NumPy's PCG64.
        key: the setting that `images` is, for the error.

    Returns:
        Mosaics uint8 `(images, 3, 2 * side, 2 * side)` and their labels, multi-hot uint8 `(images, num_classes)`.

    Raises:
        DataError: fewer images than classes, or fewer classes than labels in a mosaic.
    """
    present = np.unique(targets)
    refuse_impossible(len(present), settings, images=images, key=key)
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    numbers = generator.permutation(_label_numbers(settings.cardinality_pct, images))
    leading = generator.permutation(present[np.arange(images) % len(present)])
    decks = {label: _Deck(np.flatnonzero(targets == label), generator) for label in present.tolist()}
    placed: list[tuple[int, int, int]] = []  # mosaic, cell, source image
    rows = np.zeros((images, num_classes), dtype=np.uint8)
    for mosaic, (number, first) in enumerate(zip(numbers.tolist(), leading.tolist(), strict=True)):
        labels = _draw_labels(first, number, list(decks), num_classes, settings.attraction_pct, generator)
        rows[mosaic, labels] = 1
        cells = generator.permutation(CELLS)[:number].tolist()
        placed += [(mosaic, cell, decks[label].draw()) for cell, label in zip(cells, labels, strict=True)]
    return _paint(pixels, np.array(placed), images), rows


def refuse_impossible(classes: int, settings: MosaicSettings, *, images: int, key: str) -> None:
    """Make sure that mosaics can be composed, which needs no image.

    Args:
        classes: number of classes that have a source image.
        settings: cardinality.
        images: mosaics to compose.
        key: the setting that `images` is.

    Raises:
        DataError: fewer images than classes, or fewer classes than labels in a mosaic.
    """
    if images < classes:
        raise DataError(
            f"dataset.{key}={images}: so few mosaics cannot show {classes} classes; set it to at least {classes}"
        )
    most = int(_label_numbers(settings.cardinality_pct, images).max())
    if most > classes:
        raise DataError(
            f"dataset.cardinality_pct={list(settings.cardinality_pct)} wants {most} labels in a mosaic but "
            f"there are {classes} classes; set the later numbers to 0"
        )


def _paint(pixels: PixelSource, placed: np.ndarray, images: int) -> np.ndarray:
    """Mosaics uint8 `(images, 3, 2 * side, 2 * side)` of (mosaic, cell, source) int64 `(placements, 3)`."""
    mosaics, cells, sources = placed.T
    used, which = np.unique(sources, return_inverse=True)
    side = pixels.shape[-1]
    canvas = np.zeros((images, 3, 2, side, 2, side), dtype=np.uint8)
    canvas[mosaics, :, cells // 2, :, cells % 2, :] = pixels.read(used)[which]
    return canvas.reshape(images, 3, 2 * side, 2 * side)


def co_occurrence(rows: np.ndarray) -> np.ndarray:
    """Share of the images with class a that have class b, too, float64 `(classes, classes)` at `[a, b]`.

    Args:
        rows: multi-hot `(images, classes)`; a class without an image gets a row of nan.
    """
    together = rows.T.astype(np.int64) @ rows.astype(np.int64)
    counts = np.diagonal(together)
    shares = np.full(together.shape, np.nan)
    np.divide(together, counts[:, None], out=shares, where=counts[:, None] > 0)
    return shares


def mosaic_datasets(
    parts: Sequence[tuple[PixelSource, np.ndarray]],
    class_names: Sequence[str],
    settings: MosaicSettings,
    *,
    identity: dict[str, str | int],
    notes: Sequence[str] = (),
    normalisation: Normalisation | None = None,
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test mosaics of two disjoint pools.

    Args:
        parts: square source images and their class ids int64 `(sources,)` of train and test.
        class_names: one name a class id.
        settings: how to compose them.
        identity: name, version and where the pools come from.
        notes: of the sources, given on to the training part.
        normalisation: of the training mosaics, where known.

    Raises:
        DataError: see `compose`.
    """
    words = f"cardinality_pct={list(settings.cardinality_pct)}, attraction_pct={settings.attraction_pct}"
    made = [
        compose(
            pixels,
            targets,
            len(class_names),
            settings,
            images=getattr(settings, key),
            seed=(settings.mosaic_seed, number),
            key=key,
        )
        for number, ((pixels, targets), key) in enumerate(zip(parts, PART_KEYS, strict=True))
    ]
    (train_pixels, train_rows), (test_pixels, test_rows) = made
    chosen, subset_notes = training_subset(train_rows, class_names, settings)

    def part(word: str, pixels: np.ndarray, rows: np.ndarray, of: int, subset: str, own: list[str]) -> ImageDataset:
        mosaics = f"{of} mosaics, {words}, mosaic_seed={settings.mosaic_seed}"
        return array_dataset(
            pixels,
            rows,
            class_names,
            identity={**identity, "part": word, "mosaics": mosaics, "subset": subset},
            normalisation=normalisation,
            notes=own,
        )

    train_notes = [*notes, _describe(train_rows), *subset_notes]
    return (
        part(
            "train",
            train_pixels[chosen],
            train_rows[chosen],
            settings.images_train,
            describe_subset(settings),
            train_notes,
        ),
        part("test", test_pixels, test_rows, settings.images_test, "all", []),
    )


def _label_numbers(percentages: Sequence[int], images: int) -> np.ndarray:
    """Ascending numbers of labels int64 `(images,)`; what rounding down leaves over goes to the largest remainders."""
    exact = np.array(percentages, dtype=np.int64) * images
    counts = exact // 100
    order = np.argsort(-(exact % 100), kind="stable")
    counts[order[: images - counts.sum()]] += 1
    return np.repeat(np.arange(1, CELLS + 1), counts)


def _draw_labels(
    first: int, number: int, classes: list[int], num_classes: int, attraction_pct: int, generator: Any
) -> list[int]:
    labels = [first]
    while len(labels) < number:
        absent = [label for label in classes if label not in labels]
        attracted = partner(labels[-1], num_classes)
        if attracted in absent and generator.integers(100) < attraction_pct:
            labels.append(attracted)
        else:
            labels.append(absent[int(generator.integers(len(absent)))])
    return labels


class _Deck:
    """The images of one class, drawn without repetition and shuffled anew when all were drawn."""

    def __init__(self, members: np.ndarray, generator: Any) -> None:
        self._members = members
        self._generator = generator
        self._left: list[int] = []

    def draw(self) -> int:
        """Position of an image."""
        if not self._left:
            self._left = self._generator.permutation(self._members).tolist()
        return self._left.pop()


def _describe(rows: np.ndarray) -> str:
    """What the composition came to, measured."""
    shares = co_occurrence(rows)
    num_classes = len(shares)
    attracted = np.zeros(shares.shape, dtype=bool)
    for class_id in range(num_classes):
        other = partner(class_id, num_classes)
        if other is not None:
            attracted[class_id, other] = True
    others = ~attracted & ~np.eye(num_classes, dtype=bool)
    words = f"mosaics have {rows.sum(axis=1).mean():.2f} labels an image"
    if not attracted.any() or not others.any():
        return words
    return (
        f"{words}; beside a class its partner is in {100 * np.nanmean(shares[attracted]):.0f} % of the images, another "
        f"class in {100 * np.nanmean(shares[others]):.0f} %"
    )
