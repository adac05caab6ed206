# SPDX-License-Identifier: Apache-2.0
"""How many calls an executor makes that do nothing, and how long one of them takes.

Two workers, started and warmed up before the clock runs. The call returns its argument, and every
result is compared with what it must be.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from harness import Figures, Row, cpu_seconds, measure, options, percentile

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

WORKERS = 2
WARM_UP = 200  # calls that are not counted
MEBIBYTE = 1 << 20


def same(value: int) -> int:
    """Do nothing."""
    return value


def calls(work: Callable[[Any, int], None], player: ModuleType, count: int) -> Figures:
    """Time *work*, which makes *count* calls; the CPU time is that of all processes."""
    cpu_start = cpu_seconds()
    with player.executor(WORKERS) as executor:
        submit_all(executor, WARM_UP)
        start = time.perf_counter()
        work(executor, count)
        seconds = time.perf_counter() - start
    cpu = cpu_seconds() - cpu_start  # of the workers, too: they have ended
    return {
        "calls/s": count / seconds,
        "cpu µs/call": 1e6 * cpu / (count + WARM_UP),
        "seconds": seconds,
    }


def submit_all(executor: Any, count: int) -> None:
    futures = [executor.submit(same, number) for number in range(count)]
    for number, future in enumerate(futures):
        if future.result() != number:
            raise AssertionError(f"call {number} returned something else")


def map_all(executor: Any, count: int) -> None:
    for number, result in enumerate(executor.map(same, range(count), chunksize=1)):
        if result != number:
            raise AssertionError(f"call {number} returned something else")


def submit_turn(player: ModuleType, count: int) -> Figures:
    return calls(submit_all, player, count)


def map_turn(player: ModuleType, count: int) -> Figures:
    return calls(map_all, player, count)


def one_by_one_turn(player: ModuleType, count: int) -> Figures:
    """Wait for each call before the next one is made."""
    times = []

    def one_by_one(executor: Any, count: int) -> None:
        for number in range(count):
            start = time.perf_counter_ns()
            result = executor.submit(same, number).result()
            times.append(time.perf_counter_ns() - start)
            if result != number:
                raise AssertionError(f"call {number} returned something else")

    figures = calls(one_by_one, player, count)
    return {
        "p50 µs": percentile(times, 0.50) / 1e3,
        "p99 µs": percentile(times, 0.99) / 1e3,
        "cpu µs/call": figures["cpu µs/call"],
        "seconds": figures["seconds"],
    }


def negative(array: Any) -> Any:
    """Return as much as was sent."""
    return -array


def arrays_turn(player: ModuleType, count: int) -> Figures:
    """Send arrays and get as large ones back, two at a time."""
    import numpy as np

    array = np.ones(MEBIBYTE // 8)

    def both_ways(executor: Any, count: int) -> None:
        futures: deque[Any] = deque()
        for _ in range(count):
            futures.append(executor.submit(negative, array))
            if len(futures) > WORKERS:
                check(futures.popleft().result())
        while futures:
            check(futures.popleft().result())

    def check(result: Any) -> None:
        if result[0] != -1 or result[-1] != -1 or result.nbytes != MEBIBYTE:
            raise AssertionError("another array came back")

    return calls(both_ways, player, count)


ROWS = [
    Row("Executor, submit no-op", "executor", submit_turn, "calls/s", 2_000, 100_000),
    Row("Executor, map no-op, chunksize 1", "executor", map_turn, "calls/s", 2_000, 100_000),
    Row("Executor, submit().result()", "executor", one_by_one_turn, "µs", 1_000, 100_000, True),
    Row("Executor, 1 MiB array in and out", "executor", arrays_turn, "calls/s", 100, 10_000),
]

if __name__ == "__main__":
    sys.exit(measure(ROWS, options(__doc__)))
