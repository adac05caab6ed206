# SPDX-License-Identifier: Apache-2.0
"""Rounds in which one producer and one consumer of a busy queue are killed at random moments.

    python tests/stress/kill_rounds.py --rounds 1000 --seed 1
    python tests/stress/kill_rounds.py --library multiprocessing --rounds 40 --patience 5
    python tests/stress/kill_rounds.py --kind JoinableQueue

Not a benchmark. All rounds run in one process and one segment, without a restart in between.
A round: some producers and consumers share a queue. Once the first message was seen, one
producer and one consumer get SIGKILL, each after a random pause; about half of them while they
sleep inside `put` or `get`, about a quarter stopped by SIGSTOP for a while. Some wait with time-outs,
again and again. Every survivor has to go on, then all is drained and the books are
compared. Each process keeps its own, in a file mapped by itself, which a kill cannot undo:

  producer   the number it is about to put, the number it has put
  consumer   each message it took, with whether its bytes were whole

  lost       put, and in no consumer's book: at most the one message that the killed consumer
             had taken and not yet written down
  doubled    in the books twice, or never begun to be put
  reordered  in one consumer's book, of one producer, behind a later number
  torn       other bytes than were put

A JoinableQueue has to say by `join` what the killed consumer had taken, and nothing else. A
SimpleQueue and the ends of a Pipe are shared by all in the same way. A Pool has two workers killed
while it works, and others kill themselves in their initializer; each of its tasks gives its result
or is lost, no more of them than were killed. Some pools are terminated in the middle of their work,
with a worker killed meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import gc
import importlib
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
import zlib
from functools import partial
from pathlib import Path
from queue import Empty, Full
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

PROOF_OF_LIFE = 5  # messages that every survivor has to move after the kills
LONGEST_PAUSE = 0.06  # seconds before a kill
BACKLOG = 400  # an unbounded queue is kept at about so many messages
MOST_MESSAGES = 1 << 20  # that a consumer can write down
LONGEST_STOP = 0.05  # seconds between SIGSTOP and SIGKILL
TIME_OUT = 0.002  # seconds of those who wait with time-outs
THROTTLE = 0.0007  # seconds between two messages of a side that shall keep the other waiting


class Hung(Exception):
    """A survivor did not go on."""


# --- the books ------------------------------------------------------------------------------------


class Book:
    """Words of 64 bits in a file, which outlive the process that writes them."""

    def __init__(self, path: Path, words: int) -> None:
        self.path = path
        with path.open("a+b") as file:
            file.truncate(8 * words)
            self.words = memoryview(mmap.mmap(file.fileno(), 8 * words)).cast("Q")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, len(self.words))


class Journal(Book):
    """What a producer's and a consumer's book have in common."""

    def moved(self) -> int:
        raise NotImplementedError

    def is_inside(self) -> bool:
        """Say whether the process is in `put` or `get`."""
        raise NotImplementedError

    def sleeps_inside(self, pid: int) -> bool:
        return self.is_inside() and is_asleep(pid)

    def has_come_to(self, goal: int) -> bool:
        return self.moved() >= goal

    def has_begun(self) -> bool:
        return self.is_inside() or self.moved() > 0


class ProducerBook(Journal):
    BEGUN, DONE = range(2)  # numbers from 1

    def __init__(self, path: Path, words: int = 2) -> None:
        super().__init__(path, words)

    def moved(self) -> int:
        return self.words[self.DONE]

    def is_inside(self) -> bool:
        return self.words[self.BEGUN] != self.words[self.DONE]


class ConsumerBook(Journal):
    COUNT, INSIDE, FIRST = range(3)

    def __init__(self, path: Path, words: int = 2 + MOST_MESSAGES) -> None:
        super().__init__(path, words)

    def moved(self) -> int:
        return self.words[self.COUNT]

    def is_inside(self) -> bool:
        return self.words[self.INSIDE] != 0

    def write(self, producer: int, number: int, whole: bool) -> None:
        count = self.words[self.COUNT]
        self.words[self.FIRST + count] = producer << 40 | number << 1 | (not whole)
        self.words[self.COUNT] = count + 1

    def read(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        end = self.FIRST + self.moved()
        return np.array(self.words[self.FIRST : end], dtype=np.uint64)


class Control(Book):
    """What the round tells everybody."""

    STOP, PRODUCER_PAUSE, CONSUMER_PAUSE = range(3)  # pauses in microseconds

    def __init__(self, path: Path, words: int = 3) -> None:
        super().__init__(path, words)


# --- messages -------------------------------------------------------------------------------------

_HEAD = struct.Struct("<QQQ")  # producer, number, checksum of what follows
_PATTERN = np.random.default_rng(0).integers(0, 256, 1 << 19, dtype=np.uint8).tobytes()


def make_message(producer: int, number: int, rng: random.Random) -> object:
    kind = rng.random()
    if kind < 0.6:
        return (producer, number, f"{producer}:{number}")
    size = rng.randrange(2000) if kind < 0.85 else rng.randrange(2000, 200_000)
    start = rng.randrange(len(_PATTERN) - size)
    body = _PATTERN[start : start + size]
    whole = _HEAD.pack(producer, number, zlib.crc32(body)) + body
    return np.frombuffer(whole, dtype=np.uint8) if kind > 0.95 else whole


def read_message(message: Any) -> tuple[int, int, bool]:
    if isinstance(message, tuple):
        producer, number, text = message
        return producer, number, text == f"{producer}:{number}"
    view = memoryview(message)
    producer, number, checksum = _HEAD.unpack_from(view)
    return producer, number, zlib.crc32(view[_HEAD.size :]) == checksum


# --- processes ------------------------------------------------------------------------------------


class Ends:
    """A pipe or a SimpleQueue that is used like a queue."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self.get = reader.recv
        self.put = writer.send

    @staticmethod
    def qsize() -> int:
        return 0  # it is bounded, at 64 KiB


