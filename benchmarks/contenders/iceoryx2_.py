# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""iceoryx2: publish and subscribe of byte slices in shared memory, with pickle and a bell added here.

Only where one process puts and one gets: what is published goes to every subscriber. It has no wait
for a message, so an event follows each; and no queue without a bound, so it gets one of 1,024.
Where the buffer is full, `send` reaches nobody and has to be tried again. What a publisher has sent
goes with it, so at its end it waits until all was received.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing.util
import os
import secrets
import time
from pathlib import Path
from typing import Any

import iceoryx2

from . import _parts

NAME = "iceoryx2"
IMPORTS = "import iceoryx2"

_DEFAULT_ITEMS = 1024
_FIRST_SLICE = 4096  # bytes; it grows
_PREFIX = "benchmarks-"  # of its files; the process that has made the queue follows
_Bytes = iceoryx2.Slice[ctypes.c_uint8]


def clear_up() -> None:
    """Remove what those have left that were killed."""
    for folder in (Path("/dev/shm"), Path("/tmp/iceoryx2")):
        for path in folder.rglob(f"{_PREFIX}*"):
            pid = path.name.removeprefix(_PREFIX).partition("_")[0]
            if path.is_file() and not Path(f"/proc/{pid}").exists():
                path.unlink(missing_ok=True)


atexit.register(clear_up)


class _Queue:
    """Each process makes its own ends when it first puts or gets."""

    def __init__(self, maxsize: int) -> None:
        clear_up()
        self._name = secrets.token_hex(8)
        self._config = iceoryx2.config.default()
        self._config.global_cfg.prefix = iceoryx2.FileName.new(f"{_PREFIX}{os.getpid()}_")
        self._items = maxsize or _DEFAULT_ITEMS
        self._pid = 0

    def _open(self) -> None:
        self._pid = os.getpid()
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        builder = iceoryx2.NodeBuilder.new().config(self._config)
        self._node = builder.create(iceoryx2.ServiceType.Ipc)
        name = iceoryx2.ServiceName.new(self._name)
        self._data = (
            self._node.service_builder(name)
            .publish_subscribe(_Bytes)
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(self._items)
            .open_or_create()
        )
        self._bell = self._node.service_builder(name).event().open_or_create()

    def _sender(self) -> tuple[Any, Any]:
        if self._pid != os.getpid():
            self._open()
            self._publisher = (
                self._data.publisher_builder()
                .initial_max_slice_len(_FIRST_SLICE)
                .allocation_strategy(iceoryx2.AllocationStrategy.PowerOfTwo)
                .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
                .create()
            )
            self._notifier = self._bell.notifier_builder().create()
            while not (
                self._data.dynamic_config.number_of_subscribers
                and self._bell.dynamic_config.number_of_listeners
            ):
                time.sleep(0.001)  # what is published before is for nobody
            multiprocessing.util.Finalize(self, self._drain, exitpriority=1)
        return self._publisher, self._notifier

    def _receiver(self) -> tuple[Any, Any]:
        if self._pid != os.getpid():
            self._open()
            self._listener = self._bell.listener_builder().create()
            self._subscriber = self._data.subscriber_builder().create()
        return self._subscriber, self._listener

    def put(self, message: object) -> None:
        publisher, notifier = self._sender()
        parts = _parts.parts_of(message)
        while not self._send(publisher, parts):
            time.sleep(0)  # the buffer is full
        notifier.notify()

    def _send(self, publisher: Any, parts: list[memoryview]) -> int:
        """Return how many subscribers have got it."""
        sample = publisher.loan_slice_uninit(_parts.size_of(parts))
        memory = sample.payload().as_memory_view().cast("B")
        _parts.write(parts, memory)
        del memory
        return sample.assume_init().send()  # type: ignore[no-any-return]

    def get(self) -> Any:
        subscriber, listener = self._receiver()
        while (sample := subscriber.receive()) is None:
            listener.blocking_wait()
        memory = sample.payload().as_memory_view().cast("B")
        message = _parts.read(memory)
        del memory
        sample.delete()
        return message

    def _drain(self) -> None:
        """Return when all was received: there is room then for as many as there can be."""
        for _ in range(self._items):
            while not self._publisher.loan_slice_uninit(1).assume_init().send():
                if not self._data.dynamic_config.number_of_subscribers:
                    return
                time.sleep(0.0001)

    def close(self) -> None:
        """Leave it to the end of the process."""

    def join_thread(self) -> None:
        """Return at once: there is no thread."""


def queue(maxsize: int = 0) -> Any:
    return _Queue(maxsize)
