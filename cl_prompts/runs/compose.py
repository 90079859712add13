"""Composition: config files and the words of the command line become one plain dictionary, by Hydra's rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra.version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from cl_prompts.config_folder import config_folder
from cl_prompts.errors import UserError
from cl_prompts.runs.fields import close_match
from cl_prompts.runs.foreign_choices import foreign_config_folders, offer_foreign_defaults
from cl_prompts.runs.overrides import CHOICE_GROUPS

PRIMARY = "run"
"""The config file everything starts from."""

_SILENT_HYDRA = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.sweep.dir='${output}/sweeps/${now:%Y-%m-%d_%H-%M-%S-%f}'",
    "hydra.sweep.subdir=.",
)
"""What `run.yaml` asks of Hydra, for primary files that do not build on it: nothing written beside the runs."""


class CompositionError(UserError):
    """Config files that do not fit together, in one line."""


@dataclass(frozen=True)
class Composition:
    """Config files put together, before any `key=value` word.

    Attributes:
        config: our part, interpolations unresolved.
        hydra: Hydra's own part.
        choices: group -> chosen file, None where nothing is chosen.
    """

    config: DictConfig
    hydra: DictConfig
    choices: Mapping[str, str | None]


class Composer:
    """Reads config files through Hydra; use `open_composer`."""

    def __init__(self, hydra_app: Hydra, config_name: str) -> None:
        self.hydra_app = hydra_app
        self.loader = hydra_app.config_loader
        self.config_name = config_name
        self.silent_words = [] if config_name == PRIMARY else list(_SILENT_HYDRA)
        self._choices: dict[str, list[str]] = {}
        self._compositions: dict[tuple[str, ...], Composition] = {}

    def choices(self, group: str) -> list[str]:
        """Files of a group, in the package's and the user's folders, sorted."""
        if group not in self._choices:
            self._choices[group] = sorted(self.loader.get_group_options(group, ObjectType.CONFIG))
        return self._choices[group]

    def choice_file(self, group: str, choice: str) -> Path | None:
        """Where the config of a choice lies; None if it is not a file."""
        for source in self.loader.get_sources():
            path = Path(source.path) / group / f"{choice}.yaml"
            if source.scheme() == "file" and path.is_file():
                return path
        return None

    def compose(self, choices: Mapping[str, str], hydra_words: tuple[str, ...] = ()) -> Composition:
        """Put the chosen files together; the defaults of the primary file stand where nothing is chosen.

        Raises:
            CompositionError: a file that is not there, not YAML, or asks for something that does not exist.
        """
        words = (*self.silent_words, *(f"{group}={choice}" for group, choice in choices.items()), *hydra_words)
        if words not in self._compositions:
            self._compositions[words] = self._composed(words)
        return self._compositions[words]

    def _composed(self, words: tuple[str, ...]) -> Composition:
        try:
            config = self.loader.load_configuration(self.config_name, list(words), RunMode.RUN)
        except MissingConfigException as error:
            raise CompositionError(_missing_file(error)) from error
        except HydraException as error:
            raise CompositionError(_first_line(error)) from error  # what follows are hints to use + or ~
        except Exception as error:  # the YAML reader, the file system and Hydra's own checks share no other base
            raise CompositionError(f"a config file cannot be read: {one_line(error)}") from error
        hydra_config = config.hydra
        chosen = dict(hydra_config.runtime.choices)
        with flag_override(config, ["struct", "readonly"], False):
            del config["hydra"]
        return Composition(config, hydra_config, {group: chosen.get(group) for group in CHOICE_GROUPS})

    @cached_property
    def defaults(self) -> Composition:
        """The composition without any choice."""
        return self.compose({})


_LAST = SearchPathQuery(provider="schema", path=None)
"""What Hydra searches after all folders."""


@contextmanager
def open_composer(
    config_dir: str | None = None, config_name: str | None = None, config_path: str | None = None
) -> Iterator[Composer]:
    """A `Composer` on the package's configs.

    Args:
        config_dir: folder of the user's own configs, searched as well.
        config_name: primary file instead of `run`.
        config_path: folder to use instead of the package's configs, relative to the current directory.

    Raises:
        UserError: a folder or the primary file is not there.
    """
    folder = Path(config_path).resolve() if config_path else config_folder()
    search_path = create_config_search_path(str(folder))
    folders = foreign_config_folders()
    if config_dir is not None:
        own = Path(config_dir).expanduser().resolve()
        if not own.is_dir():
            raise UserError(f"--config-dir {config_dir}: there is no such folder")
        folders.insert(0, own)
    for searched in folders:
        search_path.prepend(provider="own", path=f"file://{searched}", anchor=_LAST)
    offer_foreign_defaults(unless_in=[folder, *folders])
    hydra.version.setbase("1.3")
    around = GlobalHydra.instance().hydra  # a Hydra program that calls us keeps its own
    GlobalHydra.instance().clear()
    app = Hydra.create_main_hydra2(task_name="cl-prompts", config_search_path=search_path)
    try:
        composer = Composer(app, config_name or PRIMARY)
        _require_primary(composer)
        yield composer
    finally:
        GlobalHydra.instance().hydra = around


def _missing_file(error: MissingConfigException) -> str:
    choices = f"; choose one of {', '.join(error.options)}" if error.options else ""
    return f"a config file asks for {error.missing_cfg_file}, which does not exist{choices}"


def _require_primary(composer: Composer) -> None:
    available = [file for file in composer.choices("") if not file.startswith("_")]  # Hydra adds one of its own
    name = composer.config_name.removesuffix(".yaml")
    if name not in available:
        close = close_match(name, available)
        hint = f"did you mean {close}? " if close else ""
        raise UserError(
            f"--config-name {composer.config_name}: no such file; {hint}choose one of {', '.join(available)}"
        )


def with_values(config: DictConfig, values: Mapping[str, Override]) -> dict[str, Any]:
    """A composed configuration with `key=value` words applied and interpolations resolved, as plain data.

    Keys that do not exist are added: the check that follows refuses them all at once.

    Raises:
        CompositionError: an interpolation that cannot be resolved.
    """
    own = config.copy()
    OmegaConf.set_struct(own, False)
    try:
        for key, override in values.items():
            OmegaConf.update(own, key, override.value(), merge=True, force_add=True)
        plain = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise CompositionError(f"{where}{_first_line(error)}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def has_key(config: DictConfig, key: str) -> bool:
    """Whether the composed files have dotted `key`, even if its value is null."""
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and leaf in node


def _first_line(error: Exception) -> str:
    """What OmegaConf or Hydra says, without the type that it may put in front."""
    return _OF_A_TYPE.sub("", next(iter(str(error).strip().splitlines()), "")) or "it cannot be read"


_OF_A_TYPE = re.compile(r"^\w+ raised while resolving interpolation: ")


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return text or "no reason given"
