# SPDX-License-Identifier: Apache-2.0
"""Thousands of channels in one segment: what they cost, and that everybody notices deaths.

    python tests/stress/many_channels.py --channels 10000 --blocked 1000

Makes that many channels by key and measures; then that many receivers block, one thread each, in
several processes, on channels whose senders other processes own. Half of the owners are killed:
every receiver of theirs must hear of it, and every other must get its message.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import ipcbuf

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

FORK = multiprocessing.get_context("fork")
PATIENCE = 100
PARTS = 10  # processes that receive, and as many that send


def own_senders(segment: ipcbuf.Segment, keys: list[str], pipe: Connection) -> None:
    senders = [segment.sender(key) for key in keys]
    pipe.send("ready")
    pipe.recv()
    for sender in senders:
        sender.send(b"alive")
    pipe.send("sent")
    signal.pause()


def block_receivers(segment: ipcbuf.Segment, keys: list[str], pipe: Connection) -> None:
    receivers = [segment.receiver(key) for key in keys]
    outcome: dict[str, tuple[str, float]] = {}

    def receive(key: str, receiver: ipcbuf.Receiver) -> None:
        try:
            text = receiver.recv(timeout=PATIENCE).decode()
        except ipcbuf.IpcbufError as error:
            text = type(error).__name__
        outcome[key] = text, time.monotonic()

    threading.stack_size(256 << 10)
    threads = [
        threading.Thread(target=receive, args=pair) for pair in zip(keys, receivers, strict=True)
    ]
    for thread in threads:
        thread.start()
    pipe.send("blocked")
    for thread in threads:
        thread.join()
    pipe.send(outcome)


def measure(channels: int) -> dict[str, float]:
    """What making, finding, listing and leaving costs."""
    segment = ipcbuf.Segment(max_size=(channels * 20 << 10) + (64 << 20))
    before = segment.committed - segment.stats()["free_bytes"]
    begin = time.perf_counter()
    senders = [segment.sender(number) for number in range(channels)]
    made = time.perf_counter()
    used = segment.committed - segment.stats()["free_bytes"] - before
    start = time.perf_counter()
    assert all(segment.has_channel(number) for number in range(channels))
    found = time.perf_counter()
    assert len(segment.channels()) == channels
    listed = time.perf_counter()
    assert segment.fsck() == []
    close = time.perf_counter()
    for sender in senders:
        sender.close()
    closed = time.perf_counter()
    assert segment.channels() == []
    assert segment.fsck() == []
    print(
        f"{channels} channels: made in {made - begin:.3f} s, {used / channels:.0f} bytes of heap "
        f"and 512 of the table each, found in {(found - start) / channels * 1e6:.1f} us each, "
        f"all listed in {listed - found:.3f} s, all closed in {closed - close:.3f} s"
    )
    return {
        "channels": channels,
        "made_in_s": round(made - begin, 3),
        "bytes_each": round(used / channels),
        "closed_in_s": round(closed - close, 3),
    }


def kill_half(blocked: int) -> dict[str, float]:
    """Receivers blocked in many channels; half of the senders' owners are killed."""
    segment = ipcbuf.Segment(max_size=(blocked * 20 << 10) + (64 << 20))
    parts = [[f"{part}/{n}" for n in range(blocked // PARTS)] for part in range(PARTS)]
    processes = []
    pipes: dict[str, list[Connection]] = {"own_senders": [], "block_receivers": []}
    for target in (own_senders, block_receivers):
        for keys in parts:
            here, there = FORK.Pipe()
            process = FORK.Process(target=target, args=(segment, keys, there))
            process.start()
            there.close()
            processes.append(process)
            pipes[target.__name__].append(here)
        for pipe in pipes[target.__name__]:
            assert pipe.poll(PATIENCE)
            pipe.recv()
    owners = processes[:PARTS]
    time.sleep(1.2)  # so that the waits are old, and look but five times a second
    killed = time.monotonic()
    for owner in owners[: PARTS // 2]:
        owner.kill()
    for pipe in pipes["own_senders"][PARTS // 2 :]:
        pipe.send("go on")
    late = []
    for part, pipe in enumerate(pipes["block_receivers"]):
        assert pipe.poll(PATIENCE), f"the receivers of part {part} hang"
        outcome = pipe.recv()
        expected = {"alive"} if part >= PARTS // 2 else {"EndOfChannel", "BrokenChannel"}
        assert len(outcome) == len(parts[part])
        assert {text for text, _ in outcome.values()} <= expected, outcome
        if part < PARTS // 2:
            late += [at - killed for _, at in outcome.values()]
    for process in processes:
        process.kill()
        process.join()
    segment.reap()
    assert segment.channels() == []
    assert segment.fsck() == []
    late.sort()
    print(
        f"{blocked} blocked receivers, half of the owners killed: everybody noticed; "
        f"p50 {late[len(late) // 2] * 1e3:.0f} ms, last {late[-1] * 1e3:.0f} ms"
    )
    return {
        "blocked_receivers": blocked,
        "noticed_after_ms_p50": round(late[len(late) // 2] * 1e3),
        "noticed_after_ms_max": round(late[-1] * 1e3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=10_000)
    parser.add_argument("--blocked", type=int, default=1_000)
    options = parser.parse_args()
    figures = measure(options.channels)
    figures |= kill_half(options.blocked)
    print(json.dumps(figures))
