# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""What waiting costs: CPU time while there is nothing to do, or hardly anything.

The clock is that of the processor, of all threads: of the process that waits for a message, and of
an executor with two workers, its parent included, that has worked and has nothing more to do.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness import Figures, Gate, Peer, Row, cpu_seconds, measure, options

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

WORKERS = 2
TICK_SECONDS = 0.001


def wait(get: Callable[[], int], ready: Gate, messages: int) -> float:
    """Get messages; return the CPU time of all but the first, which finds everything cold."""
    get()
    cpu_start = cpu_seconds()
    ready.open()
    for number in range(messages):
        if get() != number:
            raise AssertionError(f"message {number} is not what was sent")
    return cpu_seconds() - cpu_start


def blocked_get(seconds: float, player: ModuleType, _scale: int) -> Figures:
    """Let a process wait so long for one message."""
    queue = player.queue()
    ready = Gate()
    waiter = Peer(wait, queue.get, ready, 1)
    queue.put(-1)
    ready.wait()
    time.sleep(seconds)
    queue.put(0)
    return {"cpu ms": 1e3 * waiter.join()}


def ticking_get(player: ModuleType, ticks: int) -> Figures:
    """Let a process wait for a message every millisecond."""
    queue = player.queue()
    ready = Gate()
    waiter = Peer(wait, queue.get, ready, ticks)
    queue.put(-1)
    ready.wait()
    start = time.perf_counter()
    for number in range(ticks):
        time.sleep(max(0.0, start + number * TICK_SECONDS - time.perf_counter()))
        queue.put(number)
    cpu = waiter.join()
    seconds = time.perf_counter() - start
    return {"cpu %": 100 * cpu / seconds, "seconds": seconds}


def descendants() -> list[int]:
    """Return the living processes that this one has started, and those that they have."""
    found: list[int] = []
    parents = ["self"]
    while parents:
        children = []
        for parent in parents:
            for file in Path(f"/proc/{parent}/task").glob("*/children"):
                children += file.read_text().split()
        found += map(int, children)
        parents = children
    return found


def nanoseconds(pid: int | str) -> int:
    """Return the CPU time of a process: what its threads ran, as the scheduler counts."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks)


def idle_executor(seconds: float, player: ModuleType, _scale: int) -> Figures:
    """Let an executor have nothing to do for so long."""
    with player.executor(WORKERS) as executor:
        for number in range(100):
            if executor.submit(abs, -number).result() != number:
                raise AssertionError("the call returned something else")
        time.sleep(0.1)  # who spins for a while after work does so within it
        everybody = ["self", *descendants()]
        before = sum(map(nanoseconds, everybody))
        time.sleep(seconds)
        return {"cpu ms": (sum(map(nanoseconds, everybody)) - before) / 1e6}


def rows(seconds: float) -> list[Row]:
    blocked, idle = partial(blocked_get, seconds), partial(idle_executor, seconds)
    return [
        Row("Queue, get blocked for 3 s", "queue", blocked, "ms", 1, 1, True),
        Row("Queue, a message every ms", "queue", ticking_get, "%", 1_000, 1_000, True),
        Row("Executor, idle for 3 s", "executor", idle, "ms", 1, 1, True),
    ]


if __name__ == "__main__":
    chosen = options(__doc__)
    sys.exit(measure(rows(0.1 if chosen.quick else 3.0), chosen))
