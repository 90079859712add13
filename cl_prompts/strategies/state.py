"""The state of a strategy between two stream batches, and back: what exact resume inside a session rests on.

Plain containers and tensors, trained tensors and buffers but never the backbone. A strategy that was built with the
same arguments, given this state and trained on from the experience it names ends with the same bits as one that was
never stopped: order and augmentation are functions of seeds and places, so neither loaders nor workers have a state.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cl_prompts.errors import StrategyError
from cl_prompts.strategies.method import Method

if TYPE_CHECKING:
    from cl_prompts.strategies.base import ContinualStrategy

BACKBONE = "backbone."
"""Front of the names of tensors that are never saved: a hash identifies them."""


def method_state(method: Method) -> dict[str, Any]:
    """`tensors`: everything of the method but the backbone; `trained`: names that training may move; `generator`."""
    tensors = {name: value for name, value in method.state_dict().items() if not name.startswith(BACKBONE)}
    return {
        "tensors": {name: value.detach().clone() for name, value in tensors.items()},
        "trained": [name for name, _ in method.named_trainables()],
        "generator": method.generator.get_state(),
    }


def restore_method(method: Method, state: Mapping[str, Any]) -> None:
    """Bring a method to a saved state; one that grows is given the parts it had.

    Raises:
        StrategyError: the state is of another method or of other settings.
    """
    saved = state["tensors"]
    try:
        outcome = method.load_state_dict(dict(saved), strict=False)
    except RuntimeError as error:
        raise StrategyError(f"the saved state does not fit {type(method).__name__}: {_one_line(error)}") from error
    missing = [name for name in outcome.missing_keys if not name.startswith(BACKBONE)]
    if missing or outcome.unexpected_keys:
        raise StrategyError(
            f"the saved state is not one of this {type(method).__name__}: missing {missing[:3]}, "
            f"unexpected {outcome.unexpected_keys[:3]}; use the settings it was saved with"
        )
    trained = set(state["trained"])
    for name, tensor in method.named_parameters():
        tensor.requires_grad_(name in trained)
    method.generator.set_state(state["generator"])


def strategy_state(strategy: ContinualStrategy) -> dict[str, Any]:
    """The whole state of a strategy at the end of a stream batch."""
    optimizer = strategy.optimizer
    return {
        "strategy": type(strategy).__name__,
        "method": method_state(strategy.model),
        "optimization": None if optimizer is None else strategy.optimization.state_dict(optimizer),
        "classes": strategy.classes.state_dict(),
        "watch": strategy.watch.state_dict(),
        "presented": strategy.preparation.presented.times,
        "place": strategy.place.state_dict(),
        "samples_seen": strategy.samples_seen,
        "updates": strategy.updates,
        "carry": [strategy._carry.numerator, strategy._carry.denominator],
        "clock": {name: value for name, value in vars(strategy.clock).items() if isinstance(value, int)},
        "plugins": [
            {"plugin": type(plugin).__name__, "state": plugin.state_dict()} for plugin in _with_state(strategy)
        ],
        "random": random_state(),
    }


def prepare_plugins(strategy: ContinualStrategy, state: Mapping[str, Any], experiences: Sequence[Any]) -> int:
    """Tell plugins about the passes that are over; returns the number of the experience to train on.

    Raises:
        StrategyError: the strategy has trained already, or the stream has fewer experiences.
    """
    number, epoch = state["place"]["experience"], state["place"]["epoch"]
    if strategy.updates or strategy.samples_seen:
        raise StrategyError("resume: this strategy has trained already; build a new one with the same arguments")
    if not 0 <= number < len(experiences):
        raise StrategyError(
            f"resume: the state was saved in experience {number}, this stream has {len(experiences)}; use the same"
        )
    passes = [experience for experience in experiences[:number] for _ in range(strategy.train_epochs)]
    # Of the current experience the passes that are complete; the one it was saved in begins again.
    passes += [experiences[number]] * epoch
    for plugin in strategy.plugins:
        if hasattr(plugin, "skip_experience"):
            for experience in passes:
                plugin.skip_experience(experience.dataset.train())
    return number


def restore_strategy(strategy: ContinualStrategy, state: Mapping[str, Any]) -> None:
    """Bring a strategy to a saved state, inside the epoch in which it was saved.

    Raises:
        StrategyError: the state is of another strategy, or of other plugins.
    """
    try:
        _restore(strategy, state)
    except StrategyError:
        raise
    except Exception as error:  # a state is nested data of any kind, and what a wrong one raises depends on where
        name = type(strategy).__name__
        raise StrategyError(f"the saved state does not fit this {name}: {_one_line(error)}") from error


def _restore(strategy: ContinualStrategy, state: Mapping[str, Any]) -> None:
    _refuse_another(strategy, state)
    plugins, saved = _with_state(strategy), state["plugins"]
    expected = [type(plugin).__name__ for plugin in plugins]
    if [one["plugin"] for one in saved] != expected:
        raise StrategyError(
            f"the saved state has plugins {[one['plugin'] for one in saved]}, this strategy {expected}; use the same"
        )
    restore_learning(strategy, state)
    strategy.preparation.presented.times = state["presented"].clone()
    strategy.place.load_state_dict(state["place"])
    for name, value in state["clock"].items():
        setattr(strategy.clock, name, value)
    for plugin, one in zip(plugins, saved, strict=True):
        plugin.load_state_dict(one["state"])
    restore_random_state(state["random"])


def restore_learning(strategy: ContinualStrategy, state: Mapping[str, Any]) -> None:
    """Bring a strategy to what a saved one had learnt, whatever its plugins, at the beginning of another stream.

    Method, optimizer with its moments, classes, counters; neither the place in the stream nor random states.

    Raises:
        StrategyError: the state is of another strategy, or of other settings.
    """
    _refuse_another(strategy, state)
    restore_method(strategy.model, state["method"])
    if strategy.optimizer is not None:
        trained = [tensor for _, tensor in strategy.model.named_trainables()]
        strategy.optimizer = strategy.optimization.restored(trained, state["optimization"])
    strategy.classes.load_state_dict(state["classes"])
    strategy.watch.load_state_dict(state["watch"])
    strategy.samples_seen = operator.index(state["samples_seen"])
    strategy.updates = operator.index(state["updates"])
    strategy._carry = type(strategy._carry)(*state["carry"])


def _refuse_another(strategy: ContinualStrategy, state: Mapping[str, Any]) -> None:
    name = type(strategy).__name__
    if state["strategy"] != name:
        raise StrategyError(f"the saved state is one of {state['strategy']}, not of {name}; build the same strategy")


def random_state() -> dict[str, Any]:
    """State of the global generators: torch on the CPU and on every GPU, NumPy, `random`."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            kind,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, torch.tensor(words, dtype=torch.int64), next_gauss],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Bring the global generators to a saved state; GPUs that are not there are passed over."""
    torch.set_rng_state(state["torch"])
    for index, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(one, index)
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, _numpy(keys).astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(_numpy(words).tolist()), next_gauss))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _with_state(strategy: ContinualStrategy) -> list[Any]:
    """Plugins that can be saved, in their order; those of observers, which only watch, have no state."""
    return [plugin for plugin in strategy.plugins if hasattr(plugin, "load_state_dict")]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
