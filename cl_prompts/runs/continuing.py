"""`resume=<folder>` and `autoresume=true`: which run a command line means to go on with. Light: no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from cl_prompts.errors import UserError
from cl_prompts.runs.compose import one_line
from cl_prompts.runs.identity import deciding_keys, key_differences
from cl_prompts.runs.problems import Rule
from cl_prompts.runs.rules import RULES
from cl_prompts.runs.schema import GROUPS, RunConfig
from cl_prompts.runs.validation import check_config

WORD = "resume="


def names_a_run(word: str) -> bool:
    """The word is `resume=<folder>`."""
    return word.startswith(WORD) and word not in (WORD, f"{WORD}null")


def resume_words(words: Sequence[str]) -> tuple[Path, list[str]] | None:
    """The folder of the word `resume=<folder>` and the other words; None where there is no such word.

    Raises:
        UserError: it stands there twice, or names no folder.
    """
    found = [word for word in words if names_a_run(word)]
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"{' '.join(found)}: give one folder; several runs are resumed one after the other")
    folder = Path(found[0].removeprefix(WORD).strip("'\"")).expanduser()
    require_run("resume", folder)
    return folder, [word for word in words if not word.startswith(WORD)]


def require_run(key: str, folder: Path) -> None:
    """Refuse a folder that is none of a run.

    Raises:
        UserError: names the key that gave it.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{key}={folder}: no run lies there (it has no config.yaml); give the folder of a run")


def saved_config(folder: Path, *, weights: str | None = None) -> RunConfig:
    """The configuration of a saved run, whose data set and stream may be out of reach.

    Args:
        folder: of the run.
        weights: file of the backbone's weights, in place of the one that the run read.

    Raises:
        UserError: it cannot be read, or its weights are not there.
    """
    raw = _read(folder / "config.yaml")
    if weights is not None and isinstance(raw.get("backbone"), dict):
        raw["backbone"] = raw["backbone"] | {"checkpoint": weights}
    elsewhere = {"backbone.checkpoint": "; where the file lies elsewhere now, say so with weights="}
    return _checked(raw, f"{folder / 'config.yaml'}", elsewhere, rules=())


def resumed_config(folder: Path, words: Sequence[str]) -> RunConfig:
    """The configuration of a saved run, with further words of the command line.

    Raises:
        UserError: the saved configuration cannot be read, or a word changes a key that decides a number.
    """
    raw = _read(folder / "config.yaml")
    saved = _checked(raw, f"{folder / 'config.yaml'}")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(_plain(words, raw)))
    except Exception as error:  # the same of the values of words
        raise UserError(f"{' '.join(words)}: cannot be read ({one_line(error)})") from error
    merged = OmegaConf.to_container(OmegaConf.merge(raw, values))
    config = _checked({**merged, "resume": str(folder), "mode": "run"}, " ".join(words))  # type: ignore[dict-item]
    changed = key_differences(deciding_keys(saved), deciding_keys(config))
    if changed:
        raise UserError(
            f"resume={folder}: this would change {'; '.join(changed)}; a run goes on as it began, so leave these words "
            "out, or start anew without resume="
        )
    return config


def _plain(words: Sequence[str], raw: dict[str, Any]) -> list[str]:
    """Words `key=value` alone; `group=choice` is dropped where it says what the run is anyway."""
    kept = []
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if key in GROUPS and isinstance(raw.get(key), dict):
            if raw[key].get("name") != value:
                raise UserError(
                    f"{word}: the run was started with {key}={raw[key].get('name')}; a run goes on as it began, so "
                    "leave this word out, or start anew without resume="
                )
            continue
        if key != "experiment":
            kept.append(word.lstrip("+"))
    return kept


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = _PlainLoader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # what the readers of YAML's types raise depends on the type
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no configuration; give the folder of a run")
    return {str(key): value for key, value in raw.items()}


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without references, of which a few lines can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references, & and *, have no place in it")
        return super().compose_node(parent, index)


def _checked(
    raw: dict[str, Any], source: str, origins: Mapping[str, str] | None = None, rules: Sequence[Rule] = RULES
) -> RunConfig:
    config, problems = check_config(raw, origins, rules=rules)
    if config is None:
        raise UserError(f"{source}: {'; '.join(problem.text for problem in problems)}")
    return config


def same_runs(config: RunConfig) -> Iterator[tuple[Path, str]]:
    """Folders and states of the runs in the output folder that were started with the same keys, the newest first."""
    wanted = deciding_keys(config)
    folders = sorted(config.output_path.glob("*/config.yaml"), reverse=True) if config.output_path.is_dir() else []
    for path in folders:
        try:
            found = _checked(_read(path), str(path))
        except UserError:
            continue  # of an earlier version
        if not key_differences(deciding_keys(found), wanted):
            yield path.parent, saved_status(path.parent)


def saved_status(folder: Path) -> str:
    """What the summary of a run says about it; `unknown` where it says nothing that can be read."""
    try:
        return str(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
