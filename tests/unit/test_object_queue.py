# SPDX-License-Identifier: Apache-2.0
"""ObjectQueue: put and get on one shared channel, without the layer of the drop-in classes."""

from __future__ import annotations

import gc
import queue
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf
import ipcbuf_mp
import ipcbuf_mp._pickling  # sets the codec for what is not encoded natively

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Any]

PATIENCE = 60
MOMENT = 0.02

NATIVE: list[Any] = [
    *(None, True, False, 0, 1, -1, 127, 128, -129, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)),
    *(0.0, -0.0, 1.5, float("inf"), 5e-324, b"", b"\0", b"x" * 1000, b"y" * 100_000),
    *("", "a", "\0", "é", "€uro", "\U0001f600", "x" * 5000, "é" * 100_000),
    *((), (1,), (1, "a", 2.5), [], [None, [True, [b"x"]]], {}, {"a": 1, 2: ["b", {}]}),
    *(list(range(100)), tuple("abc" * 10), {str(i): i for i in range(30)}, ((((()),),),)),
]
PICKLED: list[Any] = [
    *(2**64, -(10**100), 1 + 2j, {1, 2}, frozenset({"a"}), bytearray(b"ab"), range(5), slice(1, 2)),
    *(list(range(10_000)), "\ud800", b"z" * 3_000_000, ValueError("text"), int, len, ...),
]


def make(segment: ipcbuf.Segment, maxsize: int = 0) -> ipcbuf.ObjectQueue:
    sender, receiver = segment.channel(max_items=maxsize, shared=True)
    return ipcbuf.ObjectQueue(sender, receiver, maxsize)


@pytest.mark.parametrize("item", NATIVE + PICKLED, ids=lambda item: repr(item)[:30])
def test_an_object_arrives_equal_and_of_the_same_type(segment: ipcbuf.Segment, item: Any) -> None:
    objects = make(segment)

    objects.put(item)
    got = objects.get(timeout=PATIENCE)

    assert type(got) is type(item)
    assert repr(got) == repr(item)
    assert objects.empty()


def test_signs_and_identity_of_the_small(segment: ipcbuf.Segment) -> None:
    objects = make(segment)
    objects.put((float("nan"), -0.0, None, True))

    nan, zero, none, true = objects.get(timeout=PATIENCE)

    assert nan != nan
    assert str(zero) == "-0.0"
    assert none is None
    assert true is True


def test_subclasses_keep_their_type(segment: ipcbuf.Segment) -> None:
    objects = make(segment)

    objects.put([np.float64(1.5), np.int8(3)])
    first, second = objects.get(timeout=PATIENCE)

    assert type(first) is np.float64
    assert type(second) is np.int8


def test_a_container_in_itself(segment: ipcbuf.Segment) -> None:
    objects = make(segment)
    ring: list[Any] = [1]
    ring.append(ring)

    objects.put(ring)
    got = objects.get(timeout=PATIENCE)

    assert got[1] is got


def test_depth_is_no_matter_until_pickle_says_so(segment: ipcbuf.Segment) -> None:
    objects = make(segment)
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    objects.put(deep)
    assert objects.get(timeout=PATIENCE) == deep

    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        objects.put(deep)
    while deep:  # so that taking it down does not go deep, either
        deep = deep.pop()

    assert objects.empty()


def test_an_array_arrives_writable_and_frees_its_memory(segment: ipcbuf.Segment) -> None:
    objects = make(segment)
    array = np.arange(300_000, dtype=np.float64).reshape(300, 1000)

    objects.put(array)
    array[:] = 0  # put has copied it
    got = objects.get(timeout=PATIENCE)

    assert got.flags.writeable
    assert got.sum() == 299_999 * 150_000
    assert segment.stats()["process_blocks"] == 1
    part = got[5:6]
    del got
    gc.collect()
    assert segment.stats()["process_blocks"] == 1
    del part
    gc.collect()
    assert segment.stats()["process_blocks"] == 0


def test_many_arrays_in_one_object(segment: ipcbuf.Segment) -> None:
    objects = make(segment)
    arrays = {i: np.full(i * 100, i, dtype=np.uint16) for i in range(1, 60)}

    objects.put(arrays)
    got = objects.get(timeout=PATIENCE)

    assert list(got) == list(arrays)
    assert all((got[i] == arrays[i]).all() for i in arrays)
    del got
    gc.collect()
    assert segment.stats()["process_blocks"] == 0


