# SPDX-License-Identifier: Apache-2.0
"""The queues: what the standard library's do, on both, and what only ours do."""

from __future__ import annotations

import collections
import hashlib
import multiprocessing
import multiprocessing.queues
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import typing
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import ipcbuf
import ipcbuf_mp
import ipcbuf_mp.queues

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    import numpy as np  # in tests that use it: children import this module, and it takes longest

    Start = Callable[..., Any]

PATIENCE = 60
MOMENT = 0.02  # for a wait that is to end without result


# --- what the child processes do --------------------------------------------------------------------


def put_each(target: Any, items: list[Any]) -> None:
    for item in items:
        target.put(item)


def put_numbered(target: Any, name: int, count: int) -> None:
    for number in range(count):
        target.put((name, number))


def answer(requests: Any, answers: Any) -> None:
    """Send everything back until None comes."""
    while (item := requests.get()) is not None:
        answers.put(item)


def get_one(source: Any, answers: Any) -> None:
    answers.put(source.get(timeout=PATIENCE))


def put_from_grandchild(method: str, library: str, target: Any, item: Any) -> None:
    context = sys.modules[library].get_context(method)
    process = context.Process(target=put_each, args=(target, [item]))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0


def work_off(tasks: Any, results: Any) -> None:
    while (task := tasks.get()) is not None:
        results.put(-task)
        tasks.task_done()
    tasks.task_done()


def wait_in_get(source: Any, ready: Any) -> None:
    ready.set()
    source.get()


def double_array(requests: Any, answers: Any) -> None:
    array = requests.get(timeout=PATIENCE)
    array *= 2  # a received array is writable
    answers.put(array)


def digest_when_told(array: np.ndarray[Any, Any], go: Any, answers: Any) -> None:
    answers.put(digest(array))
    go.wait(PATIENCE)
    answers.put(digest(array))


def digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


class Unpicklable:
    """Refused by pickle and by cloudpickle."""

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("never to be pickled")


class UnpicklesBadly:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


# --- Queue ----------------------------------------------------------------------------------------


class Contract:
    library: ClassVar[ModuleType]

    @pytest.fixture
    def context(self, start_method: str) -> Any:
        return self.library.get_context(start_method)

    @pytest.fixture
    def here(self) -> Any:
        """A context for tests that start no process, so once is enough."""
        return self.library.get_context("fork")


def drained(q: Any) -> Any:
    """Close a queue that may hold items, without waiting for anybody to read them."""
    q.cancel_join_thread()
    q.close()
    q.join_thread()


