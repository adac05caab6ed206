# SPDX-License-Identifier: Apache-2.0
"""Fork, raw clone, exec and spawn in a process that uses a segment. The core's own: test_fork.cpp."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = 30
REFUSED = 7
SYS_CLONE = {"x86_64": 56, "aarch64": 220}


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def busy_threads(segment: ipcbuf.Segment) -> Iterator[list[BaseException]]:
    """Four threads are in all locks; what went wrong in them comes into the list."""
    plain = segment.channel(shared=True)
    leased = segment.channel(lease=True)
    stop = threading.Event()
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                while not stop.is_set():
                    work()
                    time.sleep(0)  # lets the others have the GIL, unasked
            except BaseException as error:
                errors.append(error)
                raise

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def exchange() -> None:
        plain[0].send(b"x" * 100, TIMEOUT)
        plain[0].send(b"x" * 5000, TIMEOUT)
        plain[1].recv(TIMEOUT)
        plain[1].recv(TIMEOUT)

    def lend() -> None:
        leased[0].send_object([1, "x" * 3000], TIMEOUT)
        with leased[1].recv_leased(TIMEOUT) as message:
            message.load()

    def allocate() -> None:
        for size in (100, 40_000, 300_000):
            segment.allocate(size).release()

    def open_and_close() -> None:
        for end in segment.channel():
            end.close()

    threads = [guarded(work) for work in (exchange, lend, allocate, open_and_close)]
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
    segment.reap()
    stats = segment.stats()
    assert (stats["processes"], stats["messages"], stats["process_blocks"]) == (1, 0, 0)
    assert segment.fsck() == []


def forks_beside_threads(segment: ipcbuf.Segment, forks: int) -> None:
    """Four threads are in all locks while the main thread forks; each child sends and exits."""
    answers = segment.channel(shared=True)
    with busy_threads(segment) as errors:
        for number in range(forks):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    segment.allocate(1000).release()
                    answers[0].send(number.to_bytes(4, "little"), TIMEOUT)
                    code = 0
                finally:
                    os._exit(code)
            assert end_of(pid) == 0
            assert int.from_bytes(answers[1].recv(TIMEOUT), "little") == number
            assert errors == []


def test_forks_while_threads_are_in_all_locks(segment: ipcbuf.Segment) -> None:
    forks_beside_threads(segment, 25)


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_many_forks_while_threads_are_in_all_locks(segment: ipcbuf.Segment) -> None:
    forks = int(os.environ.get("IPCBUF_FORKS", "500"))
    forks_beside_threads(segment, forks)
    print("\n" + json.dumps({"forks": forks, "stuck": 0}))


def raw_clone() -> int:
    """A fork of which the handlers of the C library, ours among them, learn nothing.

    Not CDLL: a call that let go of the GIL would ask for it in the child.
    """
    number = SYS_CLONE.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of clone is not known here")
    return int(ctypes.PyDLL(None, use_errno=True).syscall(number, signal.SIGCHLD, 0, 0, 0, 0))


def raw_clones_beside_threads(segment: ipcbuf.Segment, clones: int) -> tuple[int, int]:
    """How many children worked, and how many were refused; nobody is stuck.

    Python's own locks are the business of whoever makes such a child: they are got ready before it
    and set right behind it, and as a thread that asks for the GIL would stop it, nobody asks.
    """
    answers = segment.channel(shared=True)
    parent = segment.token
    interval = sys.getswitchinterval()
    worked = refused = 0
    sys.setswitchinterval(1000)
    try:
        with busy_threads(segment) as errors:
            for number in range(clones):
                ctypes.pythonapi.PyOS_BeforeFork()
                pid = raw_clone()
                if pid == 0:
                    ctypes.pythonapi.PyOS_AfterFork_Child()
                    signal.signal(signal.SIGALRM, signal.SIG_DFL)
                    signal.alarm(TIMEOUT)
                    code = 1
                    try:
                        segment.allocate(1000).release()
                        assert segment.token != parent
                        answers[0].send(number.to_bytes(4, "little"), TIMEOUT)
                        code = 0
                    except ipcbuf.SegmentLost as refusal:
                        code = REFUSED if "raw clone" in str(refusal) else 1
                    finally:
                        os._exit(code)
                ctypes.pythonapi.PyOS_AfterFork_Parent()
                code = end_of(pid)
                assert code in (0, REFUSED)
                if code == 0:
                    worked += 1
                    assert int.from_bytes(answers[1].recv(TIMEOUT), "little") == number
                else:
                    refused += 1
                assert errors == []
    finally:
        sys.setswitchinterval(interval)
    return worked, refused


def test_raw_clones_while_threads_are_in_all_locks(segment: ipcbuf.Segment) -> None:
    worked, _ = raw_clones_beside_threads(segment, 25)
    assert worked > 0


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_many_raw_clones_while_threads_are_in_all_locks(segment: ipcbuf.Segment) -> None:
    clones = int(os.environ.get("IPCBUF_FORKS", "500"))
    worked, refused = raw_clones_beside_threads(segment, clones)
    print("\n" + json.dumps({"clones": clones, "worked": worked, "refused": refused, "stuck": 0}))


def test_a_child_of_a_raw_clone_sends_and_exits(segment: ipcbuf.Segment) -> None:
    """No handler runs in it: it takes a seat of its own at its first call."""
    sender, receiver = segment.channel(shared=True)
    for _ in range(10):
        pid = raw_clone()
        if pid == 0:
            code = 1
            try:
                sender.send(segment.token.to_bytes(4, "little"), TIMEOUT)
                code = 0
            finally:
                os._exit(code)
        assert end_of(pid) == 0
        assert int.from_bytes(receiver.recv(TIMEOUT), "little") != segment.token
        assert segment.reap() == 1
    assert segment.stats()["processes"] == 1


def test_who_called_exec_is_dead(segment: ipcbuf.Segment) -> None:
    """The process lives on, but not as a user of the segment."""
    sender, receiver = segment.channel(shared=True)
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/sleep", ["sleep", "100"])
    try:
        sender.close()
        with pytest.raises(ipcbuf.EndOfChannel):
            receiver.recv(TIMEOUT)
        assert segment.stats()["processes"] == 1
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_programs_that_are_started_take_no_part(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    before = segment.token
    for _ in range(3):
        subprocess.run(["/bin/true"], check=True, timeout=TIMEOUT)
        subprocess.run(["/bin/true"], check=True, timeout=TIMEOUT, close_fds=False)
        assert end_of(os.posix_spawn("/bin/true", ["true"], os.environ)) == 0
    sender.send(b"x")

    assert receiver.recv(TIMEOUT) == b"x"
    assert segment.token == before
    assert segment.stats()["processes"] == 1


def test_an_allocation_about_to_fail_buries_the_dead() -> None:
    """Nobody else looks: what the dead had is there when it is needed."""
    segment = ipcbuf.Segment(max_size=4 << 20)
    pid = os.fork()
    if pid == 0:
        kept = segment.allocate(3 << 20)
        os._exit(0 if kept.nbytes else 1)
    assert end_of(pid) == 0

    segment.allocate(3 << 20).release()
    assert segment.stats()["processes"] == 1


def test_who_waits_for_a_lock_of_the_dead_gets_it(segment: ipcbuf.Segment) -> None:
    """Killed inside the sending end, again and again: the next sender goes on."""
    sender, receiver = segment.channel(shared=True)
    deadline = time.monotonic() + TIMEOUT
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            while True:
                sender.send(b"x")
        while receiver.pending() == 0:
            assert time.monotonic() < deadline
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        sender.send(b"last", TIMEOUT)
        while receiver.recv(TIMEOUT) != b"last":
            pass
    segment.reap()
    assert segment.fsck() == []
