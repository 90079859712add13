"""Runs of a second or two: an untrained two-block ViT on a few scans of digits."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from cl_prompts.runs.compose import open_composer
from cl_prompts.runs.request import read_request
from cl_prompts.runs.schema import RunConfig

TINY = (
    "backbone=vit_nano",
    "backbone.checkpoint=untrained",
    "backbone.depth=2",
    "backbone.embed_dim=24",
    "backbone.num_heads=3",
    "dataset.train_per_class=4",
    "dataset.test_pct=10",
)
"""Forty training samples, in batches of ten unless a session ends."""

SEVERAL = {
    "mlcil": ("protocol.epochs=2", "protocol.eval_every=0"),
    "ml_si_blurry": (),
}
"""Scenario of several labels an image -> what makes its runs tiny: forty mosaics for training, twenty for testing."""

MEMORY = ("protocol.memory_size=20", "protocol.replay_batch=5")
"""What a method of replay cannot do without."""

BLOCKS = {
    "mvp": ("strategy.expert_layers=[1]",),
    "single_prompt": ("strategy.prompt_layers=2",),
    "coda_prompt": ("strategy.prompt_layers=2", "strategy.components=10"),
    "dualprompt": ("strategy.general_layers=[0]", "strategy.expert_layers=[1]"),
    "misa": ("strategy.general_layers=[0]", "strategy.expert_layers=[1]"),
    "er": ("strategy.prompt_layers=2", *MEMORY),
    "er_ace": ("strategy.prompt_layers=2", *MEMORY),
    "derpp": ("strategy.prompt_layers=2", *MEMORY),
    "lwf": ("strategy.prompt_layers=2",),
    "ewc": ("strategy.prompt_layers=2",),
    "fine_tune": ("strategy.prompt_layers=2", "protocol.lr=0.001"),
    "multi_lane": ("strategy.prompt_layers=2", "strategy.num_selectors=3", "strategy.num_prompts=3"),
    "ranpac": ("strategy.projection=50",),
    "gacl": ("strategy.expansion=50", "strategy.gamma=0.1"),
}
"""What a method needs to fit into two blocks, and to be small."""

QUIET = ("progress=none", "tensorboard=false", "protocol.eval_every=10")

FILES = {"config.yaml", "manifest.json", "plan.npz", "plan.json", "curves.csv", "class_accuracy.csv", "summary.json"}
FILES |= {"model.safetensors", "checkpoints", ".lock"}
"""What every finished run leaves, beside TensorBoard's events."""


def tiny_words(strategy: str, *words: str) -> list[str]:
    """The command line of a tiny run; of words for one key the last one counts."""
    return [*TINY, f"strategy={strategy}", *BLOCKS.get(strategy, ()), *words]


def several_words(scenario: str, strategy: str, *words: str) -> list[str]:
    """The command line of a tiny run on images of several labels, in batches of ten."""
    sizes = ("dataset.images_train=40", "dataset.images_test=20", "protocol.stream_batch=10", "protocol.eval_batch=20")
    backbone = [word for word in TINY if word.startswith("backbone")]
    choices = (f"scenario={scenario}", f"strategy={strategy}")
    return [*backbone, *choices, *BLOCKS.get(strategy, ()), *SEVERAL[scenario], *sizes, *words]


def checked(*words: str, config_dir: Path | None = None, config_name: str | None = None) -> RunConfig:
    """The checked configuration of a command line without mistakes."""
    with open_composer(None if config_dir is None else str(config_dir), config_name) as composer:
        request = read_request(composer, words, multirun=False)
    assert request.problems == ()
    (config,) = request.configs
    return config


@dataclass
class Finished:
    """A run that is over, whatever its end."""

    code: int
    folder: Path
    learner: Any = None
    files: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.files = {path.name for path in self.folder.iterdir()}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return json.loads((self.folder / "summary.json").read_text(encoding="utf-8"), parse_constant=_no_constant)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The content of manifest.json."""
        return json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"), parse_constant=_no_constant)

    @cached_property
    def curves(self) -> list[dict[str, str]]:
        """The rows of curves.csv."""
        return table(self.folder / "curves.csv")

    def rows(self, kind: str) -> list[dict[str, str]]:
        """The rows of curves.csv of one kind of evaluation."""
        return [row for row in self.curves if row["kind"] == kind]

    def text(self, name: str) -> str:
        """The content of a file of the run."""
        return (self.folder / name).read_text(encoding="utf-8")

    @property
    def weights(self) -> dict[str, Any]:
        """All tensors of the model at the end."""
        return self.learner.strategy.model.state_dict()


@contextmanager
def runner(folder: Path, words_of: Callable[..., list[str]]) -> Iterator[Callable[..., Finished]]:
    """A function that executes runs in this process: `run(*choices, *words)` with the arguments of `words_of`."""
    from cl_prompts.runs import execute as module
    from cl_prompts.runs import prepared

    built: list = []
    build, count = prepared.build_learner, iter(range(1000))

    def run(*words: str) -> Finished:
        output = folder / f"output {next(count)}"
        built.clear()
        config = checked(*QUIET, f"output={output}", *words_of(*words))
        code = module.execute(config)
        return Finished(code, only_folder(output), built[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "build_learner", lambda *arguments: built.append(build(*arguments)) or built[-1])
        yield run


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def mean(values: Sequence[str]) -> float:
    """Mean of numbers read from a table."""
    return sum(map(float, values)) / len(values)


def only_folder(output: Path) -> Path:
    """The folder of the only run in `output`."""
    (folder,) = (path for path in output.iterdir() if path.name != "sweeps")
    return folder


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