class QueueContract(Contract):
    """What any multiprocessing queue does."""

    def make(self, context: Any, maxsize: int = 0) -> Any:
        return context.Queue(maxsize)

    def test_order_is_first_in_first_out(self, here: Any) -> None:
        q = self.make(here)
        for number in range(1000):
            q.put(number)

        assert [q.get(timeout=PATIENCE) for _ in range(1000)] == list(range(1000))
        drained(q)

    @pytest.mark.parametrize(
        "item", [None, b"", "", (), 0, -(2**70), {"a": [1.5, {2}]}, b"x" * 3_000_000, ValueError]
    )
    def test_what_was_put_is_what_is_got(self, here: Any, item: object) -> None:
        q = self.make(here)
        q.put(item)

        got = q.get(timeout=PATIENCE)

        assert got == item
        assert type(got) is type(item)
        drained(q)

    @pytest.mark.parametrize(
        "get",
        [
            lambda q: q.get(timeout=MOMENT),
            lambda q: q.get(True, MOMENT),
            lambda q: q.get(False),
            lambda q: q.get(False, None),
            lambda q: q.get(block=False),
            lambda q: q.get_nowait(),
            lambda q: q.get(timeout=-1),
        ],
    )
    def test_an_empty_queue_raises_empty(self, here: Any, get: Callable[[Any], object]) -> None:
        q = self.make(here)

        with pytest.raises(queue.Empty) as caught:
            get(q)

        assert type(caught.value) is queue.Empty
        assert q.empty()
        drained(q)

    @pytest.mark.parametrize(
        "put",
        [
            lambda q: q.put(9, timeout=MOMENT),
            lambda q: q.put(9, True, MOMENT),
            lambda q: q.put(9, False),
            lambda q: q.put(9, False, None),
            lambda q: q.put(obj=9, block=False),
            lambda q: q.put_nowait(9),
            lambda q: q.put(9, timeout=-1),
        ],
    )
    def test_a_full_queue_raises_full(self, here: Any, put: Callable[[Any], object]) -> None:
        q = self.make(here, 1)
        q.put(1)

        with pytest.raises(queue.Full) as caught:
            put(q)

        assert type(caught.value) is queue.Full
        assert q.get(timeout=PATIENCE) == 1
        put(q)
        assert q.get(timeout=PATIENCE) == 9
        drained(q)

    def test_whether_to_block_need_not_be_a_bool(self, here: Any) -> None:
        """As in `get(5)`, by mistake for a time-out."""
        q = self.make(here)
        for block in 5, 0.5, 1:
            q.put(7, 5)
            assert q.get(block) == 7
        with pytest.raises(queue.Empty):
            q.get(0)
        drained(q)

    @pytest.mark.parametrize("maxsize", [1, 3, 100])
    def test_maxsize_counts_items_exactly(self, here: Any, maxsize: int) -> None:
        q = self.make(here, maxsize)
        for count in range(maxsize):
            assert (q.qsize(), q.full()) == (count, False)
            q.put(count)
        assert (q.qsize(), q.full()) == (maxsize, True)
        for count in reversed(range(maxsize)):
            q.get(timeout=PATIENCE)
            assert (q.qsize(), q.full()) == (count, False)
        drained(q)

    @pytest.mark.parametrize("maxsize", [0, -1])
    def test_without_a_maxsize_put_never_blocks(self, here: Any, maxsize: int) -> None:
        q = self.make(here, maxsize)
        for number in range(5000):
            q.put(number, False)

        assert not q.full()
        assert [q.get(timeout=PATIENCE) for _ in range(5000)] == list(range(5000))
        assert q._maxsize > 10**6
        drained(q)

    def test_a_closed_queue_refuses_put_and_get(self, here: Any) -> None:
        q = self.make(here)
        q.close()
        q.close()

        for use in (lambda: q.put(1), lambda: q.put(1, False), q.get, q.get_nowait):
            with pytest.raises(ValueError, match="is closed") as caught:
                use()
            assert repr(q) in str(caught.value)

    def test_close_of_an_unused_queue_leaves_empty_working(self, here: Any) -> None:
        q = self.make(here)
        q.close()
        q.join_thread()

        assert q.empty()

    def test_empty_is_refused_after_close_of_a_used_queue(self, here: Any) -> None:
        q = self.make(here)
        q.put("item")
        q.close()
        q.join_thread()

        with pytest.raises(OSError, match="is closed"):
            q.empty()

    def test_join_thread_wants_a_closed_queue(self, here: Any) -> None:
        q = self.make(here)

        with pytest.raises(AssertionError, match="not closed"):
            q.join_thread()
        drained(q)

    def test_wait_sees_the_reader(self, here: Any) -> None:
        q = self.make(here)
        assert wait([q._reader], MOMENT) == []
        q.put(1)
        q.put(2)

        for number in (1, 2):
            assert wait([q._reader], PATIENCE) == [q._reader]
            assert q._reader.poll(0)
            assert q.get(timeout=PATIENCE) == number
        assert wait([q._reader], 0) == []
        drained(q)

    def test_an_object_that_cannot_be_unpickled_costs_only_itself(self, here: Any) -> None:
        q = self.make(here, 1)
        q.put(UnpicklesBadly())

        with pytest.raises(ValueError, match="not a number"):
            q.get(timeout=PATIENCE)
        q.put("next", timeout=PATIENCE)

        assert q.get(timeout=PATIENCE) == "next"
        drained(q)

    def test_a_get_that_waits_is_woken_by_a_put(self, here: Any) -> None:
        q = self.make(here)
        got: list[object] = []
        thread = threading.Thread(target=lambda: got.append(q.get(timeout=PATIENCE)))
        thread.start()
        time.sleep(MOMENT)  # usually it sleeps by now; it must work either way
        q.put("wake up")
        thread.join(PATIENCE)

        assert got == ["wake up"]
        drained(q)

    def test_a_put_that_waits_is_woken_by_a_get(self, here: Any) -> None:
        q = self.make(here, 1)
        q.put(1)
        thread = threading.Thread(target=q.put, args=(2,))
        thread.start()
        time.sleep(MOMENT)

        assert q.get(timeout=PATIENCE) == 1
        assert q.get(timeout=PATIENCE) == 2
        thread.join(PATIENCE)
        drained(q)

    # -- with other processes ---------------------------------------------------------------------

    def test_items_of_a_child_that_exits_at_once_arrive(self, context: Any, start: Start) -> None:
        q = self.make(context)
        items = [0, "text", (1, b"2"), {"key": [3]}, b"x" * 200_000]
        start(context, put_each, q, items)

        assert [q.get(timeout=PATIENCE) for _ in items] == items
        drained(q)

    def test_a_method_of_it_can_be_what_a_child_runs(self, context: Any, start: Start) -> None:
        q = self.make(context)
        start(context, q.put, "from a child")

        assert q.get(timeout=PATIENCE) == "from a child"
        drained(q)

    def test_each_item_reaches_one_consumer(self, context: Any, start: Start) -> None:
        requests, answers = self.make(context, 10), self.make(context)
        for _ in range(2):
            start(context, answer, requests, answers)
        for name in range(2):
            start(context, put_numbered, requests, name, 300)

        got = [answers.get(timeout=PATIENCE) for _ in range(600)]

        assert collections.Counter(got) == collections.Counter(
            (name, number) for name in range(2) for number in range(300)
        )
        for _ in range(2):
            requests.put(None)
        drained(answers)

    def test_items_of_one_producer_keep_their_order(self, context: Any, start: Start) -> None:
        q = self.make(context, 7)
        for name in range(2):
            start(context, put_numbered, q, name, 300)

        got = [q.get(timeout=PATIENCE) for _ in range(600)]

        for name in range(2):
            assert [number for who, number in got if who == name] == list(range(300))
        drained(q)

    def test_a_used_queue_reaches_a_later_child_and_grandchild(
        self, context: Any, start: Start, start_method: str
    ) -> None:
        q = self.make(context)
        q.put("own")
        assert q.get(timeout=PATIENCE) == "own"
        start(context, put_each, q, ["child"])
        assert q.get(timeout=PATIENCE) == "child"
        start(context, put_from_grandchild, start_method, self.library.__name__, q, "grandchild")

        assert q.get(timeout=PATIENCE) == "grandchild"
        drained(q)

    def test_a_child_that_waits_in_get_is_woken(self, context: Any, start: Start) -> None:
        requests, answers = self.make(context), self.make(context)
        start(context, get_one, requests, answers)
        with pytest.raises(queue.Empty):
            answers.get(timeout=MOMENT)
        requests.put("for the child")

        assert answers.get(timeout=PATIENCE) == "for the child"
        drained(requests)
        drained(answers)

    def test_closing_in_the_parent_leaves_the_child_its_queue(
        self, context: Any, start: Start
    ) -> None:
        q, answers = self.make(context), self.make(context)
        start(context, get_one, q, answers)
        q.put("before the close")
        q.close()

        assert answers.get(timeout=PATIENCE) == "before the close"
        drained(answers)

    def test_arrays_arrive_equal_and_writable(self, context: Any, start: Start) -> None:
        import numpy as np

        requests, answers = self.make(context), self.make(context)
        array = np.arange(100_000.0).reshape(100, 1000)
        start(context, double_array, requests, answers)
        requests.put(array)

        got = answers.get(timeout=PATIENCE)

        np.testing.assert_array_equal(got, array * 2)
        assert got.flags.writeable
        drained(requests)
        drained(answers)

    # -- subclasses -------------------------------------------------------------------------------

    def queue_class(self) -> Any:
        raise NotImplementedError

    def test_a_subclass_is_made_with_a_context(self, here: Any) -> None:
        q = type("Special", (self.queue_class(),), {})(1, ctx=here)
        q.put(1)

        assert q.full()
        assert q.get(timeout=PATIENCE) == 1
        drained(q)

    def test_overriding_put_and_get_covers_the_nowait_forms(self, here: Any) -> None:
        base = self.queue_class()

        class Logging(base):  # type: ignore[misc,valid-type]
            log: ClassVar[list[object]] = []

            def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
                self.log.append(("put", block))
                super().put(obj, block, timeout)

            def get(self, block: bool = True, timeout: float | None = None) -> object:
                self.log.append(("get", block))
                return super().get(block, timeout)

        q = Logging(ctx=here)
        q.put_nowait(1)
        assert wait([q._reader], PATIENCE)
        assert q.get_nowait() == 1

        assert Logging.log == [("put", False), ("get", False)]
        drained(q)

    def test_an_override_of_the_error_hook_gets_pickling_errors(self, here: Any) -> None:
        base = self.queue_class()
        seen: queue.Queue[tuple[Exception, object]] = queue.Queue()

        class Hooked(base):  # type: ignore[misc,valid-type]
            def _on_queue_feeder_error(self, e: Exception, obj: object) -> None:
                seen.put((e, obj))

        q = Hooked(1, ctx=here)
        bad = Unpicklable()
        q.put(bad)

        error, obj = seen.get(timeout=PATIENCE)
        assert type(error) is pickle.PicklingError
        assert obj is bad
        q.put("good", timeout=PATIENCE)  # the bad one keeps no place
        assert q.get(timeout=PATIENCE) == "good"
        drained(q)


