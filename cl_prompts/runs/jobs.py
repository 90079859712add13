"""One job: from what Hydra hands over to an executed run. Launchers import this module in their workers."""

from __future__ import annotations

import sys
import warnings

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cl_prompts.runs.failures import FAILURE, INTERRUPTED, SUCCESS, TERMINATED, print_error, report_failure
from cl_prompts.runs.schema import RunConfig
from cl_prompts.runs.validation import check_config


def run_job(composed: DictConfig) -> int:
    """Check the composed configuration again, execute the run and return its exit code.

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
    if config.mode == "config":
        print(config.to_yaml(), end="")
        return SUCCESS
    if hydra_config.mode == RunMode.MULTIRUN:
        print(f"run {hydra_config.job.num + 1}: {' '.join(hydra_config.overrides.task)}", file=sys.stderr, flush=True)
    code = execute_config(config)
    if code == INTERRUPTED:
        # A run that ended cleanly after Ctrl-C: the rest of its sweep must not start.
        raise KeyboardInterrupt
    if code == TERMINATED:
        print_error("terminated")
        raise SystemExit(TERMINATED)
    return code


def execute_config(config: RunConfig) -> int:
    """Execute one checked configuration; its errors end as one line and an exit code."""
    if config.progress != "none" and "torch" not in sys.modules:
        # Importing takes seconds: the terminal says at once what is going on.
        print("loading torch, timm and Avalanche ...", file=sys.stderr, flush=True)
    try:
        with warnings.catch_warnings():
            # Avalanche imports a package of solvers, which warns that it found none; nothing here uses them.
            warnings.filterwarnings("ignore", category=UserWarning, module="qpsolvers")
            from cl_prompts.runs.execute import execute

        return execute(config)
    except Exception as error:
        return report_failure(error, debug=config.debug)
