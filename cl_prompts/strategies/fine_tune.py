"""Plain fine-tuning: cross-entropy on the stream, nothing against forgetting; the lower bound of every method.

Source: the row of that name in every table; as a baseline first in Li and Hoiem, ECCV 2016 (arXiv 1606.09282).

By default every weight of a copy of the backbone is trained. That asks for a small learning rate: 1e-5 to 1e-4 with
Adam is usual, and 5e-3, which suits prompts, is expected to destroy a pre-trained ViT. The published Si-Blurry row
(19.7 / 10.4 on CIFAR-100) is therefore best read as a row about the learning rate; set `protocol.lr` and say which.

There is one name for each learner: with a memory fine-tuning is `strategy=er`, and training the head alone is
`strategy=linear_probe`, number for number what `trained=head` gives here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, NetworkSettings
from cl_prompts.strategies.network import NetworkMethod


class FineTuneSettings(NetworkSettings):
    """Settings of plain fine-tuning."""

    needs: ClassVar[Needs] = Needs(trains="backbone", multi_label=True)
    toy_settings: ClassVar[dict[str, Any]] = {"head": "cosine"}

    trained: Literal["head", "prompts", "all"] = Field(
        "all", description="a copy of the backbone, one prefix a block and the head, or a head on frozen features"
    )


class FineTuneMethod(NetworkMethod):
    """The learner: nothing but the cross-entropy of its base."""

    settings_class = FineTuneSettings


class FineTune(ContinualStrategy):
    """Plain fine-tuning as an Avalanche strategy; `settings` is a `FineTuneSettings`."""

    method_class = FineTuneMethod
