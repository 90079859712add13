"""What is known about published weights: `records.yaml`, checked and looked up by full tag. Light: no torch, no timm.

A tag is timm's `model.weights`. Weights that timm does not serve have a tag of the same form here: the model before the
dot is timm's, and the record says where its file is got by hand.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from scenarios.pins import Pins
from scenarios.settings import ChannelValues, Settings

RECORDS = Path(__file__).with_name("records.yaml")
"""The table as it ships."""


class HubFile(Settings):
    """A file of a repository of the Hugging Face hub."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name")
    revision: str | None = Field(pattern=r"^[0-9a-f]{40}$", description="commit; null: what the hub serves as main")
    file: str = Field(description="name of the weight file in it")

    @property
    def page(self) -> str:
        """Where a person finds the file."""
        return f"https://huggingface.co/{self.repository}"


class HandFile(Settings):
    """A file that a person gets from the page of the project that made it."""

    page: str = Field(pattern=r"^https://", description="official page of the project")
    file: str = Field(description="which file to take there")


class InputRecord(Settings):
    """The input that weights were trained with."""

    size: int = Field(ge=1, description="side of the square input in pixels")
    mean: ChannelValues = Field(description="mean of images in 0..1")
    std: ChannelValues = Field(description="standard deviation of images in 0..1")
    interpolation: Literal["bicubic", "bilinear"] = Field(description="how images are resized")
    crop_pct: float = Field(gt=0, le=1, description="share of the resized shorter side that evaluation keeps")


class WeightRecord(Settings):
    """One entry of `records.yaml`."""

    about: str = Field(description="what the weights were trained on, in one line")
    hub: HubFile | None = Field(None, description="where it is downloaded from")
    by_hand: HandFile | None = Field(None, description="where a person gets it, if it is not on timm's hub")
    sha256: str | None = Field(pattern=r"^[0-9a-f]{64}$", description="of the file; null: not known, pinned when seen")
    input: InputRecord = Field(description="the input that the weights were trained with")
    depth: int = Field(ge=1, description="number of blocks")
    num_heads: int | None = Field(None, ge=1, description="attention heads, where timm's model has another number")
    licence: str = Field(description="licence of the weights, SPDX where there is one")
    used_by: Annotated[tuple[str, ...], BeforeValidator(tuple)] = Field(description="whose published code uses them")

    @model_validator(mode="after")
    def _check_place(self) -> WeightRecord:
        if (self.hub is None) == (self.by_hand is None):
            raise ValueError("give either hub or by_hand")
        return self

    @property
    def page(self) -> str:
        """Where a person finds the file."""
        place = self.hub or self.by_hand
        assert place is not None
        return place.page

    @property
    def line(self) -> str:
        """What a person needs to choose it, in one line."""
        users = f"; used by {', '.join(self.used_by)}" if self.used_by else ""
        return f"{self.about}{'' if self.hub else ' (file by hand)'}{users}"


@cache
def weight_records() -> Mapping[str, WeightRecord]:
    """Every record by its tag, in the order of the file."""
    return read_records(RECORDS)


def read_records(path: Path) -> dict[str, WeightRecord]:
    """A file laid out as `records.yaml`, checked.

    Raises:
        pydantic.ValidationError: a key that is unknown, absent or has a wrong value.
    """
    # The parser in C, where PyYAML has it: every command line waits for this.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return {tag: WeightRecord.model_validate(entry) for tag, entry in content.items()}


def find_record(tag: str | None) -> WeightRecord | None:
    """The record of a tag; None if the table has none."""
    return None if tag is None else weight_records().get(tag)


def same_model(name: str) -> list[str]:
    """Tags of all weights of a model, whose name is given with or without a tag."""
    model = name.split(".", 1)[0]
    return [tag for tag in weight_records() if tag.split(".", 1)[0] == model]


def candidates(name: str) -> list[str]:
    """Tags that `name` may have meant: all weights of that model, or of the one whose name is most alike."""
    models = {tag.split(".", 1)[0]: None for tag in weight_records()}
    close = difflib.get_close_matches(name.split(".", 1)[0], models, n=1, cutoff=0.7)
    return same_model(close[0]) if close else []


def record_lines(tags: Sequence[str]) -> list[str]:
    """A line for each tag: the tag and what its weights are."""
    width = max(map(len, tags), default=0)
    return [f"  {tag:{width}}  {weight_records()[tag].line}" for tag in tags]


def pin_key(tag: str) -> str:
    """The name under which the hash of a weight file is kept."""
    return f"weights/{tag}"


def list_unpinned(pins: Pins | None = None) -> list[str]:
    """Tags whose file has no known hash yet, neither in its record nor among what was seen before.

    Raises:
        DataError: the file of pins is damaged.
    """
    open_tags = {pin_key(tag): tag for tag, record in weight_records().items() if record.sha256 is None}
    unpinned = (pins or Pins()).unpinned(open_tags)
    return [open_tags[key] for key in unpinned]
