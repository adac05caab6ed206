# SPDX-License-Identifier: Apache-2.0
"""What bounded RaftLib/ipc, measured here: record sizes, memory per message, channels, depth.

    python benchmarks/seed_limits.py

Prints a table; docs/seed.md has it. Every record is compared with what was sent.
"""

from __future__ import annotations

import sys

import ipcbuf

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MESSAGES = 1_000_000
CHANNELS = 5_000


def in_use(segment: ipcbuf.Segment) -> int:
    stats = segment.stats()
    return stats["committed_bytes"] - stats["free_bytes"] - stats["returned_bytes"]


def sizes() -> str:
    """Send records of 1 byte to 1 GiB without a copy; return the smallest and the largest."""
    segment = ipcbuf.Segment()
    sender, receiver = segment.channel()
    size = 1
    while size <= GIB:
        record = segment.allocate(size)
        memoryview(record)[-1:] = bytes([size.bit_length()])
        sender.send(record)
        view = receiver.recv_view()
        received = memoryview(view)
        if received.nbytes != size or received[-1] != size.bit_length():
            sys.exit(f"a record of {size} bytes came as another one")
        del received, view, record
        size *= 2
    return "1 byte to 1 GiB, all powers of two; exact length kept"


def per_message() -> str:
    """Keep a million messages of four bytes; return what one takes."""
    segment = ipcbuf.Segment()
    sender, receiver = segment.channel()
    before = in_use(segment)
    for number in range(MESSAGES):
        sender.send(number.to_bytes(4, "little"))
    taken = (in_use(segment) - before) / MESSAGES
    for number in range(MESSAGES):
        if receiver.recv() != number.to_bytes(4, "little"):
            sys.exit(f"message {number} came as another one")
    left = in_use(segment) - before
    return f"{taken:.1f} bytes for each of {MESSAGES:,} waiting; {left / KIB:.0f} KiB when drained"


def per_channel() -> str:
    """Make channels; return what one takes."""
    segment = ipcbuf.Segment()
    before = in_use(segment)
    ends = [segment.channel() for _ in range(CHANNELS)]
    taken = (in_use(segment) - before) / CHANNELS + 512  # and its row, which is no heap
    for number, (sender, receiver) in enumerate(ends):
        sender.send(b"%d" % number)
        if receiver.recv() != b"%d" % number:
            sys.exit("a message came through another channel")
    return f"{taken:,.0f} bytes each, so {GIB / taken:,.0f} in 1 GiB ({CHANNELS:,} made and used)"


def depth() -> str:
    """Fill a channel until memory ends; return how many messages it held."""
    segment = ipcbuf.Segment(max_size=64 * MIB)
    sender, _receiver = segment.channel()
    count = 0
    try:
        while True:
            sender.send(b"1234")
            count += 1
    except ipcbuf.HeapExhausted:
        return f"{count:,} messages of four bytes in a segment of 64 MiB, then HeapExhausted"


def main() -> None:
    print("| limit | here |\n| --- | --- |")
    for name, measure in {
        "record size": sizes,
        "memory per 4-byte message": per_message,
        "channels": per_channel,
        "depth of a channel": depth,
    }.items():
        print(f"| {name} | {measure()} |", flush=True)


if __name__ == "__main__":
    main()
