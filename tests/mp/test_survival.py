# SPDX-License-Identifier: Apache-2.0
"""What goes on working: forks, full memory, a small /dev/shm, children without number."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import mmap
import os
import queue
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf
import ipcbuf.segment
import ipcbuf_mp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    Start = Callable[..., Any]
    Bytes = np.ndarray[Any, np.dtype[np.uint8]]

ROOT = Path(__file__).parents[2]
PATIENCE = 60
MIB = 1 << 20


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def stats() -> Any:
    gc.collect()
    return ipcbuf.default_segment().stats()


# --- a fork with received arrays ------------------------------------------------------------------


def digest_twice(arrays: list[Bytes], go: Any, answers: Any) -> None:
    answers.put([digest(array) for array in arrays])
    assert go.get(timeout=PATIENCE) == "go"
    answers.put([digest(array) for array in arrays])
    arrays.clear()


def test_a_childs_array_survives_its_parents_refill(start: Start) -> None:
    context = ipcbuf_mp.get_context("fork")
    carrier, answers, go = context.Queue(), context.Queue(), context.Queue()
    sizes = [5000, 100_000, 3_000_000]
    before = stats()
    for size in sizes:
        carrier.put(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8))
    arrays = [carrier.get(timeout=PATIENCE) for _ in sizes]
    expected = [digest(array) for array in arrays]

    child = start(context, digest_twice, arrays, go, answers)
    assert answers.get(timeout=PATIENCE) == expected
    arrays.clear()  # ours are gone, the child's are not
    assert stats()["shared_blocks"] - before["shared_blocks"] == len(sizes)
    for _ in range(30):  # the same sizes again, with other bytes
        for size in sizes:
            carrier.put(np.full(size, 0xEE, dtype=np.uint8))
            assert carrier.get(timeout=PATIENCE).sum() == size * 0xEE
    go.put("go")

    assert answers.get(timeout=PATIENCE) == expected
    child.join(PATIENCE)
    assert stats()["shared_blocks"] == before["shared_blocks"]


def test_a_parents_array_survives_its_children(start: Start) -> None:
    context = ipcbuf_mp.get_context("fork")
    carrier, answers, go = context.Queue(), context.Queue(), context.Queue()
    before = stats()
    carrier.put(np.random.default_rng(1).integers(0, 256, 1_000_000, dtype=np.uint8))
    arrays = [carrier.get(timeout=PATIENCE)]
    expected = digest(arrays[0])
    children = [start(context, digest_twice, arrays, go, answers) for _ in range(4)]
    for _ in children:
        assert answers.get(timeout=PATIENCE) == [expected]

    children[0].kill()  # does not come to drop its share
    children[0].join(PATIENCE)
    for _ in children[1:]:
        go.put("go")
    for _ in children[1:]:
        assert answers.get(timeout=PATIENCE) == [expected]
    for child in children:
        child.join(PATIENCE)
    for _ in range(10):
        carrier.put(np.zeros(1_000_000, dtype=np.uint8))
        carrier.get(timeout=PATIENCE)

    assert digest(arrays[0]) == expected
    arrays.clear()
    ipcbuf.default_segment().reap()
    assert stats()["shared_blocks"] == before["shared_blocks"]


# --- segments of their own ------------------------------------------------------------------------


def exchange_with_sibling(name: str, pipe: Connection) -> None:
    """Make a queue in a segment of our own, swap it for the sibling's, talk both ways."""
    context = ipcbuf_mp.get_context("spawn")
    mine = context.Queue()
    pipe.send((mine, ipcbuf.default_segment().uuid))
    assert pipe.poll(PATIENCE)
    theirs, uuid = pipe.recv()
    assert uuid != ipcbuf.default_segment().uuid
    for number in range(200):
        theirs.put((name, number, np.full(20_000, number, dtype=np.int16)))
    for number in range(200):
        who, got, array = mine.get(timeout=PATIENCE)
        assert who != name
        assert got == number
        assert (array == number).all()
    pipe.send("done")
    assert pipe.poll(PATIENCE)  # the segment of a queue lives as long as a process has it
    pipe.recv()


def pass_on(ends: list[Any]) -> None:
    """Give each of two siblings what the other one has sent."""
    handles = []
    for end in ends:
        assert end.poll(PATIENCE)
        handles.append(end.recv())
    for end, handle in zip(ends, reversed(handles), strict=True):
        end.send(handle)
    for end in ends:
        assert end.poll(PATIENCE)
        assert end.recv() == "done"
    for end in ends:
        end.send("end")


