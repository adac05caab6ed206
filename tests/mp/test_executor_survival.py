# SPDX-License-Identifier: Apache-2.0
"""An executor whose workers die, hang and grow: who notices, and what is lost.

Tasks tell that they run through files, which work between any processes.
"""

from __future__ import annotations

import colorsys
import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf
import ipcbuf_mp
from ipcbuf_mp import _autopsy
from ipcbuf_mp._worker import INTERRUPT_SIGNAL
from ipcbuf_mp.executor import Executor, TaskInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 60.0  # for what must come; nothing takes so long
SOON = 1.0  # seconds from a worker's death to the end of every future, where it breaks the pool
METHODS = ("fork", "forkserver")  # spawn gets its workers as the latter does, and is slow

also_with_spawn = pytest.mark.parametrize("start_method", [*METHODS, "spawn"], indirect=True)


@pytest.fixture(params=METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(start_method: str) -> Iterator[Callable[..., Executor]]:
    made: list[Executor] = []

    def make(workers: int = 2, **options: Any) -> Executor:
        options.setdefault("mp_context", ipcbuf_mp.get_context(start_method))
        executor = Executor(workers, **options)
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.shutdown(cancel_futures=True)


def add(x: int, y: int) -> int:
    return x + y


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def hold(started: Path, release: Path) -> int:
    """Say who runs the task, and wait for being released."""
    started.with_suffix(".new").write_text(str(os.getpid()))
    started.with_suffix(".new").rename(started)
    wait_until(release.exists)
    return os.getpid()


def hold_once(folder: Path) -> None:
    """Say who begins; the first one is to be killed meanwhile."""
    if (folder / "first").exists():
        (folder / "second").write_text(str(os.getpid()))
        return
    hold(folder / "first", folder / "release")


def die(code: int) -> None:
    os._exit(code)


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(LONG)


def die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os._exit(7)
    return "second time"


def crash() -> None:
    ctypes.string_at(0)


def sleep_saying_so(started: Path, cleaned: Path) -> None:
    try:
        started.touch()
        time.sleep(LONG)
    except TaskInterrupted:
        cleaned.touch()
        raise


def sleep_behind_the_signal(started: Path, cleaned: Path) -> None:
    """Miss the first signal, as who goes to sleep at the moment when it comes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {INTERRUPT_SIGNAL})
    started.touch()
    signal.sigwait({INTERRUPT_SIGNAL})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {INTERRUPT_SIGNAL})
    sleep_saying_so(started, cleaned)


def sleep_whatever_comes(started: Path) -> None:
    while True:
        with contextlib.suppress(BaseException):
            started.touch()
            time.sleep(LONG)


def say_and_add(folder: Path, number: int) -> int:
    """Leave one file for each run."""
    with (folder / str(number)).open("a") as file:
        file.write(".")
    return number


class Argument:
    pass


class BadToRead(list[int]):
    def __reduce__(self) -> tuple[Any, ...]:
        return die_reading, ()


def die_reading() -> None:
    raise ValueError("cannot be read")


class NeedsTwo(Exception):
    """Pickles, and does not unpickle, as many exceptions do."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def give_bad_to_read(_: int) -> BadToRead:
    return BadToRead()


def raise_needs_two(_: int) -> None:
    raise NeedsTwo("it", "so")


def grow(nbytes: int) -> int:
    _kept.append(bytearray(os.urandom(1) * nbytes))
    return os.getpid()


_kept: list[bytearray] = []


def resident() -> int:
    """Return how many bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_memory() -> int:
    """Return how many bytes of memory this process has that others do not have."""
    mine, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (mine - shared) * os.sysconf("SC_PAGE_SIZE")


def log_something(text: str) -> None:
    logging.getLogger("worker").warning("said %s", text)
    logging.getLogger("worker").debug("not this")


def pid_of(path: Path) -> int:
    wait_until(path.exists)
    return int(path.read_text())


def context_switches(pid: int) -> int:
    """How often a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


# --- a worker dies --------------------------------------------------------------------------------


@also_with_spawn
def test_only_the_task_of_the_dead_is_lost(make: Callable[..., Executor], tmp_path: Path) -> None:
    executor = make(on_worker_death="restart")
    release = tmp_path / "release"
    victim = executor.submit(hold, tmp_path / "victim", release)
    other = executor.submit(hold, tmp_path / "other", release)
    waiting = [executor.submit(add, i, i) for i in range(20)]
    pid = pid_of(tmp_path / "victim")
    pid_of(tmp_path / "other")

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ipcbuf.WorkerLost) as caught:
        victim.result(LONG)
    assert caught.value.pid == pid
    assert caught.value.exitcode == -signal.SIGKILL
    assert "hold" in str(caught.value)
    assert f"Worker process {pid} was killed by SIGKILL" in caught.value.__notes__[0]
    assert [future.result(LONG) for future in waiting] == [2 * i for i in range(20)]
    release.touch()
    assert other.result(LONG) != pid
    assert executor.submit(add, 1, 1).result(LONG) == 2


