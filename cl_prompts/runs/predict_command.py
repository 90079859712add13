"""`mode=predict`: a table of what a saved run says about images. Its words are checked here, before torch loads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from cl_prompts.errors import UserError
from cl_prompts.runs.command_words import read_command_words
from cl_prompts.runs.continuing import require_run, saved_config
from cl_prompts.runs.fields import value_text
from cl_prompts.runs.schema import Text
from scenarios.settings import Settings

TEXT_WORDS = ("run", "images", "predictions", "weights")
"""Keys whose value is what was typed."""


class PredictSettings(Settings):
    """Keys of `mode=predict`."""

    mode: Literal["predict"] = Field("predict", description="a table of what a saved run says about images")
    run: Text = Field(
        description="folder of the run whose newest checkpoint predicts", json_schema_extra={"allowed": "a folder"}
    )
    images: Text = Field(
        description="an image, or a folder with images, in folders below it, too",
        json_schema_extra={"allowed": "a file or a folder"},
    )
    predictions: Text | None = Field(
        None,
        description="CSV file to write, whole or not at all; null: the table is printed",
        json_schema_extra={"allowed": "a file, or null"},
    )
    top: int | None = Field(
        None,
        ge=1,
        description="classes told of each image; null: 1, or of a run of several labels an image all above threshold",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability from which a label is told, of several labels an image; null: as the run was measured",
    )
    skip_unreadable: bool = Field(False, description="leave out files that cannot be read, and count them")
    weights: Text | None = Field(
        None,
        description="weight file of the backbone, where it lies elsewhere than the run found it",
        json_schema_extra={"allowed": "a file, or null"},
    )
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="where tensors live",
        json_schema_extra={"allowed": "cpu, cuda or cuda:N"},
    )
    progress: Literal["plain", "none"] = Field("plain", description="lines that say how far it is, or nothing")
    debug: bool = Field(False, description="show the traceback of an error")


def read_predict_words(words: Sequence[str]) -> tuple[PredictSettings | None, list[str]]:
    """The settings that the words of a command line make, or all that is wrong with them, one line each."""
    read = read_command_words(
        words, PredictSettings, text_keys=TEXT_WORDS, command="mode=predict", example="images=folder"
    )
    # Of a command line with mistakes: what of it can be checked all the same.
    draft = PredictSettings.model_construct(**{"run": None, "images": None} | dict(read.right))
    problems = [*read.problems, *_of_run(draft), *_of_places(draft)]
    return (None, problems) if problems else (PredictSettings.model_validate(read.values), [])


def _of_run(settings: PredictSettings) -> Iterator[str]:
    """One line for each thing that is wrong with the run, or that does not suit it."""
    if settings.run is None:
        return
    folder = Path(settings.run).expanduser()
    try:
        require_run("run", folder)
        config = saved_config(folder, weights=settings.weights)
    except UserError as error:
        yield str(error)
        return
    if not any((folder / "checkpoints").glob("*.safetensors")):
        yield f"run={settings.run}: nothing was saved there yet, so there is no model; wait, or resume the run"
    if settings.threshold is not None and not config.scenario.multi_label:
        yield f"threshold={settings.threshold}: this run gives one label an image; leave it out, or use top=k"
    elif settings.threshold is not None and settings.top is not None:
        yield f"threshold={settings.threshold}: top={settings.top} asks for so many labels, whatever they are; give one"


def _of_places(settings: PredictSettings) -> Iterator[str]:
    """One line for each path that leads nowhere."""
    if settings.images is not None and not Path(settings.images).expanduser().exists():
        yield f"images={settings.images}: there is no such file or folder"
    if settings.predictions is not None:
        yield from _unwritable(settings.predictions)


def _unwritable(typed: str) -> Iterator[str]:
    path = Path(typed).expanduser()
    if path.is_dir():
        yield f"predictions={value_text(typed)}: is a folder; give the name of a file in it"
    elif not path.parent.is_dir():
        yield f"predictions={value_text(typed)}: there is no folder {path.parent}; make it first"
    elif not os.access(path.parent, os.W_OK):
        yield f"predictions={value_text(typed)}: no permission to write into {path.parent}; choose another place"
