"""Data sets, one a file: the word after `dataset=` is the name of a file of this folder.

Imports neither torch, torchvision, scikit-learn nor Pillow; loading does.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from types import ModuleType

from scenarios.datasets._checks import CheckedPart, check_parts
from scenarios.datasets._official import data_root
from scenarios.datasets.base import DatasetSettings, ImageDataset, Normalisation, Progress, require_settings
from scenarios.errors import DataError
from scenarios.pins import Pins

__all__ = [
    "CheckedPart",
    "DatasetSettings",
    "ImageDataset",
    "Normalisation",
    "Progress",
    "check_data",
    "check_dataset",
    "dataset_names",
    "known_num_classes",
    "load_dataset",
    "provide_dataset",
    "read_dataset_settings",
]

_NO_DATA_SETS = {"base"}


def dataset_names() -> list[str]:
    """Names usable after `dataset=`, sorted."""
    stems = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(stem for stem in stems if not stem.startswith("_") and stem not in _NO_DATA_SETS)


def read_dataset_settings(name: str) -> type[DatasetSettings]:
    """The settings class of a data set, without loading any data.

    Raises:
        KeyError: no data set has that name.
    """
    if name not in dataset_names():
        raise KeyError(name)
    return _settings_class(_module(name))


def check_dataset(name: str, settings: DatasetSettings | None = None) -> None:
    """Find what is missing or badly laid out on disk without heavy imports and without opening an image.

    Args:
        name: a name of `dataset_names()`.
        settings: settings of that data set; None takes its defaults.

    Raises:
        DataError: unknown name, missing data, a class without images.
    """
    module, settings = _resolve(name, settings)
    check = getattr(module, "check", None)
    if check is not None:
        check(settings)


def provide_dataset(name: str, settings: DatasetSettings | None = None) -> None:
    """Fetch and unpack the official files that loading would miss; nothing is opened where they are all there.

    Without heavy imports, so that a run without network says so in seconds.

    Args:
        name: a name of `dataset_names()`.
        settings: settings of that data set; None takes its defaults.

    Raises:
        DataError: unknown name; not there and not allowed or not possible to download, damaged, no space; decoded
            images cannot be kept.
    """
    module, settings = _resolve(name, settings)
    settings.check_places()
    for record in module.official(settings) if hasattr(module, "official") else ():
        record.provide(data_root(settings.root), download=settings.download)  # type: ignore[attr-defined]


def check_data(
    name: str, settings: DatasetSettings | None = None, *, pins: Pins | None = None, progress: Progress | None = None
) -> list[CheckedPart]:
    """Compare what is on disk with the records: hashes of official files, numbers of images; opens every image.

    Downloads nothing and pins nothing. The whole training part is looked at, whatever subset the settings draw.

    Args:
        name: a name of `dataset_names()`.
        settings: settings of that data set; None takes its defaults.
        pins: hashes seen the first time; None: those of the user.
        progress: called with (files done, files in all) where reading takes long.

    Returns:
        A row a file and part; what is missing or damaged of an official data set is a row, too.

    Raises:
        DataError: unknown name, settings of another data set, a damaged pin file; images of one's own that are not
            given, not there or badly laid out.
    """
    module, settings = _resolve(name, settings)
    return check_parts(module, settings, pins=Pins() if pins is None else pins, progress=progress)


def known_num_classes(name: str, settings: DatasetSettings | None = None) -> int | None:
    """Number of classes where it is known without loading: of fixed data sets, and of images that can be listed.

    Args:
        name: a name of `dataset_names()`.
        settings: settings of that data set; None takes its defaults.

    Raises:
        DataError: unknown name, or settings of another data set.
    """
    module, settings = _resolve(name, settings)
    count = getattr(module, "num_classes", None)
    return None if count is None else count(settings)


def load_dataset(
    name: str, settings: DatasetSettings | None = None, *, image_size: int, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Load a data set, completely checked: afterwards no file can turn out to be unreadable.

    Args:
        name: a name of `dataset_names()`.
        settings: settings of that data set; None takes its defaults.
        image_size: side in pixels that the run's backbone wants; a data set of files is decoded to it, one of fixed
            size keeps its own.
        progress: called with (files done, files in all) where reading takes long.

    Returns:
        The training and the test part.

    Raises:
        DataError: unknown name, missing or damaged data, a class without images.
    """
    module, settings = _resolve(name, settings)
    train, test = module.load(settings, image_size=image_size, progress=progress)
    return train, test


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _settings_class(module: ModuleType) -> type[DatasetSettings]:
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, DatasetSettings) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} must define one subclass of DatasetSettings, it defines {len(classes)}")
    return classes[0]


def _resolve(name: str, settings: DatasetSettings | None) -> tuple[ModuleType, DatasetSettings]:
    names = dataset_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DataError(f"dataset={name} is unknown; known are {', '.join(names)}{hint}")
    module = _module(name)
    expected = _settings_class(module)
    if settings is None:
        settings = expected()
    require_settings(settings, expected, name)
    return module, settings