# The standard library's pipes: they bring no segment along, so each child makes one.
SIBLINGS = """
import multiprocessing, sys
sys.path.append(sys.argv[2])
from tests.mp.test_survival import exchange_with_sibling, pass_on
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    pipes = [context.Pipe() for _ in range(2)]
    children = [context.Process(target=exchange_with_sibling, args=(name, there))
                for name, (_, there) in zip("ab", pipes)]
    for child in children:
        child.start()
    pass_on([here for here, _ in pipes])
    for child in children:
        child.join()
    print(*[child.exitcode for child in children])
"""


def test_siblings_exchange_queues_of_their_own_segments(start_method: str) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-c", SIBLINGS, start_method, str(ROOT)],
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.stdout, result.stderr) == ("0 0\n", "")


# --- children without number ----------------------------------------------------------------------


def put_and_end(target: Any, number: int) -> None:
    target.put((number, ipcbuf.default_segment().token))


SLOT = 0xFFF  # the part of a token that is a slot's number


def start_many(count: int) -> list[float]:
    """Start children one after the other; return the seconds that each took."""
    context = ipcbuf_mp.get_context("fork")
    answers = context.Queue()
    slots = set()
    tokens = set()
    seconds = []
    for number in range(count):
        begin = time.perf_counter()
        child = context.Process(target=put_and_end, args=(answers, number))
        child.start()
        who, token = answers.get(timeout=PATIENCE)
        child.join(PATIENCE)
        seconds.append(time.perf_counter() - begin)

        assert child.exitcode == 0
        assert who == number
        slots.add(token & SLOT)
        tokens.add(token)
        child.close()
    assert len(tokens) == count  # nobody is taken for somebody who was there before
    assert len(slots) <= 16  # a few are looked through at each fork
    return seconds


def test_hundreds_of_children_reuse_slots() -> None:
    ipcbuf.default_segment().reap()  # a child that another test killed may still have its slot
    before = stats()

    seconds = start_many(300)

    ipcbuf.default_segment().reap()
    after = stats()
    assert after["processes"] == before["processes"]
    assert after["committed_bytes"] == before["committed_bytes"]
    # Flat: a leak in a table would make every start slower than the one before.
    assert statistics.median(seconds[-75:]) < 3 * statistics.median(seconds[:75])


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_five_thousand_children_start_in_the_same_time() -> None:
    seconds = start_many(5000)

    medians = [statistics.median(seconds[at : at + 1000]) for at in range(0, 5000, 1000)]
    print("median per start, by thousand:", [f"{1000 * median:.2f} ms" for median in medians])
    assert medians[-1] < 1.5 * medians[0]


# --- memory ---------------------------------------------------------------------------------------

WITH_FULL_SHM = """
import errno, os, sys
import numpy as np
sys.path.append(sys.argv[1])
import ipcbuf, ipcbuf_mp

def double(requests, answers):
    while (array := requests.get()) is not None:
        answers.put(array * 2)

def ours():
    return [name for name in os.listdir("/dev/shm") if name not in before]

if __name__ == "__main__":
    before = os.listdir("/dev/shm")
    if len(sys.argv) > 2:  # our own tmpfs: fill it to the last byte
        with open("/dev/shm/filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        before.append("filler")
        with open("/dev/shm/filler", "ab", buffering=0) as filler:
            try:
                filler.write(bytes(4096))
                raise SystemExit("not full")
            except OSError:
                pass
    context = ipcbuf_mp.get_context("fork")
    requests, answers = context.Queue(), context.Queue()
    child = context.Process(target=double, args=(requests, answers))
    child.start()
    for number in range(4):
        requests.put(np.full(8 << 20, number, dtype=np.uint8))
    assert ours() == [], ours()
    for number in range(4):
        assert (answers.get(timeout=60) == 2 * number).all()
    for number in range(12):
        answers.put(bytes(8 << 20))  # 96 MiB at once
    assert ours() == [], ours()
    for number in range(12):
        assert len(answers.get(timeout=60)) == 8 << 20
    requests.put(None)
    child.join()
    print("went on", child.exitcode)
"""


