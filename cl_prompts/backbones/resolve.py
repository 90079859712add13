"""From settings to one weight file whose bytes are the expected ones: explicit file, hub cache, hub download.

Light: what is wrong with the file itself is known before torch loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cl_prompts.backbones.hub import Hub
from cl_prompts.backbones.records import WeightRecord, find_record, pin_key
from cl_prompts.backbones.settings import BackboneSettings, bundled_weights
from cl_prompts.backbones.weight_checks import file_sha256
from cl_prompts.errors import BackboneError
from scenarios.pins import Pins

Trust = Literal["as recorded", "as pinned", "seen for the first time", "own file", "bundled"]
"""What is known about the bytes of a weight file."""


@dataclass(frozen=True)
class Weights:
    """A weight file.

    Attributes:
        path: where it lies.
        sha256: of its bytes, 64 hexadecimal digits.
        trust: what the hash was compared with.
        revision: commit of the hub repository it came from; None: not from the hub.
        pin: the name under which its hash is to be kept once it has proved to fit; None: nothing to keep.
    """

    path: Path
    sha256: str
    trust: Trust
    revision: str | None = None
    pin: str | None = None

    def keep(self, pins: Pins | None = None) -> None:
        """Remember the hash of a file seen for the first time: from now on it is the only one accepted.

        Raises:
            DataError: another process kept another hash meanwhile, or the file of pins cannot be written.
        """
        if self.pin is not None:
            advice = f"{_KEEP_NEW}; else get the file again"
            (pins or Pins()).check(self.pin, self.sha256, what=str(self.path), advice=advice)


_KEEP_NEW = "if the new file is the right one, delete this entry there"


def resolve_weights(settings: BackboneSettings, *, hub: Hub | None = None, pins: Pins | None = None) -> Weights | None:
    """The weight file that `settings` ask for, its hash checked; None for an untrained backbone.

    `checkpoint=hub` looks into the hub's cache, where no connection is opened, and then downloads, at the revision of
    the record. Published files, from the hub or got by hand, must have the hash of their record, or where it has none,
    the hash seen first. A path given for a tag that the hub has is taken for what the user made of it: its hash is
    reported and compared with the record, nothing is refused.

    Args:
        settings: of the backbone.
        hub: the hub and its cache; None: the usual ones.
        pins: hashes seen before; None: those of this user.

    Raises:
        BackboneError: no such file, the hub is out of reach, or a hash that differs from the record.
        DataError: a hash that differs from the one seen first.
    """
    if settings.checkpoint == "untrained":
        return None
    record = find_record(settings.timm_name)
    if settings.checkpoint == "bundled":
        path = bundled_weights(settings.name)
        return Weights(path, file_sha256(path), "bundled")
    if settings.checkpoint == "hub":
        assert settings.timm_name is not None  # the settings saw to all three
        assert record is not None
        assert record.hub is not None
        hub = hub or Hub()
        path = hub.cached(record.hub) or hub.download(record.hub)
        return _published(settings.timm_name, record, path, pins or Pins(), revision=path.parent.name)
    path = Path(settings.checkpoint).expanduser()
    if not path.is_file():
        raise BackboneError(f"no weight file at {str(path)!r}; check backbone.checkpoint")
    if settings.timm_name is not None and record is not None and record.by_hand is not None:
        return _published(settings.timm_name, record, path, pins or Pins())
    sha256 = file_sha256(path)
    known = record is not None and record.sha256 == sha256
    return Weights(path, sha256, "as recorded" if known else "own file")


def _published(tag: str, record: WeightRecord, path: Path, pins: Pins, revision: str | None = None) -> Weights:
    sha256 = file_sha256(path)
    # In the hub's cache the file is a link to what is kept elsewhere in the folder of its repository.
    stale = path if revision is None else path.parents[2]
    again = f"delete {str(stale)!r} and " + ("get it again" if revision is None else "run again, which downloads it")
    if record.sha256 is not None:
        if sha256 != record.sha256:
            raise BackboneError(
                f"{str(path)!r} is not the file of {tag}: its sha256 is {sha256}, the record says {record.sha256}; "
                f"{again}, see {record.page}"
            )
        return Weights(path, sha256, "as recorded", revision)
    key = pin_key(tag)
    if pins.get(key) is None:
        # Kept only once it fits the model: a wrong file must not shut out the right one.
        return Weights(path, sha256, "seen for the first time", revision, pin=key)
    pins.check(key, sha256, what=f"{tag}, {str(path)!r}", advice=f"{_KEEP_NEW}; else {again}")
    return Weights(path, sha256, "as pinned", revision)
