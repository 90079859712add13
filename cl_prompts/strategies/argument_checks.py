"""What a strategy refuses, each in one line that says which call is right."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.strategies.declaration import Needs, StrategySettings

if TYPE_CHECKING:
    from cl_prompts.strategies.method import Method


def check_single_process() -> None:
    """Refuse distributed training.

    Raises:
        StrategyError: the launcher of several processes started this one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise StrategyError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: every process would see the whole stream; start one process"
        )


def check_loop(updates_per_batch: float, epochs: int, **choices: tuple[str, Collection[str]]) -> None:
    """Refuse a loop that cannot be.

    Args:
        updates_per_batch: a positive number.
        epochs: at least 1.
        choices: argument -> its value and the allowed ones.

    Raises:
        StrategyError: names the argument and what is allowed.
    """
    if not 1e-6 <= updates_per_batch < float("inf"):
        raise StrategyError(f"updates_per_batch={updates_per_batch}: must be a number of at least 0.000001")
    if epochs < 1:
        raise StrategyError(f"epochs={epochs}: must be a whole number of at least 1")
    for argument, (value, allowed) in choices.items():
        if value not in allowed:
            raise StrategyError(f"{argument}={value!r}: must be one of {', '.join(allowed)}")


def check_parts(strategy: str, backbone: Any, settings: Any, settings_class: type[StrategySettings], make: Any) -> None:
    """Refuse parts as other libraries take them: a bare network, a dict of settings, a ready optimizer.

    Args:
        strategy: name of the strategy's class.
        backbone: should be a `FrozenViT`.
        settings: should be of the class below.
        settings_class: the method's settings.
        make: should be a function of the trained tensors, or None.

    Raises:
        StrategyError: the first part that does not fit.
    """
    if not isinstance(backbone, FrozenViT):
        advice = (
            "wrap it: FrozenViT(model)" if isinstance(backbone, torch.nn.Module) else "pass load_backbone('vit_nano')"
        )
        raise StrategyError(f"backbone={_kind(backbone)}: {strategy} needs a FrozenViT; {advice}")
    if not isinstance(settings, settings_class):
        name = settings_class.__name__
        raise StrategyError(f"settings={_kind(settings)}: {strategy} has settings of its own; pass {name}(...)")
    if make is not None and not callable(make):
        name = type(make).__name__ if isinstance(make, torch.optim.Optimizer) else "SGD"
        raise StrategyError(
            f"optimizer={_kind(make)}: {strategy} chooses the trained tensors; pass a function such as "
            f"functools.partial(torch.optim.{name}, lr=0.1)"
        )


def check_labels(targets: Any, num_classes: int, sample_ids: Any = None) -> None:
    """Refuse labels that have no column in the head.

    Args:
        targets: class ids, in the order of the experience.
        num_classes: columns of the head.
        sample_ids: data-set indices in the same order, where they are known.

    Raises:
        StrategyError: names a label, its sample and the number of classes it takes.
    """
    present = {int(target) for target in getattr(targets, "uniques", targets)}
    outside = sorted(target for target in present if not 0 <= target < num_classes)
    if not outside:
        return
    position = next(number for number, target in enumerate(targets) if int(target) == outside[0])
    sample = f"sample {int(sample_ids[position])}" if sample_ids is not None else f"position {position} of the stream"
    advice = "correct the labels" if outside[0] < 0 else f"give num_classes={max(outside) + 1} or more"
    raise StrategyError(f"label {outside[0]} of {sample} is outside 0..{num_classes - 1}; {advice}")


def check_experience_labels(experience: Any, num_classes: int, strategy: str, needs: Needs) -> None:
    """Refuse labels of a form that the method does not learn from, without a column in the head, or not announced.

    Raises:
        StrategyError: several labels an image for a method of one; rows or ids that do not fit the head; a visible
            class that is not among those that the experience announces.
    """
    rows = getattr(experience.dataset, "label_rows", None)
    if rows is None:
        dataset = experience.dataset
        check_labels(getattr(dataset, "targets", []), num_classes, getattr(dataset, "sample_ids", None))
        return
    if not needs.multi_label:
        raise StrategyError(f"{strategy} learns one label an image, this stream has several; choose another method")
    columns = len(rows[0]) if len(rows) else num_classes
    if columns != num_classes:
        raise StrategyError(
            f"the stream has {columns} label columns, the head {num_classes}; give num_classes={columns}"
        )
    announced = getattr(experience, "classes_in_this_experience", None)
    shown = np.flatnonzero(~np.isnan(rows.array).all(axis=0)).tolist()
    unannounced = [] if announced is None else sorted(set(shown) - set(announced))
    if unannounced:
        raise StrategyError(
            f"labels of class {unannounced[0]} are visible, but the experience announces {sorted(announced or ())}; "
            "set its classes_in_this_experience to all visible columns, or hide the labels (nan)"
        )


