"""The kinds of plans together: one name for all of them, and one way to read any of them from disk."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from scenarios import _plan_files
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.plan import StreamPlan

__all__ = ["Plan", "load_plan"]

Plan: TypeAlias = StreamPlan | MultiLabelPlan


def load_plan(path: str | Path) -> Plan:
    """Read a saved plan of any kind and recompute its hash.

    Args:
        path: the folder holding `plan.npz` and `plan.json`, or one of the two files.

    Raises:
        PlanError: missing or damaged file, unknown format, or a content that does not match its hash.
    """
    kinds: tuple[type[StreamPlan | MultiLabelPlan], ...] = (StreamPlan, MultiLabelPlan)
    return _plan_files.read_plan(kinds, Path(path))
