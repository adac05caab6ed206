# SPDX-License-Identifier: Apache-2.0
"""What becomes of the others when one process at a queue, or one worker, is killed.

Two processes put, two get. At a random moment one of the four is killed with `kill -9`. A round is
survived if each of the other three goes on: has put or got something more within two seconds. The
second figure is how long it took until all three had, in the rounds that were survived.

An executor with two workers has twenty calls when one of the two is killed. Counted are the calls
that bring no result, and how long it takes until a new call does: on a new executor, where the old
one takes none.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
from functools import partial
from multiprocessing.sharedctypes import RawArray
from typing import TYPE_CHECKING, Any

from harness import FORK, Figures, Row, measure, options

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

PAIRS = 2
ROUNDS = 20  # of one turn
GIVEN_UP_SECONDS = 2.0
SIZES = (0, 200, 20_000)  # bytes of the messages, in turn
IN_FLIGHT = 64
WORKERS, CALLS, WORK_SECONDS = 2, 20, 0.005


def put_all(queue: Any, passed: Any, me: int) -> None:
    messages = [bytes(size) for size in SIZES]
    while True:
        queue.put(messages[passed[me] % len(messages)])
        passed[me] += 1


def get_all(queue: Any, passed: Any, me: int) -> None:
    while True:
        if len(queue.get()) not in SIZES:
            os.abort()
        passed[me] += 1


def has_moved(passed: Any, before: list[int], who: list[int], seconds: float) -> bool:
    """Wait until each of *who* has passed a message more than it had *before*."""
    deadline = time.monotonic() + seconds
    while any(passed[one] == before[one] for one in who):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    return True


def one_round(player: ModuleType, chance: random.Random) -> float | None:
    """Kill one of four; return the seconds until the others had all gone on, None: they hang."""
    queue = player.shared_queue(IN_FLIGHT)
    passed = RawArray("Q", 2 * PAIRS)
    workers = [
        FORK.Process(target=put_all if me < PAIRS else get_all, args=(queue, passed, me))
        for me in range(2 * PAIRS)
    ]
    for worker in workers:
        worker.start()
    everybody = list(range(2 * PAIRS))
    try:
        if not has_moved(passed, [0] * len(everybody), everybody, 30.0):
            raise TimeoutError("not all four began")
        time.sleep(chance.uniform(0, 0.02))
        victim = chance.choice(everybody)
        os.kill(workers[victim].pid or 0, signal.SIGKILL)
        workers[victim].join()
        killed, before = time.monotonic(), list(passed)
        others = [one for one in everybody if one != victim]
        if not has_moved(passed, before, others, GIVEN_UP_SECONDS):
            return None
        return time.monotonic() - killed
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def rounds(player: ModuleType, count: int) -> Figures:
    seed = random.randrange(1 << 32)
    print(f"kills, {player.NAME}: seed {seed}", file=sys.stderr)
    chance = random.Random(seed)
    took = [one_round(player, chance) for _ in range(count)]
    survived = [1e3 * seconds for seconds in took if seconds is not None]
    figures = {"survived %": 100 * len(survived) / count}
    if survived:
        figures["goes on after ms"] = statistics.median(survived)
    return figures


def turn(count: int, player: ModuleType, _scale: int) -> Figures:
    return rounds(player, count)


# --- executors ------------------------------------------------------------------------------------


def work(number: int) -> tuple[int, int]:
    """Take a while; return the number and who worked."""
    time.sleep(WORK_SECONDS)
    return number, os.getpid()


def lost(futures: list[Any]) -> int:
    """Count the calls that bring no result, be it an exception or nothing in time."""
    deadline = time.monotonic() + GIVEN_UP_SECONDS
    count = 0
    for number, future in enumerate(futures):
        try:
            if future.result(timeout=max(deadline - time.monotonic(), 0.001))[0] != number:
                os.abort()
        except Exception:
            count += 1
    return count


def first_result(make: Callable[[int], Any], executor: Any) -> Any:
    """Have one call made; return the new executor that this needed, if it did."""
    try:
        executor.submit(work, 0).result(timeout=GIVEN_UP_SECONDS)
    except Exception:
        new = make(WORKERS).__enter__()
        new.submit(work, 0).result(timeout=10 * GIVEN_UP_SECONDS)
        return new
    return None


def kill_a_worker(player: ModuleType, _scale: int) -> Figures:
    make = getattr(player, "lasting_executor", player.executor)
    executor = make(WORKERS).__enter__()  # not left again: some wait for what was lost
    _, victim = executor.submit(work, 0).result()
    futures = [executor.submit(work, number) for number in range(CALLS)]
    time.sleep(WORK_SECONDS)
    os.kill(victim, signal.SIGKILL)
    killed = time.perf_counter()
    new = first_result(make, executor)
    seconds = time.perf_counter() - killed
    figures = {"lost": float(lost(futures)), "goes on after ms": 1e3 * seconds}
    for made in (executor, new):
        if made is not None and hasattr(player, "end"):
            player.end(made)
    return figures


def rows(count: int) -> list[Row]:
    return [
        Row(
            "Queue, one of four is killed",
            "shared_queue",
            partial(turn, count),
            "%",
            2,
            first_turn=partial(turn, 1),
        ),
        Row(
            "Executor, one of two workers is killed",
            "executor",
            kill_a_worker,
            "calls",
            2,
            smaller_is_better=True,
            may_hang=True,
        ),
    ]


if __name__ == "__main__":
    chosen = options(__doc__)
    sys.exit(measure(rows(2 if chosen.quick else ROUNDS), chosen))
