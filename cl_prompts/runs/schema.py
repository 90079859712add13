"""`RunConfig`: the typed, checked configuration of one run, and the schema of every config group.

Imports neither torch nor Avalanche. The keys of `strategy` and `dataset` are declared beside their code and are looked
up by the name after `strategy=` and `dataset=`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, create_model

from cl_prompts.backbones.settings import BackboneSettings
from cl_prompts.strategies.declaration import StrategySettings, read_settings, strategy_names
from scenarios.datasets import dataset_names, read_dataset_settings
from scenarios.errors import as_line
from scenarios.ml_si_blurry import MLSiBlurrySettings
from scenarios.mlcil import MLCILSettings
from scenarios.settings import Settings
from scenarios.si_blurry import SiBlurrySettings

GROUPS = ("scenario", "dataset", "backbone", "strategy", "protocol")
"""The groups of a configuration; each is one record of `RunConfig`. `experiment` overrides them and is none itself."""


DEFAULT_GENERATOR = "si_blurry"
"""What makes the stream of a scenario that does not say."""


def _as_text(value: Any) -> Any:
    """A name made of digits reaches us as a number."""
    return str(value) if type(value) in (int, float) else value


Text = Annotated[str, BeforeValidator(_as_text)]


def _recipe(value: Any) -> Any:
    """The choice `none` is the absence of a recipe."""
    return None if value == NO_RECIPE else value


NO_RECIPE = "none"
"""Choice of `experiment` that changes nothing: Hydra's command line has no other word for it."""


class ScenarioSettings(Settings):
    """Keys that every scenario has: which stream, and what of it a strategy may see."""

    name: str = Field("si_blurry", description="the choice itself")
    generator: str = Field(
        DEFAULT_GENERATOR,
        description="what makes the stream: a file of scenarios/",
        json_schema_extra={"allowed": "si_blurry, mlcil or ml_si_blurry"},
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="seed of the stream alone; null: the run's seed")
    plan: Text | None = Field(None, description="folder or file of a saved stream, used instead of making one")
    view: Literal["sessions", "merged"] = Field(
        "sessions",
        description="one experience a session, where batches end with it as published; or one merged stream, whose "
        "batches run across session ends and in which no boundary can be found",
    )
    task_label: int | None = Field(
        None, ge=0, description="one Avalanche task label for the whole stream; null: no task labels"
    )

    multi_label: ClassVar[bool] = False
    """Its images have several labels."""
    stays_in_order: ClassVar[bool] = False
    """What a batch shows depends on its place in the stream, so the order may not change."""

    @property
    def classes_return(self) -> bool:
        """The stream is made here and some classes are learnt in several sessions."""
        return False


class SiBlurryScenario(SiBlurrySettings, ScenarioSettings):
    """Schema of scenarios with `generator: si_blurry`."""

    @property
    def classes_return(self) -> bool:
        """Blurry classes in more than one session."""
        made_here = self.plan is None and self.n_sessions > 1
        return made_here and self.disjoint_class_pct < 100 and self.blurry_sample_pct > 0


class MLCILScenario(MLCILSettings, ScenarioSettings):
    """Schema of scenarios with `generator: mlcil`."""

    multi_label: ClassVar[bool] = True


class MLSiBlurryScenario(MLSiBlurrySettings, ScenarioSettings):
    """Schema of scenarios with `generator: ml_si_blurry`."""

    multi_label: ClassVar[bool] = True
    stays_in_order: ClassVar[bool] = True

    @property
    def classes_return(self) -> bool:
        """Every stream of more than one session: labels beside the anchor return even without blur."""
        return self.plan is None and self.n_sessions > 1


SCENARIOS: dict[str, type[ScenarioSettings]] = {
    "si_blurry": SiBlurryScenario,
    "mlcil": MLCILScenario,
    "ml_si_blurry": MLSiBlurryScenario,
}
"""Word after `scenario.generator=` -> schema."""


