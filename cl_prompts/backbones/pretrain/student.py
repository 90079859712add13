"""The student: a plain Vision Transformer, the heads that training needs, and its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.patch_dropout import patch_dropout_forward
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_prompts.backbones.pretrain.settings import PretrainSettings


@dataclass(frozen=True)
class Batch:
    """What one update learns from.

    Attributes:
        images: float `(batch, 3, side, side)`, normalised.
        labels: class ids, int64 `(batch,)`.
        class_tokens: the teacher's, standardised, `(batch, teacher width)`; None without a teacher.
        patches: the teacher's at the student's patches, standardised, `(batch, patches, teacher width)`; or None.
    """

    images: Tensor
    labels: Tensor
    class_tokens: Tensor | None
    patches: Tensor | None


class Student(nn.Module):
    """A Vision Transformer with linear heads that are thrown away after training.

    The class token predicts the class and the teacher's class token; the patch tokens predict the teacher's features
    at their place. Each in the last layer's normed states.
    """

    def __init__(self, settings: PretrainSettings, *, classes: int, teacher_width: int | None) -> None:
        super().__init__()
        self.vit = VisionTransformer(
            img_size=settings.img_size,
            patch_size=settings.patch_size,
            embed_dim=settings.embed_dim,
            depth=settings.depth,
            num_heads=settings.num_heads,
            num_classes=0,
        )
        width = settings.embed_dim
        self.to_classes = nn.Linear(width, classes) if settings.labels_weight else None
        self.to_class_token = nn.Linear(width, teacher_width) if teacher_width else None
        self.to_patches = nn.Linear(width, teacher_width) if teacher_width else None

    def states(self, images: Tensor, drop_patches: float) -> tuple[Tensor, Tensor | None]:
        """Normed states `(batch, 1 + kept patches, width)`, and which patches were kept `(batch, kept)`; None: all."""
        vit = self.vit
        tokens = vit._pos_embed(vit.patch_embed(images))
        kept = None
        if drop_patches:
            tokens, kept = patch_dropout_forward(tokens, drop_patches, 1, True, True)
        return vit.norm(vit.blocks(vit.norm_pre(tokens))), kept

    def losses(self, batch: Batch, settings: PretrainSettings, *, drop_patches: float) -> dict[str, Tensor]:
        """Weighted terms by name, their sum is the loss: labels, class_token, patches."""
        states, kept = self.states(batch.images, drop_patches)
        found: dict[str, Tensor] = {}
        if self.to_classes is not None:
            logits = self.to_classes(states[:, 0]).float()
            cross_entropy = F.cross_entropy(logits, batch.labels, label_smoothing=settings.label_smoothing)
            found["labels"] = settings.labels_weight * cross_entropy
        if self.to_class_token is not None and self.to_patches is not None:
            assert batch.class_tokens is not None
            assert batch.patches is not None
            wanted = batch.patches
            if kept is not None:
                wanted = wanted.gather(1, kept[..., None].expand(-1, -1, wanted.shape[-1]))
            for name, given, target in (
                ("class_token", self.to_class_token(states[:, 0]), batch.class_tokens),
                ("patches", self.to_patches(states[:, 1:]), wanted),
            ):
                found[name] = settings.features_weight * F.smooth_l1_loss(given.float(), target)
        return found


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay; biases, norms and position embeddings without."""
    named = list(model.named_parameters())
    matrices = [value for name, value in named if value.ndim > 1 and not name.endswith(("pos_embed", "cls_token"))]
    chosen = {id(value) for value in matrices}
    others = [value for _, value in named if id(value) not in chosen]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(seen: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then a cosine to 0 at the end, by samples seen."""
    if seen < settings.warmup:
        return settings.lr * (seen + settings.batch) / (settings.warmup + settings.batch)
    part = (seen - settings.warmup) / max(1, settings.samples - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


def average_weight(update: int, settings: PretrainSettings) -> float:
    """Decay of the weight average at an update: short at first, so that random weights are forgotten."""
    return min(settings.averaging, (1 + update) / (10 + update))


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move every tensor of `average` towards the model's by `1 - decay`, in place."""
    current = model.state_dict()
    names = list(average)
    torch._foreach_lerp_([average[name] for name in names], [current[name] for name in names], 1 - decay)