def make_queue(context: Any, kind: str, maxsize: int) -> Any:
    if kind == "Pipe":
        return Ends(*context.Pipe(duplex=False))
    if kind == "SimpleQueue":
        queue = context.SimpleQueue()
        return Ends(queue._reader, queue._writer)
    return getattr(context, kind)(maxsize)


def with_time_outs(call: Callable[..., Any], *arguments: object) -> Any:
    """Put or get, each attempt with a time-out."""
    while True:
        try:
            return call(*arguments, timeout=TIME_OUT)
        except (Empty, Full):
            continue


def produce(
    queue: Any, book: ProducerBook, control: Control, hasty: bool, name: int, seed: int
) -> None:
    faulthandler.register(signal.SIGUSR1)
    rng = random.Random(seed)
    words, orders = book.words, control.words
    put = partial(with_time_outs, queue.put) if hasty else queue.put
    number = 0
    while not orders[control.STOP]:
        if queue.qsize() > BACKLOG:
            time.sleep(0.001)
            continue
        number += 1
        message = make_message(name, number, rng)
        words[book.BEGUN] = number
        put(message)
        words[book.DONE] = number
        if orders[control.PRODUCER_PAUSE]:
            time.sleep(orders[control.PRODUCER_PAUSE] / 1e6)


def consume(queue: Any, book: ConsumerBook, control: Control, hasty: bool) -> None:
    faulthandler.register(signal.SIGUSR1)
    get = partial(with_time_outs, queue.get) if hasty else queue.get
    orders = control.words
    done = getattr(queue, "task_done", None)
    while True:
        book.words[book.INSIDE] = 1
        message = get()
        book.words[book.INSIDE] = 0
        if message is not None:
            book.write(*read_message(message))
        if done is not None:
            done()
        if message is None:
            return
        if orders[control.CONSUMER_PAUSE]:
            time.sleep(orders[control.CONSUMER_PAUSE] / 1e6)


def is_asleep(pid: int) -> bool:
    stat = Path("/proc", str(pid), "stat").read_text()
    return stat.rpartition(") ")[2].startswith("S")


