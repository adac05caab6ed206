# SPDX-License-Identifier: Apache-2.0
"""A living process that writes garbage: words of a live segment's tables are flipped.

That is outside of what is tolerated, so nothing is promised but this: every later call returns or
raises one of our exceptions. No signal, no hang.
"""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import sys
import time
from mmap import mmap

import pytest

import ipcbuf

# Offsets in the header's constants (core/include/ipcbuf/layout.hpp): eight tables, the payload.
TABLES = 56
HEADER_STATE = 192
SECONDS = 20.0
FINE = 0


def tables(memory: mmap) -> list[tuple[int, int]]:
    """Return where each table in use begins, and how many bytes of it are worth flipping."""
    slots, channels, entries, runs, pages, index, directory = struct.unpack_from(
        "7Q", memory, TABLES
    )
    return [
        (HEADER_STATE, 400),
        (slots, 3 * 64),
        (channels, 4 * 512),
        (entries, 4 * 128),
        (runs, 64 * 8),
        (pages, 64 * 64),
        (index, 16),
        (directory, 64),
    ]


def use(segment: ipcbuf.Segment, ends: list[tuple[ipcbuf.Sender, ipcbuf.Receiver]]) -> None:
    """Everything that walks over the tables, in turn."""
    steps = [
        lambda: segment.allocate(100).release(),
        lambda: segment.allocate(300_000).release(),
        lambda: segment.channel()[0].close(),
        segment.reap,
        segment.stats,
        segment.fsck,
    ]
    for sender, receiver in ends:
        steps += [
            lambda sender=sender: sender.send(b"x" * 10, 0.02),  # type: ignore[misc]
            lambda sender=sender: sender.send(b"x" * 5000, 0.02),  # type: ignore[misc]
            lambda receiver=receiver: receiver.poll(0.0),  # type: ignore[misc]
            lambda receiver=receiver: receiver.recv(0.02),  # type: ignore[misc]
            lambda receiver=receiver: receiver.recv(0.02),  # type: ignore[misc]
        ]
    for step in steps:
        try:
            step()
        except (ipcbuf.IpcbufError, MemoryError, ValueError):
            continue


def flip_in_child(seed: int, flips: int) -> int:
    """Damage a segment and use it, in a process of its own; return how that ended."""
    pid = os.fork()
    if pid:
        descriptor = os.pidfd_open(pid)
        ended, _, _ = select.select([descriptor], [], [], SECONDS)
        os.close(descriptor)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code if ended else 1000
    code = 4
    try:
        signal.alarm(0)
        rng = random.Random(seed)
        segment = ipcbuf.Segment(max_size=16 << 20)
        ends = [
            segment.channel(max_items=3),
            segment.channel(max_items=3, shared=True),
            segment.channel(max_items=3, lease=True),
        ]
        for sender, _ in ends:
            sender.send(b"a" * 3000)
            sender.send(b"b")
        kept = [segment.allocate(1000), segment.allocate(100_000)]
        ends[2][1].recv_leased(1).give_back()
        with mmap(segment.fd, os.fstat(segment.fd).st_size) as memory:
            places = tables(memory)
            for _ in range(flips):
                start, length = rng.choice(places)
                at = start + rng.randrange(length // 8) * 8
                word = struct.unpack_from("Q", memory, at)[0]
                change = rng.choice([1 << rng.randrange(64), rng.getrandbits(64), word])
                struct.pack_into("Q", memory, at, word ^ change)
        use(segment, ends)
        del kept
        code = FINE
    except BaseException as error:
        print(f"seed {seed}: {error!r}", file=sys.stderr)
    finally:
        os._exit(code)


def damage(count: int) -> None:
    seed = int(os.environ.get("IPCBUF_SEED", random.SystemRandom().getrandbits(32)))
    print("seed", seed)
    began = time.monotonic()
    bad = {
        seed + i: code for i in range(count) if (code := flip_in_child(seed + i, 1 + i % 3)) != FINE
    }

    assert bad == {}, f"{count} segments from seed {seed}, {time.monotonic() - began:.0f} s"


def test_flipped_words_end_in_an_exception() -> None:
    damage(70)  # 140 words


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_many_flipped_words_end_in_an_exception() -> None:
    damage(int(os.environ.get("IPCBUF_FLIPS", "1000")) // 2)
