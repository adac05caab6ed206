# SPDX-License-Identifier: Apache-2.0
"""Kill workers, and look whose counters go on: the standard library's queue beside ours.

    python examples/kill_me.py
    python examples/kill_me.py --kills 50 --pause 0.1 --seed 7

On either side producers and consumers use one queue. Again and again one of them is killed, the
same one on both sides, and a new one takes its place. The standard library's queue has locks that
stay locked when their owner is killed, so sooner or later nobody gets through any more. It ends by
itself; the exit status is 0 if ours went on to the end.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import ipcbuf_mp

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

PRODUCERS, CONSUMERS = 2, 2
PATIENCE = 60  # seconds that a busy machine may need to show that ours goes on


def produce(queue: Any) -> None:
    """Put numbers until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that clears up
    for number in itertools.count():
        queue.put(number)


def consume(queue: Any, counts: Any, which: int) -> None:
    """Get and count until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        queue.get()
        counts[which] += 1


class Side:
    """One queue with its workers."""

    def __init__(self, name: str, context: Any) -> None:
        """Start all workers."""
        self.name = name
        self.context = context
        self.queue = context.Queue(maxsize=1000)
        self.counts = multiprocessing.RawArray("Q", CONSUMERS)
        self.workers: list[BaseProcess] = []
        self.before = 0
        self.since = time.monotonic()
        self.stopped_at: int | None = None  # the kill after which nothing came any more
        for which in range(PRODUCERS + CONSUMERS):
            self.workers.append(self.start(which))

    def start(self, which: int) -> BaseProcess:
        """Start a producer or a consumer."""
        if which < PRODUCERS:
            worker = self.context.Process(target=produce, args=(self.queue,))
        else:
            arguments = (self.queue, self.counts, which - PRODUCERS)
            worker = self.context.Process(target=consume, args=arguments)
        worker.start()
        started: BaseProcess = worker
        return started

    def kill(self, which: int) -> None:
        """Kill a worker and start another one in its place."""
        self.workers[which].kill()
        self.workers[which].join()
        self.workers[which] = self.start(which)

    @property
    def received(self) -> int:
        """How much all consumers have counted."""
        return sum(self.counts)

    def look(self, kill: int) -> str:
        """Return what has come since the last look."""
        now, received = time.monotonic(), self.received
        rate = (received - self.before) / (now - self.since)
        if received > self.before:
            self.stopped_at = None
        elif self.stopped_at is None:
            self.stopped_at = max(kill - 1, 1)
        self.before, self.since = received, now
        state = f"{rate:,.0f}/s" if self.stopped_at is None else "STOPPED"
        return f"{received:>12,} {state:>12}"

    def goes_on(self, patience: float) -> bool:
        """Wait up to *patience* seconds until something comes."""
        before, deadline = self.received, time.monotonic() + patience
        while self.received == before and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.received > before

    def end(self) -> None:
        """Kill everybody."""
        for worker in self.workers:
            worker.kill()
            worker.join()


def main() -> int:
    """Kill and print; the exit status is 0 if ours went on."""
    parser = argparse.ArgumentParser(description="kill workers, and look whose counters go on")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    print(f"{PRODUCERS} producers, {CONSUMERS} consumers, seed {chosen.seed}; messages received:\n")

    theirs = Side("standard library", multiprocessing.get_context("fork"))
    ours = Side("ipcbuf", ipcbuf_mp.get_context("fork"))
    sides = (theirs, ours)
    print(f"{'':22}" + "   ".join(f"{side.name:>25}" for side in sides))
    try:
        for kill in range(1, chosen.kills + 1):
            time.sleep(chosen.pause * draw.uniform(0.5, 1.5))
            which = draw.randrange(PRODUCERS + CONSUMERS)
            for side in sides:
                side.kill(which)
            time.sleep(0.05)
            what = "producer" if which < PRODUCERS else "consumer"
            state = "   ".join(side.look(kill) for side in sides)
            print(f"kill {kill:4}, a {what:8}  {state}", flush=True)
        went_on = ours.goes_on(PATIENCE)
        theirs_went_on = theirs.goes_on(2)
    except KeyboardInterrupt:
        return 130
    finally:
        for side in sides:
            side.end()

    if not theirs_went_on:
        after = chosen.kills if theirs.stopped_at is None else theirs.stopped_at
        print(f"\nThe standard library's queue stopped after kill {after}.")
    else:
        print("\nThe standard library's queue was lucky; more kills would have met a lock.")
    print(f"Ours {'goes on' if went_on else 'STOPPED'} after {chosen.kills} kills.")
    return 0 if went_on else 1


if __name__ == "__main__":
    sys.exit(main())
