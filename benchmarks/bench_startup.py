# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""How long it takes until there is something to work with.

Imports: a new interpreter for each, which looks at its own clock before and after. The first queue
of a process, which may have to set up what later ones share: a new process for each, from `queue()`
to the first message received. Executors and pools: from their making to their end, one call between.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from harness import Figures, Peer, Row, measure, options

if TYPE_CHECKING:
    from types import ModuleType

WORKERS = 2


def import_turn(player: ModuleType, count: int) -> Figures:
    """Import what the contender's programs import."""
    program = (
        f"import time; a = time.perf_counter(); {player.IMPORTS}; print(time.perf_counter() - a)"
    )
    took = []
    start = time.perf_counter()
    for _ in range(count):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took.append(1e3 * float(done.stdout))
    return {"ms": statistics.median(took), "seconds": time.perf_counter() - start}


def two_queues(player: ModuleType) -> tuple[float, float]:
    """Make two queues and send a message through each; return how long each took."""
    took = []
    for number in range(2):
        start = time.perf_counter()
        queue = player.shared_queue()
        queue.put(number)
        if queue.get() != number:
            raise AssertionError("another message came")
        took.append(1e6 * (time.perf_counter() - start))
        queue.close()
    return took[0], took[1]


def queue_turn(player: ModuleType, count: int) -> Figures:
    start = time.perf_counter()
    first, second = zip(*(Peer(two_queues, player).join() for _ in range(count)), strict=True)
    return {
        "µs": statistics.median(first),
        "the second µs": statistics.median(second),
        "seconds": time.perf_counter() - start,
    }


def whole_turn(make: str, player: ModuleType, count: int) -> Figures:
    """Make an executor, make one call, and shut it down."""
    start = time.perf_counter()
    for number in range(count):
        with getattr(player, make)(WORKERS) as executor:
            if executor.submit(abs, -number).result() != number:
                raise AssertionError("the call returned something else")
    seconds = time.perf_counter() - start
    return {"ms": 1e3 * seconds / count, "seconds": seconds}


def whole(name: str, make: str, scale: int) -> Row:
    turn = partial(whole_turn, make)
    return Row(f"{name}, create, one call, shutdown", make, turn, "ms", scale, 200, True)


ROWS = [
    Row("import", "IMPORTS", import_turn, "ms", 5, 100, True),
    Row("Queue, the first of a process", "shared_queue", queue_turn, "µs", 10, 500, True),
    whole("Executor by fork", "executor", 5),
    whole("Executor by spawn", "executor_by_spawn", 2),
    whole("Pool by fork", "pool", 5),
]

if __name__ == "__main__":
    sys.exit(measure(ROWS, options(__doc__)))
