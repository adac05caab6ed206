# SPDX-License-Identifier: Apache-2.0
"""The futures of an executor: real ones, whose `cancel` and `running` ask the task itself."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, FINISHED, PENDING
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._pool import Pool

__all__ = ["TaskFuture"]


class _AtFirstUse:
    """What most futures never need, made when somebody asks for it.

    That takes longer than all else that `submit` does. A future that has none of them is plain:
    `ipcbuf.Results` completes it without Python code.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: TaskFuture | None, owner: type) -> Any:
        if future is None:
            return self
        future._plain = False  # first: see N2 of results.cpp
        return future.__dict__.setdefault(self._name, self._make())


class TaskFuture(Future[Any]):
    """Made by `submit` alone."""

    _condition = _AtFirstUse(threading.Condition)
    _waiters = _AtFirstUse(list)
    _done_callbacks = _AtFirstUse(list)
    _state = PENDING
    _result = None
    _exception = None

    _plain = True  # nobody but the caller looks at it, and its result is all that matters
    _pool: Pool
    _task_id = 0
    _offset = 0
    _fn: Any = None
    _call: Any = None  # what to send again if it is lost
    _attempt = 0
    _retries = 0
    _timeout: float | None = None
    _interruptible = False

    def __init__(self) -> None:
        """Leave all as the class has it."""

    def cancel(self) -> bool:
        """Cancel the task unless a worker has taken it. True if it is cancelled.

        A task that runs is cancelled, too, if it was submitted with `cancel_running=True`: the
        future is cancelled at once, and the worker interrupted.
        """
        if self._state == FINISHED:
            return False
        with self._condition:
            runs = self._state == PENDING and not self._pool.withdraw(self._task_id, self._offset)
            if runs and not self._interruptible:
                return False
        cancelled = super().cancel()
        if cancelled and runs:
            self._pool.interrupt(self._task_id)
        self.tell_if_cancelled()
        return cancelled

    def tell_if_cancelled(self) -> None:
        """Do what the standard library does when its executor comes across a cancelled task."""
        with self._condition:
            if self._state == CANCELLED:
                self.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, or raise, as `Future.result`."""
        try:
            if self._plain and self._state == PENDING:
                timeout = self._wait_alone(timeout)
            if self._state == FINISHED and self._exception is None:
                return self._result
            result = super().result(timeout)
            if self._exception is not None:  # one that is false: Python < 3.14 does not raise it
                raise self._exception
            return result
        finally:
            del self  # breaks a cycle with the exception's traceback

    def _wait_alone(self, timeout: float | None) -> float | None:
        """Take the result ourselves if no other is to come. Return what is left of *timeout*."""
        results = self._pool.results
        if results is None:
            return timeout
        if timeout is None:
            results.wait_alone(self, self._task_id, None)
            return None
        deadline = time.monotonic() + timeout
        results.wait_alone(self, self._task_id, timeout)
        return max(0.0, deadline - time.monotonic())

    def running(self) -> bool:
        """Whether a worker is busy with the task now."""
        return super().running() or (not self.done() and self._pool.is_running(self._task_id))
