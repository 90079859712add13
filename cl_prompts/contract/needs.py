"""What a strategy promises about its needs: nothing is used that was not declared."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn
from unittest import mock

import torch
from timm.models import VisionTransformer

from cl_prompts.contract.check import Promise, require, require_refusal
from cl_prompts.contract.subject import Subject
from cl_prompts.contract.toys import learned, stream_of, train
from cl_prompts.errors import StrategyError
from cl_prompts.plugins import PromptUsage
from cl_prompts.strategies import TrainingBatch


class Undeclared:
    """Stands for what a method did not declare: any use of it raises an AssertionError.

    Args:
        what: named in the error.
    """

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "_what", what)

    def _used(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError(f"uses {object.__getattribute__(self, '_what')}, which its needs do not declare")

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __eq__ = __index__ = _used
    __contains__ = __add__ = __mul__ = __float__ = _used
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> NoReturn:
        """Refuse to enter any function of torch."""
        next(one for one in arguments if isinstance(one, cls))._used()


class WithoutReplay(TrainingBatch):
    """A batch whose parts about replay raise an AssertionError when they are read."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("replay", "remembered"):
            raise AssertionError(f"reads batch.{name}, which its needs do not declare (replay)")
        return super().__getattribute__(name)


def undeclared_boundaries_are_not_read(subject: Subject) -> None:
    """The classes announced for a session are not touched by a method that declares no boundaries."""
    strategy = subject.make()
    begin = strategy.model.begin_session
    ended: list[Any] = []
    announced: Any = Undeclared("the classes announced for a session")

    def begin_with(classes: Any) -> None:
        begin(announced)

    with (
        mock.patch.object(strategy.model, "begin_session", side_effect=begin_with),
        mock.patch.object(strategy.model, "end_session", ended.append),
    ):
        train(strategy, stream_of([[5, 2, 5, 2], [3, 0, 3, 0]]))
    require(not ended, "it was told of the end of a session")


def undeclared_replay_is_not_read(subject: Subject) -> None:
    """Samples of a memory are refused by a method that declares no replay, and it looks for none."""
    strategy = subject.make(plugins=[subject.memory()])
    require_refusal(lambda: train(strategy, subject.stream()), StrategyError, "a memory of past samples")
    strategy = subject.make()
    step = "training_outputs" if subject.needs.gradient else "fit"
    learn = getattr(strategy.model, step)
    with mock.patch.object(strategy.model, step, lambda batch: learn(_without_replay(batch))):
        train(strategy, stream_of([[5, 2, 5, 2]]))


def declared_replay_runs(subject: Subject) -> None:
    """A memory of past samples joins the training of a method that declares replay."""
    strategy = train(subject.make(plugins=[subject.memory()], train_mb_size=6), subject.stream())
    require(strategy.samples_seen == 24, f"{strategy.samples_seen} samples of 24")
    broken = [name for name, tensor in learned(strategy).items() if not torch.isfinite(tensor).all()]
    require(not broken, f"{', '.join(broken)} are not finite")


def declared_passes_are_not_exceeded(subject: Subject) -> None:
    """An update costs the forward passes that its needs declare, and the query where they declare one."""
    strategy = subject.make(updates_per_batch=1, train_mb_size=5)
    train(strategy, stream_of([[5, 2, 5, 2, 5]]))
    # One update of a second session, where a teacher of the first, or replay, may have joined.
    passes, tokens = 0, subject.backbone.tokens(subject.images[:1]).shape[1]

    def count(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal passes
        states = inputs[0]
        passes += states.ndim == 3 and states.shape[0] >= 5 and states.shape[1] >= tokens

    vits = [module for module in strategy.model.modules() if isinstance(module, VisionTransformer)]
    hooks = [vit.get_submodule("blocks.0.norm1").register_forward_hook(count) for vit in vits]
    train(strategy, stream_of([[3, 0, 3, 0, 3]]))
    for hook in hooks:
        hook.remove()
    allowed = subject.needs.passes_per_update + subject.needs.query_pass
    require(passes > 0, "no pass through the backbone was seen")
    require(passes <= allowed, f"an update made {passes} passes, declared are {allowed}")


def only_the_declared_part_is_trained(subject: Subject) -> None:
    """What is trained is what the needs declare: nothing, a head, prompts beside it, or the whole copy."""
    names = [name for name, _ in subject.reference.strategy.model.named_trainables()]
    beside_head = [name for name in names if not name.startswith("head.")]
    trains = subject.needs.trains
    wrong = {
        "nothing": bool(names),
        "head": not names or bool(beside_head),
        "prompts": not beside_head,
        "backbone": not beside_head,
    }[trains]
    require(not wrong, f"its needs declare trains={trains}, trained are {', '.join(names) or 'no tensors'}")


def use_of_the_pool_is_watched(subject: Subject) -> None:
    """A pool of prompts counts how often each was chosen; a method without one is refused by what watches it."""
    usage = subject.reference.strategy.model.prompt_usage()
    plugin = PromptUsage(every=4)
    strategy = subject.make(plugins=[plugin])
    watch = partial(train, strategy, stream_of([[5, 2, 5, 2], [3, 0, 3, 0]]))
    if usage is None:
        require_refusal(watch, StrategyError, "watching a pool that is not there")
        return
    require(usage.ndim == 1 and bool((usage >= 0).all()), f"usage has shape {tuple(usage.shape)}")
    require(float(usage.sum()) > 0, "no prompt was ever chosen")
    watch()
    require([seen for seen, _ in plugin.history] == [4, 8], f"usage was recorded {len(plugin.history)} times")


def deviations_are_sentences(subject: Subject) -> None:
    """Deviations, notices and effective settings can be written beside results."""
    import json

    model = subject.reference.strategy.model
    for sentence in [*model.settings.deviations(), *model.notices()]:
        require(
            isinstance(sentence, str) and "\n" not in sentence and len(sentence) > 10, f"{sentence!r} is no sentence"
        )
    effective = model.effective_settings()
    try:
        json.dumps(effective, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"effective settings are not JSON: {error}") from error
    missing = subject.settings_class.model_fields.keys() - {"name"} - effective.keys()
    require(not missing, f"effective settings lack {', '.join(sorted(missing))}")


def _without_replay(batch: TrainingBatch) -> WithoutReplay:
    return WithoutReplay(batch.images, batch.targets, batch.allowed, batch.exposed, batch.query, batch.stream_size)


PROMISES: tuple[Promise[Subject], ...] = (
    Promise(undeclared_boundaries_are_not_read, lambda subject: subject.needs.boundaries == "none"),
    Promise(undeclared_replay_is_not_read, lambda subject: subject.needs.replay == "none"),
    Promise(declared_replay_runs, lambda subject: subject.needs.replay != "none"),
    Promise(declared_passes_are_not_exceeded),
    Promise(only_the_declared_part_is_trained),
    Promise(use_of_the_pool_is_watched),
    Promise(deviations_are_sentences),
)
