"""The manifest: what a number rests on beside its configuration. Holds no environment variables."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import cl_prompts

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "avalanche-lib",
    "numpy",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "safetensors",
    "tensorboard",
    "scikit-learn",
    "matplotlib",
    "pillow",
)
"""Distributions whose version can change a number or a picture."""


def make_manifest(
    *,
    command: Sequence[str],
    started: datetime,
    device: str,
    hashes: Mapping[str, Any],
    seeds: Mapping[str, int],
    strategy: Mapping[str, Any] | None = None,
    needs: Mapping[str, Any] | None = None,
    deviations: Sequence[str] = (),
    notices: Sequence[str] = (),
    skipped: Mapping[str, Sequence[str]] | None = None,
    shared_images: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect everything of `manifest.json`; all of it is JSON-safe.

    Args:
        command: the words of the command line, such as `sys.argv`.
        started: start of the run, with its time zone.
        device: the torch device the run computes on, such as "cpu" or "cuda:0".
        hashes: identities by name: plan, weights, data set, configuration.
        seeds: seed of each purpose by name.
        strategy: name and settings of the method as they worked, its variant's choices filled in.
        needs: what the method declares to need.
        deviations: where the method leaves the protocol or its paper, one sentence each.
        notices: sentences that a reader of the results should know, as the run printed them.
        skipped: files left out of each part of the data set, as `path: reason`.
        shared_images: how many images are in the training and in the test part, and how that was found out.
    """
    return {
        "command": shlex.join(command),
        "folder": str(Path.cwd()),
        "started": started.isoformat(timespec="seconds"),
        "hashes": dict(hashes),
        "seeds": dict(seeds),
        "strategy": dict(strategy or {}),
        "needs": dict(needs or {}),
        "deviations": list(deviations),
        "notices": list(notices),
        "skipped": {part: list(files) for part, files in (skipped or {}).items()},
        "shared_images": dict(shared_images or {}),
        "device": device,
        "determinism": determinism(device),
        "source": git_state(Path(cl_prompts.__file__).resolve().parents[1]),
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": hardware(),
    }


def determinism(device: str) -> dict[str, Any]:
    """What is the same again when this run is repeated with the same configuration, and what may differ.

    Args:
        device: the torch device the run computes on.
    """
    torch = sys.modules.get("torch")
    strict = bool(torch and torch.are_deterministic_algorithms_enabled())
    exact = device == "cpu" or strict
    bits = "weights, metrics and curves, bit for bit" if exact else "weights, metrics and curves, up to rounding"
    free = "number of workers, evaluations, logging, progress display, interruptions that the run went on after"
    return {
        "everywhere": "stream, initial weights, augmentation and replay draws: they follow from the seeds",
        "on_equal_machines": f"{bits}, whatever the {free}",
        "equal_machines": {
            "device": device,
            "processor": _processor(),
            "threads": torch.get_num_threads() if torch else None,
            "deterministic_algorithms": strict,
            "packages": "as in versions",
        },
        "not_guaranteed": "times and memory; bits on another processor or GPU, with other threads or package versions"
        + ("" if exact else "; bits on a GPU, whose kernels may add in another order each time"),
    }


def versions() -> dict[str, str | None]:
    """Version of this package and of each of `PACKAGES`; None where one is not installed."""
    found: dict[str, str | None] = {"cl-prompts": cl_prompts.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in bytes, and the GPUs that torch sees (asked only where torch is already loaded)."""
    affinity = getattr(os, "sched_getaffinity", None)
    torch = sys.modules.get("torch")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_bytes": _memory(),
        "threads": torch.get_num_threads() if torch else None,
        "cuda": torch.version.cuda if torch else None,
        "gpus": _gpus(torch) if torch else [],
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout whose top is `folder`, and whether files differ from it; None if it is no checkout.

    A repository further up (an environment inside someone's project) does not count.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder.resolve():
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def peak_memory_bytes() -> int | None:
    """Highest resident memory of this process so far; None on systems that do not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def _git(folder: Path, *arguments: str) -> str | None:
    # GIT_DIR and its kin, set inside hooks, would answer for another repository; the lock is not ours to take.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gpus(torch: Any) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in found]
