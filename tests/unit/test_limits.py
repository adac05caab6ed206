# SPDX-License-Identifier: Apache-2.0
"""Kernels, or filters around a container, that refuse the newer system calls (T10).

Each program installs a seccomp filter for itself before it imports ipcbuf, and then does a bit of
everything with a named and with an anonymous segment: what can do without the call works, what
cannot says so.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.unit.test_named import run

if TYPE_CHECKING:
    from pathlib import Path

CALLS = {
    "x86_64": {"memfd_create": 319, "membarrier": 324, "pidfd_open": 434, "futex_waitv": 449},
    "aarch64": {"memfd_create": 279, "membarrier": 283, "pidfd_open": 434, "futex_waitv": 449},
}.get(os.uname().machine, {})

# `if the number is one of these, return the errno; else allow`, as a classic BPF program.
REFUSE = """
import ctypes, struct

def refuse(numbers, error):
    steps = [(0x20, 0, 0, 0)]  # load the number
    steps += [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | error)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    kept = ctypes.create_string_buffer(program)
    assert prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert prctl(22, 2, ctypes.addressof(kept), 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
"""

USE = """
import errno, os, select, signal, threading
import ipcbuf

TIMEOUT = 20

def child(body):
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(1)
    return pid

def killed(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def use(segment):
    sender, receiver = segment.channel(shared=True)
    answers, answer = segment.channel(shared=True)
    def echo():
        answers.send(b"ready")
        while True:
            answers.send(bytes(receiver.recv(TIMEOUT)))
    pid = child(echo)
    assert answer.recv(TIMEOUT) == b"ready"  # one of us slept, and was woken
    for size in (10, 100_000):
        sender.send(b"x" * size)
        assert ipcbuf.wait([answer], TIMEOUT) == [answer]
        assert answer.recv(TIMEOUT) == b"x" * size
    sender.send(b"y")
    assert select.select([answer.fileno()], [], [], TIMEOUT)[0]
    assert answer.recv(TIMEOUT) == b"y"
    killed(pid)

    tx, rx = segment.channel()
    def last():
        tx.send(b"last words")
        answers.send(b"sent")
        signal.pause()
    pid = child(last)
    # An exclusive end is its first user's.
    assert answer.recv(TIMEOUT) == b"sent"
    killer = threading.Timer(0.2, killed, [pid])
    killer.start()
    assert rx.recv(TIMEOUT) == b"last words"
    try:
        rx.recv(TIMEOUT)
    except ipcbuf.PeerError:
        pass
    killer.join()
    segment.reap()
    assert segment.stats()["processes"] == 1
    assert segment.fsck() == []

for name in ("x", None):
    try:
        segment = ipcbuf.Segment(name, max_size=16 << 20)
    except OSError as error:
        print(type(error).__name__, errno.errorcode[error.errno], error.strerror)
        continue
    use(segment)
    segment.close()
    print("works")
"""


@pytest.mark.skipif(not CALLS, reason="the numbers of the system calls are not known here")
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("call", ["memfd_create", "membarrier", "pidfd_open", "futex_waitv", "all"])
def test_a_system_call_that_is_never_allowed(folder: Path, call: str, error: int) -> None:
    numbers = list(CALLS.values()) if call == "all" else [CALLS[call]]

    named, anonymous = run(f"{REFUSE}\nrefuse({numbers}, {error})\n{USE}").splitlines()

    assert named == "works"
    if call in ("memfd_create", "all"):
        name = errno.errorcode[error]
        assert anonymous == f"SegmentError {name} memfd_create: {os.strerror(error)}"
    else:
        assert anonymous == "works"
    assert list(folder.iterdir()) == []
