# SPDX-License-Identifier: Apache-2.0
"""What a message costs by its size, from 8 bytes to 256 MiB, on its way from one process to another.

As `bench_throughput.py`, with so many messages ahead as stay below 64 MiB, eight at most. The third
figure is what to look at from row to row: a cliff is a size from which on a byte costs more.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from bench_throughput import IN_FLIGHT, KIB, MIB, Blocks, Stream, array, block_of_bytes
from harness import Row, measure, options

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from harness import Figures

SIZES = [8, 128, 2 * KIB, 32 * KIB, 128 * KIB, 512 * KIB, 2 * MIB, 8 * MIB, 32 * MIB, 256 * MIB]


def text(size: int) -> str:
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def row(kind: str, make: Callable[[int, int], Any], size: int) -> Row:
    made: list[Blocks] = []  # not before its turn: eight of 256 MiB

    def turn(player: ModuleType, messages: int, *, every_byte: bool = False) -> Figures:
        if not made:
            made.append(Blocks(make, size, kinds=IN_FLIGHT if size < 8 * MIB else 2))
        blocks = made[0]
        stream = Stream(
            blocks.message,
            blocks.every_byte_equal if every_byte else blocks.every_page_equal,
            ahead=max(min(IN_FLIGHT, 64 * MIB // size), 1),
        )
        figures = stream.turn(player, messages)
        rate, seconds = figures.pop("messages/s"), figures.pop("seconds")
        return {"µs": 1e6 / rate, **figures, "ns/byte": 1e9 / rate / size, "seconds": seconds}

    def first_turn(player: ModuleType, messages: int) -> Figures:
        return turn(player, messages, every_byte=True)

    scale = max(3_000 * 64 * KIB // max(size, 64 * KIB), 4)
    return Row(
        f"{kind} of {text(size)}",
        "queue",
        turn,
        "µs",
        scale,
        smaller_is_better=True,
        first_turn=first_turn,
    )


ROWS = [row("bytes", block_of_bytes, n) for n in SIZES] + [row("array", array, n) for n in SIZES]

if __name__ == "__main__":
    sys.exit(measure(ROWS, options(__doc__)))
