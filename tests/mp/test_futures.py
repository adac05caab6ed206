# SPDX-License-Identifier: Apache-2.0
"""Futures of an executor that are waited for one at a time, which who waits completes himself."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf
from ipcbuf_mp import ProcessPoolExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 60.0
ROUNDS = 200


def same(value: Any) -> Any:
    return value


def slowly(value: Any, seconds: float) -> Any:
    time.sleep(seconds)
    return value


def fail(value: int) -> None:
    raise LookupError(value)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Point:
    """Has no encoding of its own."""

    def __init__(self, x: int) -> None:
        self.x = x


@pytest.fixture(params=["break", "restart"])
def executor(request: pytest.FixtureRequest) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, on_worker_death=request.param) as executor:
        yield executor


def one_at_a_time(executor: ProcessPoolExecutor) -> None:
    """Go on until the result was not the collector's business."""
    results = executor._pool.results
    before = 0 if results is None else results.alone
    for number in range(100_000):
        assert executor.submit(same, number).result(PATIENCE) == number
        results = executor._pool.results
        assert results is not None
        if results.alone > before:
            return
    raise AssertionError("the collector has never stood aside")


def test_results_that_are_waited_for_at_once(executor: ProcessPoolExecutor) -> None:
    one_at_a_time(executor)

    for number in range(ROUNDS):
        future = executor.submit(same, [number, "a", None])
        assert future.result() == [number, "a", None]
        assert future.done()
        assert not future.running()
        assert not future.cancel()
        assert future.exception() is None
        assert future.result(0) == [number, "a", None]
    assert executor._pool.pending == {}


def by_result(future: concurrent.futures.Future[Any]) -> Any:
    return future.result()


def by_result_in_time(future: concurrent.futures.Future[Any]) -> Any:
    return future.result(PATIENCE)


def by_wait(future: concurrent.futures.Future[Any]) -> Any:
    assert concurrent.futures.wait([future], PATIENCE).done == {future}
    return future.result(0)


def by_completion(future: concurrent.futures.Future[Any]) -> Any:
    (found,) = concurrent.futures.as_completed([future], PATIENCE)
    return found.result(0)


def by_callback(future: concurrent.futures.Future[Any]) -> Any:
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    assert called.wait(PATIENCE)
    return future.result(0)


def by_exception(future: concurrent.futures.Future[Any]) -> Any:
    assert future.exception(PATIENCE) is None
    return future.result(0)


def by_polling(future: concurrent.futures.Future[Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not future.done():
        assert time.monotonic() < deadline
    return future.result(0)


def by_asyncio(future: concurrent.futures.Future[Any]) -> Any:
    async def wait() -> Any:
        return await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)

    return asyncio.run(wait())


def by_another_thread(future: concurrent.futures.Future[Any]) -> Any:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(future.result(PATIENCE)))
    thread.start()
    mine = future.result(PATIENCE)
    thread.join(PATIENCE)
    assert got == [mine]
    return mine


WAYS = [
    *(by_result, by_result_in_time, by_wait, by_completion, by_callback, by_exception),
    *(by_polling, by_asyncio, by_another_thread),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_any_way_to_wait_behind_lone_waits(
    executor: ProcessPoolExecutor, way: Callable[..., Any]
) -> None:
    for number in range(5):
        one_at_a_time(executor)
        assert way(executor.submit(same, number)) == number
        assert way(executor.submit(slowly, number, 0.005)) == number


def test_all_ways_in_random_order(executor: ProcessPoolExecutor) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    waiting: list[tuple[int, concurrent.futures.Future[Any]]] = []
    for number in range(3 * ROUNDS):
        future = executor.submit(same, number)
        if chance.random() < 0.8:
            assert chance.choice(WAYS[:-2])(future) == number
        else:
            waiting.append((number, future))
        if chance.random() < 0.1:
            while waiting:
                expected, future = waiting.pop(chance.randrange(len(waiting)))
                assert future.result(PATIENCE) == expected
    for expected, future in waiting:
        assert future.result(PATIENCE) == expected


def test_what_has_to_be_unpickled(executor: ProcessPoolExecutor) -> None:
    for number in range(10):
        one_at_a_time(executor)
        assert executor.submit(Point, number).result(PATIENCE).x == number
        with pytest.raises(LookupError, match=str(number)):
            executor.submit(fail, number).result(PATIENCE)
        assert executor.submit(bytes, 1_000_000).result(PATIENCE) == bytes(1_000_000)


def test_a_time_out_and_the_result_behind_it(executor: ProcessPoolExecutor) -> None:
    one_at_a_time(executor)

    future = executor.submit(slowly, "late", 0.2)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.01)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(-1)

    assert not future.done()
    assert future.result(PATIENCE) == "late"


