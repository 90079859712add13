"""Requests to stop, by Ctrl-C or by a batch system, that let a run save its state first.

While a run trains, the first signal asks it to stop at the end of the stream batch, where its state can be saved; a
second one, or a batch that takes too long, stops it at once. Otherwise the first one stops it at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PATIENCE_SECONDS = 8.0
"""How long a stream batch may take to end after a request; batch systems kill after 10 seconds and more."""


class Terminated(KeyboardInterrupt):
    """Somebody asked the process to end; handled wherever a Ctrl-C is."""


def _kinds() -> dict[int, type[KeyboardInterrupt]]:
    kinds: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
    # Sent by batch systems some time before they end a job; Windows has none.
    preemption = getattr(signal, "SIGUSR1", None)
    return kinds if preemption is None else {**kinds, preemption: Terminated}


class StopRequest:
    """Whether somebody asked the run to stop.

    Attributes:
        waits: a state can be saved at the end of the current stream batch, so that a request may wait for it.
    """

    def __init__(self) -> None:
        self.waits = False
        self._asked: type[KeyboardInterrupt] | None = None

    def ask(self, kind: type[KeyboardInterrupt]) -> None:
        """Take up a request: remember it, or raise it where nothing can be saved or another one came before."""
        earlier, self._asked = self._asked, kind
        if not self.waits or earlier is not None:
            raise kind
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)

    @property
    def asked(self) -> bool:
        """Whether a request waits."""
        return self._asked is not None

    def obey(self) -> None:
        """Raise the request that waits, if there is one."""
        if self._asked is not None:
            raise self._asked

    def give_up(self) -> None:
        """The batch takes too long: raise the request now."""
        self.obey()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take up SIGINT, SIGTERM and SIGUSR1 in this block; after the request was raised they are ignored.

    The previous handlers are back afterwards. Outside the main thread, where Python allows none, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    kinds = _kinds()

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            request.ask(kinds[number])
        except KeyboardInterrupt:
            _quiet()
            raise

    def out_of_patience(number: int, frame: FrameType | None) -> None:
        _quiet()
        request.give_up()

    def _quiet() -> None:
        # What is being cleaned up must not be interrupted again.
        for number in (signal.SIGTERM, *(number for number in kinds if number != signal.SIGINT)):
            signal.signal(number, signal.SIG_IGN)

    handlers: dict[int, Any] = dict.fromkeys(kinds, handle)
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = out_of_patience
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield request
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            # None stands for a handler that was not set from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