# --- a round --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    messages: int = 0
    kills: int = 0
    asleep: int = 0
    stopped: int = 0  # of the kills: those of stopped processes
    hung: int = 0
    lost: int = 0
    taken_by_the_dead: int = 0  # messages that the killed consumer had not written down
    doubled: int = 0
    reordered: int = 0
    torn: int = 0
    leaked: int = 0
    failed: int = 0

    def is_bad(self) -> bool:
        return any(
            (
                self.hung,
                self.lost,
                self.doubled,
                self.reordered,
                self.torn,
                self.leaked,
                self.failed,
            )
        )

    def __add__(self, other: Outcome) -> Outcome:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Outcome(*(a + b for a, b in pairs))


class Round:
    def __init__(
        self,
        context: BaseContext,
        seed: str,
        folder: Path,
        patience: float,
        log: Callable[..., None],
        kind: str = "Queue",
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.patience = patience
        self.log = log
        self.outcome = Outcome()
        self.is_forked = context.get_start_method() == "fork"
        self.maxsize = rng.choice([0, 0, 1, 4, 16, 64])
        self.kind = kind
        self.queue: Any = make_queue(context, kind, self.maxsize)
        if kind in ("Pipe", "SimpleQueue"):
            self.maxsize = 1  # for what follows: bounded
        self.control = Control(folder / "control")
        counts = rng.randint(2, 4), rng.randint(2, 4)
        self.producer_books = [ProducerBook(folder / f"producer{i}") for i in range(counts[0])]
        self.consumer_books = [ConsumerBook(folder / f"consumer{i}") for i in range(counts[1])]

        def process(target: Callable[..., None], *args: object) -> BaseProcess:
            made = context.Process(target=target, args=args)  # type: ignore[attr-defined]
            made.start()
            return made  # type: ignore[no-any-return]

        def hasty() -> bool:
            return kind in ("Queue", "JoinableQueue") and rng.random() < 0.3

        self.producers = [
            process(produce, self.queue, book, self.control, hasty(), i, rng.getrandbits(32))
            for i, book in enumerate(self.producer_books)
        ]
        self.consumers = [
            process(consume, self.queue, book, self.control, hasty())
            for book in self.consumer_books
        ]

    def run(self) -> Outcome:
        try:
            self._kill_and_go_on()
            self._compare_books()
        except Hung as hang:
            self.outcome.hung = 1
            self._show(str(hang))
        finally:
            for process in (*self.producers, *self.consumers):
                process.kill()
            for process in (*self.producers, *self.consumers):
                process.join()
                process.close()
        return self.outcome

    def _kill_and_go_on(self) -> None:
        rng = self.rng
        if not self.is_forked:
            # A handle in a pickle that nobody has opened yet keeps its channel: it would count
            # as leaked if its receiver were killed before it has come to that.
            self._wait("all to begin", lambda: all(book.has_begun() for book in self._books()))
        self._wait("the first message", lambda: any(book.moved() for book in self.consumer_books))
        killed_producer = rng.randrange(len(self.producers))
        killed_consumer = rng.randrange(len(self.consumers))
        kills: list[tuple[BaseProcess, Journal, int, bool]] = [
            (
                self.producers[killed_producer],
                self.producer_books[killed_producer],
                Control.CONSUMER_PAUSE,
                # A producer sleeps in `put` only if the queue is bounded.
                self.maxsize != 0 and rng.random() < 0.5,
            ),
            (
                self.consumers[killed_consumer],
                self.consumer_books[killed_consumer],
                Control.PRODUCER_PAUSE,
                rng.random() < 0.5,
            ),
        ]
        rng.shuffle(kills)
        for process, book, throttle, while_asleep in kills:
            self.control.words[throttle] = int(THROTTLE * 1e6) if while_asleep else 0
            time.sleep(rng.uniform(0, LONGEST_PAUSE))
            assert process.pid is not None
            pid = process.pid
            if while_asleep:
                self._wait(f"process {pid} to sleep", partial(book.sleeps_inside, pid))
            self.outcome.asleep += book.sleeps_inside(pid)
            if rng.random() < 0.25:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(rng.uniform(0, LONGEST_STOP))
                self.outcome.stopped += 1
            os.kill(pid, signal.SIGKILL)  # not waited for: a zombie counts as dead, too
            self.outcome.kills += 1
            self.control.words[throttle] = 0
        self.dead = killed_producer, killed_consumer
        self._wait_for_survivors()
        self._drain()

    def _books(self) -> tuple[Journal, ...]:
        return (*self.producer_books, *self.consumer_books)

    def _survivors(self) -> Iterator[tuple[str, BaseProcess, Journal]]:
        for i, (process, book) in enumerate(zip(self.producers, self.producer_books, strict=True)):
            if i != self.dead[0]:
                yield f"producer {i}", process, book
        for i, (taker, taken) in enumerate(zip(self.consumers, self.consumer_books, strict=True)):
            if i != self.dead[1]:
                yield f"consumer {i}", taker, taken

    def _wait_for_survivors(self) -> None:
        goals = {name: book.moved() + PROOF_OF_LIFE for name, _, book in self._survivors()}
        for name, _, book in self._survivors():
            self._wait(f"{name} to go on", partial(book.has_come_to, goals[name]))

    def _drain(self) -> None:
        self.control.words[Control.STOP] = 1
        consumers = []
        for name, process, _ in self._survivors():
            if "producer" in name:
                self._join(name, process)
            else:
                consumers.append((name, process))
        # The order is total, so these stand behind everything that was put.
        for _ in consumers:
            self.queue.put(None)
        if self.kind == "JoinableQueue":
            self._join_queue()
        for name, process in consumers:
            self._join(name, process)

    def _join_queue(self) -> None:
        open_tasks: list[int] = []

        def join() -> None:
            try:
                self.queue.join()
                open_tasks.append(0)
            except RuntimeError as error:
                open_tasks.append(getattr(error, "open_tasks", 99))

        thread = threading.Thread(target=join, daemon=True)
        thread.start()
        thread.join(self.patience)
        if thread.is_alive():
            raise Hung(f"the queue could not be joined within {self.patience} s")
        # What the killed consumer had taken, written down or not, and not reported.
        if not 0 <= open_tasks[0] <= 1:
            self.outcome.failed += 1
            self.log(f"join() says {open_tasks[0]} open tasks")

    def _compare_books(self) -> None:
        outcome = self.outcome
        taken = [book.read() for book in self.consumer_books]
        outcome.messages = sum(map(len, taken))
        outcome.torn = int(sum(np.count_nonzero(words & np.uint64(1)) for words in taken))
        missing = 0
        for name, book in enumerate(self.producer_books):
            numbers = []
            for words in taken:
                of_this = words[(words >> np.uint64(40)) == name]
                own = (of_this & np.uint64((1 << 40) - 1)) >> np.uint64(1)
                outcome.reordered += int(np.count_nonzero(own[1:] <= own[:-1]))
                numbers.append(own)
            every = np.concatenate(numbers)
            distinct = np.unique(every)
            begun, done = book.words[book.BEGUN], book.words[book.DONE]
            outcome.doubled += len(every) - len(distinct)
            outcome.doubled += int(np.count_nonzero((distinct > begun) | (distinct == 0)))
            missing += done - int(np.count_nonzero(distinct <= done))
        outcome.taken_by_the_dead = min(missing, 1)
        outcome.lost = missing - outcome.taken_by_the_dead

    # -- waiting --

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience
        pause = 0.0002
        while not condition():
            if time.monotonic() > deadline:
                raise Hung(f"waited {self.patience} s for {what}")
            for process in (*self.producers, *self.consumers):
                if process.exitcode not in (None, 0, -signal.SIGKILL):
                    self.outcome.failed += 1
                    raise Hung(f"{process} failed while waiting for {what}")
            time.sleep(pause)
            pause = min(2 * pause, 0.01)

    def _join(self, name: str, process: BaseProcess) -> None:
        process.join(self.patience)
        if process.exitcode is None:
            raise Hung(f"{name} did not end within {self.patience} s")
        self.outcome.failed += process.exitcode != 0

    def _show(self, reason: str) -> None:
        self.log(f"hung: {reason}; maxsize {self.maxsize}")
        for process, book in zip((*self.producers, *self.consumers), self._books(), strict=True):
            self.log(f"  {process}: moved {book.moved()}, inside: {book.is_inside()}")
        for process in (*self.producers, *self.consumers):
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGUSR1)  # prints its stack
                time.sleep(0.05)


