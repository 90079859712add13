"""Methods of other installed packages as choices: their own config files, or the defaults of their settings.

A package may ship `configs/strategy/<name>.yaml` beside the file of the method, and recipes in `configs/experiment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from cl_prompts.errors import StrategyError
from cl_prompts.strategies.declaration import read_settings, strategy_file
from cl_prompts.strategies.foreign import foreign_strategies


def foreign_config_folders() -> list[Path]:
    """Folders of config files that packages ship."""
    folders = [_config_folder(name) for name in foreign_strategies()]
    return list(dict.fromkeys(folder for folder in folders if folder is not None))


def offer_foreign_defaults(unless_in: Sequence[Path]) -> None:
    """Make every foreign method a choice that Hydra composes, where none of these folders has a config file of it."""
    store = ConfigStore.instance()
    for name in foreign_strategies():
        if any((folder / "strategy" / f"{name}.yaml").is_file() for folder in unless_in):
            # Hydra would take what an earlier command line offered for its schema.
            store.repo.get("strategy", {}).pop(f"{name}.yaml", None)
        else:
            store.store(group="strategy", name=name, node=_defaults(name))


def _config_folder(name: str) -> Path | None:
    try:
        folder = strategy_file(name).parent / "configs"
    except StrategyError:
        return None
    return folder if folder.is_dir() else None


def _defaults(name: str) -> dict[str, Any]:
    """Keys and defaults of a method.

    Of a broken package the name alone, so that everything else can run: whoever chooses it is told what is wrong when
    the configuration is checked.
    """
    try:
        fields = read_settings(name).model_fields
    except StrategyError:
        return {"name": name}
    values = read_settings(name).model_construct().model_dump(mode="json", include=set(fields))
    return {"name": name, **values}
