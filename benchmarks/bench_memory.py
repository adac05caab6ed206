# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""How much memory a burst of messages takes, and how much of it is there afterwards.

One process puts all messages, then another one gets them all; both stay. Memory is what the kernel
counts for the two (PSS: a page that both have mapped counts once), less what they had before. After
the burst two messages a millisecond go through the same queue, as memory may be given back by
whoever uses it.
"""

from __future__ import annotations

import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Figures, Gate, Peer, Row, measure, options

if TYPE_CHECKING:
    import argparse
    from types import ModuleType

MIB = 1 << 20
LOOKS = {"at once MiB": 0.0, "after 1 s MiB": 1.0, "after 10 s MiB": 10.0}
TRICKLE_SECONDS = 0.001


def own_bytes() -> int:
    """Return the share of the memory in use that is this process's."""
    found = re.search(
        r"^Pss: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE
    )
    if found is None:
        raise OSError("the kernel does not tell the share of memory")
    return int(found[1]) << 10


class Sides:
    """The two processes wait for each other at every step, so that both look at the same moment."""

    def __init__(self, queue: Any, size: int, messages: int, looks: list[float]) -> None:
        self.queue, self.size, self.messages, self.looks = queue, size, messages, looks
        self.to_putter, self.to_getter = Gate(), Gate()

    def message(self, number: int) -> Any:
        return number if self.size == 0 else number.to_bytes(8, "little") * (self.size // 8)

    def look(self, mine: Gate, other: Gate) -> int:
        """Look when both have come here, and go on when both have looked."""
        for number in range(2):
            other.open()
            mine.wait()
            if number == 0:
                found = own_bytes()
        return found

    def put(self) -> list[int]:
        look = partial(self.look, self.to_putter, self.to_getter)
        self.queue.put(self.message(0))  # what comes with the first message is no part of a burst
        sizes = [look()]
        for number in range(self.messages):
            self.queue.put(self.message(number))
        sizes.append(look())
        start = self.start()
        for until in self.looks:
            while time.monotonic() < start + until:
                self.queue.put(self.message(1))
                self.queue.put(self.message(2))
                time.sleep(TRICKLE_SECONDS)
            self.queue.put(None)
            sizes.append(look())
        self.queue.close()
        self.queue.join_thread()
        return sizes

    def start(self) -> float:
        """Wait until all has been got."""
        self.to_putter.wait()
        return time.monotonic()

    def get(self) -> list[int]:
        look = partial(self.look, self.to_getter, self.to_putter)
        self.queue.get()
        sizes = [look()]
        sizes.append(look())
        for number in range(self.messages):
            if self.queue.get() != self.message(number):
                raise AssertionError(f"message {number} is not what was sent")
        self.to_putter.open()
        for _ in self.looks:
            while self.queue.get() is not None:
                pass
            sizes.append(look())
        return sizes


def burst(size: int, messages: int, looks: dict[str, float], player: ModuleType, _: int) -> Figures:
    """Return how many bytes a waiting message takes, and what is left of all."""
    sides = Sides(player.queue(), size, messages, list(looks.values()))
    getter, putter = Peer(sides.get), Peer(sides.put)
    before, full, *after = (sum(both) for both in zip(putter.join(), getter.join(), strict=True))
    return {
        "bytes/message": (full - before) / messages,
        "all MiB": (full - before) / MIB,
        **{name: (found - before) / MIB for name, found in zip(looks, after, strict=True)},
    }


def row(name: str, size: int, messages: int, chosen: argparse.Namespace) -> Row:
    looks = {name: at / 100 for name, at in LOOKS.items()} if chosen.quick else LOOKS
    turn = partial(burst, size, messages // 100 if chosen.quick else messages, looks)
    first_turn = partial(burst, size, messages // 100, dict.fromkeys(looks, 0.0))
    return Row(name, "queue", turn, "bytes", 2, 2, True, first_turn)


def rows(chosen: argparse.Namespace) -> list[Row]:
    return [
        row("a million small ints", 0, 1_000_000, chosen),
        row("100,000 times 5,000 bytes", 5_000, 100_000, chosen),
    ]


if __name__ == "__main__":
    chosen = options(__doc__, rounds=3)
    sys.exit(measure(rows(chosen), chosen))
