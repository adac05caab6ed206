# SPDX-License-Identifier: Apache-2.0
"""Pools: what the standard library's do, on both, and workers that are killed, on ours."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.pool
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import ipcbuf
import ipcbuf_mp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    import numpy as np  # in tests that use it: workers import this module, and it takes longest

PATIENCE = 60


# --- what the workers do --------------------------------------------------------------------------


def square(number: int) -> int:
    return number * number


def add(first: int, second: int) -> int:
    return first + second


def kill_at(number: int, victim: int) -> int:
    if number == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def exit_now(code: int) -> None:
    os._exit(code)


def leave(code: int) -> None:
    raise SystemExit(code)


def die_first(path: Path, times: int) -> int:
    """Die the first *times* times; return the pid of the process that got further."""
    with path.open("a+") as file:
        file.write("x")
        file.flush()
        file.seek(0)
        if len(file.read()) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


class NeedsTwo(Exception):
    """Pickles, but does not unpickle."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)
        self.second = second


def raise_what_does_not_unpickle() -> None:
    raise NeedsTwo(1, 2)


class KillsItsReader:
    def __reduce__(self) -> Any:
        return os._exit, (9,)


def pid_when(path: Path) -> int:
    """Say that the task runs, and wait to be killed."""
    path.write_text(str(os.getpid()))
    time.sleep(PATIENCE)
    return os.getpid()


def make_lambda() -> Any:
    return lambda: 1


def double(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array *= 2
    return array


def answer_by_a_child(answers: Any, number: int) -> None:
    child = ipcbuf_mp.get_context("fork").Process(target=answers.put, args=(number + 1,))
    child.start()
    child.join(PATIENCE)


def start_child(number: int) -> int:
    """What a daemonic process of the standard library must not do."""
    context = ipcbuf_mp.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=answer_by_a_child, args=(answers, number))
    child.start()
    child.join(PATIENCE)
    result: int = answers.get()
    return result


# --- on both --------------------------------------------------------------------------------------


class PoolContract:
    library: ClassVar[ModuleType]

    @pytest.fixture
    def pool(self, start_method: str) -> Iterator[Any]:
        with self.library.get_context(start_method).Pool(2) as pool:
            yield pool
        pool.join()

    def test_every_way_to_call(self, pool: Any) -> None:
        squares = [square(number) for number in range(50)]
        assert pool.apply(square, (7,)) == 49
        assert pool.apply(add, kwds={"first": 1, "second": 2}) == 3
        assert pool.map(square, range(50)) == squares
        assert pool.map(square, []) == []
        assert pool.map(square, range(50), chunksize=7) == squares
        assert list(pool.imap(square, range(50))) == squares
        assert list(pool.imap(square, range(50), 8)) == squares
        assert sorted(pool.imap_unordered(square, range(50))) == squares
        assert pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
        assert pool.map_async(square, range(50)).get(PATIENCE) == squares
        assert pool.starmap_async(add, [(1, 2)]).get(PATIENCE) == [3]
        called: list[int] = []
        result = pool.apply_async(square, (3,), callback=called.append)
        result.wait(PATIENCE)
        assert result.successful()
        assert called == [9]

    def test_an_error_of_a_task_is_its_own(self, pool: Any) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            pool.apply(divmod, (1, 0))

        cause = caught.value.__cause__
        assert type(cause) is multiprocessing.pool.RemoteTraceback  # type: ignore[attr-defined]
        assert pool.apply(square, (3,)) == 9

    def test_an_unpicklable_result_is_a_maybe_encoding_error(self, pool: Any) -> None:
        with pytest.raises(multiprocessing.pool.MaybeEncodingError) as caught:  # type: ignore[attr-defined]
            pool.apply(make_lambda)

        assert "lambda" in caught.value.value
        assert "pickle" in caught.value.exc
        assert pool.apply(square, (3,)) == 9

    def test_arrays_come_back_writable(self, pool: Any) -> None:
        import numpy as np

        for size in (10, 100_000):
            array = pool.apply(double, (np.arange(size),))
            array += 1
            assert (array == np.arange(size) * 2 + 1).all()


class TestPool(PoolContract):
    library: ClassVar[ModuleType] = ipcbuf_mp


