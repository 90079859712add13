"""Who is optimized, from when, and at which rate: one optimizer for the stream, or a fresh one a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[torch.optim.Optimizer, int], LRScheduler]

OPTIMIZER_SCOPES = ("stream", "session")
"""How long one optimizer and its moments live."""

SCHEDULES: dict[str, Schedule | None] = {
    "constant": None,
    # Epoch e of E runs at lr (1 + cos(pi e / E)) / 2; no warm-up.
    "cosine": lambda optimizer, epochs: CosineAnnealingLR(optimizer, T_max=epochs),
}
"""Name in a configuration -> (optimizer, epochs of a session) -> schedule, moved on after each epoch."""


class Optimization:
    """The optimizer of a strategy through its sessions.

    Args:
        make: trained tensors -> optimizer; Adam with learning rate 5e-3 if None.
        scope: `stream`: one optimizer as long as the trained tensors stay the same; `session`: a fresh one each time.
        schedule: a name of `SCHEDULES`; it starts anew in every session.
        epochs: passes over a session.
    """

    def __init__(self, make: MakeOptimizer | None, scope: str, schedule: str, epochs: int) -> None:
        self.make = make or partial(torch.optim.Adam, lr=5e-3)
        self.scope = scope
        self.schedule = SCHEDULES[schedule]
        self.epochs = epochs
        self._scheduler: LRScheduler | None = None
        self._trained: list[nn.Parameter] = []

    def begin(self, trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The first optimizer, before any session."""
        self._trained = list(trained)
        return self.make(self._trained)

    def begin_session(
        self, optimizer: torch.optim.Optimizer, trained: Sequence[nn.Parameter], *, is_first: bool
    ) -> torch.optim.Optimizer:
        """The optimizer of a session: `optimizer` itself, or a new one.

        Args:
            optimizer: the one so far.
            trained: what the method trains in this session.
            is_first: nothing has been trained so far, so that a new one would be the same again.
        """
        changed = [id(tensor) for tensor in trained] != [id(tensor) for tensor in self._trained]
        if changed or (self.scope == "session" and not is_first):
            optimizer = self.begin(trained)
            self._scheduler = None
        if self.schedule is not None:
            if self._scheduler is not None:
                # The rate went down over the last session; moments stay where the scope says so.
                for group in optimizer.param_groups:
                    group["lr"] = group.pop("initial_lr")
            self._scheduler = self.schedule(optimizer, self.epochs)
        return optimizer

    def state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What `restored` restores: moments, rates and the place in the schedule."""
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        return {"optimizer": optimizer.state_dict(), "scheduler": scheduler}

    def restored(self, trained: Sequence[nn.Parameter], state: Mapping[str, Any]) -> torch.optim.Optimizer:
        """An optimizer of `trained` that continues where the state was taken."""
        optimizer = self.begin(trained)
        self._scheduler = None
        if self.schedule is not None:
            self._scheduler = self.schedule(optimizer, self.epochs)
            self._scheduler.load_state_dict(state["scheduler"])
        # After the schedule, which sets rates when it is made.
        optimizer.load_state_dict(state["optimizer"])
        return optimizer

    def end_epoch(self) -> None:
        """Move the schedule on."""
        if self._scheduler is not None:
            self._scheduler.step()
