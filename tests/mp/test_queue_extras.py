# SPDX-License-Identifier: Apache-2.0
"""What our queues have beyond the standard library's: shutdown, deaths seen by join, options."""

from __future__ import annotations

import asyncio
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf
import ipcbuf_mp

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Any]

PATIENCE = 60
MOMENT = 0.05


@pytest.fixture
def context(start_method: str) -> Any:
    return ipcbuf_mp.get_context(start_method)


@pytest.fixture
def here() -> Any:
    """A context for tests that need only one start method."""
    return ipcbuf_mp.get_context("fork")


# --- what the child processes do --------------------------------------------------------------------


def get_until_shut_down(source: Any, answers: Any) -> None:
    got = []
    try:
        while True:
            got.append(source.get(timeout=PATIENCE))
    except ipcbuf_mp.ShutDown:
        answers.put(got)


def put_until_shut_down(target: Any, answers: Any) -> None:
    try:
        while True:
            target.put("more", timeout=PATIENCE)
    except ipcbuf_mp.ShutDown:
        answers.put("shut down")


def shut_down(target: Any, immediate: bool) -> None:
    target.shutdown(immediate)


def get_and_die(source: Any, count: int, done: int, ready: Any) -> None:
    for _ in range(count):
        source.get(timeout=PATIENCE)
    for _ in range(done):
        source.task_done()
    ready.put(os.getpid())
    time.sleep(PATIENCE)


def finish_all(source: Any, count: int, answers: Any) -> None:
    answers.put(sorted(finish_one(source) for _ in range(count)))


def finish_one(source: Any) -> Any:
    item = source.get(timeout=PATIENCE)
    source.task_done()
    return item


def put_one(target: Any, item: Any) -> None:
    target.put(item)


def touch(array: np.ndarray[Any, Any], answers: Any) -> None:
    array[0] = 77
    answers.put("touched")


# --- shutdown -------------------------------------------------------------------------------------


def test_a_shut_down_queue_gives_what_it_has(here: Any) -> None:
    q = here.Queue()
    q.put(1)
    q.put(np.arange(10_000))
    q.shutdown()
    q.shutdown()

    with pytest.raises(ipcbuf_mp.ShutDown) as caught:
        q.put(3)
    assert type(caught.value) is ipcbuf_mp.ShutDown
    with pytest.raises(ipcbuf_mp.ShutDown):
        q.put_nowait(3)
    assert q.qsize() == 2
    assert q.get() == 1
    assert q.get_nowait().sum() == np.arange(10_000).sum()
    for get in (q.get, q.get_nowait, lambda: q.get(timeout=MOMENT)):
        with pytest.raises(ipcbuf_mp.ShutDown):
            get()
    q.close()
    with pytest.raises(ValueError, match="is closed"):
        q.get()


def test_it_is_the_exception_of_module_queue_where_that_has_one() -> None:
    assert ipcbuf_mp.ShutDown is getattr(queue, "ShutDown", ipcbuf_mp.ShutDown)
    assert issubclass(ipcbuf_mp.ShutDown, Exception)


def test_immediately_throws_away_what_is_there(here: Any) -> None:
    q = here.Queue()
    for item in (1, b"x" * 100_000, [Refuses()]):
        q.put(item)
    q.shutdown(immediate=True)

    assert q.empty()
    with pytest.raises(ipcbuf_mp.ShutDown):
        q.get()


class Refuses:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_whoever_waits_is_woken(context: Any, start: Start) -> None:
    empty, full, answers = context.Queue(), context.Queue(1), context.Queue()
    full.put("full")
    children = [start(context, get_until_shut_down, empty, answers) for _ in range(2)]
    children.append(start(context, put_until_shut_down, full, answers))
    for item in range(3):
        empty.put(item)
    while not empty.empty():
        time.sleep(0.001)
    start(context, shut_down, empty, False).join(PATIENCE)
    got = [answers.get(timeout=PATIENCE) for _ in range(2)]
    assert sorted(item for items in got for item in items) == [0, 1, 2]

    start(context, shut_down, full, True).join(PATIENCE)

    assert answers.get(timeout=PATIENCE) == "shut down"


def test_what_polls_sees_the_end(here: Any) -> None:
    q = here.Queue()
    assert not multiprocessing.connection.wait([q._reader], MOMENT)
    q.shutdown()

    assert multiprocessing.connection.wait([q._reader], PATIENCE) == [q._reader]
    with pytest.raises(ipcbuf_mp.ShutDown):
        q.get()
    assert multiprocessing.connection.wait([q._reader], PATIENCE) == [q._reader]


def test_join_waits_for_what_is_worked_on_behind_a_shutdown(here: Any) -> None:
    q = here.JoinableQueue()
    for item in range(3):
        q.put(item)
    q.get()
    q.shutdown(immediate=True)
    joined = threading.Thread(target=q.join)
    joined.start()
    joined.join(MOMENT)
    assert joined.is_alive()

    q.task_done()

    joined.join(PATIENCE)
    assert not joined.is_alive()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