def in_a_container(script: str) -> list[str]:
    """Return a command that runs the script with 64 MiB of /dev/shm of its own, if it may."""
    plain = [sys.executable, "-P", "-c", script, str(ROOT)]
    mount = 'mount -t tmpfs -o size=64m none /dev/shm && exec "$@"'
    for user in ([], ["--map-root-user"]):
        if (unshare := shutil.which("unshare")) is None:
            break
        contained = [unshare, "--mount", *user, "sh", "-c", mount, "sh"]
        if subprocess.run([*contained, "true"], check=False, capture_output=True).returncode == 0:
            return [*contained, *plain, "contained"]
    return plain


def test_a_full_shm_makes_no_difference() -> None:
    """Where nobody may mount, this still shows that nothing of ours comes into /dev/shm."""
    result = subprocess.run(
        in_a_container(WITH_FULL_SHM),
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.stdout, result.stderr) == ("went on 0\n", "")


@pytest.fixture
def small_segment(monkeypatch: pytest.MonkeyPatch) -> Iterator[ipcbuf.Segment]:
    """A default segment of 16 MiB."""
    segment = ipcbuf.Segment(max_size=16 * MIB)
    monkeypatch.setattr(ipcbuf.segment, "_default", segment)

    yield segment

    gc.collect()
    segment.reap()
    assert segment.fsck() == []


def count_and_check(source: Any, answers: Any) -> None:
    count = 0
    while (item := source.get(timeout=PATIENCE)) is not None:
        number, array = item
        assert number == count
        assert (array == number % 256).all()
        count += 1
        del item, array
    answers.put(count)


def test_a_queue_that_fills_the_segment_says_so_and_goes_on(
    small_segment: ipcbuf.Segment, start_method: str, start: Start
) -> None:
    context = ipcbuf_mp.get_context(start_method)
    target, answers = context.Queue(), context.Queue()

    def put(number: int) -> None:
        target.put((number, np.full(100_000, number % 256, dtype=np.uint8)))

    number = 0
    error = None
    while error is None:
        try:
            put(number)
            number += 1
        except ipcbuf.HeapExhausted as full:
            error = full
    assert (error.requested, error.max_size) == (100_000, 16 * MIB)
    assert error.committed == 16 * MIB
    assert error.largest <= error.free < MIB
    assert "16777216" in str(error)
    assert error.errno == errno.ENOMEM
    assert target.qsize() == number > 50

    start(context, count_and_check, target, answers)
    end = time.monotonic() + PATIENCE
    last = number + 200
    while number < last:
        with contextlib.suppress(ipcbuf.HeapExhausted):
            put(number)
            number += 1
        assert time.monotonic() < end
    while True:
        with contextlib.suppress(ipcbuf.HeapExhausted):
            target.put(None)
            break
    while True:
        with contextlib.suppress(queue.Empty):
            assert answers.get(timeout=0.1) == last
            break
        assert time.monotonic() < end


def test_a_backlog_of_small_items_fills_the_segment_and_is_not_lost(
    small_segment: ipcbuf.Segment,
) -> None:
    target = ipcbuf_mp.get_context("fork").Queue()
    count = 0
    with contextlib.suppress(ipcbuf.HeapExhausted):
        while True:
            target.put(count)
            count += 1

    assert target.qsize() == count > 100_000
    assert [target.get(timeout=0) for _ in range(count)] == list(range(count))
    target.put("on")
    assert target.get(timeout=0) == "on"


# --- forks beside threads -------------------------------------------------------------------------


def test_forks_while_threads_are_at_work() -> None:
    """Whatever lock a thread is in when the main thread forks, the child goes on."""
    context = ipcbuf_mp.get_context("fork")
    busy, answers = context.Queue(), context.Queue()
    segment = ipcbuf.default_segment()
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(name: int) -> None:
        kept = []
        try:
            while not stop.is_set():
                busy.put((name, "x" * 300, np.zeros(5000)))
                kept.append(segment.allocate(2000 * name + 1))
                kept.append(busy.get(timeout=PATIENCE))
                if len(kept) > 10:
                    kept.clear()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(300):
            pid = os.fork()
            if pid == 0:
                # Straight out: pytest's own threads are not here.
                try:
                    answers.put((number, np.full(3000, number)))
                    segment.allocate(50_000).release()
                    os._exit(0)
                finally:
                    os._exit(1)
            who, array = answers.get(timeout=PATIENCE)
            assert who == number
            assert (array == number).all()
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            del array
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)

    assert failures == []
    while not busy.empty():
        busy.get(timeout=PATIENCE)
    gc.collect()
    segment.reap()
    assert segment.fsck() == []