class TestStandardLibraryPool(PoolContract):
    library: ClassVar[ModuleType] = multiprocessing

    @pytest.fixture
    def start_method(self) -> str:
        return "fork"  # it is no news that theirs works with all of them


# --- workers that are lost ------------------------------------------------------------------------


@pytest.fixture
def pool(start_method: str) -> Iterator[Any]:
    with ipcbuf_mp.get_context(start_method).Pool(2) as pool:
        yield pool
    pool.join()


def test_a_killed_worker_fails_its_task_and_no_other(pool: Any) -> None:
    results = [pool.apply_async(kill_at, (number, 5)) for number in range(20)]

    for number, result in enumerate(results):
        if number == 5:
            with pytest.raises(ipcbuf.WorkerLost, match="killed by SIGKILL with kill_at") as caught:
                result.get(PATIENCE)
            assert caught.value.exitcode == -signal.SIGKILL
            assert caught.value.pid > 0
        else:
            assert result.get(PATIENCE) == number
    assert pool.map(square, range(10)) == [square(number) for number in range(10)]


def test_every_kind_of_map_goes_on_behind_a_lost_worker(pool: Any) -> None:
    calls = [(number, 3) for number in range(8)]
    with pytest.raises(ipcbuf.WorkerLost, match="2 calls of kill_at"):
        pool.starmap(kill_at, calls, chunksize=2)

    def collect(results: Any) -> list[Any]:
        collected: list[Any] = []
        while True:
            try:
                collected.append(results.next(PATIENCE))
            except StopIteration:
                return collected
            except ipcbuf.WorkerLost:
                collected.append("lost")

    expected = [0, 1, 2, "lost", 4, 5, 6, 7]
    assert collect(pool.imap(kill_at_3, range(8))) == expected
    unordered = collect(pool.imap_unordered(kill_at_3, range(8)))
    assert sorted(map(str, unordered)) == sorted(map(str, expected))


def kill_at_3(number: int) -> int:
    return kill_at(number, 3)


