"""`Lane`: the tensors of one lane of MULTI-LANE, where they start, and whether they learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cl_prompts.lanes.design import LaneDesign, LaneShape


class Lane(nn.Module):
    """Selectors `(selectors, width)`, prompts `(2, prompts, heads, head width)` a block, and a key `(width,)` if used.

    Attributes:
        learns: whether its tensors ask for gradients.
    """

    def __init__(self, selectors: Tensor, prompts: Sequence[Tensor]) -> None:
        super().__init__()
        self.selectors = nn.Parameter(selectors)
        self.prompts = nn.ParameterList([nn.Parameter(prompt) for prompt in prompts])
        self.key: nn.Parameter | None = None

    @classmethod
    def initial(cls, shape: LaneShape, design: LaneDesign, generator: torch.Generator) -> Lane:
        """The first lane, or a fresh one.

        As released, the tensors of all planned tasks are one matrix, and a lane is its slice: the scale depends on
        `init_tasks`.
        """
        draw = PROMPT_INITS[design.prompt_init]
        tasks, width = design.init_tasks, shape.width
        selectors = draw((tasks, design.num_selectors * width), generator)[0]
        prompts = [
            draw((2, tasks * design.num_prompts * width), generator)
            .view(2, tasks, design.num_prompts, shape.heads, shape.head_width)[:, 0]
            .clone()
            for _ in range(design.prompt_layers)
        ]
        return cls(selectors.view(design.num_selectors, width).clone(), prompts)

    def copied(self) -> Lane:
        """A lane that starts with the selectors and prompts of this one, without a key."""
        return Lane(self.selectors.detach().clone(), [prompt.detach().clone() for prompt in self.prompts])

    def draw_key(self, others: Sequence[Tensor], generator: torch.Generator) -> None:
        """Give the lane a key: a random direction at right angles to those of the other lanes.

        As released, keys are the rows of an orthogonal matrix, here without knowing how many there will be.
        """
        width = self.selectors.shape[-1]
        key = torch.randn(width, generator=generator)
        # Twice, as rounding of the first subtraction leaves a remainder; beyond `width` lanes no such direction exists.
        for _ in range(2 if len(others) < width else 0):
            for other in others:
                direction = nn.functional.normalize(other.detach().to("cpu", key.dtype), dim=0)
                key = key - key @ direction * direction
        self.key = nn.Parameter(nn.functional.normalize(key, dim=0).to(self.selectors))

    @property
    def learns(self) -> bool:
        """Whether training may move this lane."""
        return self.selectors.requires_grad

    def learn(self, learns: bool) -> None:
        """Freeze the lane, or let it learn."""
        self.requires_grad_(learns)
        if not learns:
            # An optimizer that still holds the tensors skips those without a gradient, weight decay included.
            self.zero_grad(set_to_none=True)

    def version(self) -> int:
        """Rises with every change of a tensor in place."""
        return sum(tensor._version for tensor in self.parameters())


def _orthogonal(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    if 0 in shape:
        return torch.empty(shape)
    return nn.init.orthogonal_(torch.empty(shape), generator=generator)


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(-1, 1, generator=generator)


PROMPT_INITS: dict[str, Callable[[tuple[int, int], torch.Generator], Tensor]] = {
    "orthogonal": _orthogonal,
    "uniform": _uniform,
}
"""Name in a configuration -> (shape, generator) -> first values."""
