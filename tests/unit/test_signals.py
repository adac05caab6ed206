# SPDX-License-Identifier: Apache-2.0
"""What a wait sees beside its peer: signals, stops, a poisoned segment, a descriptor that is gone.

Each case is a way to block; each test does the same to all of them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from mmap import mmap
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = 30
POISONED = 256  # where the header has the line that poisoned the segment (core/layout.hpp)


class Wait:
    """A channel and a call on it that waits until `let_go` is called, or something happens."""

    def __init__(self, segment: ipcbuf.Segment, kind: str) -> None:
        lease = "leased" in kind
        shared = "shared" in kind or lease
        self.kind = kind
        self.sender, self.receiver = segment.channel(max_items=1, shared=shared, lease=lease)
        if "send" in kind:
            self.sender.send(b"full")

    def __call__(self, timeout: float | None = TIMEOUT) -> object:
        if "send" in self.kind:
            return self.sender.send(b"late", timeout)  # type: ignore[func-returns-value]
        if "poll" in self.kind:
            return self.receiver.poll(timeout)
        if "leased" in self.kind:
            with self.receiver.recv_leased(timeout) as message:
                return bytes(message.data)
        return self.receiver.recv(timeout)

    def let_go(self) -> None:
        if "send" in self.kind:
            self.receiver.recv(TIMEOUT)
        else:
            self.sender.send(b"came", TIMEOUT)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


KINDS = ["recv", "recv shared", "recv leased", "poll", "send", "send shared", "send leased"]


@pytest.fixture(params=KINDS)
def wait(segment: ipcbuf.Segment, request: pytest.FixtureRequest) -> Wait:
    return Wait(segment, request.param)


@contextlib.contextmanager
def ticking(hertz: int) -> Iterator[Callable[[], int]]:
    """A timer whose Python handler runs so often in this (the main) thread."""
    ticks = 0

    def tick(_number: int, _frame: object) -> None:
        nonlocal ticks
        ticks += 1

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 1 / hertz, 1 / hertz)
    try:
        yield lambda: ticks
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def later(*steps: Callable[[], object]) -> threading.Thread:
    """Do the steps in another thread, a moment apart."""

    def run() -> None:
        for step in steps:
            time.sleep(0.02)
            step()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def storm(wait: Wait, seconds: float) -> int:
    """Interrupt waits a thousand times a second; return how often in all."""
    end = time.monotonic() + seconds
    with ticking(1000) as ticks:
        while time.monotonic() < end:
            with pytest.raises((ipcbuf.ChannelEmpty, ipcbuf.ChannelFull)):
                raise_if_false(wait(timeout=0.01))
            thread = later(wait.let_go)
            wait()
            thread.join(TIMEOUT)
            if wait.kind == "poll":
                wait.receiver.recv(TIMEOUT)
        return ticks()


def raise_if_false(answer: object) -> None:
    if answer is False:
        raise ipcbuf.ChannelEmpty


def test_a_storm_of_signals_ends_no_wait_and_delays_none(wait: Wait) -> None:
    assert storm(wait, 0.3) > 0


@pytest.mark.stress
@pytest.mark.timeout(400)
def test_a_longer_storm_of_signals(wait: Wait) -> None:
    ticks = storm(wait, float(os.environ.get("IPCBUF_STORM_SECONDS", "30")) / len(KINDS))
    print("\n" + json.dumps({"signals": ticks}))
    assert ticks > 100


def counts(segment: ipcbuf.Segment) -> dict[str, int]:
    names = ("process_blocks", "flight_blocks", "ring_blocks", "shared_blocks", "channels")
    stats: Any = segment.stats()
    return {name: stats[name] for name in (*names, "messages", "views", "leased_blocks")}


def interrupt(segment: ipcbuf.Segment, wait: Wait, times: int) -> None:
    """Press Ctrl-C again and again; nothing may be different afterwards."""
    rng = random.Random(times)
    before = counts(segment)
    main = threading.main_thread().ident
    assert main is not None
    for _ in range(times):
        entered = threading.Event()

        def press(delay: float, entered: threading.Event = entered) -> None:
            entered.wait(TIMEOUT)
            time.sleep(delay)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=press, args=(rng.random() * 0.003,))
        thread.start()
        try:
            entered.set()
            with pytest.raises(KeyboardInterrupt):
                wait()
        finally:
            thread.join(TIMEOUT)
    assert counts(segment) == before
    assert segment.fsck() == []
    thread = later(wait.let_go)
    wait()
    thread.join(TIMEOUT)


def test_ctrl_c_leaves_no_trace(segment: ipcbuf.Segment, wait: Wait) -> None:
    interrupt(segment, wait, 30)


@pytest.mark.stress
@pytest.mark.timeout(400)
def test_ctrl_c_many_times_leaves_no_trace(segment: ipcbuf.Segment, wait: Wait) -> None:
    times = int(os.environ.get("IPCBUF_INTERRUPTS", "10000")) // len(KINDS)
    interrupt(segment, wait, times)
    print("\n" + json.dumps({"interrupts": times}))


def test_a_stopped_peer_is_waited_for(segment: ipcbuf.Segment, wait: Wait) -> None:
    """SIGSTOP is not death: nothing is taken from the stopped, and it goes on afterwards."""
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = multiprocessing.Pipe()  # an Event would wait for its stopped waiter

    def work() -> None:
        theirs.send(1)
        theirs.recv()
        wait.let_go()

    process = context.Process(target=work)
    process.start()
    assert ours.poll(TIMEOUT)
    os.kill(process.pid, signal.SIGSTOP)
    ours.send(1)
    try:
        with pytest.raises((ipcbuf.ChannelEmpty, ipcbuf.ChannelFull)):
            raise_if_false(wait(timeout=0.3))
        assert segment.reap() == 0
    finally:
        os.kill(process.pid, signal.SIGCONT)
    wait()
    process.join(TIMEOUT)


# --- a segment that is no good any more -----------------------------------------------------------


def poison(segment: ipcbuf.Segment) -> None:
    with mmap(segment.fd, 4096) as header:
        header[POISONED : POISONED + 4] = struct.pack("I", 4711)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wait_ends_when_the_segment_is_poisoned(kind: str) -> None:
    segment = ipcbuf.Segment(max_size=1 << 22)
    wait = Wait(segment, kind)
    thread = later(lambda: poison(segment))

    with pytest.raises(ipcbuf.SegmentCorrupted):
        wait()
    thread.join(TIMEOUT)
    with pytest.raises(ipcbuf.SegmentCorrupted):
        segment.reap()
    wait.close()
    del wait, thread
    gc.collect()


# In a process of its own: it closes descriptors it does not know.
LOSER = """
import os, sys, threading, time, ipcbuf
from tests.unit.test_signals import Wait
segment = ipcbuf.Segment(max_size=64 << 20)
wait = Wait(segment, sys.argv[1])
fd = segment.fd
reuse = sys.argv[2] == "reused"
def lose():
    time.sleep(0.05)
    if reuse:
        other = os.open("/dev/null", os.O_RDONLY)
        os.dup2(other, fd)
    else:
        os.closerange(3, 200)
