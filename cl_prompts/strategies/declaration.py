"""What a method declares about itself: its typed settings and its needs, readable without importing torch.

A strategy file declares one subclass of `StrategySettings`, written with nothing but the names of this module. That
lets the command line check a configuration in milliseconds: `read_settings` evaluates that one class statement and
leaves the rest of the file (torch, timm, Avalanche) unimported. Methods of other installed packages are found by the
entry-point group `cl_prompts.strategies` and are read in the same way.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cl_prompts.errors import StrategyError
from cl_prompts.strategies.foreign import foreign_file, foreign_strategies
from scenarios.settings import LayerIndices, Settings

__all__ = [
    "Annotated",
    "Any",
    "ClassVar",
    "Field",
    "LayerIndices",
    "Literal",
    "Needs",
    "NetworkSettings",
    "StrategySettings",
    "describe_strategy",
    "model_validator",
    "read_settings",
    "strategy_file",
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
    toy_settings: ClassVar[dict[str, Any]] = {}
    """Values with which the contract checks the method, where its rule for small settings does not fit."""

    def declared_needs(self) -> Needs:
        """Needs of these very settings; a method whose variants differ overrides it."""
        return self.needs

    def deviations(self) -> list[str]:
        """Where these settings leave the protocol or their paper, one sentence each; every table prints them."""
        return []


class NetworkSettings(StrategySettings):
    """Base of the settings of methods that are a loss and fit any network: what they train is a setting of its own."""

    trained: Literal["head", "prompts", "all"] = Field(
        "prompts", description="a head on frozen features, one prefix a block and the head, or a copy of the backbone"
    )
    prompt_layers: int = Field(5, ge=1, description="trained=prompts: the first blocks, which get a prefix")
    prompt_length: int = Field(20, ge=1, description="trained=prompts: keys and values added in each of them")
    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits; unused by the linear head")

    def declared_needs(self) -> Needs:
        """The method's needs, with what these settings train."""
        trains = {"head": "head", "prompts": "prompts", "all": "backbone"}[self.trained]
        return self.needs.model_copy(update={"trains": trains})


SETTINGS_BASES = ("StrategySettings", "NetworkSettings")
"""Names of the classes whose subclasses are the settings of a method."""


def strategy_names() -> list[str]:
    """Names usable after `strategy=`: the files of this folder that declare settings, and other packages'; sorted.

    Raises:
        StrategyError: a package takes a name of this folder, or of another package.
    """
    folder = Path(__file__).parent
    own = {path.stem for path in folder.glob("*.py") if _settings_statement(path) is not None}
    foreign = foreign_strategies()
    taken = sorted(own & foreign.keys())
    if taken:
        raise StrategyError(
            f"{foreign[taken[0]]}: the name {taken[0]} is one of cl_prompts' own; rename or uninstall it"
        )
    return sorted(own | foreign.keys())


def strategy_file(name: str) -> Path:
    """The source of a method, of this folder or of another package, found without importing anything.

    Raises:
        KeyError: no such method.
        StrategyError: the package that announces it has no such module.
    """
    path = Path(__file__).parent / f"{name}.py"
    if path.is_file():
        return path
    return foreign_file(foreign_strategies()[name])


@cache
def read_settings(name: str) -> type[StrategySettings]:
    """The settings class declared in the file of the method `name`, without importing that file.

    Raises:
        KeyError: no such file, or it declares no settings.
        StrategyError: the file's settings use a name that this module does not give them, or Python cannot read it; a
            package announces a method that it does not have.
    """
    path = strategy_file(name)
    statement = _settings_statement(path)
    if statement is None:
        if name in foreign_strategies():
            raise StrategyError(
                f"{foreign_strategies()[name]}: {path} declares no subclass of StrategySettings; write one there"
            )
        raise KeyError(name)
    namespace = {key: globals()[key] for key in __all__} | {"__name__": __name__}
    try:
        exec(compile(ast.Module([statement], []), str(path), "exec", dont_inherit=True), namespace)
    except NameError as error:
        allowed = ", ".join(key for key in __all__ if not key.islower() or key == "model_validator")
        raise StrategyError(
            f"{path}: {statement.name} uses the name {error.name!r}; settings are read without the rest of their file, "
            f"write them with {allowed} and built-in names alone"
        ) from error
    except Exception as error:  # whatever the class statement of another package raises
        if name not in foreign_strategies():
            raise
        raise StrategyError(f"{foreign_strategies()[name]}: {path}: {' '.join(str(error).split())[:300]}") from error
    return namespace[statement.name]


def describe_strategy(name: str) -> str:
    """First line of the docstring of a method's file; why there is none, if a package announces what it has not."""
    try:
        text = ast.get_docstring(parse_file(strategy_file(name))) or ""
    except StrategyError as error:
        return str(error)
    return text.partition("\n")[0]


def parse_file(path: Path) -> ast.Module:
    """The syntax tree of a strategy file.

    Raises:
        StrategyError: it is no Python; names the file and the line.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise StrategyError(
            f"{path}, line {error.lineno}: {error.msg}; every file of a method must be valid Python"
        ) from error


@cache
def _settings_statement(path: Path) -> ast.ClassDef | None:
    for node in parse_file(path).body:
        if isinstance(node, ast.ClassDef) and any(
            isinstance(base, ast.Name) and base.id in SETTINGS_BASES for base in node.bases
        ):
            return None if path == Path(__file__) else node
    return None
