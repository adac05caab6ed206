# SPDX-License-Identifier: Apache-2.0
"""Many processes that die at the same moment, and many that attach and die: slots are reused.

IPCBUF_WORKERS and IPCBUF_ATTACHES say how many; a release takes 256 and 1,000.
"""

from __future__ import annotations

import os
import signal

import pytest

import ipcbuf

TIMEOUT = 60

pytestmark = [pytest.mark.stress, pytest.mark.timeout(600)]


def test_workers_killed_at_the_same_moment() -> None:
    count = int(os.environ.get("IPCBUF_WORKERS", "64"))
    segment = ipcbuf.Segment(max_size=256 << 20)
    tasks = segment.channel(lease=True)
    ready = segment.channel(shared=True)
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            message = tasks[1].recv_leased(TIMEOUT)
            kept = segment.allocate(10_000)
            ready[0].send(b"ready")
            signal.pause()
            del message, kept
        pids.append(pid)
    for number in range(count):
        tasks[0].send_object(number)
    for _ in range(count):
        assert ready[1].recv(TIMEOUT) == b"ready"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)

    segment.reap()
    stats = segment.stats()
    assert (stats["processes"], stats["returned_blocks"]) == (1, count)
    assert [tasks[1].recv_object(TIMEOUT) for _ in range(count)] == list(range(count))
    assert segment.stats()["process_blocks"] == 0
    assert segment.fsck() == []


def test_slots_of_those_who_attach_and_die_are_reused() -> None:
    count = int(os.environ.get("IPCBUF_ATTACHES", "300"))
    segment = ipcbuf.Segment(max_size=64 << 20)
    slots = set()
    sender, receiver = segment.channel(shared=True)
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            kept = segment.allocate(1000)
            sender.send((segment.token & 4095).to_bytes(4, "little"), TIMEOUT)
            os.kill(os.getpid(), signal.SIGKILL if kept.nbytes else signal.SIGTERM)
        os.waitpid(pid, 0)
        slots.add(receiver.recv(TIMEOUT))

    segment.reap()
    assert segment.stats()["processes"] == 1
    assert len(slots) < 16
    assert segment.fsck() == []