# --- a round of a pool ----------------------------------------------------------------------------


def check(message: Any) -> tuple[int, int, bool, Any]:
    """Look at a message and send it back; what a worker does."""
    return (*read_message(message), message)


def die_now_and_then(seed: int) -> None:
    """Initialize a worker, which one in five does not survive."""
    if random.Random(f"{seed}/{os.getpid()}").random() < 0.2:
        os.kill(os.getpid(), signal.SIGKILL)


class PoolRound:
    """A pool at work, of which two workers are killed."""

    TASKS = 60

    def __init__(
        self,
        context: BaseContext,
        seed: str,
        folder: Path,
        patience: float,
        log: Callable[..., None],
        kind: str = "Pool",
    ) -> None:
        del folder, kind
        self.rng = rng = random.Random(seed)
        self.context: Any = context
        self.patience = patience
        self.log = log
        self.outcome = Outcome()
        self.retries = rng.choice([0, 0, 2])
        self.lost = 0

    def run(self) -> Outcome:
        rng, outcome = self.rng, self.outcome
        options: dict[str, Any] = {"retries": self.retries} if self.retries else {}
        if rng.random() < 0.3:
            options |= {"initializer": die_now_and_then, "initargs": (rng.getrandbits(32),)}
        pool = self.context.Pool(rng.randint(2, 3), **options)
        try:
            answers = self._submit(pool)
            workers = list(pool._pool)
            self._kill(rng.sample(workers, min(2, len(workers))))
            if rng.random() < 0.3:
                self._kill_while_it_ends(pool)
                return outcome
            for number, answer in enumerate(answers):
                self._take(number, answer)
            outcome.taken_by_the_dead = min(self.lost, outcome.kills)
            outcome.lost = self.lost - (0 if self.retries else outcome.taken_by_the_dead)
            again = pool.map_async(abs, range(-50, 0)).get(self.patience)
            outcome.failed += again != list(range(50, 0, -1))
            if rng.random() < 0.5:
                pool.close()
                self._end(pool.join)
        except self.context.TimeoutError:
            outcome.hung = 1
            self.log(f"hung: no result within {self.patience} s")
        finally:
            self._end(pool.terminate)
            self._end(pool.join)
        return outcome

    def _submit(self, pool: Any) -> list[Callable[[], Any]]:
        """Submit the tasks in one of the ways there are; return what gives their results."""
        rng = self.rng
        messages = [make_message(0, number, rng) for number in range(self.TASKS)]
        way = rng.choice(["apply", "map", "imap", "imap_unordered"])
        if way == "apply":
            results = [pool.apply_async(check, (message,)) for message in messages]
            return [partial(result.get, self.patience) for result in results]
        if way == "map":
            chunk = rng.choice([1, 1, 4])
            chunks = [messages[at : at + chunk] for at in range(0, self.TASKS, chunk)]
            results = [pool.map_async(check, part, chunksize=chunk) for part in chunks]
            return [partial(result.get, self.patience) for result in results]
        return [partial(getattr(pool, way)(check, messages).next, self.patience)] * self.TASKS

    def _kill(self, workers: list[BaseProcess]) -> None:
        for worker in workers:
            time.sleep(self.rng.uniform(0, LONGEST_PAUSE / 4))
            if worker.exitcode is None:  # it may have killed itself
                worker.kill()
                self.outcome.kills += 1

    def _take(self, number: int, answer: Callable[[], Any]) -> None:
        try:
            result = answer()
        except RuntimeError as error:
            self.lost += 1
            if getattr(error, "exitcode", None) != -signal.SIGKILL:
                self.outcome.failed += 1
                self.log(f"task {number}: {error!r}")
            return
        for producer, got, whole, message in result if isinstance(result, list) else [result]:
            self.outcome.messages += 1
            self.outcome.torn += not (whole and producer == 0 and got < self.TASKS)
            self.outcome.torn += read_message(message) != (producer, got, whole)

    def _kill_while_it_ends(self, pool: Any) -> None:
        workers = pool._pool[:1]
        ending = threading.Thread(target=pool.terminate, daemon=True)
        ending.start()
        self._kill(workers)
        self._end(ending.join)

    def _end(self, how: Callable[[], None]) -> None:
        """Call what may take a while, and no longer than we are patient."""
        thread = threading.Thread(target=how, daemon=True)
        thread.start()
        thread.join(self.patience)
        if thread.is_alive():
            self.outcome.hung = 1
            self.log(f"hung: {how} did not end within {self.patience} s")