class TestQueueOfTheStandardLibrary(QueueContract):
    library: ClassVar[ModuleType] = multiprocessing

    def queue_class(self) -> Any:
        return multiprocessing.queues.Queue


class OurQueue(QueueContract):
    library: ClassVar[ModuleType] = ipcbuf_mp

    def queue_class(self) -> Any:
        return ipcbuf_mp.queues.Queue


class TestQueue(OurQueue):
    def test_what_cannot_be_pickled_is_raised_by_put(self, here: Any) -> None:
        q = here.Queue(1)

        for _ in range(3):
            with pytest.raises(pickle.PicklingError, match="never to be pickled"):
                q.put(Unpicklable())
        assert q.empty()
        assert q.qsize() == 0
        q.put_nowait("next")

        assert q.get(timeout=PATIENCE) == "next"

    def test_put_has_copied_when_it_returns(self, here: Any) -> None:
        import numpy as np

        q = here.Queue()
        array = np.zeros(5000)
        items = [1, 2]
        q.put(array)
        q.put(items)
        array += 1
        items.append(3)

        assert not q.get(timeout=PATIENCE).any()
        assert q.get(timeout=PATIENCE) == [1, 2]

    def test_no_thread_is_started(self, here: Any) -> None:
        before = threading.active_count()
        q = here.Queue()
        q.put(object)

        assert threading.active_count() == before

    def test_what_was_put_is_there_at_once(self, here: Any) -> None:
        q = here.Queue()
        for item in (1, "x" * 100_000, {1, 2}):
            q.put(item)

            assert not q.empty()
            assert q.get_nowait() == item
        assert q.empty()

    def test_lambdas_and_closures_travel(self, context: Any, start: Start) -> None:
        number = 20
        requests, answers = context.Queue(), context.Queue()
        start(context, answer, requests, answers)
        requests.put(lambda x: x + number)
        requests.put(None)

        assert answers.get(timeout=PATIENCE)(1) == 21

    def test_a_queue_travels_through_a_queue(self, context: Any, start: Start) -> None:
        carrier, answers = context.Queue(), context.Queue()
        start(context, answer, carrier, answers)
        inner = context.Queue(3)
        inner.put("inside")
        carrier.put(inner)

        got = answers.get(timeout=PATIENCE)  # while the sender is there to hand out a descriptor
        carrier.put(None)

        assert type(got) is type(inner)
        assert (got._maxsize, got.qsize()) == (3, 1)
        inner.put("later")
        assert [got.get(timeout=PATIENCE) for _ in range(2)] == ["inside", "later"]

    def test_full_queues_do_not_keep_anybody_from_exiting(self, context: Any, start: Start) -> None:
        """The standard library waits here until somebody reads."""
        q = context.Queue()
        process = start(context, put_each, q, [b"x" * 100_000] * 100)
        process.join(PATIENCE)

        assert process.exitcode == 0
        assert q.qsize() == 100

    def test_exit_with_a_full_queue(self) -> None:
        program = "import ipcbuf_mp as m; q = m.Queue(); [q.put(b'x' * 99_999) for _ in range(99)]"

        done = subprocess.run(
            [sys.executable, "-P", "-X", "dev", "-c", program],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )

        assert (done.stdout, done.stderr) == (b"", b"")

    def test_the_death_of_a_child_that_waits_in_get_stops_nobody(
        self, context: Any, start: Start
    ) -> None:
        """In the standard library the child dies with the lock in hand."""
        q, ready = context.Queue(), context.Event()
        process = start(context, wait_in_get, q, ready)
        assert ready.wait(PATIENCE)
        time.sleep(MOMENT)
        process.kill()
        process.join(PATIENCE)

        for number in range(10):
            q.put(number)
        assert [q.get(timeout=PATIENCE) for _ in range(10)] == list(range(10))

    @pytest.mark.parametrize("nbytes", [64 * 1024, 4 * 1024 * 1024])
    def test_a_received_array_survives_a_fork(self, start: Start, nbytes: int) -> None:
        """The child still reads the block that its parent has dropped."""
        import numpy as np

        context = ipcbuf_mp.get_context("fork")
        q, answers, go = context.Queue(), context.Queue(), context.Event()
        source = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
        q.put(source)
        array = q.get(timeout=PATIENCE)
        start(context, digest_when_told, array, go, answers)
        assert answers.get(timeout=PATIENCE) == digest(source)

        del array
        kept = []
        for value in range(20):
            q.put(np.full(nbytes, value, np.uint8))
            kept.append(q.get(timeout=PATIENCE))
        go.set()

        assert answers.get(timeout=PATIENCE) == digest(source)
        assert [int(array[0]) for array in kept] == list(range(20))

    def test_a_received_array_is_not_copied(self, here: Any) -> None:
        import numpy as np

        q = here.Queue()
        q.put(np.ones(100_000))

        got = q.get(timeout=PATIENCE)

        assert not got.flags.owndata
        assert got.base is not None

    def test_a_thousand_queues_leave_nothing(self, here: Any) -> None:
        import numpy as np

        def use() -> None:
            q = here.Queue(5)
            q.put([1, {2}])
            q.put(np.zeros(1000))
            wait([q._reader], 0)
            assert q.get(timeout=PATIENCE) == [1, {2}]
            if os.urandom(1)[0] % 2:
                q.close()

        use()
        before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
        used = ipcbuf.default_segment().committed
        for _ in range(1000):
            use()

        assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        assert ipcbuf.default_segment().committed <= used + 2**20

    def test_a_queue_has_one_descriptor(self, here: Any) -> None:
        here.Queue()
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        queues = [here.Queue() for _ in range(10)]

        assert len(os.listdir("/proc/self/fd")) == before + len(queues)  # noqa: PTH208

    def test_class_takes_a_type_parameter(self) -> None:
        for kind in (ipcbuf_mp.queues.Queue, ipcbuf_mp.queues.SimpleQueue):
            assert typing.get_origin(kind[int]) is kind


