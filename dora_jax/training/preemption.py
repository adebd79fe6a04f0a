"""Told to stop (SIGTERM, SIGINT): a run finishes its step, writes a checkpoint and leaves.

A second SIGINT ends it at once. Where nothing is being trained there is nothing to finish.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL: the same command, given again, goes on
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(BaseException):
    """The run was told to stop, and can go on from where it stopped."""


class _Listener:
    """What the signals' handler and the loop share."""

    def __init__(self) -> None:
        self.told = False
        self.is_training = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.told:
            raise KeyboardInterrupt
        self.told = True
        if not self.is_training:
            raise Preempted("told to stop")


_listener = _Listener()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Take the signals; what they do until now they do again afterwards.

    Python runs handlers in the main thread alone: elsewhere nothing is taken.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _listener.handle) for number in _SIGNALS}
    try:
        yield
    finally:
        _listener.told = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def until_told() -> Iterator[Callable[[int], bool]]:
    """Put the stop off; gives a function of the step's number that says whether it is due.

    All processes of a run are told of the same step: JAX's coordinator sees to it.
    """
    _listener.is_training = True

    def is_due(step: int) -> bool:
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return _listener.told

    try:
        yield is_due
    finally:
        _listener.is_training = False
