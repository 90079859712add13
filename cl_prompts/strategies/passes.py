"""In which order an experience is presented, and how often each image has been: what several epochs add to a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochOrder(Sampler[int]):
    """Positions of an experience in the order of the current epoch: as planned, or shuffled anew in every epoch.

    Args:
        length: samples of the experience.
        seed: of the order; None keeps the planned one.
        first_epoch: epochs begun before this experience, so that none repeats the order of another.

    Attributes:
        positions: int64 `(length,)`, the order of the current epoch.
    """

    def __init__(self, length: int, seed: int | None, first_epoch: int = 0) -> None:
        self.seed = seed
        self.epoch = first_epoch
        self.positions = torch.arange(length)
        self._skipped = 0

    def begin_epoch(self) -> Tensor:
        """Decide the order of the next epoch; the loader may be asked for its batches only then."""
        if self.seed is not None:
            generator = torch.Generator().manual_seed((self.seed + 0x9E3779B97F4A7C15 * self.epoch) % 2**63)
            self.positions = torch.randperm(len(self.positions), generator=generator)
        self.epoch += 1
        self._skipped = 0
        return self.positions

    def skip(self, count: int) -> None:
        """Leave out the first `count` positions of the current epoch, which were presented before a resume."""
        self._skipped = count

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions[self._skipped :].tolist())

    def __len__(self) -> int:
        return len(self.positions) - self._skipped


@contextmanager
def batches_of(loader: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """The batches of a loader, whose worker processes have ended afterwards, whatever ended the pass.

    torch ends them when the iterator is collected, which an error keeps alive; until then the death of one of them is
    raised anywhere, in another run of this process, too.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        # Whatever the workers died of, it is not the first error.
        with suppress(RuntimeError):
            getattr(batches, "_shutdown_workers", lambda: None)()


class PresentationCount:
    """How often each sample of the stream has been presented; it numbers the passes that augmentation draws for."""

    def __init__(self) -> None:
        self.times = torch.zeros(0, dtype=torch.int64)

    def of(self, sample_ids: Tensor) -> Tensor:
        """Earlier presentations of these samples, int64 `(batch,)`."""
        self._make_room(sample_ids)
        return self.times[sample_ids]

    def add(self, sample_ids: Tensor) -> None:
        """Count one more presentation of each."""
        self._make_room(sample_ids)
        self.times.index_add_(0, sample_ids, torch.ones_like(sample_ids))

    def _make_room(self, sample_ids: Tensor) -> None:
        needed = int(sample_ids.max()) + 1 if len(sample_ids) else 0
        if needed > len(self.times):
            # Doubled: a stream that numbers its samples as they come would otherwise copy this at every batch.
            self.times = torch.nn.functional.pad(self.times, (0, max(needed, 2 * len(self.times)) - len(self.times)))


@dataclass
class Place:
    """Where in its stream a strategy is, at the end of a stream batch.

    Attributes:
        experience: experiences begun before the current one.
        epoch: passes over the current experience that are complete.
        position: samples of the current pass in finished batches.
        order_epoch: number of the current pass in the whole stream, which decides a shuffled order.
    """

    experience: int = -1
    epoch: int = 0
    position: int = 0
    order_epoch: int = 0

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` restores."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where the state was taken."""
        for name, value in state.items():
            setattr(self, name, value)