def test_a_map_works_while_the_only_worker_is_being_replaced() -> None:
    may_start = threading.Event()
    may_start.set()

    class WaitsForLeave(ipcbuf_mp.pool.Pool):
        @staticmethod
        # Overridden as multiprocessing.pool has it, by that name; typeshed says otherwise.
        def Process(context: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # noqa: N802
            may_start.wait(PATIENCE)
            return context.Process(*args, **kwargs)

    with WaitsForLeave(1) as pool:
        may_start.clear()
        (worker,) = pool._pool
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        while pool._pool:
            time.sleep(0.001)
        try:
            results = [pool.map_async(square, numbers) for numbers in (range(5), iter(range(5)))]
        finally:
            may_start.set()
        assert [result.get(PATIENCE) for result in results] == [[0, 1, 4, 9, 16]] * 2


@pytest.mark.parametrize(("call", "code"), [(exit_now, 7), (leave, 5), (exit_now, 0)])
def test_an_exit_in_a_task_is_a_lost_worker(call: Any, code: int) -> None:
    with ipcbuf_mp.get_context("fork").Pool(1) as pool:
        with pytest.raises(ipcbuf.WorkerLost) as caught:
            pool.apply(call, (code,))

        assert caught.value.exitcode in (code, None)
        assert pool.apply(square, (2,)) == 4
    pool.join()


def test_what_kills_its_reader_costs_one_worker() -> None:
    with ipcbuf_mp.get_context("fork").Pool(1) as pool:
        with pytest.raises(ipcbuf.WorkerLost, match="code 9"):
            pool.apply(square, (KillsItsReader(),))

        assert pool.apply(square, (2,)) == 4
    pool.join()


def test_a_result_that_does_not_unpickle_fails_its_task() -> None:
    with ipcbuf_mp.get_context("fork").Pool(1) as pool:
        with pytest.raises(TypeError, match="second"):
            pool.apply_async(raise_what_does_not_unpickle).get(PATIENCE)

        assert pool.apply(square, (2,)) == 4
    pool.join()


def test_a_task_is_run_anew_as_often_as_asked(tmp_path: Path) -> None:
    with ipcbuf_mp.get_context("fork").Pool(2, retries=2) as pool:
        results = [pool.apply_async(die_first, (tmp_path / str(n), n)) for n in range(4)]

        for result in results[:3]:
            assert result.get(PATIENCE) > 0
        with pytest.raises(ipcbuf.WorkerLost):
            results[3].get(PATIENCE)
    pool.join()


def test_killing_idle_workers_loses_nothing(pool: Any) -> None:
    assert pool.map(square, range(10)) == [square(number) for number in range(10)]
    before = {process.pid for process in pool._pool}
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    assert pool.map(square, range(100)) == [square(number) for number in range(100)]
    deadline = time.monotonic() + PATIENCE  # the pool buries them when it comes to it
    while before & {process.pid for process in pool._pool} and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not before & {process.pid for process in pool._pool}


def test_a_task_is_lost_while_all_other_workers_are_busy(tmp_path: Path) -> None:
    with ipcbuf_mp.get_context("fork").Pool(2) as pool:
        path = tmp_path / "busy"
        busy = pool.apply_async(pid_when, (path,))
        lost = pool.apply_async(kill_at, (1, 1))

        with pytest.raises(ipcbuf.WorkerLost):
            lost.get(PATIENCE)
        assert not busy.ready()
        os.kill(int(path.read_text()), signal.SIGKILL)
        with pytest.raises(ipcbuf.WorkerLost):
            busy.get(PATIENCE)
    pool.join()


def test_close_and_join_wait_for_tasks_behind_a_lost_worker() -> None:
    pool = ipcbuf_mp.get_context("fork").Pool(2)
    results = [pool.apply_async(kill_at, (number % 10, 3)) for number in range(60)]
    pool.close()
    pool.join()

    assert all(result.ready() for result in results)
    assert sum(not result.successful() for result in results) == 6


# --- the rest -------------------------------------------------------------------------------------


def test_a_lambda_can_be_a_task() -> None:
    with ipcbuf_mp.get_context("spawn").Pool(1) as pool:
        offset = 5
        assert pool.map(lambda number: number + offset, range(3)) == [5, 6, 7]
    pool.join()


def test_workers_may_have_children(pool: Any) -> None:
    assert pool.map(start_child, range(4)) == [1, 2, 3, 4]


def test_terminate_with_many_tasks_is_prompt(pool: Any) -> None:
    pool.map_async(time.sleep, [0.2] * 10_000, chunksize=1)
    begin = time.monotonic()
    pool.terminate()
    pool.join()

    assert time.monotonic() - begin < 20


def test_workers_are_replaced_after_their_tasks(start_method: str) -> None:
    with ipcbuf_mp.get_context(start_method).Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(os.getpid) for _ in range(6)]
    pool.join()

    assert len(set(pids)) == 3


@pytest.mark.parametrize("pool_class", [multiprocessing.pool.Pool, ipcbuf_mp.pool.Pool])
def test_workers_are_ended_if_another_one_cannot_be_started(pool_class: Any) -> None:
    started: list[str] = []

    class ThirdFails:
        """Has what a pool needs of a process, and no more."""

        exitcode = None
        name = "ThirdFails"

        def __init__(self, **_: Any) -> None: ...

        def start(self) -> None:
            if len(started) == 2:
                raise OSError("no more")
            started.append("started")

        def terminate(self) -> None:
            started[started.index("started")] = "terminated"

        def join(self) -> None:
            started[started.index("terminated")] = "joined"

    context = multiprocessing.get_context("fork")
    context.Process = ThirdFails  # type: ignore[assignment,misc]  # on purpose no Process
    try:
        with pytest.raises(OSError, match="no more"):
            pool_class(5, context=context)
    finally:
        del context.Process
    assert started == ["joined", "joined"]


def test_wrong_arguments_are_refused() -> None:
    context = ipcbuf_mp.get_context("fork")
    for processes in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            context.Pool(processes)
    for tasks in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="positive int"):
            context.Pool(1, maxtasksperchild=tasks)
    with pytest.raises(TypeError, match="callable"):
        context.Pool(1, initializer=5)
    with pytest.raises(ValueError, match="retries"):
        context.Pool(1, retries=-1)