class ProtocolSettings(Settings):
    """Schema of `configs/protocol/*.yaml`: everything that must be equal when methods are compared."""

    name: str = Field("online", description="the choice itself")
    stream_batch: int = Field(10, ge=1, description="images from the stream in a batch")
    epochs: int = Field(1, ge=1, description="passes over each session; online streams have one")
    shuffle: bool = Field(False, description="a fresh order of the session in every epoch; false: as planned")
    updates_per_batch: float = Field(
        3.0,
        gt=0,
        allow_inf_nan=False,
        description="optimizer steps for each batch; 0.5: one for every second batch; without gradient: unused",
    )
    augmentation: Literal[
        "none",
        "crop",
        "crop_flip",
        "autoaugment_cifar10",
        "autoaugment_imagenet",
        "resized_crop_flip",
        "l2p",
        "coda_prompt",
        "multi_lane",
        "ranpac",
        "mvp_cifar",
        "mvp_imagenet",
    ] = Field(
        "crop", description="random change of the training images, fresh for each update; names of papers: theirs"
    )
    augment_per: Literal["image", "batch"] = Field(
        "image", description="a draw for each image, or one draw that all images of a batch share"
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="rule of the optimizer steps")
    optimizer_scope: Literal["stream", "session"] = Field(
        "stream", description="one optimizer for the stream, or a fresh one, moments at zero, for each session"
    )
    lr: float = Field(0.005, gt=0, allow_inf_nan=False, description="learning rate")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="constant, or cosine to 0 over the epochs of each session, one step an epoch"
    )
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight decay")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    clip_norm: float = Field(0.0, ge=0, allow_inf_nan=False, description="largest norm of all gradients; 0: any")
    train_mask: Literal["none", "exposed", "task", "batch", "session"] = Field(
        "exposed",
        description="classes the training loss sees: all, seen so far, of the task, of the batch, of the session",
    )
    eval_mask: Literal["exposed", "none"] = Field(
        "exposed", description="classes evaluation chooses from: seen so far, or all"
    )
    eval_every: int = Field(50, ge=0, description="stream samples between anytime evaluations; 0: session ends only")
    anytime_rule: Literal["exact", "official"] = Field(
        "exact",
        description="evaluate at the sample count, or by the published trigger: one batch later, x rounded down",
    )
    session_evaluation: Literal["live", "deferred"] = Field(
        "live",
        description="evaluate at each session end, or all of them in one pass after the last, which needs a method "
        "that grows by finished parts",
    )
    eval_crop: Literal["resize", "centre", "resized_centre"] = Field(
        "resize",
        description="images of another size are resized, or the centre of larger ones is cut out, or all are resized "
        "to 256/224 of it and their centre is cut out",
    )
    eval_batch: int = Field(128, ge=1, description="images in an evaluation batch")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the backbone passes")
    memory_size: int = Field(0, ge=0, description="past samples kept for replay; 0: none")
    replay_batch: int = Field(0, ge=0, description="past samples added to each batch; above 0 if memory_size is")
    reservoir: Literal["exact", "released"] = Field(
        "exact", description="how past samples are kept: algorithm R, or the published code with its quirk"
    )


class RunSettings(Settings):
    """Schema of the keys outside the groups: `configs/run.yaml`."""

    seed: int = Field(1, ge=0, lt=2**63, description="root of every random generator of the run")
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="where tensors live",
        json_schema_extra={"allowed": "cpu, cuda or cuda:N"},
    )
    output: Text = Field(
        "runs",
        min_length=1,
        description="folder of all run folders, relative to the current one",
        json_schema_extra={"allowed": "a folder"},
    )
    name: Text | None = Field(
        None,
        pattern=r"^[^/\\:*?\"<>|.][^/\\:*?\"<>|]*$",
        description="name of this run's folder; null: made from time, scenario and strategy",
        json_schema_extra={"allowed": "a folder name without slashes, or null"},
    )
    mode: Literal["run", "inspect", "check-data", "config"] = Field(
        "run",
        description="run; or stop after showing what the run would be (inspect), whether the files of the data set are "
        "the right ones (check-data), or the checked configuration",
    )
    progress: Literal["auto", "bar", "plain", "none"] = Field(
        "auto", description="what the terminal shows; auto: a bar in a terminal, plain lines elsewhere"
    )
    tensorboard: bool = Field(True, description="write TensorBoard events into the run's folder")
    num_workers: int = Field(0, ge=0, description="worker processes that load images; 0: none")
    feature_cache: Literal["none", "disk"] = Field(
        "none",
        description="keep features of images that never change for later runs, where the method reads nothing else",
    )
    feature_cache_folder: Text | None = Field(
        None,
        description="where they are kept; null: the user's cache folder",
        json_schema_extra={"allowed": "a folder, or null"},
    )
    resume: Text | None = Field(
        None,
        description="folder of a run to go on with; all other keys are as it began",
        json_schema_extra={"allowed": "a folder, or null"},
    )
    autoresume: bool = Field(
        False, description="go on with the unfinished run of the same keys in the output folder; skip a finished one"
    )
    checkpoint_every: int = Field(
        1000, ge=0, description="stream samples between two checkpoints; 0: only when asked to stop, and at the end"
    )
    debug: bool = Field(False, description="show the traceback of an error")


class PublishedValue(Settings):
    """One value of a paper; a recipe lists them under `published`, and reports set them beside ours."""

    paper: str = Field(description="authors, venue and year")
    table: str = Field(description="where in the paper, such as Table 2, or where else it was read")
    metric: str = Field(description="which metric of summary.json it is compared with")
    value: float = Field(allow_inf_nan=False, description="in percent, as printed")
    spread: float | None = Field(None, ge=0, allow_inf_nan=False, description="in percent, as printed; null: none is")
    seeds: int | None = Field(None, ge=1, description="runs behind it; null: not said")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


PublishedValues = Annotated[tuple[PublishedValue, ...], BeforeValidator(_as_tuple)]
"""What a recipe says that papers report."""


