# SPDX-License-Identifier: Apache-2.0
"""The futures of an executor: real ones, whose `cancel` and `running` ask the task itself."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, FINISHED, PENDING, RUNNING, InvalidStateError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threading import Condition

    from ._pool import Pool

__all__ = ["MapFuture", "TaskFuture"]


class TaskFuture(Future[Any]):
    """Made by `submit` alone."""

    _pool: Pool
    _task_id = 0
    _offset = 0
    _fn: Any = None
    _call: Any = None  # what to send again if it is lost
    _attempt = 0
    _retries = 0
    _timeout: float | None = None
    _interruptible = False

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
            result = super().result(timeout)
            if self._exception is not None:  # one that is false: Python < 3.14 does not raise it
                raise self._exception
            return result
        finally:
            del self  # breaks a cycle with the exception's traceback

    def running(self) -> bool:
        """Whether a worker is busy with the task now."""
        return super().running() or (not self.done() and self._pool.is_running(self._task_id))


class MapFuture(TaskFuture):
    """The future of a call in a `map`, which nobody but the map has.

    All futures of a map share a condition, and have no callbacks and no other waiters. Making a
    condition for each takes longer than all else that the map does for a call.
    """

    _result = None
    _exception = None
    _state = PENDING
    _waiters = ()  # type: ignore[assignment]
    _done_callbacks = ()
    _is_awaited = False

    def __init__(self, condition: Condition) -> None:
        self._condition = condition

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, as `Future.result`."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        with self._condition:
            self._is_awaited = True
            self._condition.wait_for(self.done, timeout)
        return super().result(0)

    def set_result(self, result: Any) -> None:
        """Complete the call."""
        self._finish(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """Complete the call."""
        self._finish(None, exception)

    def _finish(self, result: Any, exception: BaseException | None) -> None:
        with self._condition:
            if self._state not in (PENDING, RUNNING):
                raise InvalidStateError(f"{self._state}: {self!r}")
            self._result = result
            self._exception = exception
            self._state = FINISHED  # the last: `result` looks at it first
            if self._is_awaited:
                self._condition.notify_all()
