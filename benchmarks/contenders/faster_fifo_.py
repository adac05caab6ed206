# SPDX-License-Identifier: Apache-2.0
"""faster-fifo: a circular buffer of bytes behind one process-shared mutex.

A message that is larger than the buffer never fits, so it gets one of 64 MiB. The burst needs it
too: what does not fit raises `Full` when the time-out of `put` is over.
"""

from __future__ import annotations

from typing import Any

import faster_fifo
import faster_fifo_reduction  # noqa: F401 - makes its queues picklable

NAME = "faster-fifo"
IMPORTS = "import faster_fifo, faster_fifo_reduction"

_BUFFER_BYTES = 64 << 20
_FOR_EVER = 1e6  # seconds: None is not "for ever" there


class _Queue:
    def __init__(self, maxsize: int) -> None:
        self._queue = faster_fifo.Queue(_BUFFER_BYTES, maxsize or 1_000_000_000)

    def put(self, message: object) -> None:
        self._queue.put(message, timeout=_FOR_EVER)

    def get(self) -> Any:
        return self._queue.get(timeout=_FOR_EVER)

    def close(self) -> None:
        """Keep it: closing is for all processes, and the receiver has not drained it yet."""

    def join_thread(self) -> None:
        """Return at once: there is no thread."""


def queue(maxsize: int = 0) -> Any:
    return _Queue(maxsize)


shared_queue = queue
