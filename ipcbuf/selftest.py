# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""The kill test for everybody: does this machine keep what the library promises?

    result = ipcbuf.selftest.run(kills=1000)
    assert result.ok, result

Processes exchange messages over channels of a segment of their own; one after another gets
SIGKILL at a random moment and is replaced. Each keeps a book in memory that is no part of the
segment: the number that it is about to send, the number that it has sent, each message that it
took. From time to time all stop, the channels are drained, and the books are compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import random
import signal
import struct
import time
import traceback
import zlib
from typing import TYPE_CHECKING, Any

from .errors import ChannelEmpty, ChannelFull, HeapExhausted
from .segment import Segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._native import Receiver, Sender

__all__ = ["Result", "run"]

WORKERS = 4
EPOCH = 100  # kills between two looks
LONGEST_PAUSE = 0.002  # seconds between two kills
BACKLOG = 200  # messages; then a sender of the unbounded channel waits
PATIENCE = 60.0  # seconds until a process that was told to stop is stuck
LEFT = ("channels", "process_blocks", "flight_blocks", "ring_blocks", "shared_blocks")

_HEAD = struct.Struct("<IIII")  # life, channel, number, checksum of what follows
_BYTES = random.Random(0).randbytes(1 << 16)

# The words of a life's book.
_BEGUN, _DONE, _INSIDE, _COUNT, _FIRST = 0, 2, 4, 5, 6  # begun and done: one per channel
_WORDS = 1 << 13


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found. All of `lost` and what follows should be zero or empty."""

    kills: int
    seed: int
    seconds: float
    messages: int
    taken_by_dead: int  # taken by a consumer that was killed before it could say so
    lost: int
    doubled: int
    reordered: int
    torn: int
    stuck: int
    failed: int  # processes that ended in another way than they should
    leaked: int
    problems: tuple[str, ...]  # of fsck

    def __str__(self) -> str:
        """Say it in a sentence: what was done, and what was found."""
        names = ("lost", "doubled", "reordered", "torn", "stuck", "failed", "leaked")
        found = [f"{getattr(self, name)} {name}" for name in names if getattr(self, name)]
        found += self.problems
        return (
            f"{self.kills:,} kills and {self.messages:,} messages in {self.seconds:.1f} s"
            f" (seed {self.seed}): {', '.join(found) or 'nothing lost, doubled, torn or leaked'}"
        )

    @property
    def ok(self) -> bool:
        """True if nothing was wrong."""
        return not (
            self.lost
            or self.doubled
            or self.reordered
            or self.torn
            or self.stuck
            or self.failed
            or self.leaked
            or self.problems
        )


def run(
    kills: int = 1000,
    seed: int | None = None,
    progress: Callable[[Result], object] | None = None,
) -> Result:
    """Kill *kills* processes, one after another, and return what that left.

    Call it in a process with one thread: it forks. About 3 ms per kill.

    Args:
        kills: How many.
        seed: Fixes what is drawn, not how the machine schedules it; None draws one.
        progress: Called with what was found so far, after every look at the books.

    Raises:
        ValueError: *kills* is negative.
    """
    if kills < 0:
        raise ValueError(f"{kills} kills; it must be 0 or more")
    if seed is None:
        seed = random.SystemRandom().getrandbits(32)
    killer = _Killer(random.Random(seed))
    begin = time.monotonic()
    try:
        while killer.kills < kills and not killer.is_wrong():
            killer.epoch(min(EPOCH, kills - killer.kills))
            if progress is not None:
                progress(killer.result(seed, time.monotonic() - begin))
    finally:
        killer.end()
    return killer.result(seed, time.monotonic() - begin)


class _Killer:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.segment = Segment(max_size=64 << 20)
        self.memory = mmap.mmap(-1, 8 * (1 + (EPOCH + WORKERS + 1) * _WORDS))
        self.words = memoryview(self.memory).cast("Q")  # the first one: stop
        self.ends: list[tuple[Sender, Receiver]] = []
        self.pids: list[int] = []
        self.lives: list[memoryview] = []
        self.killed: set[int] = set()  # lives
        self.life_of: dict[int, int] = {}
        self.kills = self.messages = self.taken_by_dead = 0
        self.lost = self.doubled = self.reordered = self.torn = 0
        self.stuck = self.failed = self.leaked = 0
        self.problems: list[str] = []
        self.before = self.segment.stats()

    def is_wrong(self) -> bool:
        return not self.result(0, 0).ok

    def result(self, seed: int, seconds: float) -> Result:
        return Result(
            self.kills,
            seed,
            seconds,
            self.messages,
            self.taken_by_dead,
            self.lost,
            self.doubled,
            self.reordered,
            self.torn,
            self.stuck,
            self.failed,
            self.leaked,
            tuple(self.problems),
        )

    def end(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.pids.clear()

    # ---- an epoch ----

    def epoch(self, kills: int) -> None:
        self.words[0] = 0
        self.lives.clear()
        self.killed.clear()
        self.ends = [
            self.segment.channel(shared=True),
            self.segment.channel(shared=True, max_items=8),
        ]
        for _ in range(WORKERS):
            self.start()
        for _ in range(kills):
            time.sleep(self.rng.uniform(0, LONGEST_PAUSE))
            self.kill(self.rng.randrange(WORKERS))
            self.start()
        self.words[0] = 1
        if self.all_stop():
            self.look()

    def new_life(self) -> memoryview:
        first = 1 + len(self.lives) * _WORDS
        life = self.words[first : first + _WORDS]
        for i in range(_FIRST):
            life[i] = 0
        self.lives.append(life)
        return life

    def start(self) -> None:
        life = self.new_life()
        name, seed, parent = len(self.lives) - 1, self.rng.getrandbits(32), os.getpid()
        pid = os.fork()
        if pid:
            self.pids.append(pid)
            self.life_of[pid] = name
            return
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent's to handle
            _Worker(life, name, self.ends, random.Random(seed)).run(self.words, parent)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def kill(self, which: int) -> None:
        pid = self.pids.pop(which)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.kills += 1
        self.killed.add(self.life_of.pop(pid))
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            self.failed += 1

    def all_stop(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        while self.pids:
            for pid in list(self.pids):
                gone, status = os.waitpid(pid, os.WNOHANG)
                if not gone:
                    continue
                self.pids.remove(pid)
                if os.waitstatus_to_exitcode(status) != 0:
                    self.failed += 1
            if self.pids and time.monotonic() > deadline:
                self.stuck += len(self.pids)
                return False
            time.sleep(0.001)
        return True

    def look(self) -> None:
        self.segment.reap()
        last = _Worker(self.new_life(), len(self.lives) - 1, self.ends, self.rng)
        for channel in range(len(self.ends)):
            while last.take(channel, 0):
                pass
        self.audit()
        for sender, receiver in self.ends:
            sender.close()
            receiver.close()
        self.ends.clear()
        after = self.segment.stats()
        self.leaked += sum(after[k] - self.before[k] for k in LEFT)  # type: ignore[literal-required]
        self.leaked += after["processes"] - 1
        self.problems += self.segment.fsck()

    def audit(self) -> None:
        channels = range(len(self.ends))
        seen: set[tuple[int, int, int]] = set()
        inside = [0 for _ in channels]
        for name, life in enumerate(self.lives):
            if name in self.killed and life[_INSIDE]:
                inside[life[_INSIDE] - 1] += 1
            last: dict[tuple[int, int], int] = {}
            for word in life[_FIRST : _FIRST + life[_COUNT]].tolist():
                sender, channel, number = word >> 40, word >> 33 & 127, word >> 1 & 0xFFFFFFFF
                self.messages += 1
                self.torn += word & 1
                if number == 0 or number > self.lives[sender][_BEGUN + channel]:
                    self.doubled += 1  # never sent
                elif (sender, channel, number) in seen:
                    self.doubled += 1
                if number <= last.get((sender, channel), 0):
                    self.reordered += 1
                last[sender, channel] = number
                seen.add((sender, channel, number))
        for channel in channels:
            missing = sum(
                (name, channel, number) not in seen
                for name, life in enumerate(self.lives)
                for number in range(1, life[_DONE + channel] + 1)
            )
            # A killed consumer may have taken one message that it could not write down.
            self.taken_by_dead += min(missing, inside[channel])
            self.lost += max(0, missing - inside[channel])


class _Worker:
    def __init__(
        self, life: memoryview, name: int, ends: list[tuple[Sender, Receiver]], rng: random.Random
    ) -> None:
        self.life, self.name, self.ends, self.rng = life, name, ends, rng

    def run(self, words: memoryview, parent: int) -> None:
        bias = self.rng.uniform(0.2, 0.8)
        kept: list[Any] = []
        while not words[0] and os.getppid() == parent:
            channel = self.rng.randrange(len(self.ends))
            timeout = self.rng.choice((0, 0, 0.002))
            if self.rng.random() < bias:
                self.put(channel, timeout)
            else:
                self.take(channel, timeout)
            if self.rng.random() < 0.1:
                with contextlib.suppress(HeapExhausted):
                    kept.append(self.ends[0][0].segment.allocate(self.rng.randrange(1, 50_000)))
                del kept[: self.rng.randrange(2)]

    def put(self, channel: int, timeout: float) -> None:
        life, sender = self.life, self.ends[channel][0]
        if sender.pending() > BACKLOG:
            return
        size = self.rng.randrange(200) if self.rng.random() < 0.7 else self.rng.randrange(20_000)
        start = self.rng.randrange(len(_BYTES) - size)
        body = _BYTES[start : start + size]
        number = life[_DONE + channel] + 1
        life[_BEGUN + channel] = number
        with contextlib.suppress(ChannelFull, HeapExhausted):
            sender.send(_HEAD.pack(self.name, channel, number, zlib.crc32(body)) + body, timeout)
            life[_DONE + channel] = number

    def take(self, channel: int, timeout: float) -> bool:
        life, receiver = self.life, self.ends[channel][1]
        if life[_COUNT] == _WORDS - _FIRST:
            return False
        life[_INSIDE] = channel + 1
        try:
            message = receiver.recv(timeout)
        except ChannelEmpty:
            life[_INSIDE] = 0
            return False
        sender, where, number, checksum = _HEAD.unpack_from(message)
        torn = where != channel or zlib.crc32(message[_HEAD.size :]) != checksum
        life[_FIRST + life[_COUNT]] = sender << 40 | where << 33 | number << 1 | torn
        life[_COUNT] += 1
        life[_INSIDE] = 0
        return True
