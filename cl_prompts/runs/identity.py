"""What a checkpoint must agree with: the stream, the weights, the data and every key that decides a number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cl_prompts.errors import UserError
from cl_prompts.runs.schema import RunConfig
from scenarios.settings import ChannelValues, Settings

HARMLESS = frozenset(
    {
        "output",
        "name",
        "mode",
        "progress",
        "tensorboard",
        "num_workers",
        "debug",
        "resume",
        "autoresume",
        "experiment",
        "published",
        "checkpoint",
        "feature_cache_folder",
        "dataset.root",
        "dataset.download",
        "dataset.cache",
        "dataset.cache_folder",
        "backbone.checkpoint",
        "scenario.plan",
    }
)
"""Keys no number depends on: where things lie and what is shown. What lies there is compared by its hash."""


def deciding_keys(config: RunConfig) -> dict[str, Any]:
    """Every key that may decide a number, dotted, JSON-ready."""
    found: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json").items():
        nested = {f"{key}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {key: value}
        found |= {name: item for name, item in nested.items() if name not in HARMLESS and key not in HARMLESS}
    return found


def key_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key=old, now new` for each key that differs."""
    return [
        f"{key}={before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


class SavedInput(Settings):
    """The evaluation transform of a run; arguments of `EvalTransform`."""

    mean: ChannelValues
    std: ChannelValues
    size: int
    interpolation: str
    crop: str


class SavedDecoding(Settings):
    """From files to the images of the data set; arguments of `Decoder`."""

    size: Annotated[int, Field(ge=1, le=4096)]
    interpolation: Literal["bilinear", "bicubic", "lanczos"]


class SavedContent(Settings):
    """What a checkpoint says of its stream, weights and data: hashes, and all that prediction needs of them."""

    plan: str
    backbone: str | None
    train: str | None
    test: str | None
    classes: list[str]
    input: SavedInput
    decoding: SavedDecoding


def saved_content(state: Mapping[str, Any]) -> SavedContent:
    """What a checkpoint says of its stream, weights and data.

    Raises:
        UserError: it is not the state of a run, or one of an earlier version.
    """
    try:
        identity = state["identity"]
        for part in (identity["keys"], state["strategy"]):
            if not isinstance(part, Mapping):
                raise TypeError(f"a {type(part).__name__} in place of named values")
        float(state["seconds"])
        json.dumps(identity["keys"])  # as plain as those of a configuration, so that they can be compared
        return SavedContent.model_validate(identity["content"])
    except Exception as error:  # nested data of any kind: what a wrong one raises depends on where
        raise UserError(
            "the checkpoint does not hold what one of a run does, such as one of an earlier version; start the run "
            "anew, without resume="
        ) from error


def refuse_other_content(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what the numbers of a run rest on with what a checkpoint says.

    Args:
        saved: a `SavedContent` as plain containers.
        now: the same of what is there.

    Raises:
        UserError: names everything that differs.
    """
    other = [text for key, text in _COMPARED.items() if saved.get(key) != now.get(key)]
    if other:
        raise UserError(
            f"resume: {' and '.join(other)} changed since the checkpoint (another sha256, or other values); bring back "
            "what was there, or start anew without resume="
        )


_COMPARED = {
    "plan": "the stream",
    "backbone": "the weights",
    "train": "the training images",
    "test": "the test images",
    "classes": "the classes or their order",
    "input": "the normalisation or size of the input",
    "decoding": "how images are decoded",
}
"""Key of the content -> what differs."""