class RunConfig(RunSettings):
    """The checked configuration of one run: top-level keys and one record for each group.

    `strategy` and `dataset` are instances of the chosen method's and data set's own settings, extended by `name`.
    """

    experiment: Annotated[str | None, BeforeValidator(_recipe)] = Field(
        None, description="the recipe it was made with, recorded only"
    )
    published: PublishedValues = Field((), description="what the recipe says that papers report, recorded only")
    scenario: SerializeAsAny[ScenarioSettings]
    dataset: SerializeAsAny[Settings]
    backbone: SerializeAsAny[BackboneSettings]
    strategy: SerializeAsAny[StrategySettings]
    protocol: ProtocolSettings

    @property
    def dataset_name(self) -> str:
        """The word after `dataset=`."""
        return _choice_name(self.dataset)

    @property
    def strategy_name(self) -> str:
        """The word after `strategy=`."""
        return _choice_name(self.strategy)

    @property
    def label(self) -> str:
        """What tells the run from others at a glance."""
        return f"{self.scenario.name}-{self.strategy_name}-{self.dataset_name}-seed{self.seed}"

    @property
    def plan_seed(self) -> int:
        """Seed of the stream: its own, or the run's."""
        return self.seed if self.scenario.seed is None else self.scenario.seed

    @property
    def plan_path(self) -> Path | None:
        """Where the saved stream lies; None if the stream is made."""
        return None if self.scenario.plan is None else Path(self.scenario.plan).expanduser()

    @property
    def output_path(self) -> Path:
        """Folder of all run folders."""
        return Path(self.output).expanduser()

    def strategy_arguments(self) -> dict[str, Any]:
        """The method's settings as keyword arguments: the keys of `strategy` without `name`."""
        return _arguments(self.strategy)

    def dataset_arguments(self) -> dict[str, Any]:
        """The data set's settings as keyword arguments: the keys of `dataset` without `name`."""
        return _arguments(self.dataset)

    def to_yaml(self) -> str:
        """The whole configuration as YAML, every key resolved; reads back with `--config-dir` and `--config-name`."""
        plain = self.model_dump(mode="json")
        ordered = {key: _name_first(value) if key in GROUPS else value for key, value in plain.items()}
        return yaml.dump(ordered, Dumper=_ShortLists, sort_keys=False, allow_unicode=True, width=120)


class _ShortLists(yaml.SafeDumper):
    """Writes a list in one line and nothing as a reference, as our config files do."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)

    def represent_text(self, data: str) -> yaml.ScalarNode:
        # Other styles fold rare line breaks, and what is read back is another text.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if as_line(data) != data else None)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_ShortLists.add_representer(str, _ShortLists.represent_text)


def _name_first(record: dict[str, Any]) -> dict[str, Any]:
    return {"name": record["name"], **record}


def _choice_name(settings: Settings) -> str:
    """The `name` of a group's record."""
    return str(settings.name)  # type: ignore[attr-defined]


def _arguments(settings: Settings) -> dict[str, Any]:
    """A group's record as a dictionary without its `name`; tuples stay tuples."""
    return {key: getattr(settings, key) for key in type(settings).model_fields if key != "name"}


@cache
def group_schema(group: str, name: str) -> type[Settings]:
    """The settings class of one choice of a group, always with the key `name`; `name` as `schema_name` gives it.

    Raises:
        KeyError: no method, data set or generator of that name.
    """
    return _with_name(_SCHEMAS[group](name), name)


def known_names(group: str) -> tuple[str, ...]:
    """Names that select a schema of their own: methods, data sets, generators; empty for groups with one schema."""
    return tuple(_NAMES[group]()) if group in _NAMES else ()


def _strategy_schema(name: str) -> type[Settings]:
    """Settings of a method by name. The one place to look further, such as for methods of installed packages."""
    return read_settings(name)


_SCHEMAS: dict[str, Callable[[str], type[Settings]]] = {
    "scenario": SCENARIOS.__getitem__,
    "dataset": read_dataset_settings,
    "backbone": lambda name: BackboneSettings,
    "strategy": _strategy_schema,
    "protocol": lambda name: ProtocolSettings,
}
_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "scenario": lambda: SCENARIOS,
    "dataset": dataset_names,
    "strategy": strategy_names,
}
_SCHEMA_KEYS = {"scenario": "generator"}


def schema_key(group: str) -> str:
    """The key of a group's record that selects its schema: `name`, or where many choices share one, `generator`."""
    return _SCHEMA_KEYS.get(group, "name")


def schema_name(group: str, record: Mapping[str, Any]) -> Any:
    """The value of that key in a record as given; a scenario without one is a Si-Blurry stream."""
    return record.get(schema_key(group), DEFAULT_GENERATOR if group == "scenario" else None)


def _with_name(schema: type[Settings], name: str) -> type[Settings]:
    if "name" in schema.model_fields:
        return schema
    field = (str, Field(name, description="the choice itself"))
    return create_model(schema.__name__, __base__=schema, __module__=__name__, name=field)
