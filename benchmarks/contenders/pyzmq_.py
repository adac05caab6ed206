# SPDX-License-Identifier: Apache-2.0
"""pyzmq: PUSH and PULL over a local socket, with pickle and buffers out of band.

Only where one process puts and one gets: for more on both sides ZeroMQ needs a broker between.
`maxsize` bounds the sender's and the receiver's side each. What the receiver has no room for when
the connection ends is lost, so at its end the sender waits until all was received.
"""

from __future__ import annotations

import mmap
import os
import pickle
import secrets
import time
from typing import Any

import zmq

NAME = "pyzmq"
IMPORTS = "import zmq"


class _Queue:
    """Each process makes its own socket when it first puts or gets."""

    def __init__(self, maxsize: int) -> None:
        self._address = f"ipc://@{secrets.token_hex(8)}"  # abstract: leaves no file
        self._maxsize = maxsize
        self._pid = 0
        self._put = 0
        self._got = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # both see it

    def _socket(self, kind: int) -> Any:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._context = zmq.Context()
            self._own = self._context.socket(kind)
            self._own.set_hwm(self._maxsize)
            if kind == zmq.PULL:
                self._own.bind(self._address)
            else:
                self._own.connect(self._address)
        return self._own

    def put(self, message: object) -> None:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        self._put += 1
        self._socket(zmq.PUSH).send_multipart([head, *buffers], copy=len(head) < 1 << 16)

    def get(self) -> Any:
        head, *buffers = self._socket(zmq.PULL).recv_multipart(copy=False)
        self._got[0] += 1
        writable = [bytearray(frame.buffer) for frame in buffers]
        return pickle.loads(head.buffer, buffers=writable)

    def close(self) -> None:
        """Let the receiver have all."""
        if self._pid == os.getpid():
            while self._got[0] < self._put:
                time.sleep(0.0005)
            self._own.close(linger=-1)
            self._context.term()

    def join_thread(self) -> None:
        """Return at once: `close` has waited."""


def queue(maxsize: int = 0) -> Any:
    return _Queue(maxsize)
