"""`Reservoir`: replay from a memory that holds where samples lie in the stream, not copies of them."""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch.utils.data import default_collate

from cl_prompts.errors import StrategyError
from cl_prompts.memory import ReservoirSampler
from cl_prompts.plugins.stream_position import StreamPosition

_KEEP_ORDER = "Reservoir remembers places in the stream: call strategy.train(..., shuffle=False)"


class Reservoir(SupervisedPlugin):
    """Appends remembered samples to every update's batch and offers each stream sample to the memory afterwards.

    Replay never contains the current batch: the memory is updated after its last update. Each update draws afresh.

    What a method gives in `TrainingOutputs.remember` is kept beside its sample as it was then, and returned with it.

    Args:
        size: samples kept.
        batch_size: samples appended to a batch, fewer while the memory holds fewer.
        seed: of the memory's own generator.
        rule: `exact` (algorithm R) or `released` (with the published slip in the batch that fills the memory).
        draws: independent draws of `batch_size` samples for each update, appended one after the other.

    Raises:
        StrategyError: a strategy that shuffles its stream; pass `shuffle=False` to its `train`.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int = 0, rule: str = "exact", draws: int = 1) -> None:
        super().__init__()
        self.sampler = ReservoirSampler(size, seed, rule)
        self.batch_size = batch_size
        self.draws = draws
        self._remembered: dict[str, dict[int, torch.Tensor]] = {}  # name -> sample number -> what was kept
        self._position = StreamPosition()
        self._datasets: list[Any] = []
        self._starts: list[int] = []  # sample number at which each of them begins
        self._total = 0

    def skip_experience(self, dataset: Any) -> None:
        """Note where the samples of one pass over an earlier experience lie, without training on it; for a resume."""
        self._datasets.append(dataset)
        self._starts.append(self._total)
        self._total += len(dataset)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores."""
        remembered = {
            name: {"numbers": list(rows), "rows": torch.stack(list(rows.values()))}
            for name, rows in self._remembered.items()
            if rows
        }
        return {
            "sampler": self.sampler.state_dict(),
            "position": self._position.state_dict(),
            "remembered": remembered,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken; earlier experiences are told by `skip_experience`."""
        self.sampler.load_state_dict(state["sampler"])
        self._position.load_state_dict(state["position"])
        self._remembered = {
            name: dict(zip(kept["numbers"], kept["rows"].unbind(), strict=True))
            for name, kept in state["remembered"].items()
        }

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note where the samples of this experience lie."""
        if kwargs.get("shuffle", _shuffles_by_default(strategy)):
            raise StrategyError(_KEEP_ORDER)
        if getattr(strategy, "shuffles", False):
            raise StrategyError(
                "Reservoir remembers places in the stream: give the strategy shuffle_seed=None (protocol.shuffle=false)"
            )
        self._position.begin_epoch(strategy)
        self.skip_experience(strategy.adapted_dataset)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Check that the batch is the next one of the stream."""
        self._position.begin_batch(strategy)
        rows = self._position.rows
        # A strategy that knows its samples keeps their order itself, and needs not fetch labels from the device.
        if not hasattr(strategy, "mb_sample_ids") and not self._are_next(strategy.mb_y[:rows]):
            raise StrategyError(_KEEP_ORDER)

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Append a fresh draw of the memory to the batch of this update."""
        numbers = [number for _ in range(self.draws) for number in self.draw(self.batch_size)]
        if not numbers:
            return
        items = [self._place(number) for number in numbers]
        replay = default_collate([dataset[position] for dataset, position in items])
        strategy.mbatch = [
            torch.cat([stream, memory.to(stream.device)])
            for stream, memory in zip(strategy.mbatch, replay, strict=True)
        ]
        if hasattr(strategy, "mb_sample_ids"):
            ids = torch.tensor([self._sample_id(number) for number in numbers])
            strategy.mb_sample_ids = torch.cat([strategy.mb_sample_ids, ids])
            strategy.mb_remembered = {name: self._rows(kept, numbers) for name, kept in self._remembered.items()}

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Offer the stream samples of this batch to the memory."""
        numbers = self._next_numbers(self._position.rows)
        self.sampler.update(numbers)
        kept = set(self.sampler.slots)
        for name, rows in getattr(strategy, "mb_to_remember", {}).items():
            older = self._remembered.get(name, {})
            # Copies: a view would keep the whole batch alive.
            fresh = {number: row.clone() for number, row in zip(numbers, rows, strict=True) if number in kept}
            self._remembered[name] = {number: row for number, row in older.items() if number in kept} | fresh
        self._position.end_batch()

    def draw(self, count: int) -> list[int]:
        """Numbers (positions in the whole stream) of the samples to replay in this update."""
        return self.sampler.draw(count)

    def _rows(self, kept: Mapping[int, torch.Tensor], numbers: list[int]) -> torch.Tensor:
        """What was kept of these samples, NaN where nothing was: their batch had no update."""
        missing = torch.full_like(next(iter(kept.values())), float("nan"))
        return torch.stack([kept.get(number, missing) for number in numbers])

    def _next_numbers(self, rows: int) -> list[int]:
        return list(range(self._position.samples_seen, self._position.samples_seen + rows))

    def _place(self, number: int) -> tuple[Any, int]:
        """Data set of the sample's experience, and its position there."""
        which = bisect_right(self._starts, number) - 1
        return self._datasets[which], number - self._starts[which]

    def _are_next(self, targets: torch.Tensor) -> bool:
        expected = torch.stack([self._target(number) for number in self._next_numbers(len(targets))])
        given = torch.as_tensor(targets).cpu()
        return torch.equal(torch.nan_to_num(given, nan=-1.0), torch.nan_to_num(expected, nan=-1.0))

    def _target(self, number: int) -> torch.Tensor:
        """Class id or label row of a sample."""
        dataset, position = self._place(number)
        rows = getattr(dataset, "label_rows", None)
        return torch.as_tensor(dataset.targets[position] if rows is None else rows[position])

    def _sample_id(self, number: int) -> int:
        """Data-set index; the place in the stream where the data set does not carry indices."""
        dataset, position = self._place(number)
        ids = getattr(dataset, "sample_ids", None)
        return number if ids is None else int(ids[position])


def _shuffles_by_default(strategy: Any) -> bool:
    shuffle = inspect.signature(strategy.make_train_dataloader).parameters.get("shuffle")
    return shuffle is not None and bool(shuffle.default)
