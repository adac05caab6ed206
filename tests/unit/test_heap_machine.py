# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""The heap against a model: any order of operations leaves a sound heap and the right bytes.

200 examples by default; IPCBUF_EXAMPLES says another number (`just heap-machine 200000`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = st.one_of(
    st.integers(0, 5000), st.integers(5000, 200_000), st.sampled_from([1 << 20, 3 << 20, 6 << 20])
)
MAX_SIZE = 24 << 20


def text(seed: int, size: int) -> bytes:
    """Bytes that tell which object they are of, and where in it."""
    return np.random.default_rng(seed).bytes(min(size, 64)).ljust(size, bytes([seed % 251]))


class Heap(RuleBasedStateMachine):
    """Records, arrays, messages and shared handles of one segment, some in a child that dies."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Heap.made += 1
        self.segment = ipcbuf.Segment(max_size=MAX_SIZE)
        self.sender, self.receiver = self.segment.channel(shared=True)
        self.number = 0
        # What is alive, with the bytes it must have.
        self.records: list[tuple[ipcbuf.Record, bytes]] = []
        self.arrays: list[tuple[Any, bytes]] = []
        self.shared: list[tuple[ipcbuf.Shared, bytes]] = []
        self.messages: deque[tuple[str, bytes]] = deque()

    def fresh(self, size: int) -> bytes:
        self.number += 1
        return text(self.number, size)

    @rule(size=SIZES)
    def allocate(self, size: int) -> None:
        expected = self.fresh(size)
        with contextlib.suppress(ipcbuf.HeapExhausted):
            record = self.segment.allocate(size)
            memoryview(record)[:] = expected
            self.records.append((record, expected))

    @rule(size=SIZES)
    def make_array(self, size: int) -> None:
        expected = self.fresh(size)
        with contextlib.suppress(ipcbuf.HeapExhausted):
            array = ipcbuf.from_array(np.frombuffer(expected, "u1"), segment=self.segment)
            self.arrays.append((array, expected))

    @precondition(lambda self: self.records or self.arrays or self.shared)
    @rule(which=st.integers(0))
    def free(self, which: int) -> None:
        every: list[list[Any]] = [self.records, self.arrays, self.shared]
        kinds = [kind for kind in every if kind]
        kind = kinds[which % len(kinds)]
        del kind[which % len(kind)]

    @rule(size=SIZES)
    def send_bytes(self, size: int) -> None:
        expected = self.fresh(size)
        with contextlib.suppress(ipcbuf.HeapExhausted):
            self.sender.send(expected)
            self.messages.append(("raw", expected))

    @precondition(lambda self: self.records)
    @rule(which=st.integers(0))
    def send_record(self, which: int) -> None:
        record, expected = self.records.pop(which % len(self.records))
        try:
            self.sender.send(record)
            self.messages.append(("raw", expected))
        except ipcbuf.HeapExhausted:
            self.records.append((record, expected))

    @precondition(lambda self: self.arrays)
    @rule(which=st.integers(0), raw=st.booleans())
    def move_array(self, which: int, raw: bool) -> None:
        array, expected = self.arrays[which % len(self.arrays)]
        if not array.flags.writeable:
            return
        with contextlib.suppress(ipcbuf.HeapExhausted):
            if raw:
                self.sender.send(ipcbuf.move(array))
            else:
                self.sender.send_object(ipcbuf.move(array))
            self.messages.append(("raw" if raw else "object", expected))

    @precondition(lambda self: self.arrays)
    @rule(which=st.integers(0))
    def share_array(self, which: int) -> None:
        array, expected = self.arrays[which % len(self.arrays)]
        with contextlib.suppress(ipcbuf.HeapExhausted):
            self.shared.append((ipcbuf.share(array, segment=self.segment), expected))

    @precondition(lambda self: self.shared)
    @rule(which=st.integers(0))
    def send_shared(self, which: int) -> None:
        shared, expected = self.shared[which % len(self.shared)]
        with contextlib.suppress(ipcbuf.HeapExhausted):
            self.sender.send_object(shared)
            self.messages.append(("shared", expected))

    @precondition(lambda self: self.messages)
    @rule(view=st.booleans())
    def receive(self, view: bool) -> None:
        kind, expected = self.messages.popleft()
        if kind == "raw" and view:
            self.records.append((self.receiver.recv_view(0), expected))
        elif kind == "raw":
            assert self.receiver.recv(0) == expected
        elif kind == "object":
            self.arrays.append((self.receiver.recv_object(0), expected))
        else:
            self.shared.append((self.receiver.recv_object(0), expected))

    @rule()
    def trim(self) -> None:
        self.segment.trim()

    @rule(
        does=st.sampled_from(["nothing", "allocates", "drops", "moves", "receives"]),
        seldom=st.integers(0, 3),
    )
    def a_child_is_killed(self, does: str, seldom: int) -> None:
        if seldom != 3:  # a fork is slow, and a small example has none
            return
        pid = os.fork()
        if pid == 0:
            # Whatever happens, it ends here; what it received is lost with it.
            with contextlib.suppress(BaseException):
                if does == "allocates":
                    kept = [self.segment.allocate(1000), self.segment.allocate(300_000)]
                    assert kept
                elif does == "drops":
                    self.records.clear()
                    self.arrays.clear()
                    self.shared.clear()
                    gc.collect()
                elif does == "moves" and self.arrays:
                    self.sender.send_object(ipcbuf.move(self.arrays[0][0]))
                elif does == "receives" and self.messages:
                    self.receiver.recv_view(0)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        pending = self.receiver.pending()
        if pending > len(self.messages):
            self.messages.append(("object", self.arrays[0][1]))
        while pending < len(self.messages):
            self.messages.popleft()
        self.segment.reap()

    @invariant()
    def is_sound(self) -> None:
        gc.collect(0)
        assert self.segment.fsck() == []

    @invariant()
    def has_the_right_bytes(self) -> None:
        for record, expected in self.records:
            assert bytes(memoryview(record)[:100]) == expected[:100]
        for array, expected in self.arrays:
            assert array[-100:].tobytes() == expected[-100:]
        for shared, expected in self.shared:
            assert bytes(shared.view[:100]) == expected[:100]

    def teardown(self) -> None:
        while self.messages:
            self.receive(False)
        self.records.clear()
        self.arrays.clear()
        self.shared.clear()
        gc.collect()
        stats = self.segment.stats()
        assert (stats["process_blocks"], stats["shared_blocks"], stats["tickets"]) == (0, 0, 0)
        # Every byte is free again.
        self.sender.close()
        self.receiver.close()
        self.segment.trim()
        stats = self.segment.stats()
        assert stats["free_bytes"] + stats["returned_bytes"] == stats["committed_bytes"]
        # Every fork takes a seat in every segment there is.
        del self.segment, self.sender, self.receiver
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def _only_what_is_ours_is_collected() -> Iterator[None]:
    """Each example collects garbage more than once; what was there before need not be visited."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    print("\n" + json.dumps({"examples": Heap.made}))


TestHeap = Heap.TestCase
TestHeap.settings = settings(
    max_examples=int(os.environ.get("IPCBUF_EXAMPLES", "100")),
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
