# SPDX-License-Identifier: Apache-2.0
"""What each worker of an executor is doing, for its parent to read, also after its death.

A file in memory: a row of words for each worker, then for each worker a place for its last
traceback.

    row:  TASK       the task it is busy with, 0 if none    written by the worker
          SINCE      when it began, monotonic ns            written by the worker, before TASK
          INTERRUPT  the task that is to be interrupted     written by the parent
          HEARD      the task that was interrupted          written by the worker

Rules
  The worker writes TASK before anything of the task runs, and 0 after its result is sent: so
  what a dead worker's row names has run, and what it does not name has not begun.
  The parent clears the row of a dead worker before another gets it.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
from multiprocessing import reduction

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

__all__ = ["HEARD", "INTERRUPT", "SINCE", "TASK", "Board"]

TASK = 0
SINCE = 1
INTERRUPT = 2
HEARD = 3
_WORDS = 4  # in a row
_TRACEBACK_BYTES = 8192


class Board:
    """The rows of all workers. One object in the parent, one in each worker."""

    def __init__(self, slots: int, fd: int | None = None) -> None:
        self._slots = slots
        self._rows_nbytes = 8 * _WORDS * slots
        if fd is None:
            fd = os.memfd_create("ipcbuf-executor", os.MFD_CLOEXEC)
            os.ftruncate(fd, self._rows_nbytes + slots * _TRACEBACK_BYTES)
        self._fd = fd
        self._all: memoryview | None = None

    def _words(self) -> memoryview:
        if self._all is None:
            self._all = memoryview(mmap.mmap(self._fd, self._rows_nbytes)).cast("Q")
        return self._all

    def row(self, slot: int) -> memoryview:
        """The words of a worker, as they are at any moment."""
        return self._words()[slot * _WORDS : (slot + 1) * _WORDS]

    def tasks(self) -> list[int]:
        """The tasks that workers are busy with now, 0 for an idle one."""
        return [] if self._fd < 0 else self._words()[TASK::_WORDS].tolist()

    def clear(self, slot: int) -> None:
        """Make the row a new worker's."""
        row = self.row(slot)
        for word in (TASK, SINCE, INTERRUPT, HEARD):
            row[word] = 0
        os.pwrite(self._fd, bytes(_TRACEBACK_BYTES), self._traceback_at(slot))

    def keep_traceback(self, slot: int) -> None:
        """Have Python write its stacks here if this worker crashes.

        Not where the program has asked for them itself, as with PYTHONFAULTHANDLER.
        """
        if faulthandler.is_enabled():
            return
        try:  # a position in the file is a property of the open file, so we need one of our own
            fd = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return
        os.lseek(fd, self._traceback_at(slot), os.SEEK_SET)
        faulthandler.enable(fd)  # which stays open as long as we live

    def traceback(self, slot: int) -> str:
        """What a worker has written as it crashed."""
        text = os.pread(self._fd, _TRACEBACK_BYTES, self._traceback_at(slot))
        return text.split(b"\0", 1)[0].decode(errors="replace")

    def _traceback_at(self, slot: int) -> int:
        return self._rows_nbytes + slot * _TRACEBACK_BYTES

    def close(self) -> None:
        """Close the descriptor of this process. Twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_board, (self._slots, reduction.DupFd(self._fd))


def _rebuild_board(slots: int, fd: Any) -> Board:
    return Board(slots, fd.detach())
