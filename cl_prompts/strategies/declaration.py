"""What a method declares about itself: its typed settings and its needs, readable without importing torch.

A strategy file declares one subclass of `StrategySettings`, written with nothing but the names of this module. That
lets the command line check a configuration in milliseconds: `read_settings` evaluates that one class statement and
leaves the rest of the file (torch, timm, Avalanche) unimported.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cl_prompts.errors import StrategyError
from scenarios.settings import LayerIndices, Settings

__all__ = [
    "Annotated",
    "ClassVar",
    "Field",
    "LayerIndices",
    "Literal",
    "Needs",
    "StrategySettings",
    "model_validator",
    "read_settings",
    "strategy_names",
]


class Needs(Settings):
    """What a method asks of stream, protocol and loop; the runner refuses a run that cannot give it."""

    boundaries: Literal["none", "optional", "required"] = Field("none", description="session boundaries")
    task_ids: bool = Field(False, description="task identity of each training batch")
    gradient: bool = Field(True, description="backward passes and an optimizer; False for closed-form learners")
    trains: Literal["nothing", "head", "prompts", "backbone"] = Field(
        "prompts", description="what gradients move beside the head: nothing at all, no more, prompts, the whole copy"
    )
    query_pass: bool = Field(False, description="a pass of the un-prompted backbone beside the prompted one")
    passes_per_update: int = Field(1, ge=1, description="forward and backward passes of one update")
    replay: Literal["none", "optional", "required"] = Field("none", description="a memory of past samples")
    replay_draws: int = Field(1, ge=1, description="independent draws of replay_batch past samples in one update")
    multi_label: bool = Field(False, description="several labels an image")
    classes_in_advance: bool = Field(False, description="the classes of the whole stream before it starts")
    tasks_in_advance: bool = Field(False, description="the number of tasks before the stream starts")
    extra_data: bool = Field(False, description="other data than the stream and the backbone's pre-training set")
    grows_by_parts: bool = Field(
        False, description="finished parts that later sessions leave alone, so that they are evaluated once"
    )
    order_invariant: bool = Field(False, description="the order of the stream cannot change the result")


class StrategySettings(Settings):
    """Base of every method's settings; the subclass is the schema of `configs/strategy/<method>.yaml`."""

    needs: ClassVar[Needs] = Needs()
    """Needs of the default variant, known without a configuration."""

    def declared_needs(self) -> Needs:
        """Needs of these very settings; a method whose variants differ overrides it."""
        return self.needs

    def deviations(self) -> list[str]:
        """Where these settings leave the protocol or their paper, one sentence each; every table prints them."""
        return []


def strategy_names() -> list[str]:
    """Names usable after `strategy=`: the files of this folder that declare settings, sorted."""
    folder = Path(__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if _settings_statement(path) is not None)


@cache
def read_settings(name: str) -> type[StrategySettings]:
    """The settings class declared in `strategies/<name>.py`, without importing that file.

    Raises:
        KeyError: no such file, or it declares no settings.
        StrategyError: the file's settings use a name that this module does not give them, or Python cannot read it.
    """
    path = Path(__file__).parent / f"{name}.py"
    statement = _settings_statement(path) if path.is_file() else None
    if statement is None:
        raise KeyError(name)
    namespace = {key: globals()[key] for key in __all__} | {"__name__": __name__}
    try:
        exec(compile(ast.Module([statement], []), str(path), "exec", dont_inherit=True), namespace)
    except NameError as error:
        allowed = ", ".join(key for key in __all__ if key not in ("read_settings", "strategy_names"))
        raise StrategyError(
            f"{path}: {statement.name} uses the name {error.name!r}; settings are read without the rest of their file, "
            f"write them with {allowed} and built-in names alone"
        ) from error
    return namespace[statement.name]


def parse_file(path: Path) -> ast.Module:
    """The syntax tree of a strategy file.

    Raises:
        StrategyError: it is no Python; names the file and the line.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise StrategyError(
            f"{path}, line {error.lineno}: {error.msg}; every file of this folder must be valid Python"
        ) from error


@cache
def _settings_statement(path: Path) -> ast.ClassDef | None:
    for node in parse_file(path).body:
        if isinstance(node, ast.ClassDef) and any(
            isinstance(base, ast.Name) and base.id == "StrategySettings" for base in node.bases
        ):
            return None if path == Path(__file__) else node
    return None
