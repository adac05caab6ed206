# SPDX-License-Identifier: Apache-2.0
"""RaftLib/ipc's own example: two channels, one producer process, one consumer with two threads.

    python examples/seed_two_channels.py
    python examples/seed_two_channels.py --records 10000

The producer sends 2^20 numbers on each of two channels, each number a record of its own of four
bytes. In the consumer process each of two threads receives from one channel and looks that no
number is missing, doubled or out of place. They meet by names: nobody is anybody's child.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import ipcbuf

CHANNELS = (1, 2)
WIDTH = 4  # bytes of a number


def produce(name: str, records: int) -> None:
    """Send the numbers 0, 1, … on both channels in turn."""
    segment = ipcbuf.Segment(name)
    for channel in CHANNELS:  # it goes with its last user, so the consumer has to be there first
        if not segment.wait_for_channel(channel, timeout=60):
            sys.exit(f"nobody came to receive from channel {channel}")
    one, two = (segment.sender(channel, max_items=1 << 16) for channel in CHANNELS)
    for number in range(records):
        message = number.to_bytes(WIDTH, "little")
        one.send(message)
        two.send(message)


def consume(name: str, records: int) -> None:
    """Receive from both channels at once, and compare."""
    segment = ipcbuf.Segment(name)
    with ThreadPoolExecutor(len(CHANNELS)) as threads:
        for line in threads.map(partial(consume_one, segment, records), CHANNELS):
            print(line)


def consume_one(segment: ipcbuf.Segment, records: int, channel: int) -> str:
    """Receive until the producer is gone; return how it went."""
    receiver = segment.receiver(channel, max_items=1 << 16)
    start, count = time.perf_counter(), 0
    try:
        while True:
            if receiver.recv() != count.to_bytes(WIDTH, "little"):
                raise SystemExit(f"channel {channel}: record {count} is not what was sent")
            count += 1
    except ipcbuf.EndOfChannel:
        pass
    if count != records:
        raise SystemExit(f"channel {channel}: {count} records of {records}")
    rate = records / (time.perf_counter() - start)
    return f"channel {channel}: {records:,} records in order, {rate:,.0f} a second"


def main() -> int:
    """Start both processes; the exit status is 0 if every record arrived once and in order."""
    parser = argparse.ArgumentParser(description="two channels, two processes, three threads")
    parser.add_argument("--records", type=int, default=1 << 20, help="on each channel (2^20)")
    parser.add_argument("--role", choices=["producer", "consumer"], help=argparse.SUPPRESS)
    parser.add_argument("--name", default=f"seed-example-{os.getpid()}", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.role is not None:
        {"producer": produce, "consumer": consume}[chosen.role](chosen.name, chosen.records)
        return 0
    words = [sys.executable, __file__, f"--records={chosen.records}", f"--name={chosen.name}"]
    with ipcbuf.Segment(chosen.name):  # so that it is there until both have come
        parts = [subprocess.Popen([*words, f"--role={role}"]) for role in ("consumer", "producer")]
        return max(part.wait() for part in parts)


if __name__ == "__main__":
    sys.exit(main())
