"""What a result cost: parameters, passes, time, memory; measured by the run, or counted from what methods declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_prompts.reports.saved_run import SavedRun
from cl_prompts.reports.statistics import Spread, spread
from cl_prompts.strategies.declaration import Needs

BACKWARD = {"nothing": 0, "head": 0, "prompts": 1, "backbone": 2}
"""What gradients move -> cost of the backward pass in forward passes: none through a frozen feature; to activations;
to activations and weights."""

WORK_FORMULA = (
    "epochs x (u x rows x passes x (1 + backward) + queries): the work of training for one stream sample in forward "
    "passes of the backbone for one image; backward = 0 (head alone), 1 (prompts: to activations) or 2 (backbone: to "
    "weights as well); u = updates per batch; rows = 1 + draws x replay batch / stream batch; passes = those of one "
    "update; queries = u x rows where the method asks the un-prompted backbone as well. Frozen features of images "
    "without augmentation are computed once a batch; closed forms take one pass an epoch. Evaluation is not in it. "
    "Counted from what methods declare, not measured."
)


def forward_passes(needs: Needs, protocol: Mapping[str, Any]) -> float | None:
    """`WORK_FORMULA` of a method under a protocol; None where the protocol lacks a number."""
    try:
        epochs, batch = protocol["epochs"], protocol["stream_batch"]
        updates, replayed = protocol["updates_per_batch"], protocol["replay_batch"]
        if not needs.gradient:
            return float(epochs)
        draws = needs.replay_draws if needs.replay != "none" else 0
        rows = 1 + draws * replayed / batch
        # The un-prompted features of a stream image that never changes are kept for all updates on its batch.
        once = protocol["augmentation"] == "none" and replayed == 0
        frozen = min(updates, 1) if once else updates * rows
        forward = frozen if needs.trains in ("nothing", "head") else updates * rows
        backward = updates * rows * BACKWARD[needs.trains]
        return float(epochs * (needs.passes_per_update * (forward + backward) + (frozen if needs.query_pass else 0)))
    except (KeyError, TypeError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class Cost:
    """What the runs of one row cost.

    Attributes:
        trainable: tensors that training may move, in numbers.
        passes: forward passes a stream sample; see `WORK_FORMULA`.
        seconds: wall time of a run, evaluation included.
        memory: highest resident memory of a process, bytes.
        gpu_memory: highest memory of tensors on a GPU, bytes.
    """

    trainable: Spread | None
    passes: float | None
    seconds: Spread | None
    memory: Spread | None
    gpu_memory: Spread | None


def cost_of(runs: Sequence[SavedRun], needs: Needs | None) -> Cost:
    """Means over the runs of a row."""
    return Cost(
        trainable=_summary(runs, "trainable_parameters"),
        passes=None if needs is None else forward_passes(needs, runs[0].config["protocol"]),
        seconds=_summary(runs, "seconds"),
        memory=_summary(runs, "peak_memory_bytes"),
        gpu_memory=_summary(runs, "peak_gpu_memory_bytes"),
    )


def _summary(runs: Sequence[SavedRun], key: str) -> Spread | None:
    values = [run.summary.get(key) for run in runs]
    return spread([float(value) for value in values if isinstance(value, int | float)])
