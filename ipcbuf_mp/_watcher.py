# SPDX-License-Identifier: Apache-2.0
"""The thread that watches over an executor's workers: who dies, and whose time is up.

It says on the result channel that a worker died, so that this is read after everything which
that worker had sent.

Ending one task
  soft   The task's number is written on the board as the one to be interrupted, and its worker
         gets a signal, whose handler raises `TaskInterrupted` in the task. It gets the signal
         again, after twice the time each, until the board says that the handler has run.
  hard   If the task still runs after the grace, its worker is stopped; if the board still names
         the task then, the worker is killed, else it goes on. So nobody else's task is hit.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipcbuf

from ._board import HEARD, INTERRUPT, SINCE, TASK
from ._worker import DIED, INTERRUPT_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

    from ._board import Board

__all__ = ["Watcher"]

_RETRY_SECONDS = 0.05  # the patience with a full heap
_STOP_SECONDS = 1.0  # for a process to stop; one that waits for a disk may take longer
_LOOK_AGAIN_SECONDS = 0.002  # for a task that a worker is just taking
_REPEAT_SECONDS = 0.01  # to the second signal of an interruption


@dataclass
class _Timed:
    """A task that is to end."""

    seconds: float
    """How long it may run."""
    due: float
    """When to look at it, monotonic."""
    is_pending: Callable[[], bool]
    last: float = 0.0
    """When to kill its worker, monotonic; 0: it was not interrupted."""
    repeat: float = _REPEAT_SECONDS
    """Seconds from the last signal to the next."""


class Watcher(threading.Thread):
    """Sleeps until a worker dies or a task's time is up. One for each pool."""

    def __init__(self, results: ipcbuf.Sender, board: Board, grace: float) -> None:
        super().__init__(name="ipcbuf-executor-watcher")
        self._results = results
        self._board = board
        self._grace = grace
        self._fds: dict[int, int] = {}  # pid: a descriptor that is readable when it is dead
        self._pids: dict[int, int] = {}  # the other way round, while it lives
        self._slots: dict[int, int] = {}  # slot: pid, of the living
        self._pidfds: set[int] = set()  # our own among them
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._news, select.POLLIN)
        self._stopping = False
        self._timed: dict[int, _Timed] = {}  # by task
        self._lock = threading.Lock()  # over _timed
        self._next_look = float("inf")
        self.doomed: set[int] = set()
        """Tasks that were interrupted because their time was up, or to cancel them."""
        self.put_down: set[int] = set()
        """Workers that were killed because a task would not end."""

    def watch(self, process: BaseProcess, slot: int) -> None:
        """Watch *process* too. With the pool's lock held."""
        pid = process.pid
        assert pid is not None
        try:
            # Not the sentinel, a pipe that stays open while the worker's own children live.
            fd = os.pidfd_open(pid)
            self._pidfds.add(fd)
        except OSError:
            fd = process.sentinel
        self._fds[pid] = fd
        self._pids[fd] = pid
        self._slots[slot] = pid
        self._poll.register(fd, select.POLLIN)
        os.eventfd_write(self._news, 1)  # a poll() under way has its list already

    def forget(self, pid: int) -> None:
        """Close what belongs to a dead worker. After its death was reported."""
        fd = self._fds.pop(pid, None)
        if fd in self._pidfds:
            self._pidfds.discard(fd)
            os.close(fd)

    def wait(self, pid: int, deadline: float) -> bool:
        """Wait until *pid* is dead; False if it lives at the *deadline*."""
        poll = select.poll()
        poll.register(self._fds[pid], select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def limit(self, task_id: int, seconds: float, is_pending: Callable[[], bool]) -> None:
        """End a task when it has run so long: interrupt it, then kill its worker."""
        timed = _Timed(seconds, time.monotonic() + seconds, is_pending)
        with self._lock:
            self._timed[task_id] = timed
            soon = timed.due < self._next_look
        if soon:
            os.eventfd_write(self._news, 1)

    def done(self, task_id: int) -> None:
        """Forget the limit of a task."""
        with self._lock:
            self._timed.pop(task_id, None)

    def run(self) -> None:
        while not self._stopping:
            timeout = self._look_at_timed()
            for fd, _ in self._poll.poll(timeout):
                if fd == self._news:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                else:
                    self._poll.unregister(fd)
                    pid = self._pids.pop(fd)
                    self._slots = {slot: p for slot, p in self._slots.items() if p != pid}
                    self._report(pid)

    def _report(self, pid: int) -> None:
        while not self._stopping:
            try:
                self._results.send_object((pid, DIED, None))
            except ipcbuf.HeapExhausted:
                time.sleep(_RETRY_SECONDS)
            else:
                return

    # --- tasks whose time is up ---

    def _look_at_timed(self) -> float | None:
        """Do what is due; return the milliseconds until there is more to do."""
        if not self._timed:
            return None
        now = time.monotonic()
        with self._lock:
            due = [(task_id, timed) for task_id, timed in self._timed.items() if timed.due <= now]
        for task_id, timed in due:
            wait = self._look_at(task_id, timed, now) if timed.is_pending() else None
            if wait is None:
                with self._lock:
                    if self._timed.get(task_id) is timed:
                        del self._timed[task_id]
            else:
                timed.due = now + wait
        with self._lock:
            self._next_look = min((t.due for t in self._timed.values()), default=float("inf"))
        if self._next_look == float("inf"):
            return None
        return max(0.0, self._next_look - time.monotonic()) * 1000 + 1

    def _look_at(self, task_id: int, timed: _Timed, now: float) -> float | None:
        """Seconds until it is to be looked at again; None when there is nothing more to do."""
        try:
            slot = self._board.tasks().index(task_id)
        except ValueError:  # not begun: it cannot be over time before as much has passed again
            return max(timed.seconds, _LOOK_AGAIN_SECONDS)
        pid = self._slots.get(slot)
        if pid is None:
            return _LOOK_AGAIN_SECONDS  # it died, which the collector will hear of
        row = self._board.row(slot)
        if not timed.last:
            left = row[SINCE] / 1e9 + timed.seconds - now
            if left > 0:
                return left
            timed.last = now + self._grace
            self.doomed.add(task_id)
            row[INTERRUPT] = task_id
            self._signal(pid, INTERRUPT_SIGNAL)
        elif now >= timed.last:
            self._put_down(pid, row, task_id)
            return _LOOK_AGAIN_SECONDS
        elif row[HEARD] == task_id:
            return timed.last - now
        else:
            timed.repeat *= 2
            self._signal(pid, INTERRUPT_SIGNAL)
        return min(timed.repeat, timed.last - now)

    def _put_down(self, pid: int, row: memoryview, task_id: int) -> None:
        self._signal(pid, signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_SECONDS
        while not (stopped := _has_stopped(pid)) and time.monotonic() < deadline:
            time.sleep(0.0005)
        if stopped and row[TASK] == task_id:
            self.put_down.add(pid)
            self._signal(pid, signal.SIGKILL)
            self.wait(pid, time.monotonic() + 1)
        self._signal(pid, signal.SIGCONT)

    def _signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            fd = self._fds[pid]
            if fd in self._pidfds:
                signal.pidfd_send_signal(fd, number)
            else:
                os.kill(pid, number)

    # --- the end ---

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        os.eventfd_write(self._news, 1)
        if self.ident is not None:
            self.join()
        self.disown()

    def disown(self) -> None:
        """Close the descriptors that this process has."""
        for fd in (self._news, *self._pidfds):
            os.close(fd)


def _has_stopped(pid: int) -> bool:
    """Whether a process executes nothing any more, stopped or dead."""
    try:
        state: Any = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (OSError, IndexError):
        return True
    return state in "TtZX"
