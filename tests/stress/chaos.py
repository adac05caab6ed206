# SPDX-License-Identifier: Apache-2.0
"""Processes do everything at once, in one segment, while one after another is killed.

    python tests/stress/chaos.py --kills 1000 --seed 1

Not a benchmark. Each worker picks its next action at random: it puts arrays and gets them, keeps
some for a while, sends records and receives views, makes queues and channels and drops them,
and forks a child that has what it has. Every array and record says in its first word what the
rest of it is: it is looked at when it comes, and again before it goes, so that memory which
was given to somebody else too early shows. The killed are replaced. In the end all have
stopped, and the segment must be sound and hold as much as in the beginning.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import os
import queue
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

WORKERS = 4
PATIENCE = 30  # seconds
LONGEST_LIFE = 0.05  # seconds between two kills
KEPT = 6  # arrays and records that a worker keeps
KINDS = ("processes", "channels", "process_blocks", "flight_blocks", "ring_blocks", "shared_blocks")


class Damaged(Exception):
    """Memory changed under its holder."""


def fill(memory: Any, value: int) -> None:
    np.frombuffer(memory, dtype=np.uint64)[:] = value


def check(memory: Any) -> None:
    words = np.frombuffer(memory, dtype=np.uint64)
    if not (words == words[0]).all():
        raise Damaged(f"{len(words)} words, {np.unique(words)[:5]}")


class Worker:
    def __init__(self, shared: Any, sender: Any, receiver: Any, pipes: Any, seed: int) -> None:
        self.rng = random.Random(seed)
        self.shared, self.sender, self.receiver, self.pipes = shared, sender, receiver, pipes
        self.kept: list[Any] = []
        self.actions = (
            self.put, self.put, self.get, self.get, self.send, self.send, self.receive,
            self.receive, self.drop, self.make_queue, self.make_channel, self.fork, self.talk,
        )  # fmt: skip

    def run(self, stop: Any) -> None:
        while not stop[0]:
            self.rng.choice(self.actions)()
        while self.kept:
            self.drop()

    def size(self) -> int:
        return int(2 ** self.rng.uniform(0, 15))  # words

    def keep(self, memory: Any) -> None:
        check(memory)
        self.kept.append(memory)
        if len(self.kept) > KEPT:
            self.drop()

    def drop(self) -> None:
        if self.kept:
            check(self.kept.pop(self.rng.randrange(len(self.kept))))

    def put(self) -> None:
        array = np.full(self.size(), self.rng.getrandbits(60), dtype=np.uint64)
        if self.shared.qsize() < 100:
            self.shared.put(array)

    def get(self) -> None:
        with contextlib.suppress(queue.Empty):
            self.keep(self.shared.get(timeout=self.rng.choice((0, 0.002))))

    def send(self) -> None:
        record = self.sender.segment.allocate(8 * self.size())
        fill(record, self.rng.getrandbits(60))
        with contextlib.suppress(queue.Full):
            self.sender.send(record, timeout=self.rng.choice((0, 0.002)))

    def receive(self) -> None:
        with contextlib.suppress(queue.Empty):
            self.keep(self.receiver.recv_view(timeout=self.rng.choice((0, 0.002))))

    def make_queue(self) -> None:
        import ipcbuf_mp

        own: Any = ipcbuf_mp.Queue()
        for _ in range(self.rng.randrange(4)):
            own.put(np.full(self.size(), self.rng.getrandbits(60), dtype=np.uint64))
        if not own.empty():
            self.keep(own.get(timeout=PATIENCE))

    def make_channel(self) -> None:
        sender, receiver = self.sender.segment.channel(max_items=self.rng.randrange(3))
        for _ in range(self.rng.randrange(3)):
            try:
                sender.send(np.full(self.size(), 7, dtype=np.uint64), timeout=0)
            except queue.Full:
                break
        if receiver.poll():
            check(receiver.recv(timeout=PATIENCE))

    def talk(self) -> None:
        """Through a pipe that all have: whoever reads, reads something whole."""
        reader, writer = self.pipes
        if reader.poll():
            with contextlib.suppress(queue.Empty):  # if another was faster
                check(reader._receiver.recv_object(0))
        else:
            writer.send(np.full(500, 5, dtype=np.uint64))

    def fork(self) -> None:
        if self.rng.random() > 0.2:
            return
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if self.rng.random() < 0.3:
                    os.kill(os.getpid(), signal.SIGKILL)
                while self.kept:
                    self.drop()
                self.put()
                code = 0
            finally:
                os._exit(code)
        while self.kept and self.rng.random() < 0.5:
            self.drop()
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL):
            raise Damaged("in a forked child")


def work(shared: Any, sender: Any, receiver: Any, pipes: Any, stop: Any, seed: int) -> None:
    faulthandler.register(signal.SIGUSR1)
    Worker(shared, sender, receiver, pipes, seed).run(stop)


def kill_one_after_another(kills: int, rng: random.Random, log: Callable[[str], None]) -> int:
    """Return how many processes hung or failed. All that was made is dropped again."""
    import ipcbuf
    import ipcbuf_mp

    segment = ipcbuf.default_segment()
    context = ipcbuf_mp.get_context("fork")
    shared: Any = context.Queue()
    sender, receiver = segment.channel(shared=True, max_items=40)
    pipes = context.Pipe(duplex=False)
    stop = memoryview(ipcbuf.Segment(max_size=1 << 20).allocate(1))  # the workers inherit it
    stop[0] = 0
    bad = 0

    def start() -> Any:
        process = context.Process(
            target=work, args=(shared, sender, receiver, pipes, stop, rng.getrandbits(32))
        )
        process.start()
        return process

    def judge(process: Any, expected: int) -> int:
        process.join(PATIENCE)
        if process.exitcode == expected:
            return 0
        log(f"{process}, not {expected}")
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGUSR1)  # prints its stack
            time.sleep(0.5)
            process.kill()
            process.join()
        return 1

    workers = [start() for _ in range(WORKERS)]
    for number in range(kills):
        faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
        time.sleep(rng.uniform(0, LONGEST_LIFE))
        victim = workers.pop(rng.randrange(WORKERS))
        victim.kill()
        workers.append(start())
        bad += judge(victim, -signal.SIGKILL)
        if number % 100 == 99:
            log(f"{number + 1} kills, {bad} bad, {segment!r}")
        if bad:
            break
    faulthandler.dump_traceback_later((WORKERS + 3) * PATIENCE, exit=True)
    stop[0] = 1
    for worker in workers:
        bad += judge(worker, 0)
    while not shared.empty():
        check(shared.get(timeout=PATIENCE))
    while receiver.pending():
        check(receiver.recv(timeout=PATIENCE))
    return bad


def run(kills: int, seed: int) -> int:
    """Return how many things were wrong."""
    import ipcbuf

    segment = ipcbuf.default_segment()
    before: Any = segment.stats()
    begin = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - begin:7.1f} s] {text}", file=sys.stderr, flush=True)

    bad = kill_one_after_another(kills, random.Random(seed), log)
    gc.collect()
    # Forked children of the killed may live for another moment.
    deadline = time.monotonic() + PATIENCE
    while True:
        segment.reap()
        after: Any = segment.stats()
        wrong = [f"{k}: {before[k]} -> {after[k]}" for k in KINDS if before[k] != after[k]]
        if not wrong or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    wrong += segment.fsck()
    if wrong:
        log(f"left in the segment: {wrong}")
    print(
        f"{kills} kills, seed {seed}, {time.monotonic() - begin:.0f} s: {bad} bad, "
        f"{len(wrong)} wrong in the segment; {after['reaps']} reaped, {after['takeovers']} locks "
        f"taken over, {after['committed_bytes'] >> 20} MiB committed"
    )
    figures = {"kills": kills, "reaps": after["reaps"], "takeovers": after["takeovers"]}
    print(json.dumps({**figures, "bad": bad, "leaked": len(wrong)}))
    return bad + len(wrong)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    return 1 if run(options.kills, options.seed) else 0


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # behind what is installed
    sys.exit(main())