# --- JoinableQueue --------------------------------------------------------------------------------


class JoinableQueueContract(Contract):
    """What it does beyond a queue."""

    def test_join_waits_for_every_task(self, context: Any, start: Start) -> None:
        tasks, results = context.JoinableQueue(), context.Queue()
        for _ in range(2):
            start(context, work_off, tasks, results)
        for task in range(20):
            tasks.put(task)
        for _ in range(2):
            tasks.put(None)
        tasks.join()

        assert sorted(results.get(timeout=PATIENCE) for _ in range(20)) == list(range(-19, 1))
        drained(tasks)
        drained(results)

    def test_join_of_an_empty_queue_returns(self, here: Any) -> None:
        tasks = here.JoinableQueue()
        tasks.join()
        drained(tasks)

    def test_task_done_too_often(self, here: Any) -> None:
        tasks = here.JoinableQueue()
        tasks.put(1)
        tasks.get(timeout=PATIENCE)
        tasks.task_done()

        with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
            tasks.task_done()
        drained(tasks)

    def test_a_full_queue_counts_nothing(self, here: Any) -> None:
        tasks = here.JoinableQueue(1)
        tasks.put(1)
        with pytest.raises(queue.Full):
            tasks.put(2, False)
        tasks.get(timeout=PATIENCE)
        tasks.task_done()
        tasks.join()
        drained(tasks)


