"""`LaneSet`: all lanes of MULTI-LANE, which classes each of them owns, and which of them learn."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.heads import PinnedHead
from cl_prompts.labels import label_kind
from cl_prompts.lanes.design import LaneDesign, LaneShape
from cl_prompts.lanes.inputs import LaneInputs
from cl_prompts.lanes.lane import Lane

UNSEEN = -1
"""Owner of a class that no lane owns yet."""


class LaneSet(nn.Module):
    """Lanes in the order of their sessions; the last one is the current one. Nobody says how many there will be.

    Args:
        backbone: shapes of the lanes.
        num_classes: classes that lanes may own.
        design: what every lane is made of and how it learns.
        generator: source of initial values.

    Attributes:
        lanes: `Lane` modules; those that do not learn are frozen.
        owner: int64 `(classes,)`, the lane of each class, `UNSEEN` before it was seen.
        updates: int64 `(lanes,)`, updates that each lane took part in.
        is_task: bool, the classes of the session were announced.
    """

    def __init__(self, backbone: FrozenViT, num_classes: int, design: LaneDesign, generator: torch.Generator) -> None:
        super().__init__()
        self.design = design
        self._shape = LaneShape.of(backbone)
        self._generator = generator
        self.lanes = nn.ModuleList()
        self.owner: Tensor
        self.register_buffer("owner", torch.full((num_classes,), UNSEEN))
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros(0, dtype=torch.int64))
        self.is_task: Tensor
        self.register_buffer("is_task", torch.tensor(False))
        self._columns: list[Tensor] = []
        self._watches_labels = True
        self.open()
        self.register_load_state_dict_pre_hook(_make_room)
        self.register_load_state_dict_post_hook(_read_back)

    def __len__(self) -> int:
        return len(self.lanes)

    def __getitem__(self, number: int) -> Lane:
        return cast("Lane", self.lanes[number])

    def __iter__(self) -> Iterator[Lane]:
        return (self[number] for number in range(len(self)))

    def open(self) -> None:
        """Add a lane: a copy of the last one, or a fresh one."""
        copies = len(self) > 0 and self.design.lane_init == "copy"
        lane = self[-1].copied() if copies else Lane.initial(self._shape, self.design, self._generator)
        # In the place and the precision of the others, whatever the learner was moved to since.
        lane.to(self[-1].selectors if len(self) else self.owner.device)
        if self.design.has_keys:
            lane.draw_key(self.keys, self._generator)
        self.lanes.append(lane)
        self.updates = torch.cat([self.updates, self.updates.new_zeros(1)])
        self._columns.append(torch.zeros(0, dtype=torch.int64, device=self.owner.device))

    @property
    def keys(self) -> list[Tensor]:
        """Key of each lane `(width,)`, where lanes have one."""
        return [lane.key for lane in self if lane.key is not None]

    def columns(self, lane: int) -> Tensor:
        """Classes of a lane, int64, increasing."""
        return self._columns[lane]

    def begin_session(self, classes: Tensor | None, head: PinnedHead) -> None:
        """Open a lane for the session's new classes; lanes without an announced class are frozen, rows pinned.

        Args:
            classes: class ids of the task, int64, or None where the stream is not made of tasks.
            head: its rows are pinned where they do not learn.
        """
        if len(self._columns[-1]) or self.updates[-1]:
            self.open()
        current = len(self) - 1
        learning = set(range(len(self)))
        self._watches_labels = classes is None
        self.is_task.fill_(classes is not None)
        if classes is not None:
            announced = classes.to(self.owner.device)
            self._assign(announced[self.owner[announced] == UNSEEN], current)
            learning = set(self.owner[announced].tolist())
        learning = {current} if self.design.lane_policy == "current" else learning | {current}
        for number, lane in enumerate(self):
            lane.learn(number in learning)
        self._pin(head)

    def observe(self, exposed: Tensor, head: PinnedHead) -> None:
        """Classes seen for the first time, without having been announced, go to the current lane."""
        if not self._watches_labels:
            return  # nothing new can come, and looking would make every step wait for the device
        new = torch.nonzero(exposed & (self.owner == UNSEEN)).flatten()
        if len(new):
            self._assign(new, len(self) - 1)
            self._pin(head)

    def learning_from(self, targets: Tensor) -> list[int]:
        """Learning lanes that a label of the batch speaks to, and always the current one."""
        learning = [number for number, lane in enumerate(self) if lane.learns]
        if len(learning) == 1:
            return learning
        shown = label_kind(targets).shown(targets, len(self.owner))
        spoken = {*self.owner[shown].tolist(), len(self) - 1}
        return [number for number in learning if number in spoken]

    def states(self, head: PinnedHead | None) -> list[Hashable]:
        """What the output of each lane depends on, as a digest; a frozen lane's never changes.

        Args:
            head: whose rows are part of a lane's output; None where they are not.
        """
        return [self._digest(number, head) for number in range(len(self))]

    @torch.no_grad()
    def _digest(self, number: int, head: PinnedHead | None) -> Hashable:
        tensors = [*self[number].parameters(), self.columns(number)]
        tensors += [] if head is None else list(head.rows(self.columns(number)))
        digest = hashlib.blake2b()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest(), tensors[0].dtype, tensors[0].device

    def inputs(self, numbers: Sequence[int], class_token: Tensor) -> LaneInputs:
        """The tensors of some lanes for a forward pass."""
        design = self.design
        return LaneInputs(
            class_token=class_token,
            selectors=torch.stack([self[number].selectors for number in numbers]),
            prompts={
                block: torch.stack([self[number].prompts[block] for number in numbers])
                for block in range(design.prompt_layers)
            },
            drop_and_replace=design.drop_and_replace,
            merged_tokens=design.merged_tokens,
        )

    def _assign(self, classes: Tensor, lane: int) -> None:
        self.owner[classes] = lane
        self.find_columns()

    def find_columns(self) -> None:
        """List the classes of each lane by their owners."""
        self._columns = [torch.nonzero(self.owner == number).flatten() for number in range(len(self))]

    def _pin(self, head: PinnedHead) -> None:
        learning = torch.tensor([lane.learns for lane in self], device=self.owner.device)
        head.train_only((self.owner != UNSEEN) & learning[self.owner.clamp(min=0)])

    def _apply(self, function: Any, recurse: bool = True) -> LaneSet:
        super()._apply(function, recurse)
        self._columns = [columns.to(self.owner.device) for columns in self._columns]
        return self


def _make_room(lanes: LaneSet, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Open the lanes that a saved state has and these lanes have not yet."""
    saved = state.get(f"{prefix}updates")
    while saved is not None and len(lanes) < len(saved):
        lanes.open()


def _read_back(lanes: LaneSet, incompatible: Any) -> None:
    """Follow the loaded owners."""
    lanes.find_columns()
    lanes._watches_labels = not bool(lanes.is_task)
