# SPDX-License-Identifier: Apache-2.0
"""How workers notice that the process they work for is dead, and wait for their turn."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import threading
from multiprocessing import reduction

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Gate", "Lifeline", "lifeline_of_a_worker"]


class Lifeline:
    """A pipe that closes when the process that made it dies, however it dies.

    That process alone holds the write end: whatever it forks closes its copy at once. Workers hold
    the read end. (The pipe that multiprocessing gives every child stays open as long as any other
    child has inherited it.)
    """

    def __init__(self, read_end: int, write_end: int = -1) -> None:
        self._read_end = read_end
        self._write_end = write_end
        self._watching = -1

    def hang_on(self) -> None:
        """Have the kernel kill this process when the pipe closes, even in the middle of a task."""
        with contextlib.suppress(OSError):  # no /proc: an idle worker looks now and then
            # The one to be told is a property of the open file, so we need an open file of our own.
            path = f"/proc/self/fd/{self._read_end}"
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
            self._watching = fd
        if self.is_cut():  # before there was a signal to send
            os._exit(1)

    @property
    def is_guarded(self) -> bool:
        """Whether the kernel kills this process when the pipe closes."""
        return self._watching >= 0

    def is_cut(self) -> bool:
        """Whether the process at the other end is dead."""
        poll = select.poll()
        poll.register(self._read_end, 0)  # a file opened after the death would not tell
        return bool(poll.poll(0))

    def disown(self, *, keep_reading: bool) -> None:
        """In a forked child: close what is the parent's."""
        os.close(self._write_end)
        if not keep_reading:
            os.close(self._read_end)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_lifeline, (reduction.DupFd(self._read_end),)


def _rebuild_lifeline(fd: Any) -> Lifeline:
    return Lifeline(fd.detach())


_ours: Lifeline | None = None  # from this process to its workers
_making = threading.Lock()
_this_thread = threading.local()


class lifeline_of_a_worker:  # noqa: N801  # a function to its users
    """Give this process's lifeline for a worker that is started in here, by this thread."""

    def __enter__(self) -> Lifeline:
        global _ours
        with _making:
            if _ours is None:
                _ours = Lifeline(*os.pipe())
        _this_thread.starts_a_worker = True
        return _ours

    def __exit__(self, *_: object) -> None:
        _this_thread.starts_a_worker = False


def _after_fork_in_child() -> None:
    global _ours
    _making._at_fork_reinit()  # type: ignore[attr-defined]  # as the standard library's own locks
    if _ours is not None:
        _ours.disown(keep_reading=getattr(_this_thread, "starts_a_worker", False))
        _ours = None


os.register_at_fork(after_in_child=_after_fork_in_child)


class Gate:
    """Where a spare worker waits until the one that it replaces has left."""

    def __init__(self, fd: int = -1) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC) if fd < 0 else fd

    def open(self) -> None:
        """Let the worker go on. Nobody else uses the gate afterwards."""
        os.eventfd_write(self._fd, 1)
        self.close()

    def wait(self) -> None:
        """Wait until the gate is opened."""
        os.eventfd_read(self._fd)
        self.close()

    def close(self) -> None:
        """Close the descriptor of this process. Twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_gate, (reduction.DupFd(self._fd),)


def _rebuild_gate(fd: Any) -> Gate:
    return Gate(fd.detach())