def task_classes(experience: Any, exposed: Tensor) -> Tensor | None:
    """Classes of a task, int64, where the session that begins is one: none of them came before or will come again.

    A blurry stream tells a method nothing in advance; a stream from elsewhere that announces new classes alone is taken
    at its word.

    Args:
        experience: says `task_classes`, or as Avalanche's timeline `classes_in_this_experience`.
        exposed: bool (classes,), classes seen before.
    """
    announced = getattr(experience, "task_classes", None)
    if announced is None and not hasattr(experience, "remaining_counts"):
        announced = getattr(experience, "classes_in_this_experience", None)
    if announced is None:
        return None
    classes = torch.tensor(sorted(announced), dtype=torch.int64)
    return None if bool(exposed[classes.to(exposed.device)].any()) else classes


def check_mask_fits(train_mask: str, announced: Iterable[int] | None, exposed: Tensor) -> None:
    """Refuse masks by session or task on a stream without them, or whose classes return.

    Args:
        train_mask: name of the mask.
        announced: classes of the experience, None where it does not tell.
        exposed: bool (classes,), classes seen before.

    Raises:
        StrategyError: the mask would say nothing.
    """
    if train_mask not in ("task", "session"):
        return
    advice = "use exposed or batch"
    if announced is None:
        raise StrategyError(f"train_mask={train_mask!r}: this stream shows no sessions; {advice}")
    if train_mask == "task" and bool(exposed[sorted(announced)].any()):
        raise StrategyError(f"train_mask='task': classes return in later sessions of this stream; {advice}")


def check_optimizer(optimizer: torch.optim.Optimizer | None, method: Method) -> None:
    """Refuse to train what has to stay as it is, or to leave out what has to move.

    Args:
        optimizer: None of a closed-form learner.
        method: names the tensors.

    Raises:
        StrategyError: the backbone asks for gradients; the optimizer holds a frozen tensor, or lacks a trained one.
    """
    backbone = {id(tensor) for tensor in method.backbone.parameters()}
    trained = dict(method.named_trainables())
    thawed = [name for name, tensor in trained.items() if id(tensor) in backbone]
    if thawed:
        raise StrategyError(
            f"{_some(thawed)} of the backbone would be trained; the backbone stays frozen: call requires_grad_(False) "
            "on it, or on a copy of the model before FrozenViT(...) gets it"
        )
    if optimizer is None:
        return
    held = {id(tensor): tensor for group in optimizer.param_groups for tensor in group["params"]}
    names = {id(tensor): name for name, tensor in method.named_parameters()}
    frozen = [names.get(key, f"a tensor {tuple(one.shape)}") for key, one in held.items() if not one.requires_grad]
    if frozen:
        raise StrategyError(
            f"the optimizer holds {_some(frozen)}, which is frozen; give the strategy a function that passes on the "
            "tensors it gets, such as functools.partial(torch.optim.Adam, lr=0.005)"
        )
    forgotten = [name for name, tensor in trained.items() if id(tensor) not in held]
    if forgotten:
        raise StrategyError(
            f"the optimizer leaves out {_some(forgotten)}, which would never be trained; give the strategy a function "
            "that passes on all tensors it gets, or freeze what shall stay with requires_grad_(False)"
        )


def needs_transform(images: Tensor, transform: Callable | None) -> bool:
    """Whether raw images are still to be turned into network input.

    Raises:
        StrategyError: they would be transformed twice, or never.
    """
    raw = images.dtype == torch.uint8
    if raw and transform is None:
        raise StrategyError("the stream gives uint8 images: pass train_transform and eval_transform to the strategy")
    if not raw and transform is not None:
        raise StrategyError("the stream gives float images already: pass no transforms to the strategy")
    return raw


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _kind(value: Any) -> str:
    """What was given instead, in a word or two."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