def test_another_thread_submits_while_one_waits_alone(executor: ProcessPoolExecutor) -> None:
    for _ in range(5):
        one_at_a_time(executor)
        quick: list[Any] = []

        def call(quick: list[Any] = quick) -> None:
            quick.append(executor.submit(same, "quick").result(PATIENCE))

        thread = threading.Thread(target=call)
        slow = executor.submit(slowly, "slow", 0.1)
        thread.start()
        assert slow.result(PATIENCE) == "slow"
        thread.join(PATIENCE)
        assert quick == ["quick"]


def test_two_threads_one_call_at_a_time_each(executor: ProcessPoolExecutor) -> None:
    failures: list[BaseException] = []

    def calls(first: int) -> None:
        try:
            for number in range(first, first + 5 * ROUNDS):
                assert executor.submit(same, number).result(PATIENCE) == number
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=calls, args=(first,)) for first in (0, 1_000_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive()
    assert failures == []


def test_a_worker_dies_of_the_only_call(executor: ProcessPoolExecutor) -> None:
    one_at_a_time(executor)

    future = executor.submit(die)
    if executor._survives:
        for _ in range(3):
            with pytest.raises(ipcbuf.WorkerLost):
                future.result(PATIENCE)
            one_at_a_time(executor)
            future = executor.submit(die)
    with pytest.raises((BrokenProcessPool, ipcbuf.WorkerLost)):
        future.result(PATIENCE)


def test_a_worker_that_has_nothing_to_do_dies() -> None:
    with ProcessPoolExecutor(2, on_worker_death="restart") as executor:
        one_at_a_time(executor)
        for pid in list(executor._processes):
            os.kill(pid, signal.SIGKILL)
        one_at_a_time(executor)


def test_a_running_call_is_cancelled_while_somebody_waits() -> None:
    with ProcessPoolExecutor(1, on_worker_death="restart") as executor:
        one_at_a_time(executor)
        future = executor.with_options(cancel_running=True).submit(slowly, 1, 10 * PATIENCE)
        threading.Timer(0.05, future.cancel).start()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(PATIENCE)
        one_at_a_time(executor)


def test_workers_are_replaced_while_somebody_waits_alone() -> None:
    with ProcessPoolExecutor(1, max_tasks_per_child=5) as executor:
        for number in range(16):
            assert executor.submit(same, number).result(PATIENCE) == number


def let_go() -> None:
    gc.collect()


def test_a_child_is_forked_while_the_collector_stands_aside() -> None:
    """Its copy of the pool goes, though no thread of its is left."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1) as executor:
        for _ in range(20):
            one_at_a_time(executor)
            child = fork.Process(target=let_go)
            child.start()
            child.join(PATIENCE)
            code = child.exitcode
            child.kill()
            child.join()
            assert code == 0
        one_at_a_time(executor)


class Interrupted(Exception):
    """Raised by the handler of a signal, anywhere in the main thread."""


def test_no_result_is_lost_when_a_signal_handler_raises() -> None:
    """Ctrl-C, or the alarm of a test runner, at any moment of a lone wait."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    armed = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    stop = threading.Event()
    me = threading.get_ident()

    def pester() -> None:
        while not stop.is_set():
            signal.pthread_kill(me, signal.SIGUSR1)
            time.sleep(chance.random() * 0.0005)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=pester)
    interrupted = 0
    try:
        with ProcessPoolExecutor(1) as executor:
            one_at_a_time(executor)
            results = executor._pool.results
            assert results is not None
            thread.start()
            for number in range(10 * ROUNDS):
                future = executor.submit(same, number)
                try:
                    # What result() of a TaskFuture does: its own Python code cannot be interrupted
                    # everywhere, nor can the standard library's.
                    armed = True
                    results.wait_alone(future, future._task_id, PATIENCE)  # type: ignore[attr-defined]
                    armed = False
                except Interrupted:
                    interrupted += 1
                assert future.result(PATIENCE) == number
                assert executor._pool.pending == {}
            print(interrupted, "interrupted,", results.alone, "taken alone")
            assert interrupted > 0
            assert results.alone > 0
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join()
        signal.signal(signal.SIGUSR1, before)