def test_a_dropped_pool_warns_and_ends() -> None:
    pool: Any = ipcbuf_mp.get_context("fork").Pool(2)
    assert pool.apply(square, (2,)) == 4
    workers = list(pool._pool)
    with pytest.warns(ResourceWarning, match="unclosed running") as caught:  # noqa: PT031
        pool = None
        deadline = time.monotonic() + PATIENCE  # the thread for results may still have it
        while not caught.list and time.monotonic() < deadline:
            gc.collect()
    caught.list.clear()  # a warning has its source, and so keeps the pool
    gc.collect()
    deadline = time.monotonic() + PATIENCE  # a thread of the pool may be burying it just now
    for process in workers:
        process.join(PATIENCE)
        while process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert process.exitcode is not None


def test_a_pool_that_ends_before_its_workers_have_begun_leaves_nothing(start_method: str) -> None:
    segment = ipcbuf.default_segment()
    gc.collect()
    segment.reap()
    before = segment.stats()["channels"]

    for _ in range(3):
        with ipcbuf_mp.get_context(start_method).Pool(3) as pool:
            pass
        del pool
        gc.collect()

    segment.reap()
    assert segment.stats()["channels"] == before


def test_no_reference_to_arguments_or_results_is_kept() -> None:
    import numpy as np

    with ipcbuf_mp.get_context("fork").Pool(1) as pool:
        array = np.zeros(100_000)
        dead = weakref.ref(array)
        result = pool.apply(double, (array,))
        del array
        dead_result = weakref.ref(result)
        del result
        deadline = time.monotonic() + PATIENCE  # the pool's threads may not have come to it yet
        while (dead() is not None or dead_result() is not None) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert dead() is None
        assert dead_result() is None
    pool.join()


def test_a_pool_ends_after_what_it_sends_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ipcbuf_mp.get_context("fork").Pool(1, retries=1)
    begun, seen = threading.Event(), threading.Event()
    send_or_end = ipcbuf_mp.pool._send_or_end
    senders = []

    def send_late(send: Any, message: Any) -> None:
        senders.append(threading.current_thread())
        begun.set()
        seen.wait(0.5)  # longer than the end of a pool that does not wait for us
        send_or_end(send, message)

    monkeypatch.setattr(ipcbuf_mp.pool, "_send_or_end", send_late)
    pool.apply_async(kill_at, (1, 1))
    assert begun.wait(PATIENCE)

    pool.terminate()

    assert [sender.is_alive() for sender in senders] == [False]
    seen.set()
    pool.join()


def test_terminate_ends_workers_that_are_stopped(start_method: str) -> None:
    pool = ipcbuf_mp.get_context(start_method).Pool(2)
    results = pool.imap_unordered(square, range(10**5))
    next(results)  # both are busy, and may be stopped with a lock in their hands
    workers = list(pool._pool)
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    end = threading.Thread(target=pool.terminate, daemon=True)

    end.start()
    end.join(PATIENCE)

    try:
        assert not end.is_alive()
        pool.join()
    finally:
        for worker in workers:
            worker.kill()


ORPHANS = """
import os, signal, sys, time
import ipcbuf_mp
def pid(_):
    time.sleep(0.01)
    return os.getpid()
if __name__ == "__main__":
    pool = ipcbuf_mp.get_context(sys.argv[1]).Pool(3)
    print(*set(pool.map(pid, range(50), chunksize=1)), flush=True)
    if sys.argv[2] == "in long tasks":
        pool.map_async(time.sleep, [1000] * 3, chunksize=1)
        time.sleep(0.1)
    else:
        results = pool.imap_unordered(pid, range(10**5))
        for _ in range(100):  # so that there are results on their way
            next(results)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("workers", ["in long tasks", "with results on their way"])
def test_workers_end_with_their_parent(start_method: str, workers: str, tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    command = [sys.executable, str(script), start_method, workers]
    result = subprocess.run(
        command,
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # a killed fork server's owner leaves files
    )

    assert (result.returncode, result.stderr) == (-signal.SIGKILL, "")
    for pid in map(int, result.stdout.split()):
        deadline = time.monotonic() + PATIENCE
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return False
    return not stat.rpartition(") ")[2].startswith(("Z", "X"))
