# SPDX-License-Identifier: Apache-2.0
"""Records: memory of the segment in Python's hands."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 60
SIZES = [0, 1, 2, 15, 16, 63, 64, 65, 255, 4095, 4096, 4097, 65_535, 65_537, 1 << 20, (1 << 20) + 1]
LARGE = [(16 << 20) - 1, (48 << 20) + 3]


def held(segment: ipcbuf.Segment) -> int:
    """How many blocks processes have in their hands."""
    gc.collect()
    return segment.stats()["process_blocks"]


def as_array(record: Any, dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    return np.frombuffer(record, dtype)


@pytest.mark.parametrize("size", SIZES + LARGE)
def test_a_record_is_as_long_as_asked_for(segment: ipcbuf.Segment, size: int) -> None:
    record = segment.allocate(size)

    assert record.nbytes == len(record) == size
    assert memoryview(record).nbytes == size
    assert segment.stats()["process_bytes"] >= size


def test_a_record_is_written_and_read_through_memoryview(segment: ipcbuf.Segment) -> None:
    record = segment.allocate(10)
    view = memoryview(record)
    assert not view.readonly

    view[:] = b"0123456789"
    view[2:4] = b"ab"

    assert bytes(record) == b"01ab456789"


def test_a_record_is_written_and_read_through_numpy(segment: ipcbuf.Segment) -> None:
    record = segment.allocate(8000)
    array = as_array(record, np.float64)
    assert array.flags.writeable

    array[:] = np.arange(1000)

    assert np.frombuffer(bytes(record)).sum() == 499_500


def test_a_record_is_written_and_read_through_ctypes(segment: ipcbuf.Segment) -> None:
    record = segment.allocate(16)

    (ctypes.c_uint32 * 4).from_buffer(record)[3] = 0x01020304
    gc.collect()

    assert bytes(record)[12:] == (0x01020304).to_bytes(4, "little")


def test_a_record_goes_out_of_band_in_a_pickle(segment: ipcbuf.Segment) -> None:
    record = segment.allocate(100)
    memoryview(record)[:] = b"p" * 100
    buffer = pickle.PickleBuffer(record)

    with buffer.raw() as raw:
        assert bytes(raw) == b"p" * 100

    with pytest.raises(BufferError):
        record.release()
    buffer.release()
    record.release()


def test_different_records_do_not_overlap(segment: ipcbuf.Segment) -> None:
    records = [segment.allocate(size) for size in SIZES * 5]
    for i, record in enumerate(records):
        memoryview(record)[:] = bytes([i]) * len(record)

    assert all(set(bytes(record)) <= {i} for i, record in enumerate(records))


def test_memory_is_freed_with_the_last_reference(segment: ipcbuf.Segment) -> None:
    record = segment.allocate(1000)
    alias = record
    del record
    assert held(segment) == 1

    del alias

    assert held(segment) == 0


VIEWS: dict[str, Callable[[Any], Any]] = {
    "memoryview": memoryview,
    "slice": lambda record: memoryview(record)[5:10],
    "numpy": as_array,
    "reshaped": lambda record: as_array(record).reshape(2, -1)[1, ::2],
    "ctypes": (ctypes.c_char * 100).from_buffer,
    "PickleBuffer": pickle.PickleBuffer,
}


@pytest.mark.parametrize("make_view", VIEWS.values(), ids=VIEWS)
def test_a_view_keeps_the_memory(segment: ipcbuf.Segment, make_view: Callable[[Any], Any]) -> None:
    record = segment.allocate(100)
    view = make_view(record)

    with pytest.raises(BufferError, match="views"):
        record.release()
    del record

    assert held(segment) == 1
    del view
    assert held(segment) == 0


def test_a_released_record_is_gone_at_once(segment: ipcbuf.Segment) -> None:
    record = segment.allocate(1000)

    record.release()
    record.release()  # twice is allowed

    assert held(segment) == 0
    with pytest.raises(ValueError, match="released or sent"):
        memoryview(record)


def test_a_record_outlives_the_segment_object(segment: ipcbuf.Segment) -> None:
    own = ipcbuf.Segment(max_size=8 << 20)
    view = memoryview(own.allocate(100))
    del own
    gc.collect()

    view[:] = b"x" * 100

    assert bytes(view) == b"x" * 100


def test_a_record_freed_by_another_thread_goes_home(segment: ipcbuf.Segment) -> None:
    records = [segment.allocate(5000) for _ in range(200)]
    committed = segment.committed

    for _ in range(20):
        thread = threading.Thread(target=records.clear)
        thread.start()
        thread.join(PATIENCE)
        assert held(segment) == 0
        records.extend(segment.allocate(5000) for _ in range(200))

    assert segment.committed == committed  # reused, not added
    records.clear()


def test_threads_allocate_at_the_same_time(segment: ipcbuf.Segment) -> None:
    failures = []

    def work(name: int) -> None:
        rng = np.random.default_rng(name)
        kept: list[tuple[ipcbuf.Record, int]] = []
        for number in range(2000):
            size = int(rng.integers(1, 20_000))
            record = segment.allocate(size)
            memoryview(record)[:] = bytes([number % 251]) * size
            kept.append((record, number % 251))
            if len(kept) > 20:
                old, value = kept.pop(int(rng.integers(0, 20)))
                if bytes(old).strip(bytes([value])):
                    failures.append((name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert failures == []
    assert held(segment) == 0


# --- sending records ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES + LARGE)
def test_a_sent_record_arrives_as_it_is(segment: ipcbuf.Segment, size: int) -> None:
    sender, receiver = segment.channel()
    content = np.random.default_rng(size).bytes(size)
    record = segment.allocate(size)
    memoryview(record)[:] = content

    sender.send(record)
    view = receiver.recv_view(timeout=PATIENCE)

    assert view.nbytes == size
    assert hashlib.sha256(view).digest() == hashlib.sha256(content).digest()


def test_sending_a_record_copies_nothing(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    record = segment.allocate(1 << 20)
    address = as_array(record).ctypes.data
    gc.collect()

    sender.send(record)
    view = receiver.recv_view(timeout=PATIENCE)

    assert as_array(view).ctypes.data == address


@pytest.mark.parametrize("make_view", VIEWS.values(), ids=VIEWS)
def test_a_record_is_not_sent_while_views_live(
    segment: ipcbuf.Segment, make_view: Callable[[Any], Any]
) -> None:
    sender, receiver = segment.channel()
    record = segment.allocate(100)
    view = make_view(record)

    with pytest.raises(BufferError, match="views"):
        sender.send(record)
    assert not receiver.poll()
    del view
    sender.send(record)

    assert receiver.recv_view(timeout=PATIENCE).nbytes == 100


def test_a_sent_record_is_not_ours_any_more(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    record = segment.allocate(10)
    sender.send(record)

    with pytest.raises(ValueError, match="released or sent"):
        memoryview(record)
    with pytest.raises(ValueError, match="released or sent"):
        sender.send(record)
    record.release()

    assert len(receiver.recv(timeout=PATIENCE)) == 10
    assert not receiver.poll()


def test_a_record_that_found_no_room_is_still_ours(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_items=1)
    sender.send(b"first")
    record = segment.allocate(4)
    memoryview(record)[:] = b"abcd"

    with pytest.raises(ipcbuf.ChannelFull):
        sender.send(record, timeout=0)
    assert bytes(record) == b"abcd"

    assert receiver.recv(timeout=PATIENCE) == b"first"
    sender.send(record, timeout=PATIENCE)
    assert receiver.recv(timeout=PATIENCE) == b"abcd"


def test_a_record_of_another_segment_is_copied(segment: ipcbuf.Segment) -> None:
    other = ipcbuf.Segment(max_size=8 << 20)
    sender, receiver = segment.channel()
    record = other.allocate(5)
    memoryview(record)[:] = b"other"

    sender.send(record)

    assert receiver.recv(timeout=PATIENCE) == b"other"
    assert held(other) == 0


def test_a_received_view_frees_its_record_with_the_last_reference(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    for size, blocks in ((10, 0), (100_000, 1)):  # a small message needs no block
        sender.send(b"x" * size)
        array = as_array(receiver.recv_view(timeout=PATIENCE))
        assert held(segment) == blocks
        assert array.sum() == size * ord("x")

        array = array[1:]
        assert held(segment) == blocks
        del array

        assert held(segment) == 0


def test_a_received_view_can_be_sent_on(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    sender.send(b"y" * 100_000)

    for _ in range(5):
        sender.send(receiver.recv_view(timeout=PATIENCE))

    assert receiver.recv(timeout=PATIENCE) == b"y" * 100_000
    assert held(segment) == 0


def test_wrong_arguments_are_refused(segment: ipcbuf.Segment) -> None:
    with pytest.raises(TypeError):
        segment.allocate("ten")  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError, OverflowError)):
        segment.allocate(-1)
    with pytest.raises(TypeError):
        ipcbuf.Record()
    with pytest.raises(ipcbuf.RecordTooLarge) as caught:
        segment.allocate(segment.max_size + 1)

    assert caught.value.nbytes == segment.max_size + 1
