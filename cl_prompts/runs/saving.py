"""When a run saves its state, and how a saved one goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cl_prompts.errors import StrategyError, UserError
from cl_prompts.metrics.record_state import point_from_state
from cl_prompts.metrics.records import Point
from cl_prompts.plugins import AnytimeEvaluation
from cl_prompts.runs.checkpoints import CheckpointStore
from cl_prompts.runs.files import cannot_write
from cl_prompts.runs.identity import deciding_keys, key_differences, refuse_other_content, saved_content
from cl_prompts.runs.prepared import Prepared
from cl_prompts.runs.schema import RunConfig
from cl_prompts.runs.termination import StopRequest

LOCK = ".lock"


class Saving:
    """Saves the state of a strategy every so many stream samples, and when somebody asks the run to stop.

    Attributes:
        saves: how often.
        seconds_spent: in all saves.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: RunConfig,
        prepared: Prepared,
        request: StopRequest,
        elapsed: Callable[[], float],
    ) -> None:
        self._store, self._every, self._request, self._elapsed = store, config.checkpoint_every, request, elapsed
        self._identity = {"keys": deciding_keys(config), "content": content_of(prepared)}
        self._next = self._every
        self.saves, self.seconds_spent = 0, 0.0

    def start(self, samples_seen: int) -> None:
        """Training goes on from here."""
        self._next = (samples_seen // self._every + 1) * self._every if self._every else 0
        self._request.waits = True

    def __call__(self, strategy: Any) -> None:
        """At the end of a stream batch: save if it is time, stop if it was asked for."""
        due = self._every and strategy.samples_seen >= self._next
        if due or self._request.asked:
            self.save(strategy)
            self._next = (strategy.samples_seen // self._every + 1) * self._every if self._every else 0
        self._request.obey()

    def save(self, strategy: Any) -> None:
        """Save now."""
        started = time.perf_counter()
        strategy.stop_if_not_finite()
        state = {"identity": self._identity, "strategy": strategy.state_dict(), "seconds": self._elapsed()}
        self._store.save(strategy.samples_seen, state)
        self.saves += 1
        self.seconds_spent += time.perf_counter() - started


def content_of(prepared: Prepared) -> dict[str, Any]:
    """What the numbers of a run rest on, and all that prediction needs of its data set: a `SavedContent`."""
    data, transform = prepared.data, prepared.learner.eval_transform
    return {
        "plan": data.plan.sha256,
        "backbone": prepared.learner.backbone.identity["sha256"],
        "train": data.train.identity.get("sha256"),
        "test": data.test.identity.get("sha256"),
        "classes": list(data.train.class_names),
        "input": {
            "mean": list(transform.mean),
            "std": list(transform.std),
            "size": transform.size,
            "interpolation": transform.interpolation,
            "crop": transform.crop,
        },
        "decoding": {
            "size": data.train.image_shape[0],
            # Of images of a fixed size there is none: larger pictures of a user get the usual one.
            "interpolation": data.train.identity.get("interpolation", "bicubic"),
        },
    }


def resumed(
    store: CheckpointStore, config: RunConfig, prepared: Prepared, warn: Callable[[str], None]
) -> tuple[Sequence[Any], Mapping[str, Any] | None]:
    """The experiences that are left to train on, and the state to go on from; None where a run has to begin.

    Raises:
        UserError: the checkpoint is of another configuration or other data, or none can be read.
    """
    stream = list(prepared.learner.benchmark.train_stream)
    state = store.load(warn)
    if state is None:
        return stream, None
    saved_content(state)
    differences = key_differences(state["identity"]["keys"], deciding_keys(config))
    if differences:
        raise UserError(
            f"resume: the checkpoint was saved with {'; '.join(differences)}; leave these keys as they were, or start "
            "anew without resume="
        )
    refuse_other_content(state["identity"]["content"], content_of(prepared))
    with _fitting():
        return prepared.learner.strategy.resume(state["strategy"], stream), state


def saved_points(state: Mapping[str, Any]) -> list[Point]:
    """The evaluations in the state of a strategy, in the order of the stream.

    Raises:
        UserError: they are not in it.
    """
    with _fitting():
        (measured,) = (one["state"] for one in state["plugins"] if one["plugin"] == AnytimeEvaluation.__name__)
        points = [point_from_state(point) for point in (*measured["points"], *measured["sessions"])]
        return sorted(points, key=lambda point: point.samples_seen)


@contextmanager
def _fitting() -> Iterator[None]:
    """Say of a state that is not what a run leaves that it is none."""
    try:
        yield
    except StrategyError:
        raise
    except Exception as error:  # nested data of any kind: what a wrong one raises depends on where
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"resume: the checkpoint does not fit this run ({reason}); start anew without resume="
        ) from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of a run for this process.

    Raises:
        UserError: another process holds it, or no file can be made there.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process is running in this folder; wait for it, or stop it") from error
    except OSError as error:
        raise cannot_write(folder / LOCK, error) from error
    try:
        yield
    finally:
        lock.release()
