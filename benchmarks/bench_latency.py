# SPDX-License-Identifier: Apache-2.0
"""How long a message takes there and back.

A round trip: one process sends a number and waits for it to come back from another one. Both are
pinned to different cores, or not pinned at all; unpinned, whatever blocks in the kernel has two
speeds, as the two share a core or not, so those rows are for information. The CPU time per round
trip, of both processes together, tells who spins: with both asleep most of the time it is far
below two times the round trip.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from harness import Figures, Peer, Row, cores, cpu_seconds, measure, options, percentile, pin

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Put = Callable[[int], object]
    Get = Callable[[], int]
    Ends = tuple[tuple[Put, Get], tuple[Get, Put]]  # here, and far away
    Connect = Callable[[ModuleType], Ends]

WARM_UP = 200  # round trips at the beginning that are not counted
SHARES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99)  # of the distribution, %


# --- round trips ----------------------------------------------------------------------------------


def ask(put: Put, get: Get, core: int | None, trips: int) -> tuple[list[int], float]:
    """Make round trips; return the time of each in nanoseconds, and the CPU time of all."""
    pin(core)
    clock = time.perf_counter_ns
    times = []
    for number in range(-WARM_UP, trips):
        if number == 0:
            cpu_start = cpu_seconds()
        start = clock()
        put(number)
        back = get()
        end = clock()
        if back != number:
            raise AssertionError(f"{back} came back for {number}")
        if number >= 0:
            times.append(end - start)
    return times, cpu_seconds() - cpu_start


def echo(get: Get, put: Put, core: int | None, trips: int) -> float:
    """Send back what comes; return the CPU time."""
    pin(core)
    for number in range(-WARM_UP, trips):
        if number == 0:
            cpu_start = cpu_seconds()
        put(get())
    return cpu_seconds() - cpu_start


def round_trips(pinned: bool, connect: Connect, player: ModuleType, trips: int) -> Figures:
    """Measure round trips between two new processes."""
    first, last = (cores()[0], cores()[-1]) if pinned else (None, None)
    (put, get), (far_get, far_put) = connect(player)
    start = time.perf_counter()
    far = Peer(echo, far_get, far_put, last, trips)
    near = Peer(ask, put, get, first, trips)
    times, near_cpu = near.join()
    far_cpu = far.join()
    return {
        "p50 µs": percentile(times, 0.50) / 1e3,
        "p99 µs": percentile(times, 0.99) / 1e3,
        "p99.9 µs": percentile(times, 0.999) / 1e3,
        "cpu µs/trip": 1e6 * (near_cpu + far_cpu) / trips,
        **{f"_{share:g} %": percentile(times, share / 100) / 1e3 for share in SHARES},
        "seconds": time.perf_counter() - start,
    }


def two_queues(player: ModuleType) -> Ends:
    there, back = player.queue(), player.queue()
    return (there.put, back.get), (there.get, back.put)


def one_pipe(player: ModuleType) -> Ends:
    near, far = player.pipe()
    return (near.send, near.recv), (far.recv, far.send)


# --- rows -----------------------------------------------------------------------------------------


def trips(name: str, needs: str, connect: Connect, pinned: bool) -> Row:
    turn = partial(round_trips, pinned, connect)
    where = "on two cores" if pinned else "not pinned"
    return Row(f"{name} round trip, {where}", needs, turn, "µs", 2_000, 200_000, True)


def rows() -> list[Row]:
    found = []
    for name, needs, connect in ("Queue", "queue", two_queues), ("Pipe", "pipe", one_pipe):
        if len(cores()) > 1:
            found.append(trips(name, needs, connect, pinned=True))
        else:
            print("only one core: no pinned round trips", file=sys.stderr)
        found.append(trips(name, needs, connect, pinned=False))
    return found


if __name__ == "__main__":
    sys.exit(measure(rows(), options(__doc__)))
