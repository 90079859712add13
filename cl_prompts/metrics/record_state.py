"""Evaluation points as plain containers and back, for checkpoints: dictionaries, lists, numbers, text and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from cl_prompts.errors import MetricError
from cl_prompts.metrics.multi_label import MultiLabelResult, ThresholdScores
from cl_prompts.metrics.records import EvaluationPoint, MultiLabelPoint, Point

RECORDS: dict[str, type] = {
    record.__name__: record for record in (EvaluationPoint, MultiLabelPoint, MultiLabelResult, ThresholdScores)
}
"""What may be read back, by name: a file can make nothing else."""

_NAME = "record"


def point_state(point: Point) -> dict[str, Any]:
    """A point as nested dictionaries; arrays stay arrays."""
    return _plain(point)


def point_from_state(state: Mapping[str, Any]) -> Point:
    """The point that `point_state` made the state of.

    Raises:
        MetricError: it is none.
    """
    try:
        point = _record(state)
    except (KeyError, TypeError, AttributeError) as error:
        raise MetricError(f"a saved evaluation cannot be read ({error}); use another checkpoint") from error
    if not isinstance(point, EvaluationPoint | MultiLabelPoint):
        raise MetricError(f"a saved evaluation is a {type(point).__name__}; use another checkpoint")
    return point


def _plain(value: Any) -> Any:
    names = [field.name for field in fields(value)] if is_dataclass(value) else getattr(value, "_fields", None)
    if names is not None:
        return {_NAME: type(value).__name__, **{name: _plain(getattr(value, name)) for name in names}}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _record(value: Any) -> Any:
    if isinstance(value, Mapping):
        arguments = {key: _record(item) for key, item in value.items() if key != _NAME}
        return RECORDS[value[_NAME]](**arguments)
    if isinstance(value, list):
        return tuple(_record(item) for item in value)
    return value