@also_with_spawn
def test_a_lost_task_is_tried_again(make: Callable[..., Executor], tmp_path: Path) -> None:
    executor = make(on_worker_death="restart")
    patient = executor.with_options(retries=1)

    assert patient.submit(die_once, tmp_path / "marker").result(LONG) == "second time"
    with pytest.raises(ipcbuf.WorkerLost) as caught:
        patient.submit(die, 3).result(LONG)
    assert caught.value.exitcode == 3
    assert list(patient.map(abs, [-1, -2])) == [1, 2]


def test_a_crash_brings_its_last_traceback(
    make: Callable[..., Executor], start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if start_method == "forkserver":
        pytest.skip("the server has it on standard error since it was started")
    monkeypatch.delenv("PYTHONFAULTHANDLER", raising=False)
    was_enabled = faulthandler.is_enabled()
    faulthandler.disable()
    try:
        with pytest.raises(ipcbuf.WorkerLost) as lost:
            make(1, on_worker_death="restart").submit(crash).result(LONG)
        with pytest.raises(BrokenProcessPool) as broken:
            make(1).submit(crash).result(LONG)
    finally:
        if was_enabled:
            faulthandler.enable()

    assert "Segmentation fault" in str(lost.value.__cause__)
    assert "in crash" in str(lost.value.__cause__)
    assert "SIGSEGV while running task" in str(broken.value)
    assert "in crash" in str(broken.value.__cause__)


def test_a_task_that_cannot_be_read_fails_alone(make: Callable[..., Executor]) -> None:
    executor = make(1, on_worker_death="restart")

    pid = executor.submit(os.getpid).result(LONG)
    with pytest.raises(ValueError, match="cannot be read"):
        executor.submit(len, BadToRead()).result(LONG)

    assert executor.submit(os.getpid).result(LONG) == pid


@pytest.mark.parametrize(
    ("task", "error"), [(give_bad_to_read, ValueError), (raise_needs_two, TypeError)]
)
def test_a_result_that_cannot_be_read_fails_alone(
    make: Callable[..., Executor], task: Callable[[int], Any], error: type[Exception]
) -> None:
    executor = make(1, on_worker_death="restart")
    pid = executor.submit(os.getpid).result(LONG)

    others = [executor.submit(add, i, i) for i in range(5)]
    bad: list[Any] = [executor.submit(task, i) for i in range(2)]
    others += [executor.submit(add, i, i) for i in range(5, 10)]

    for future in bad:
        with pytest.raises(error) as caught:
            future.result(LONG)
        assert f"that of task {future._task_id}, {task.__name__}" in caught.value.__notes__[0]
    assert [future.result(LONG) for future in others] == [2 * i for i in range(10)]
    assert executor.submit(os.getpid).result(LONG) == pid


def test_a_result_that_cannot_be_read_is_named(make: Callable[..., Executor]) -> None:
    executor = make(1)

    with pytest.raises(BrokenProcessPool, match="unpickled: that of task 1, raise_needs_two"):
        executor.submit(raise_needs_two, 1).result(LONG)


@also_with_spawn
def test_workers_that_cannot_begin_break_the_pool(make: Callable[..., Executor]) -> None:
    executor = make(1, on_worker_death="restart", initializer=die, initargs=(4,))

    with pytest.raises(BrokenProcessPool, match="exit code 4, as those before it did"):
        executor.submit(add, 1, 1).result(LONG)


@also_with_spawn
def test_every_worker_killed_while_idle_is_replaced(make: Callable[..., Executor]) -> None:
    executor = make(2, on_worker_death="restart")
    for _ in range(3):
        assert list(executor.map(add, range(8), range(8))) == [2 * i for i in range(8)]
        for pid in list(executor._processes):
            with contextlib.suppress(ProcessLookupError):  # killed before, not yet replaced
                os.kill(pid, signal.SIGKILL)
    assert executor.submit(add, 1, 1).result(LONG) == 2


@also_with_spawn
def test_an_idle_worker_rarely_looks_whether_its_parent_lives(
    make: Callable[..., Executor],
) -> None:
    pid = make(1).submit(os.getpid).result(LONG)
    time.sleep(1.2)  # from then on a wait looks every 200 ms
    before = context_switches(pid)
    time.sleep(1)
    assert context_switches(pid) - before < 20


@also_with_spawn
def test_workers_killed_in_their_initializer_are_replaced(
    make: Callable[..., Executor], tmp_path: Path
) -> None:
    executor = make(1, on_worker_death="restart", initializer=hold_once, initargs=(tmp_path,))
    future = executor.submit(add, 1, 1)
    first = pid_of(tmp_path / "first")

    os.kill(first, signal.SIGKILL)

    assert future.result(LONG) == 2
    assert pid_of(tmp_path / "second") != first


def test_a_worker_killed_in_its_initializer_breaks_the_pool(
    make: Callable[..., Executor], tmp_path: Path
) -> None:
    executor = make(1, initializer=hold_once, initargs=(tmp_path,))
    futures = [executor.submit(add, 1, 1) for _ in range(3)]
    first = pid_of(tmp_path / "first")

    os.kill(first, signal.SIGKILL)

    errors = [future.exception(LONG) for future in futures]
    assert all(isinstance(e, BrokenProcessPool) and str(first) in str(e) for e in errors), errors


@pytest.mark.parametrize("restart", [False, True], ids=["break", "restart"])
def test_a_stopped_worker_that_is_killed_is_noticed(
    make: Callable[..., Executor], tmp_path: Path, restart: bool
) -> None:
    executor = make(2, **({"on_worker_death": "restart"} if restart else {}))
    victim = executor.submit(hold, tmp_path / "victim", tmp_path / "release")
    pid = pid_of(tmp_path / "victim")
    os.kill(pid, signal.SIGSTOP)
    others = [executor.submit(add, i, i) for i in range(10)]
    assert [future.result(LONG) for future in others] == [2 * i for i in range(10)]
    assert not victim.done()

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ipcbuf.WorkerLost if restart else BrokenProcessPool, match=str(pid)):
        victim.result(LONG)