# --- idling ---------------------------------------------------------------------------------------


def cpu_of_a_wait(source: Any, answers: Any) -> None:
    begin = resource.getrusage(resource.RUSAGE_SELF)
    with contextlib.suppress(queue.Empty):
        source.get(timeout=3)
    end = resource.getrusage(resource.RUSAGE_SELF)
    answers.put((end.ru_utime + end.ru_stime) - (begin.ru_utime + begin.ru_stime))


def test_a_blocked_get_uses_no_cpu(start: Start) -> None:
    context = ipcbuf_mp.get_context("fork")
    source, answers = context.Queue(), context.Queue()

    start(context, cpu_of_a_wait, source, answers)

    assert answers.get(timeout=PATIENCE) < 0.02


class Board:
    """Times that processes write down without any queue."""

    def __init__(self, count: int) -> None:
        self.memory = mmap.mmap(-1, 8 * count)

    def write(self, at: int, value: float) -> None:
        struct.pack_into("d", self.memory, 8 * at, value)

    def read(self) -> list[float]:
        return list(memoryview(self.memory).cast("d"))


def get_and_note(source: Any, board: Board, at: int, rounds: int) -> None:
    for _ in range(rounds):
        sent = source.get(timeout=PATIENCE)
        board.write(at, time.monotonic() - sent)


def get_blocked(processes: list[Any]) -> None:
    """Wait until all processes sleep, for longer than the first second with its short slices."""
    deadline = time.monotonic() + PATIENCE
    asleep_since = time.monotonic()
    while time.monotonic() - asleep_since < 1.2:
        for process in processes:
            with open(f"/proc/{process.pid}/stat") as file:  # noqa: PTH123
                if file.read().rpartition(") ")[2][0] != "S":
                    asleep_since = time.monotonic()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_eight_sleepers_take_eight_items_at_once(start: Start) -> None:
    """A forgotten sleeper would wait out its slice of 200 ms."""
    context = ipcbuf_mp.get_context("fork")
    slowest = []
    for _ in range(60):  # a busy machine is slow now and then; a lost wake-up is lost always
        source = context.Queue()
        board = Board(8)
        getters = [start(context, get_and_note, source, board, at, 1) for at in range(8)]
        get_blocked(getters)
        for _ in getters:
            source.put(time.monotonic())
        for getter in getters:
            getter.join(PATIENCE)
        slowest.append(max(board.read()))
        if slowest[-1] < 0.05:
            break
    assert min(slowest) < 0.05, slowest


def put_and_note(target: Any, board: Board, at: int) -> None:
    target.put(at)
    board.write(at, time.monotonic())


def test_eight_sleeping_putters_go_on_at_once(start: Start) -> None:
    context = ipcbuf_mp.get_context("fork")
    slowest = []
    for _ in range(60):  # a busy machine is slow now and then; a lost wake-up is lost always
        target = context.Queue(8)
        for _ in range(8):
            target.put("full")
        board = Board(8)
        putters = [start(context, put_and_note, target, board, at) for at in range(8)]
        get_blocked(putters)
        begin = time.monotonic()
        for _ in putters:
            assert target.get(timeout=PATIENCE) == "full"
        for putter in putters:
            putter.join(PATIENCE)
        slowest.append(max(board.read()) - begin)
        assert sorted(target.get(timeout=PATIENCE) for _ in putters) == list(range(8))
        if slowest[-1] < 0.05:
            break
    assert min(slowest) < 0.05, slowest


# --- stopped, not dead ----------------------------------------------------------------------------


def put_for_ever(target: Any) -> None:
    number = 0
    while True:
        target.put(number)
        number += 1


def test_who_is_stopped_is_not_robbed(start: Start) -> None:
    """SIGSTOP at any moment: nothing is torn when the process goes on, whoever waited for it."""
    context = ipcbuf_mp.get_context("fork")
    target = context.Queue(100)
    child = start(context, put_for_ever, target)
    expected = 0
    for _ in range(30):
        for _ in range(200):
            assert target.get(timeout=PATIENCE) == expected
            expected += 1
        os.kill(child.pid, signal.SIGSTOP)
        with contextlib.suppress(queue.Empty):
            while True:
                assert target.get(timeout=0.005) == expected
                expected += 1
        os.kill(child.pid, signal.SIGCONT)
    child.kill()
