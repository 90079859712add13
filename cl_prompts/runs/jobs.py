"""One job: from what Hydra hands over to what its mode asks for. Launchers import this module in their workers."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Protocol, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cl_prompts.backbones.hub import Hub
from cl_prompts.backbones.resolve import resolve_weights
from cl_prompts.runs.avalanche_home import home_for_avalanche
from cl_prompts.runs.failures import FAILURE, INTERRUPTED, SUCCESS, TERMINATED, print_error, report_failure
from cl_prompts.runs.schema import RunConfig
from cl_prompts.runs.validation import check_config
from scenarios.datasets import provide_dataset, read_dataset_settings


def run_job(composed: DictConfig) -> int:
    """Check the composed configuration again, do what its mode says and return the exit code.

    Never raises an error of the run, so that the other jobs of a sweep go on and no other text than ours is printed.
    """
    raw = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(raw, dict)
    hydra_config = HydraConfig.get()
    raw["experiment"] = hydra_config.runtime.choices.get("experiment") or raw.get("experiment")
    config, problems = check_config({str(key): value for key, value in raw.items()})
    if config is None:
        for problem in problems:
            print_error(problem.text)
        return FAILURE
    if hydra_config.mode == RunMode.MULTIRUN and config.mode != "config":
        print(f"run {hydra_config.job.num + 1}: {' '.join(hydra_config.overrides.task)}", file=sys.stderr, flush=True)
    code = perform(config)
    if code == INTERRUPTED:
        # A run that ended cleanly after Ctrl-C: the rest of its sweep must not start.
        raise KeyboardInterrupt
    if code == TERMINATED:
        print_error("terminated")
        raise SystemExit(TERMINATED)
    return code


def perform(config: RunConfig) -> int:
    """Do what the mode of one checked configuration says; errors end as one line and an exit code."""
    try:
        return MODES[config.mode](config)
    except Exception as error:
        return report_failure(error, debug=config.debug)


def _print_config(config: RunConfig) -> int:
    print(config.to_yaml(), end="")
    return SUCCESS


def _check_data(config: RunConfig) -> int:
    from cl_prompts.runs.data_check import check_files

    return check_files(config)


class HasProgress(Protocol):
    """Settings that say what the terminal shows."""

    @property
    def progress(self) -> str:
        """`none` where it shows nothing."""


SettingsT = TypeVar("SettingsT", bound=HasProgress)


def heavy(module: str, function: str) -> Callable[[SettingsT], int]:
    """A function whose module imports torch, timm and Avalanche, and does so only when it is called."""

    def call(config: SettingsT) -> int:
        if config.progress != "none" and "torch" not in sys.modules:
            # Importing takes seconds: the terminal says at once what is going on.
            print("loading torch, timm and Avalanche ...", file=sys.stderr, flush=True)
        with warnings.catch_warnings(), home_for_avalanche():
            # Avalanche imports a package of solvers, which warns that it found none; nothing here uses them.
            warnings.filterwarnings("ignore", category=UserWarning, module="qpsolvers")
            work: Callable[[SettingsT], int] = getattr(import_module(module), function)
        return work(config)

    return call


def _with_files(call: Callable[[RunConfig], int]) -> Callable[[RunConfig], int]:
    """The same after all files are there and are the right ones; what cannot be had is then known in seconds."""

    def provide_and_call(config: RunConfig) -> int:
        resolve_weights(config.backbone, hub=Hub(quiet=config.progress == "none"))
        provide_dataset(config.dataset_name, read_dataset_settings(config.dataset_name)(**config.dataset_arguments()))
        return call(config)

    return provide_and_call


MODES: dict[str, Callable[[RunConfig], int]] = {
    "run": _with_files(heavy("cl_prompts.runs.execute", "execute")),
    "inspect": _with_files(heavy("cl_prompts.runs.inspection.inspect", "inspect")),
    "check-data": _check_data,
    "config": _print_config,
}
"""Word after `mode=` -> what is done."""