def test_a_task_is_not_run_again_because_another_worker_is_buried_first(
    make: Callable[..., Executor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers die; the burial of one frees what both had, and judges it."""
    executor = make(2, on_worker_death="restart")
    first, second = (
        executor.submit(hold, tmp_path / name, tmp_path / "release") for name in ("first", "second")
    )
    pid, other = pid_of(tmp_path / "first"), pid_of(tmp_path / "second")
    pool = executor._pool
    judged = threading.Event()
    bury, judge, report = pool._bury, pool._judge, pool._watcher._report

    def bury_behind_both(death: Any) -> bool:
        if death.pid == pid:
            os.kill(other, signal.SIGKILL)
            assert pool._watcher.wait(other, time.monotonic() + LONG)
        return bury(death)

    def judge_and_tell(gone: list[tuple[int, int]]) -> None:
        judge(gone)
        judged.set()

    def report_late(dead: int) -> None:
        assert dead != other or judged.wait(LONG)
        report(dead)

    monkeypatch.setattr(pool, "_bury", bury_behind_both)
    monkeypatch.setattr(pool, "_judge", judge_and_tell)
    monkeypatch.setattr(pool._watcher, "_report", report_late)
    (tmp_path / "second").unlink()

    os.kill(pid, signal.SIGKILL)

    for future, dead in (first, pid), (second, other):
        with pytest.raises(ipcbuf.WorkerLost, match=str(dead)):
            future.result(LONG)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers"])
def test_workers_that_are_ended_are_not_replaced(
    make: Callable[..., Executor], tmp_path: Path, end: str, stopped: bool
) -> None:
    executor = make(2, on_worker_death="restart")
    patient = executor.with_options(retries=3)
    running = [patient.submit(hold, tmp_path / name, tmp_path / "release") for name in "ab"]
    waiting = [patient.submit(say_and_add, tmp_path, i) for i in range(5)]
    pids = {pid_of(tmp_path / name) for name in "ab"}
    for pid in pids if stopped else ():
        os.kill(pid, signal.SIGSTOP)

    getattr(executor, end)()

    for future in running:
        with pytest.raises(BrokenProcessPool, match="|".join(map(str, pids))):
            future.result(LONG)
    _, late = wait(waiting, LONG)
    assert not late
    assert not any((tmp_path / str(i)).exists() for i in range(5))
    executor.shutdown()


def rounds(count: int, seed: int, folder: Path, restart: bool) -> None:
    """Kill one or two random workers of a busy executor, *count* times; account for every task."""
    chance = random.Random(seed)
    context = ipcbuf_mp.get_context("fork")
    options: dict[str, Any] = {"on_worker_death": "restart"} if restart else {}
    executor = Executor(3, mp_context=context, **options)
    for turn in range(count):
        place = folder / str(turn)
        place.mkdir()
        if not restart:
            executor = Executor(3, mp_context=context)
        futures = {
            i: executor.submit(say_and_add, place, i) for i in range(chance.randrange(1, 60))
        }
        time.sleep(chance.random() * 0.01)
        workers = list(executor._processes)
        victims = chance.sample(workers, min(len(workers), chance.randint(1, 2)))
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        _, late = wait(futures.values(), LONG if restart else SOON)
        assert not late, f"seed {seed}, round {turn}: {len(late)} futures after {SOON} s"
        lost = 0
        for i, future in futures.items():
            error = future.exception()
            runs = len((place / str(i)).read_text()) if (place / str(i)).exists() else 0
            if error is None:
                assert future.result() == i
                assert runs == 1, f"seed {seed}, round {turn}: task {i} ran {runs} times"
            elif restart:
                assert type(error) is ipcbuf.WorkerLost
                assert error.pid in victims
                lost += 1
                assert runs <= 1
            else:
                assert isinstance(error, BrokenProcessPool)
                assert any(str(victim) in str(error) for victim in victims)
        assert lost <= len(victims), f"seed {seed}, round {turn}: {lost} tasks lost"
        if not restart:
            executor.shutdown()
    executor.shutdown()
    assert ipcbuf.default_segment().fsck() == []


@pytest.mark.parametrize("restart", [False, True], ids=["break", "restart"])
def test_killed_workers_of_a_busy_executor(tmp_path: Path, restart: bool) -> None:
    rounds(20, random.randrange(1 << 30), tmp_path, restart)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("restart", [False, True], ids=["break", "restart"])
def test_many_killed_workers_of_a_busy_executor(tmp_path: Path, restart: bool) -> None:
    count = int(os.environ.get("IPCBUF_ROUNDS", "200"))
    rounds(count, int(os.environ.get("IPCBUF_SEED", random.randrange(1 << 30))), tmp_path, restart)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_memory_is_flat_over_many_tasks() -> None:
    """Of the parent, of a worker, and of the segment; with plain, pickled and large arguments."""
    count = int(os.environ.get("IPCBUF_TASKS", "200000"))
    segment = ipcbuf.default_segment()
    with Executor(1, mp_context=ipcbuf_mp.get_context("fork")) as executor:
        sizes = []
        for start in range(0, count + 1000, 1000):
            arguments = [(i, bytes(5000) if i % 100 == 0 else Argument()) for i in range(1000)]
            assert len(list(executor.map(str, arguments))) == 1000
            if start % (count // 10) == 0:
                gc.collect()
                sizes.append((own_memory(), executor.submit(own_memory).result(LONG)))
                assert segment.stats()["messages"] == 0

    for first, last in zip(sizes[2], sizes[-1], strict=True):
        assert last - first < 4 << 20, sizes


# --- a task does not end --------------------------------------------------------------------------


def test_a_task_out_of_time_is_interrupted(make: Callable[..., Executor], tmp_path: Path) -> None:
    executor = make(1, grace=LONG)
    pid = executor.submit(os.getpid).result(LONG)

    future = executor.with_options(timeout=0.05).submit(
        sleep_saying_so, tmp_path / "started", tmp_path / "cleaned"
    )

    with pytest.raises(
        TimeoutError, match=r"ran for longer than 0\.05 seconds; it was interrupted"
    ):
        future.result(LONG)
    assert (tmp_path / "cleaned").exists() == (tmp_path / "started").exists()
    assert executor.submit(os.getpid).result(LONG) == pid  # the worker lives


@also_with_spawn
def test_a_task_that_goes_on_costs_its_worker_only(
    make: Callable[..., Executor], tmp_path: Path
) -> None:
    executor = make(2, grace=0.05)
    other = executor.submit(hold, tmp_path / "other", tmp_path / "release")
    warm_up = executor.submit(hold, tmp_path / "warm", tmp_path / "go")
    pid = pid_of(tmp_path / "other")
    pid_of(tmp_path / "warm")  # so the second worker has imported this module, too
    (tmp_path / "go").touch()
    warm_up.result(LONG)

    stubborn = executor.with_options(timeout=1.0).submit(sleep_whatever_comes, tmp_path / "s")

    with pytest.raises(TimeoutError, match="its worker was killed"):
        stubborn.result(LONG)
    (tmp_path / "release").touch()
    assert other.result(LONG) == pid
    assert not executor._broken
    assert list(executor.map(add, range(9), range(9))) == [2 * i for i in range(9)]


def test_the_time_of_a_task_begins_when_it_runs(
    make: Callable[..., Executor], tmp_path: Path
) -> None:
    executor = make(1)
    first = executor.submit(hold, tmp_path / "first", tmp_path / "release")
    pid_of(tmp_path / "first")
    future = executor.with_options(timeout=0.2).submit(add, 1, 1)
    time.sleep(0.3)  # longer than it may run

    (tmp_path / "release").touch()

    assert future.result(LONG) == 2
    first.result(LONG)


def test_tasks_in_time_are_left_alone(make: Callable[..., Executor]) -> None:
    quick = make(2).with_options(timeout=LONG)

    assert list(quick.map(add, range(200), range(200))) == [2 * i for i in range(200)]


def test_a_map_with_options_goes_on(make: Callable[..., Executor]) -> None:
    executor = make(2)
    results = executor.with_options(timeout=LONG).map(abs, range(30), buffersize=3)

    gc.collect()  # what with_options() gave is gone

    assert list(results) == list(range(30))
    assert not executor._pool._watcher._timed


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_running_task_is_cancelled(
    make: Callable[..., Executor], tmp_path: Path, stubborn: bool
) -> None:
    executor = make(1, grace=0.05 if stubborn else LONG)
    cancellable = executor.with_options(cancel_running=True)
    future: Future[Any]
    if stubborn:
        future = cancellable.submit(sleep_whatever_comes, tmp_path / "started")
    else:
        future = cancellable.submit(sleep_saying_so, tmp_path / "started", tmp_path / "cleaned")
    wait_until((tmp_path / "started").exists)

    assert future.cancel()

    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result(LONG)
    assert executor.submit(add, 1, 1).result(LONG) == 2
    assert (tmp_path / "cleaned").exists() is not stubborn


def test_an_interruption_that_was_missed_is_repeated(
    make: Callable[..., Executor], tmp_path: Path
) -> None:
    executor = make(1, grace=LONG).with_options(cancel_running=True)
    future = executor.submit(sleep_behind_the_signal, tmp_path / "started", tmp_path / "cleaned")
    wait_until((tmp_path / "started").exists)

    assert future.cancel()

    assert executor.submit(add, 1, 1).result(LONG) == 2
    assert (tmp_path / "cleaned").exists()


def test_asyncio_cancels_a_running_task(make: Callable[..., Executor], tmp_path: Path) -> None:
    import asyncio  # late: workers import this module, and it takes longest

    executor = make(1, grace=0.05)

    async def main() -> int:
        cancellable = executor.with_options(cancel_running=True)
        task = asyncio.create_task(cancellable.asubmit(sleep_whatever_comes, tmp_path / "started"))
        while not (tmp_path / "started").exists():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        results = [each async for each in executor.amap(add, range(5), range(5), buffersize=2)]
        assert results == [0, 2, 4, 6, 8]
        return await executor.asubmit(add, 1, 1)

    assert asyncio.run(main()) == 2


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"retries": -1}, {"retries": 1}],
)
def test_options_of_tasks_are_checked(options: dict[str, Any]) -> None:
    with Executor(1) as executor, pytest.raises(ValueError, match=next(iter(options))):
        executor.with_options(**options)


def test_an_oom_kill_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel's count is in a file of the memory cgroup, here in one of ours."""
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 1\noom_kill 2\noom_group_kill 0\n")
    monkeypatch.setattr(_autopsy, "_memory_events", lambda: [str(tmp_path / "no"), str(events)])
    context = ipcbuf_mp.get_context("fork")
    with Executor(1, mp_context=context, on_worker_death="restart") as executor:
        with pytest.raises(ipcbuf.WorkerLost) as caught:
            executor.submit(kill_self, signal.SIGKILL).result(LONG)
        assert "memory" not in caught.value.__notes__[0]

        lost = executor.submit(hold, tmp_path / "started", tmp_path / "release")
        pid = pid_of(tmp_path / "started")
        events.write_text("low 0\noom 2\noom_kill 3\noom_group_kill 0\n")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ipcbuf.WorkerLost) as caught:
            lost.result(LONG)
        assert "for lack of memory: its memory cgroup counted an OOM" in caught.value.__notes__[0]

        with pytest.raises(ipcbuf.WorkerLost) as caught:  # counted once
            executor.submit(kill_self, signal.SIGKILL).result(LONG)
        assert "memory" not in caught.value.__notes__[0]


def test_where_the_cgroup_says_nothing_there_was_no_oom_kill(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_autopsy, "_memory_events", lambda: [str(tmp_path / "no")])

    assert _autopsy.oom_kills() == 0


@pytest.mark.parametrize(
    "options",
    [{"on_worker_death": "pray"}, {"max_rss_per_child": 0}, {"max_queued": -1}, {"grace": -1}],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Executor(1, **options)


UNGUARDED = """
import ipcbuf, ipcbuf_mp, os, pathlib, signal, sys
import numpy as np
class Point:
    def __init__(self, x): self.x = x
def begin(lock, point): os.environ["BEGUN"] = f"{type(lock).__name__} {point.x}"
def die_once(point, array):
    try:
        pathlib.Path(sys.argv[2]).touch(exist_ok=False)
    except FileExistsError:
        return Point(point.x + array.sum())
    os.kill(os.getpid(), signal.SIGKILL)
print("begun")
context = ipcbuf_mp.get_context(sys.argv[1])
initargs = context.Lock(), Point(5)
with ipcbuf_mp.Executor(
    1, context, begin, initargs, on_worker_death="restart", import_main=False
) as executor:
    array = ipcbuf.move(ipcbuf.from_array(np.ones(10000)))
    dying = executor.with_options(retries=1).submit(die_once, Point(3), np.ones(10000))
    result = executor.submit(die_once, Point(3), array).result()
    print(dying.result().x, result.x, type(result) is Point)
    print(executor.submit(os.getenv, "BEGUN").result())
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_that_lack_the_main_module(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    result = subprocess.run(
        [sys.executable, str(script), method, str(tmp_path / "dead")],
        timeout=LONG,
        capture_output=True,
        text=True,
        check=False,
    )

    expected = "begun\n10003.0 10003.0 True\nLock 5\n"
    assert (result.stdout, result.stderr) == (expected, "")


# --- limits ---------------------------------------------------------------------------------------


def test_a_worker_that_grows_is_replaced(make: Callable[..., Executor]) -> None:
    usual = make(1).submit(resident).result(LONG)
    executor = make(1, max_rss_per_child=usual + (64 << 20))

    first = executor.submit(grow, 1 << 10).result(LONG)
    assert executor.submit(grow, 128 << 20).result(LONG) == first

    assert executor.submit(grow, 1 << 10).result(LONG) != first


@pytest.fixture
def leaving(tmp_path: Path) -> Iterator[tuple[Executor, Future[int]]]:
    """An executor whose one worker runs its last task, and the future of that."""
    context = ipcbuf_mp.get_context("forkserver")
    with Executor(1, context, max_tasks_per_child=1, on_worker_death="restart") as executor:
        yield executor, executor.submit(hold, tmp_path / "last", tmp_path / "release")
        (tmp_path / "release").touch()


def test_a_spare_worker_is_ready_when_another_leaves(
    leaving: tuple[Executor, Future[int]], tmp_path: Path
) -> None:
    executor, last = leaving
    knows_module = executor.submit(eval, "'colorsys' in __import__('sys').modules")
    executor.submit(colorsys.rgb_to_hsv, 0, 0, 0)  # which the spare has imported before
    next_pid = executor.submit(os.getpid)
    wait_until(lambda: executor._pool._spares)
    assert not any(future.done() for future in (last, knows_module))
    assert len(executor._processes) == 1

    (tmp_path / "release").touch()

    assert knows_module.result(LONG)
    assert last.result(LONG) != next_pid.result(LONG)


def test_a_spare_worker_takes_the_place_of_a_dead_one(
    leaving: tuple[Executor, Future[int]], tmp_path: Path
) -> None:
    executor, last = leaving
    more = [executor.submit(add, i, i) for i in range(3)]
    wait_until(lambda: executor._pool._spares)

    os.kill(pid_of(tmp_path / "last"), signal.SIGKILL)

    with pytest.raises(ipcbuf.WorkerLost):
        last.result(LONG)
    assert [future.result(LONG) for future in more] == [0, 2, 4]


def test_a_spare_worker_that_dies_is_not_missed(
    leaving: tuple[Executor, Future[int]], tmp_path: Path
) -> None:
    executor, last = leaving
    more = [executor.submit(add, i, i) for i in range(3)]
    wait_until(lambda: executor._pool._spares)
    (spare, _), *_ = executor._pool._spares.values()

    spare.kill()

    wait_until(lambda: not executor._pool._spares)
    (tmp_path / "release").touch()
    assert [future.result(LONG) for future in more] == [0, 2, 4]
    last.result(LONG)


@pytest.mark.parametrize("end", ["shutdown", "kill_workers"])
def test_a_spare_worker_ends_with_the_pool(
    leaving: tuple[Executor, Future[int]], tmp_path: Path, end: str
) -> None:
    executor, last = leaving
    pid_of(tmp_path / "last")
    more = executor.submit(add, 1, 1)
    wait_until(lambda: executor._pool._spares)
    more.cancel()  # so that there is nothing to do for the spare

    getattr(executor, end)(**({"wait": False} if end == "shutdown" else {}))

    (tmp_path / "release").touch()
    _, late = wait([last], LONG)
    assert not late
    executor.shutdown()


@pytest.mark.parametrize("limit", [{"max_queued": 4}, {"max_queued_bytes": 4 << 20}])
def test_submit_waits_while_too_much_is_queued(
    make: Callable[..., Executor], tmp_path: Path, limit: dict[str, int]
) -> None:
    executor = make(1, **limit)
    first = executor.submit(hold, tmp_path / "first", tmp_path / "release")
    pid_of(tmp_path / "first")
    futures: list[Future[int]] = []

    def submit_all() -> None:
        futures.extend(executor.submit(len, bytes(1 << 20)) for _ in range(12))

    thread = threading.Thread(target=submit_all)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    (tmp_path / "release").touch()
    thread.join(LONG)

    assert [future.result(LONG) for future in futures] == [1 << 20] * 12
    first.result(LONG)


def test_who_waits_to_submit_is_let_go_when_the_pool_breaks(
    make: Callable[..., Executor], tmp_path: Path
) -> None:
    executor = make(1, max_queued=1)
    executor.submit(hold, tmp_path / "first", tmp_path / "release")
    pid = pid_of(tmp_path / "first")
    outcome: list[BaseException | None] = []

    def submit_some() -> None:
        try:
            outcome.extend(executor.submit(add, 1, 1).exception(LONG) for _ in range(5))
        except BrokenProcessPool as error:
            outcome.append(error)

    threads = [threading.Thread(target=submit_some) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(LONG)

    assert not any(thread.is_alive() for thread in threads)
    assert outcome
    assert all(isinstance(error, BrokenProcessPool) for error in outcome)


def test_log_records_reach_the_parent(
    make: Callable[..., Executor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    make(1, forward_logging=True).submit(log_something, "hello").result(LONG)

    records = [record for record in caplog.records if record.name == "worker"]
    assert [record.getMessage() for record in records] == ["said hello"]
    assert records[0].process != os.getpid()


def test_nothing_is_kept_of_what_is_done(make: Callable[..., Executor]) -> None:
    executor = make(1, on_worker_death="restart")
    argument = Argument()
    reference = weakref.ref(argument)
    executor.submit(id, argument).result(LONG)

    del argument

    def is_gone() -> bool:
        gc.collect()
        return reference() is None

    wait_until(is_gone)
    assert executor._pending_work_items == {}


# --- deadlocks that others have had ---------------------------------------------------------------


def test_many_tasks_from_many_threads_while_workers_are_recycled(
    make: Callable[..., Executor], start_method: str
) -> None:
    """gh-115634 and gh-152967: submissions stall while workers reach max_tasks_per_child."""
    if start_method == "fork":
        pytest.skip("refused with fork")
    executor = make(2, max_tasks_per_child=3)
    futures: list[Future[int]] = []

    def submit_some() -> None:
        futures.extend(executor.submit(add, i, i) for i in range(10))

    threads = [threading.Thread(target=submit_some) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)

    assert sorted(future.result(LONG) for future in futures) == sorted([*range(0, 20, 2)] * 2)


def test_many_large_tasks_at_once(make: Callable[..., Executor]) -> None:
    """gh-105829: a full pipe to the workers while the manager waits for its own lock."""
    executor = make(2)
    futures = [executor.submit(len, bytes(100_000)) for _ in range(500)]

    assert [future.result(LONG) for future in futures] == [100_000] * 500


def test_shutdown_from_many_threads_while_others_submit(make: Callable[..., Executor]) -> None:
    """gh-105464 and gh-94777: shutdown and submit get in each other's way."""
    executor = make(2)
    executor.submit(add, 1, 1).result(LONG)
    futures: list[Future[int]] = []

    def submit_some() -> None:
        with contextlib.suppress(RuntimeError):
            futures.extend(executor.submit(add, i, i) for i in range(10_000))

    threads = [threading.Thread(target=submit_some) for _ in range(2)]
    threads += [threading.Thread(target=executor.shutdown) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)

    assert not any(thread.is_alive() for thread in threads)
    assert all(future.result(LONG) % 2 == 0 for future in futures)
