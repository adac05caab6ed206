# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""tachyon-ipc: a ring of bytes in shared memory between one process and another, pickled here.

It needs GCC 14 or newer: `CXX=g++-14 pip install tachyon-ipc`.
The ring is fixed: who puts makes it and waits for who gets, and tries again while it is full.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from typing import Any

import tachyon

from . import _parts

NAME = "tachyon-ipc"
IMPORTS = "import tachyon"

_FOLDER = tempfile.TemporaryDirectory(prefix="benchmarks-")  # of sockets; goes with this process
_RING = 1 << 30  # bytes, a power of two; who gets says so after every 32nd message only


class _Queue:
    """Each process makes its own end when it first puts or gets."""

    def __init__(self) -> None:
        self._socket = f"{_FOLDER.name}/{secrets.token_hex(8)}"
        self._bus: Any = None

    def put(self, message: object) -> None:
        if self._bus is None:
            self._bus = tachyon._tachyon.TachyonBus()
            self._bus.listen(self._socket, _RING)
        parts = _parts.parts_of(message)
        size = _parts.size_of(parts)
        while not self._send(parts, size):
            time.sleep(0)  # the ring is full
        self._bus.flush()

    def _send(self, parts: list[memoryview], size: int) -> bool:
        try:
            with self._bus.acquire_tx(size) as sent:
                with memoryview(sent) as memory:
                    _parts.write(parts, memory.cast("B"))
                sent.actual_size = size
        except tachyon.TachyonError as error:
            if "full" not in str(error):
                raise
            return False
        return True

    def get(self) -> Any:
        if self._bus is None:
            bus = tachyon._tachyon.TachyonBus()
            while True:
                with contextlib.suppress(ConnectionError):
                    bus.connect(self._socket)
                    break
                time.sleep(0.001)  # nobody has put yet
            self._bus = bus
        with self._bus.acquire_rx() as received, memoryview(received) as memory:
            return _parts.read(memory.cast("B"))

    def close(self) -> None:
        """Leave it to the end of the process."""

    def join_thread(self) -> None:
        """Return at once: there is no thread."""


def queue(maxsize: int = 0) -> Any:  # the ring is what bounds it
    return _Queue()