threading.Thread(target=lose).start()
try:
    wait()
except ipcbuf.SegmentLost:
    print("lost")
for step in (lambda: segment.fd, segment.reap, lambda: segment.allocate(32 << 20)):
    try:
        step()
    except ipcbuf.SegmentLost:
        print("lost")
segment.allocate(100).release()
wait.close()
pid = os.fork()
if pid == 0:
    try:
        segment.allocate(1)
    except ipcbuf.SegmentLost:
        os._exit(7)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
del wait, segment
if reuse:
    os.fstat(fd)
"""


@pytest.mark.parametrize("how", ["closed", "reused"])
@pytest.mark.parametrize("kind", ["recv", "send shared", "poll", "recv leased"])
def test_who_lost_the_descriptor_says_so(kind: str, how: str) -> None:
    """The number may belong to another file by then: nothing is done to that one."""
    done = subprocess.run(
        [sys.executable, "-c", LOSER, kind, how],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )

    assert done.stdout.split() == ["lost"] * 4 + ["7"], done.stderr
    assert done.returncode == 0, done.stderr


def test_the_others_see_who_lost_it_alive(segment: ipcbuf.Segment) -> None:
    """It still maps the segment, so it may still store into it: it is not buried."""
    context: Any = multiprocessing.get_context("fork")
    lost = context.Event()
    end = context.Event()
    fd = segment.fd

    def lose() -> None:
        os.close(fd)
        lost.set()
        end.wait(TIMEOUT)

    process = context.Process(target=lose)
    process.start()
    assert lost.wait(TIMEOUT)
    assert segment.reap() == 0
    assert segment.stats()["processes"] == 2
    end.set()
    process.join(TIMEOUT)
    assert segment.reap() == 1
