# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in shared memory: making, freeing, moving, sharing; and what dead processes leave."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf
import ipcbuf_mp
from ipcbuf._native import Moving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = 30


@pytest.fixture
def segment() -> Iterator[ipcbuf.Segment]:
    """A segment that must be sound, and hold nothing, when the test ends."""
    made = ipcbuf.Segment(max_size=256 << 20)
    yield made
    gc.collect()
    made.reap()
    assert made.fsck() == []
    stats = made.stats()
    assert stats["process_blocks"] == 0
    assert stats["shared_blocks"] == 0
    assert stats["tickets"] == 0


def in_child(work: Callable[[], None]) -> int:
    """Fork, run *work*, and return how the child ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


RECORD = np.dtype([("when", "M8[ns]"), ("place", "f4", (3,)), ("name", "S7")])
CASES: list[tuple[Any, Any]] = [
    ((), "f8"),
    ((0,), "i4"),
    ((3, 0, 2), "c16"),
    (5, "M8[s]"),
    ((2, 3), RECORD),
    ((4,), "U5"),
    ((1000, 1000), "f4"),
    ((7,), ">i2"),
    ((3,), "V5"),
    ((2,), bool),
]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_arrays_are_like_numpys(
    segment: ipcbuf.Segment, shape: Any, dtype: Any, order: str
) -> None:
    ours = ipcbuf.zeros(shape, dtype, order, segment=segment)
    theirs = np.zeros(shape, dtype, order)  # type: ignore[call-overload]

    assert type(ours) is np.ndarray
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert ours.strides == theirs.strides or ours.size == 0
    assert ours.flags.writeable
    assert ours.tobytes() == theirs.tobytes()
    assert segment.stats()["view_bytes"] == theirs.nbytes


@pytest.mark.parametrize(
    "source",
    [
        np.arange(6).reshape(2, 3),
        np.arange(6).reshape(2, 3).T,
        np.arange(12)[::2],
        [1, 2.5],
        np.float32(3),
    ],
)
def test_from_array_copies_anything(segment: ipcbuf.Segment, source: Any) -> None:
    made = ipcbuf.from_array(source, segment=segment)

    assert made.dtype == np.asarray(source).dtype
    np.testing.assert_array_equal(np.asarray(source), made)


def test_memory_is_freed_with_the_last_view(segment: ipcbuf.Segment) -> None:
    array = ipcbuf.empty((100, 10), segment=segment)
    part = array[3:5, 1:]
    del array
    gc.collect()
    assert segment.stats()["view_bytes"] == 8000
    del part
    gc.collect()

    assert segment.stats()["views"] == 0
    assert segment.stats()["process_blocks"] == 0


def test_the_record_below_an_array_cannot_be_released(segment: ipcbuf.Segment) -> None:
    array = ipcbuf.zeros(10, segment=segment)
    record = memoryview(array.base.base).obj  # type: ignore[union-attr, arg-type]
    assert isinstance(record, ipcbuf.Record)

    with pytest.raises(BufferError):
        record.release()


@pytest.mark.parametrize("dtype", [object, [("a", "i4"), ("b", object)]])
def test_python_objects_are_refused(segment: ipcbuf.Segment, dtype: Any) -> None:
    with pytest.raises(TypeError, match="cannot be in shared memory"):
        ipcbuf.empty(3, dtype, segment=segment)
    with pytest.raises(TypeError, match="cannot be in shared memory"):
        ipcbuf.from_array(np.zeros(3, dtype), segment=segment)


def test_bad_arguments(segment: ipcbuf.Segment) -> None:
    with pytest.raises(ValueError, match="negative"):
        ipcbuf.empty((2, -1), segment=segment)
    with pytest.raises(ValueError, match="order"):
        ipcbuf.empty(2, order="K", segment=segment)
    with pytest.raises(ipcbuf.RecordTooLarge):
        ipcbuf.empty(1 << 40, segment=segment)
    with pytest.raises(TypeError, match="not list"):
        ipcbuf.share([1, 2])  # type: ignore[arg-type]


def test_numpy_is_imported_when_it_is_needed() -> None:
    code = "import sys, ipcbuf; assert 'numpy' not in sys.modules; ipcbuf.empty(3)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT)


# -- moving -----------------------------------------------------------------------------------


def test_a_moved_array_is_one_memory(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    array = ipcbuf.zeros((300, 1000), "i4", "F", segment=segment)
    before = segment.stats()["used_bytes"]

    sender.send_object(ipcbuf.move(array))
    assert segment.stats()["used_bytes"] - before < 1000
    got = receiver.recv_object(TIMEOUT)

    assert (got.shape, got.dtype, got.strides) == (array.shape, array.dtype, array.strides)
    assert got.flags.writeable
    assert not array.flags.writeable
    got[5, 7] = 42
    assert array[5, 7] == 42
    del array
    gc.collect()
    assert got[5, 7] == 42


def test_put_has_copy_semantics_also_for_arrays_of_the_heap() -> None:
    queue: Any = ipcbuf_mp.get_context("fork").Queue()
    array = ipcbuf.zeros(2000)
    queue.put(array)
    array[0] = 1
    assert queue.get(timeout=TIMEOUT)[0] == 0
    queue.put(ipcbuf.move(array))
    got = queue.get(timeout=TIMEOUT)
    got[1] = 2

    assert (array[0], array[1]) == (1, 2)


def test_an_array_goes_round_without_a_copy(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    array = ipcbuf.zeros(100_000, segment=segment)
    address = array.ctypes.data
    for turn in range(5):
        sender.send_object({"turn": turn, "array": ipcbuf.move(array)})
        array = receiver.recv_object(TIMEOUT)["array"]
        array += 1

    assert array.ctypes.data == address
    assert (array == 5).all()


def test_send_moves_bytes_too(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    array = ipcbuf.from_array(np.arange(1000, dtype="i2"), segment=segment)
    for receive in (receiver.recv, receiver.recv_view):
        sender.send(ipcbuf.move(ipcbuf.from_array(array, segment=segment)))
        got: Any = receive(TIMEOUT)
        assert bytes(got) == array.tobytes()


def test_a_record_behind_a_ticket_is_sent_on(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    array = ipcbuf.from_array(np.arange(1000, dtype="i2"), segment=segment)
    sender.send(ipcbuf.move(array))
    record = receiver.recv_view(TIMEOUT)
    sender.send(record)

    assert receiver.recv(TIMEOUT) == array.tobytes()


def test_moving_over_a_limit_counts_what_is_kept(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_bytes=1_000_000)
    first = ipcbuf.zeros(100_000, segment=segment)
    second = ipcbuf.zeros(100_000, segment=segment)
    sender.send(ipcbuf.move(first))
    moving = ipcbuf.move(second)

    with pytest.raises(ipcbuf.ChannelFull):
        sender.send(moving, timeout=0)
    receiver.recv(TIMEOUT)
    sender.send(moving, timeout=0)


def test_what_cannot_be_moved_says_why(segment: ipcbuf.Segment) -> None:
    array = ipcbuf.zeros((10, 10), segment=segment)
    shared = ipcbuf.share(ipcbuf.zeros(4, segment=segment))
    wrong: list[tuple[np.ndarray[Any, Any], str]] = [
        (np.zeros(3), "not in a segment"),
        (array[:5], "400 bytes of a block of 800"),
        (array[:, :5], "not contiguous"),
        (array[::2], "not contiguous"),
        (shared.array, "reader's view"),
    ]
    for bad, why in wrong:
        with pytest.raises(ValueError, match=why) as error:
            ipcbuf.move(bad)
        assert "from_array" in str(error.value)
    with pytest.raises(TypeError, match="matrix"):
        ipcbuf.move(array.view(np.matrix))
    ipcbuf.move(array)
    with pytest.raises(ValueError, match="read-only"):
        ipcbuf.move(array)
    with pytest.raises(TypeError):
        Moving(3)  # type: ignore[arg-type]


def test_into_another_segment(segment: ipcbuf.Segment) -> None:
    other = ipcbuf.Segment(max_size=64 << 20)
    sender, receiver = other.channel()
    array = ipcbuf.zeros(1000, segment=segment)
    with pytest.raises(ValueError, match="another segment"):
        sender.send(ipcbuf.move(array))

    array.flags.writeable = True
    sender.send_object(ipcbuf.move(array))
    got = receiver.recv_object(TIMEOUT)
    got[3] = 3

    assert array[3] == 3


def test_a_child_gets_it_and_the_parent_lets_go(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(shared=True)
    array = ipcbuf.zeros(50_000, segment=segment)

    def child() -> None:
        got = receiver.recv_object(TIMEOUT)
        got[:] = 7
        sender.send_object(ipcbuf.move(got))

    sender.send_object(ipcbuf.move(array))
    del array
    gc.collect()
    assert in_child(child) == 0
    segment.reap()

    assert (receiver.recv_object(TIMEOUT) == 7).all()


@pytest.mark.parametrize("when", ["marked", "sent", "received", "let go"])
def test_who_is_killed_leaves_nothing(segment: ipcbuf.Segment, when: str) -> None:
    sender, receiver = segment.channel(shared=True)

    def child() -> None:
        array = ipcbuf.zeros(50_000, segment=segment)
        moving = ipcbuf.move(array)
        if when != "marked":
            sender.send_object(moving)
        if when == "received":
            held = receiver.recv_object(TIMEOUT)
            assert held.nbytes
        if when == "let go":
            del array, moving
            gc.collect()
        die()

    assert in_child(child) == -signal.SIGKILL
    segment.reap()
    assert segment.fsck() == []
    expected = 1 if when in ("sent", "let go") else 0
    assert segment.stats()["shared_blocks"] == expected
    assert receiver.pending() == expected
    if expected:
        assert receiver.recv_object(TIMEOUT).nbytes == 400_000


def test_a_channel_that_ends_frees_what_was_moved_into_it(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    for _ in range(3):
        sender.send(ipcbuf.move(ipcbuf.zeros(1000, segment=segment)))
    sender.close()
    receiver.close()

    assert segment.stats()["shared_blocks"] == 0


def test_a_failed_pickle_leaves_no_ticket(segment: ipcbuf.Segment) -> None:
    sender, _ = segment.channel()
    array = ipcbuf.zeros(1000, segment=segment)
    moving = ipcbuf.move(array)
    with pytest.raises(Exception, match=r"pickle|generator"):
        sender.send_object([moving, (n for n in "")])
    gc.collect()

    assert segment.stats()["tickets"] == 0


# -- sharing ----------------------------------------------------------------------------------


def test_readers_cannot_write(segment: ipcbuf.Segment) -> None:
    array = ipcbuf.from_array(np.arange(10), segment=segment)
    shared = ipcbuf.share(array)

    assert not array.flags.writeable
    assert shared.view.readonly
    seen = shared.array
    np.testing.assert_array_equal(np.arange(10), seen)
    assert seen.ctypes.data == array.ctypes.data
    with pytest.raises(ValueError, match="WRITEABLE"):
        seen.flags.writeable = True
    assert copy.deepcopy(shared) is shared
    assert copy.copy(shared) is shared


@pytest.mark.parametrize("data", [b"", b"abc", bytearray(b"xy" * 5000), memoryview(b"abcdef")[::2]])
def test_bytes_are_shared_too(segment: ipcbuf.Segment, data: Any) -> None:
    shared = ipcbuf.share(data, segment=segment)

    assert bytes(data) == bytes(shared.view)
    assert shared.array.tobytes() == bytes(data)
    assert len(shared) == shared.nbytes == len(bytes(data))


def test_a_plain_array_is_copied_once(segment: ipcbuf.Segment) -> None:
    plain = np.arange(1000)
    shared = ipcbuf.share(plain, segment=segment)
    plain[0] = 5

    assert shared.array[0] == 0
    assert plain.flags.writeable


def test_a_handle_in_a_message_keeps_the_memory(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    shared = ipcbuf.share(np.arange(100_000), segment=segment)
    for _ in range(20):
        sender.send_object(("one of many", shared))
    del shared
    gc.collect()
    assert segment.stats()["shared_blocks"] == 1
    for _ in range(20):
        got = receiver.recv_object(TIMEOUT)[1].array
        assert got[-1] == 99_999

    del got
    gc.collect()
    assert segment.stats()["used_bytes"] < 100_000


def test_many_readers_of_whom_some_are_killed(segment: ipcbuf.Segment) -> None:
    """One block, six processes: by fork and by message; half die holding it."""
    sender, receiver = segment.channel(shared=True)
    done_sender, done = segment.channel(shared=True)
    shared = ipcbuf.share(np.arange(200_000), segment=segment)
    total = int(shared.array.sum())
    children = []
    for number in range(6):
        by_fork = number % 2 == 0
        if not by_fork:
            sender.send_object(shared)
        pid = os.fork()
        if pid == 0:
            mine = shared if by_fork else receiver.recv_object(TIMEOUT)
            done_sender.send_object(int(mine.array.sum()))
            if number < 3:
                die()
            os._exit(0)
        children.append(pid)
    for _ in children:
        assert done.recv_object(TIMEOUT) == total
    for pid in children:
        os.waitpid(pid, 0)
    segment.reap()
    assert segment.fsck() == []
    assert segment.stats()["shared_blocks"] == 1
    before = segment.stats()["used_bytes"]
    del shared
    gc.collect()

    assert segment.stats()["shared_blocks"] == 0
    assert before - segment.stats()["used_bytes"] >= 1_600_000


def _read(shared: ipcbuf.Shared, out: Any) -> None:
    out.put(int(shared.array.sum()))


def _total(shared: ipcbuf.Shared) -> int:
    return int(shared.array.sum())


def _double(moved: Any) -> Any:
    moved *= 2
    return moved


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_handles_travel_every_way(method: str) -> None:
    context: Any = ipcbuf_mp.get_context(method)
    shared = ipcbuf.share(np.arange(10_000))
    total = 49_995_000
    out = context.Queue()
    child = context.Process(target=_read, args=(shared, out))
    child.start()
    assert out.get(timeout=TIMEOUT) == total
    child.join(TIMEOUT)
    left, right = context.Pipe()
    left.send(shared)
    assert _total(right.recv()) == total
    left.close()
    right.close()
    with ipcbuf_mp.Executor(2, mp_context=context) as executor:
        assert list(executor.map(_total, [shared] * 4)) == [total] * 4
        array = ipcbuf.from_array(np.arange(1000))
        doubled = executor.submit(_double, ipcbuf.move(array)).result(TIMEOUT)
        np.testing.assert_array_equal(np.arange(1000) * 2, doubled)
        np.testing.assert_array_equal(doubled, array)  # the worker wrote into our memory


def test_the_standard_librarys_pool_and_queue() -> None:
    shared = ipcbuf.share(np.arange(10_000))
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(_total, shared).result(TIMEOUT) == 49_995_000
    queue = context.SimpleQueue()
    queue.put(shared)
    assert _total(queue.get()) == 49_995_000


def test_the_bytes_of_a_handle_open_it_once(segment: ipcbuf.Segment) -> None:
    shared = ipcbuf.share(np.arange(1000), segment=segment)
    for protocol in (2, 4, 5):
        text = pickle.dumps(shared, protocol)
        opened = pickle.loads(text)
        np.testing.assert_array_equal(shared.array, opened.array)
        with pytest.raises(ipcbuf.ClosedError, match="opened before"):
            pickle.loads(text)


def test_a_handle_whose_sender_was_killed_is_gone(segment: ipcbuf.Segment) -> None:
    read, write = os.pipe()

    def child() -> None:
        shared = ipcbuf.share(np.arange(1000), segment=segment)
        os.write(write, pickle.dumps(shared))
        die()

    in_child(child)
    text = os.read(read, 10_000)
    os.close(read)
    os.close(write)
    segment.reap()

    with pytest.raises(ipcbuf.ClosedError, match="sender ended"):
        pickle.loads(text)


def test_a_fork_with_views_of_moved_and_shared_memory(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    array = ipcbuf.zeros(1000, segment=segment)
    sender.send_object(ipcbuf.move(array))
    got = receiver.recv_object(TIMEOUT)
    shared = ipcbuf.share(b"x" * 5000, segment=segment)

    def child() -> None:
        nonlocal array, got, shared
        got[0] = 9
        assert array[0] == 9
        assert bytes(shared.view) == b"x" * 5000
        del array, got, shared
        gc.collect()

    assert in_child(child) == 0
    segment.reap()
    assert segment.fsck() == []
    assert got[0] == 9
    assert segment.stats()["shared_blocks"] >= 2


# -- small messages as records ----------------------------------------------------------------


def test_a_small_message_is_never_lost_to_a_full_heap() -> None:
    small = ipcbuf.Segment(max_size=1 << 20)
    sender, receiver = small.channel()
    sender.send(b"precious")
    sender.send_object([1, 2, 3])
    held = []
    for size in (200_000, 10_000, 1000, 100, 1):
        with contextlib.suppress(ipcbuf.HeapExhausted):
            while True:
                held.append(small.allocate(size))

    record = receiver.recv_view(TIMEOUT)
    assert bytes(memoryview(record)) == b"precious"
    assert pickle.loads(memoryview(receiver.recv_view(TIMEOUT))) == [1, 2, 3]
    sender.send(record)
    assert receiver.recv(TIMEOUT) == b"precious"
    held.clear()
    with pytest.raises(ValueError, match="released or sent"):
        memoryview(record)
    assert small.fsck() == []