def test_order_and_size(segment: ipcbuf.Segment) -> None:
    objects = make(segment, maxsize=3)
    assert objects.empty()
    for number in range(3):
        assert not objects.full()
        objects.put_nowait(number)
        assert objects.qsize() == number + 1
    assert objects.full()

    with pytest.raises(queue.Full) as full:
        objects.put_nowait(3)
    with pytest.raises(queue.Full):
        objects.put(3, timeout=MOMENT)
    assert [objects.get_nowait() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(queue.Empty) as empty:
        objects.get_nowait()
    with pytest.raises(queue.Empty):
        objects.get(True, MOMENT)

    assert full.type is queue.Full
    assert empty.type is queue.Empty


def test_an_object_that_cannot_be_pickled_is_the_putters_error(segment: ipcbuf.Segment) -> None:
    class Refuses:
        def __reduce__(self) -> Any:
            raise ZeroDivisionError("not this one")

    objects = make(segment)

    for wrong in (Refuses(), [1, Refuses()], (np.zeros(100_000), Refuses())):
        with pytest.raises(ZeroDivisionError, match="not this one"):
            objects.put(wrong)

    assert objects.empty()
    assert segment.stats()["process_blocks"] == 0
    objects.put("next")
    assert objects.get(timeout=PATIENCE) == "next"


def fail_to_load() -> object:
    raise ZeroDivisionError("while loading")


class LoadsBadly:
    def __reduce__(self) -> Any:
        return fail_to_load, ()


def test_an_object_that_cannot_be_loaded_is_the_getters_error(segment: ipcbuf.Segment) -> None:
    objects = make(segment)
    objects.put(LoadsBadly())
    objects.put((np.zeros(100_000), LoadsBadly()))
    objects.put("next")

    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="while loading"):
            objects.get(timeout=PATIENCE)

    assert objects.get(timeout=PATIENCE) == "next"
    gc.collect()
    assert segment.stats()["process_blocks"] == 0


def test_a_closed_queue_is_not_used(segment: ipcbuf.Segment) -> None:
    objects = make(segment)
    objects.put(1)
    assert not objects.closed

    objects.close_native()

    assert objects.closed
    for call in (lambda: objects.put(2), objects.get, objects.get_nowait):
        with pytest.raises(ValueError, match=r"Queue <.*> is closed"):
            call()


def test_it_needs_two_ends(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(shared=True)
    with pytest.raises(TypeError):
        ipcbuf.ObjectQueue(receiver, sender)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ipcbuf.ObjectQueue(sender)  # type: ignore[call-arg]


def test_threads_share_it(segment: ipcbuf.Segment) -> None:
    objects = make(segment, maxsize=5)
    got: list[list[Any]] = [[] for _ in range(4)]

    def put(name: int) -> None:
        for number in range(2000):
            objects.put((name, number))

    def take(mine: list[Any]) -> None:
        while (item := objects.get(timeout=PATIENCE)) is not None:
            mine.append(item)

    putters = [threading.Thread(target=put, args=(name,)) for name in range(4)]
    takers = [threading.Thread(target=take, args=(mine,)) for mine in got]
    for thread in (*putters, *takers):
        thread.start()
    for thread in putters:
        thread.join(PATIENCE)
    for _ in takers:
        objects.put(None)
    for thread in takers:
        thread.join(PATIENCE)

    assert sorted(item for mine in got for item in mine) == [
        (name, number) for name in range(4) for number in range(2000)
    ]
    for mine in got:
        for name in range(4):
            numbers = [number for who, number in mine if who == name]
            assert numbers == sorted(numbers)


def test_a_queue_of_processes(start_method: str, start: Start) -> None:
    context = ipcbuf_mp.get_context(start_method)
    requests, answers = context.Queue(), context.Queue()
    start(context, answer, requests, answers)

    for item in (*NATIVE, *PICKLED[:-3]):
        requests.put(item)
        assert repr(answers.get(timeout=PATIENCE)) == repr(item)

    requests.put(StopIteration)


def answer(requests: Any, answers: Any) -> None:
    while (item := requests.get(timeout=PATIENCE)) is not StopIteration:
        answers.put(item)


def test_sleepers_in_one_process_are_all_woken(segment: ipcbuf.Segment) -> None:
    """Eight threads sleep in `get`, eight items come; nobody waits out a slice of 200 ms."""
    objects = make(segment)
    slowest = []
    for _ in range(20):
        delays: list[float] = []
        threads = [
            threading.Thread(target=lambda to=delays: to.append(time.monotonic() - objects.get()))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        time.sleep(1.1)  # slices are 20 ms in the first second
        for _ in threads:
            objects.put(time.monotonic())
        for thread in threads:
            thread.join(PATIENCE)
        slowest.append(max(delays))
        if slowest[-1] < 0.02:
            break

    assert min(slowest) < 0.05, slowest  # the machine may be busy; a lost wake-up is lost always


def test_closing_does_not_harm_threads_that_are_at_work(segment: ipcbuf.Segment) -> None:
    """What they do next is refused; the place of the closed channel is another's by then."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for turn in range(300):
            sender, receiver = segment.channel(shared=True, max_items=2)
            objects = ipcbuf.ObjectQueue(sender, receiver)
            ends: list[BaseException] = []

            def repeat(call: Callable[[], object], to: list[BaseException]) -> None:
                try:
                    while True:
                        call()
                except Exception as error:
                    to.append(error)

            calls: list[Callable[[], object]] = [
                partial(sender.send_object, b"x" * 2000),
                partial(sender.send_object, "y"),
                receiver.recv_object,
                receiver.recv_object,
            ]
            threads = [threading.Thread(target=repeat, args=(call, ends)) for call in calls]
            for thread in threads:
                thread.start()
            time.sleep(turn % 10 / 5000)
            objects.close_native()
            for thread in threads:
                thread.join(PATIENCE)

            assert all(
                isinstance(end, (ipcbuf.ClosedError, ipcbuf.BrokenChannel, ipcbuf.EndOfChannel))
                for end in ends
            ), ends
    finally:
        sys.setswitchinterval(interval)

    assert segment.stats()["channels"] == 0
    assert segment.stats()["poisoned"] == 0
