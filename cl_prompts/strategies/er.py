"""ER: experience replay, the cross-entropy of stream and memory together (Chaudhry et al., arXiv 1902.10486).

Each update joins a fresh draw of the memory to the stream batch and minimises one mean over all rows. Memory, size of
a draw and reservoir rule belong to the protocol (`memory_size`, `replay_batch`, `reservoir`), as does the mask.

What is trained is a setting. By default one prefix a block and a linear head: the comparison with prompt methods is
then about the loss, at the same number of trained tensors. The published Si-Blurry rows (65.6 / 60.7 on CIFAR-100 with
500 samples) trained a head on a frozen ViT whatever their names say: `trained=head`, see `experiment=er_cifar100`.
Relations, number for number: `trained=head` is `strategy=linear_probe` with the same memory; `trained=prompts
head=cosine` is `strategy=single_prompt strategy.position_code=false` with it.
"""

from __future__ import annotations

from typing import ClassVar

from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Needs, NetworkSettings
from cl_prompts.strategies.network import NetworkMethod


class ERSettings(NetworkSettings):
    """Settings of experience replay."""

    needs: ClassVar[Needs] = Needs(replay="required", multi_label=True)


class ERMethod(NetworkMethod):
    """The learner: the cross-entropy of its base, over all rows of stream and memory at equal weight."""

    settings_class = ERSettings


class ER(ContinualStrategy):
    """Experience replay as an Avalanche strategy; `settings` is an `ERSettings`."""

    method_class = ERMethod