KINDS = "Queue", "JoinableQueue", "SimpleQueue", "Pipe", "Pool"


def leaks(before: dict[str, int]) -> list[str]:
    """What the segment still holds for nobody, after a round."""
    import ipcbuf

    segment = ipcbuf.default_segment()
    segment.reap()
    now: Any = segment.stats()
    kinds = (
        "processes",
        "parcels",
        "channels",
        "process_blocks",
        "flight_blocks",
        "ring_blocks",
        "shared_blocks",
    )
    found = [
        f"{kind}: {before[kind]} -> {now[kind]}" for kind in kinds if now[kind] != before[kind]
    ]
    return found + segment.fsck()


def run(
    rounds: int,
    seed: int,
    library: str = "ipcbuf_mp",
    method: str = "fork",
    patience: float = 30,
    first: int = 0,
    kind: str = "Queue",
) -> Outcome:
    """Run the rounds and print what came out; stop at the first bad one of ours."""
    context = importlib.import_module(library).get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["numpy", library])
    ours = library == "ipcbuf_mp"
    before: Any = {}
    if ours:
        import ipcbuf

        before = ipcbuf.default_segment().stats()
    total = Outcome()
    begin = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - begin:7.1f} s] {text}", file=sys.stderr, flush=True)

    done = 0
    for number in range(first, first + rounds):
        with tempfile.TemporaryDirectory(prefix="kills") as folder:
            make: Any = PoolRound if kind == "Pool" else Round
            outcome = make(context, f"{seed}/{number}", Path(folder), patience, log, kind).run()
            gc.collect()  # the ends of a queue that is in a cycle count as leaked, else
        if ours and (left := leaks(before)):
            outcome.leaked = len(left)
            log(f"left in the segment: {left}")
        total += outcome
        done += 1
        if outcome.is_bad():
            log(f"round {number} of seed {seed}: {outcome}")
            if ours:
                break
        if done % 50 == 0:
            log(f"{done} rounds: {total}")
    seconds = time.monotonic() - begin
    if ours:
        after = ipcbuf.default_segment().stats()
        log(f"{after['reaps']} processes reaped, {after['takeovers']} locks taken over")
    print(f"{library}.{kind}, {method}: {done} rounds, seed {seed}, {seconds:.0f} s\n  {total}")
    print(json.dumps({"rounds": done, **dataclasses.asdict(total)}))
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--library", default="ipcbuf_mp", choices=("ipcbuf_mp", "multiprocessing"))
    parser.add_argument("--method", default="fork", choices=("fork", "spawn", "forkserver"))
    parser.add_argument("--kind", default="Queue", choices=KINDS)
    parser.add_argument(
        "--patience", type=float, default=30, help="seconds until it counts as hung"
    )
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    try:
        outcome = run(**vars(options))
    except BaseException:
        traceback.print_exc()
        raise
    return 1 if outcome.is_bad() else 0


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # behind what is installed
    sys.exit(main())
