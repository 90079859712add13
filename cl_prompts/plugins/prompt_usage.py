"""`PromptUsage`: how often each prompt of a pool is chosen, over the stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import MetricValue

from cl_prompts.errors import StrategyError
from cl_prompts.metrics.usage import usage_entropy
from cl_prompts.plugins.stream_position import StreamPosition


class PromptUsage(SupervisedPlugin):
    """Records the usage counts of the model's prompt pool and gives their entropy to Avalanche's loggers.

    Args:
        every: stream samples between two records.

    Attributes:
        history: (samples seen, counts int64 (pool,)) of each record.

    Raises:
        StrategyError: the model has no prompt pool.
    """

    def __init__(self, every: int = 1000) -> None:
        super().__init__()
        self.every = every
        self.history: list[tuple[int, torch.Tensor]] = []
        self._position = StreamPosition()
        self._next = every

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores."""
        return {
            "history": [[seen, counts] for seen, counts in self.history],
            "position": self._position.state_dict(),
            "next": self._next,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        self.history = [(seen, counts) for seen, counts in state["history"]]
        self._position.load_state_dict(state["position"])
        self._next = state["next"]

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse a model without a pool before any work."""
        if _usage(strategy.model) is None:
            raise StrategyError(f"PromptUsage: {type(strategy.model).__name__} has no prompt pool to watch")
        self._position.begin_epoch(strategy)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count the stream rows of this batch."""
        self._position.begin_batch(strategy)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Record if the period is over."""
        self._position.end_batch()
        seen = self._position.samples_seen
        if seen < self._next:
            return
        self._next = (seen // self.every + 1) * self.every
        counts = _usage(strategy.model).detach().to("cpu", torch.int64)  # type: ignore[union-attr]
        self.history.append((seen, counts))
        entropy = usage_entropy(counts.numpy())
        strategy.evaluator.publish_metric_value(MetricValue(self, "prompt_usage/entropy", entropy, seen))


def _usage(model: torch.nn.Module) -> torch.Tensor | None:
    usage = getattr(model, "prompt_usage", None)
    return None if usage is None else usage()