# --- join and the dead ----------------------------------------------------------------------------


def test_join_says_what_the_dead_had_taken(context: Any, start: Start) -> None:
    q, ready = context.JoinableQueue(), context.Queue()
    for item in range(10):
        q.put(item)
    victim = start(context, get_and_die, q, 5, 2, ready)
    pid = ready.get(timeout=PATIENCE)
    for _ in range(5):
        finish_one(q)
    joiner = Joiner(q)
    assert not joiner.ended(MOMENT)  # a living process has three, and may finish them

    os.kill(pid, signal.SIGKILL)

    assert joiner.ended(PATIENCE)
    assert isinstance(joiner.error, ipcbuf.PeerDied)
    assert joiner.error.open_tasks == 3
    victim.join(PATIENCE)


class Joiner:
    """A thread in `join`."""

    def __init__(self, joined: Any) -> None:
        self.error: BaseException | None = None
        self._queue = joined
        self._thread = threading.Thread(target=self._join)
        self._thread.start()

    def _join(self) -> None:
        try:
            self._queue.join()
        except Exception as error:
            self.error = error

    def ended(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()


def test_join_waits_for_the_living_before_it_speaks_of_the_dead(here: Any, start: Start) -> None:
    q, ready = here.JoinableQueue(), here.Queue()
    for item in range(3):
        q.put(item)
    victim = start(here, get_and_die, q, 1, 0, ready)
    os.kill(ready.get(timeout=PATIENCE), signal.SIGKILL)
    victim.join(PATIENCE)
    q.get()
    q.get()
    joiner = Joiner(q)
    q.task_done()
    assert not joiner.ended(0.5)
    q.task_done()

    assert joiner.ended(PATIENCE)
    assert isinstance(joiner.error, ipcbuf.PeerDied)
    assert joiner.error.open_tasks == 1


def test_a_worker_killed_without_a_task_is_nothing_to_join(here: Any, start: Start) -> None:
    q, ready = here.JoinableQueue(), here.Queue()
    q.put(1)
    victim = start(here, get_and_die, q, 1, 1, ready)
    os.kill(ready.get(timeout=PATIENCE), signal.SIGKILL)
    victim.join(PATIENCE)
    q.put(2)
    assert finish_one(q) == 2

    q.join()


def test_who_takes_need_not_be_who_reports(here: Any, start: Start) -> None:
    q, answers = here.JoinableQueue(), here.Queue()
    q.put(1)
    assert q.get() == 1
    child = start(here, report, q, answers)
    q.join()
    child.join(PATIENCE)


def report(q: Any, answers: Any) -> None:
    q.task_done()
    answers.put("done")


def test_with_leases_the_items_of_the_dead_come_back(context: Any, start: Start) -> None:
    q, ready, answers = context.JoinableQueue(lease=True), context.Queue(), context.Queue()
    for item in range(6):
        q.put(item)
    victim = start(context, get_and_die, q, 4, 1, ready)  # it finishes the first it got
    pid = ready.get(timeout=PATIENCE)
    joiner = Joiner(q)
    os.kill(pid, signal.SIGKILL)
    victim.join(PATIENCE)

    start(context, finish_all, q, 5, answers)

    assert answers.get(timeout=PATIENCE) == [1, 2, 3, 4, 5]
    assert joiner.ended(PATIENCE)
    assert joiner.error is None
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


def test_with_leases_in_asyncio(context: Any, start: Start) -> None:
    q, ready = context.JoinableQueue(lease=True), context.Queue()
    q.put("of the dead")
    victim = start(context, get_and_die, q, 1, 0, ready)
    os.kill(ready.get(timeout=PATIENCE), signal.SIGKILL)
    victim.join(PATIENCE)

    async def talk() -> None:
        assert await q.aget(PATIENCE) == "of the dead"
        with pytest.raises(queue.Empty):
            await q.aget(timeout=MOMENT)
        getter = asyncio.create_task(q.aget())
        await asyncio.sleep(0)
        await q.aput("new")
        assert await getter == "new"
        q.task_done()
        assert q._unfinished_tasks.get_value() == 1
        q.task_done()
        q.join()
        q.shutdown()
        with pytest.raises(ipcbuf_mp.ShutDown):
            await q.aget()

    asyncio.run(asyncio.wait_for(talk(), PATIENCE))


def test_what_was_got_can_be_reported_before_it_is_counted(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = here.JoinableQueue()
    q.put(1)
    finish_one(q)

    class Uncounted:  # as if who puts and who gets were stopped behind the message
        get = ipcbuf.ObjectQueue.get

        @staticmethod
        def counts(queue: Any) -> tuple[int, int]:
            return 1, 1

    q.put(2)
    with monkeypatch.context() as patched:
        patched.setattr(ipcbuf, "ObjectQueue", Uncounted)
        assert q.get() == 2
        q.task_done()
        with pytest.raises(ValueError, match="too many times"):
            q.task_done()
        assert q._unfinished_tasks.get_value() == 0
    q.join()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


def test_how_much_is_unfinished_can_be_seen(here: Any) -> None:
    q = here.JoinableQueue()
    q.put_many("abc")
    finish_one(q)
    q.get()

    assert q._unfinished_tasks.get_value() == 2


def test_a_joinable_queue_goes_through_a_queue(here: Any) -> None:
    q, carrier = here.JoinableQueue(), here.Queue()
    carrier.put(q)
    same = carrier.get()
    q.put(5)
    assert finish_one(same) == 5
    q.join()


# --- options --------------------------------------------------------------------------------------


def test_maxbytes_bounds_a_queue(here: Any) -> None:
    q = here.Queue(maxbytes=100_000)
    q.put(b"x" * 1_000_000)  # one larger one, if there is nothing else
    with pytest.raises(queue.Full):
        q.put(b"x", timeout=MOMENT)
    q.get()
    count = q.put_many([b"x" * 10_000] * 100, timeout=MOMENT)
    assert 5 <= count <= 10
    with pytest.raises(ValueError, match="maxbytes"):
        here.Queue(maxbytes=-1)


def test_many_at_once(here: Any) -> None:
    q = here.Queue(5)
    assert q.put_many(range(9), timeout=0) == 5
    assert q.get_many(2) == [0, 1]
    assert q.get_many(10, timeout=1) == [2, 3, 4]
    with pytest.raises(queue.Empty):
        q.get_many(10, timeout=0)
    with pytest.raises(ValueError, match="most"):
        q.get_many(0)
    joinable = here.JoinableQueue()
    joinable.put_many([1, 2])
    for _ in joinable.get_many(5):
        joinable.task_done()
    joinable.join()


def test_in_asyncio(here: Any) -> None:
    async def talk() -> list[Any]:
        q = here.JoinableQueue(2)
        getter = asyncio.create_task(q.aget())
        await asyncio.sleep(0)
        await q.aput("a")
        got = [await getter]
        q.task_done()
        await q.aput("b")
        await q.aput("c")
        with pytest.raises(queue.Full):
            await q.aput("d", timeout=MOMENT)
        got += [await q.aget(), await q.aget()]
        with pytest.raises(queue.Empty):
            await q.aget(timeout=MOMENT)
        q.task_done()
        q.task_done()
        q.join()
        getter = asyncio.create_task(q.aget())
        await asyncio.sleep(MOMENT)
        q.shutdown()
        with pytest.raises(ipcbuf_mp.ShutDown):
            await getter
        with pytest.raises(ipcbuf_mp.ShutDown):
            await q.aput("e")
        return got

    assert asyncio.run(asyncio.wait_for(talk(), PATIENCE)) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_copies_are_private(here: Any, start: Start, kind: str) -> None:
    q, answers = getattr(here, kind)(copy=True), here.Queue()
    q.put(np.zeros(10_000))
    array = q.get()
    start(here, touch, array, answers)
    assert answers.get(timeout=PATIENCE) == "touched"
    assert array[0] == 0  # the child has its own
    q.put(np.zeros(10_000))
    array = q.get_nowait()
    array[0] = 5
    assert array.sum() == 5


def test_an_orphaned_get_can_raise(context: Any, start: Start) -> None:
    q = context.Queue(orphan="raise")
    child = start(context, put_one, q, "last")
    child.join(PATIENCE)

    assert q.get() == "last"
    with pytest.raises(EOFError):
        q.get()
    with pytest.raises(EOFError):
        q.get(timeout=PATIENCE)


def test_an_orphaned_get_waits_for_a_child_that_is_starting(here: Any, start: Start) -> None:
    q = here.Queue(orphan="raise")
    start(here, put_late, q)
    assert q.get() == "late"


def put_late(q: Any) -> None:
    time.sleep(0.5)
    q.put("late")


def test_wrong_options_are_refused(here: Any) -> None:
    class Special(ipcbuf_mp.queues.Queue[Any]):
        pass

    with pytest.raises(ValueError, match="orphan"):
        here.Queue(orphan="die")
    with pytest.raises(ValueError, match="lease"):
        here.JoinableQueue(lease=True, copy=True)
    with pytest.raises(TypeError, match="orphan="):
        Special(ctx=here, orphan="raise")


def test_copies_are_private_in_subclasses_and_in_asyncio(here: Any) -> None:
    class Special(ipcbuf_mp.queues.Queue[Any]):
        pass

    q = Special(ctx=here, copy=True)
    getters: list[Callable[[], Any]] = [q.get, lambda: asyncio.run(q.aget(PATIENCE))]
    for get in getters:
        for dtype in ("i8", "i4,f8"):  # with an encoding of its own, and pickled
            q.put(np.zeros(10_000, dtype))
            array: Any = get()

            while isinstance(array, np.ndarray):
                array = array.base
            assert type(array) is bytearray  # and no record of the segment