class TestJoinableQueueOfTheStandardLibrary(JoinableQueueContract):
    library: ClassVar[ModuleType] = multiprocessing


class TestJoinableQueue(JoinableQueueContract):
    library: ClassVar[ModuleType] = ipcbuf_mp

    def test_what_cannot_be_pickled_is_not_counted(self, here: Any) -> None:
        tasks = here.JoinableQueue()
        with pytest.raises(pickle.PicklingError):
            tasks.put(Unpicklable())

        tasks.join()


class TestJoinableQueueIsAQueue(OurQueue):
    def make(self, context: Any, maxsize: int = 0) -> Any:
        return context.JoinableQueue(maxsize)

    def queue_class(self) -> Any:
        return ipcbuf_mp.queues.JoinableQueue


# --- SimpleQueue ----------------------------------------------------------------------------------


class SimpleQueueContract(Contract):
    def test_order_is_first_in_first_out(self, here: Any) -> None:
        q = here.SimpleQueue()
        for number in range(100):
            q.put(number)

        assert [q.get() for _ in range(100)] == list(range(100))
        q.close()

    def test_empty_tells_whether_get_would_wait(self, here: Any) -> None:
        q = here.SimpleQueue()
        assert q.empty()
        q.put(None)
        assert not q.empty()
        assert q.get() is None
        assert q.empty()
        q.close()

    def test_close_closes_both_ends_and_may_be_repeated(self, here: Any) -> None:
        q = here.SimpleQueue()
        q.close()
        q.close()

        assert q._reader.closed
        assert q._writer.closed
        for use in (q.empty, q.get, lambda: q.put(1)):
            with pytest.raises(OSError, match="is closed"):
                use()

    def test_ends_are_connections(self, here: Any) -> None:
        q = here.SimpleQueue()
        assert isinstance(q._reader, multiprocessing.connection.Connection)
        assert (q._reader.readable, q._reader.writable) == (True, False)
        assert (q._writer.readable, q._writer.writable) == (False, True)

        assert wait([q._reader], MOMENT) == []
        q._writer.send("sent")
        assert wait([q._reader], PATIENCE) == [q._reader]
        assert q._reader.recv() == "sent"
        q.close()

    def test_what_cannot_be_pickled_is_raised_by_put(self, here: Any) -> None:
        q = here.SimpleQueue()
        with pytest.raises(pickle.PicklingError):
            q.put(Unpicklable())
        q.put("next")

        assert q.get() == "next"
        q.close()

    def test_many_processes_share_it(self, context: Any, start: Start) -> None:
        requests, answers = context.SimpleQueue(), context.SimpleQueue()
        for _ in range(2):
            start(context, answer, requests, answers)
        for number in range(200):
            requests.put(number)
        got = sorted(answers.get() for _ in range(200))
        for _ in range(2):
            requests.put(None)

        assert got == list(range(200))


class TestSimpleQueueOfTheStandardLibrary(SimpleQueueContract):
    library: ClassVar[ModuleType] = multiprocessing


class TestSimpleQueue(SimpleQueueContract):
    library: ClassVar[ModuleType] = ipcbuf_mp

    def test_who_holds_the_lock_gets_what_poll_saw(self, here: Any) -> None:
        """`Pool.terminate()` relies on it. Its workers, which still read, hold no lock here."""
        carrier, far = here.Pipe()
        q = here.SimpleQueue()
        with carrier, far:
            carrier.send(q)
            worker = far.recv()
        q.put(1)
        q.put(2)
        assert q._reader.poll()
        assert worker.get() == 1
        assert q._rlock.acquire(timeout=PATIENCE)

        assert q._reader.poll()
        assert q._reader.poll()
        assert worker.empty()
        assert q._reader.recv() == 2
        assert not q._reader.poll()
        worker.close()
        q.close()


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
def test_a_queue_is_an_instance_of_the_standard_class(kind: str) -> None:
    """`logging.config` and others ask."""
    made = getattr(ipcbuf_mp, kind)()

    assert isinstance(made, getattr(multiprocessing.queues, kind))
    made.close()
