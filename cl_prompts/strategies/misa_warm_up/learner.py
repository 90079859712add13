"""What MISA's warm-up trains: general and expert prompts, their keys, and a head and a bottleneck thrown away later."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.heads import apply_head, linear_head
from cl_prompts.losses import pull_loss
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.bottleneck import Bottleneck
from cl_prompts.prompts.general_and_experts import GeneralAndExperts
from cl_prompts.prompts.selection import select_prompts


class WarmUpLearner(nn.Module):
    """Prompts as MISA's, the chosen experts seen through the bottleneck.

    Args:
        backbone: stays frozen, and is no part of what is trained.
        prompts: general prompt, experts and keys.
        num_classes: of both sources together.
        hidden: middle width of the bottleneck.
        generator: source of the initial values.
    """

    def __init__(
        self, backbone: FrozenViT, prompts: GeneralAndExperts, num_classes: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompts = prompts
        self.bottleneck = Bottleneck(backbone.width, hidden, generator)
        self.head = linear_head(backbone.width, num_classes, generator)

    def trained(self) -> list[nn.Parameter]:
        """Every tensor that moves."""
        return [tensor for tensor in self.parameters() if tensor.requires_grad]

    def loss(self, images: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
        """Cross-entropy over the classes `allowed`, bool (classes,), plus the mean distance to the nearest keys."""
        tokens = self.backbone.tokens(images)
        distance = self.prompts.distance(self.backbone.query(tokens=tokens))
        choice = select_prompts(distance, None, 1)
        experts = self.bottleneck(self.prompts.expert_prompts[choice[:, 0]])
        features = self.backbone(insertions=self.prompts.insertions(experts, self.backbone), tokens=tokens)
        logits = mask_logits(apply_head(self.head, features), allowed)
        return F.cross_entropy(logits, targets) + pull_loss(distance.gather(1, choice))
