# SPDX-License-Identifier: Apache-2.0
"""Static segments: memory with a key, initialised once, shared, freed with its last user."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier

    Start = Callable[..., Any]

PATIENCE = 60
FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("nbytes", [1, 7, 64, 4097, 100_000, 3_000_001])
def test_it_is_exactly_so_many_zeros(segment: ipcbuf.Segment, nbytes: int) -> None:
    used = segment.allocate(nbytes)
    memoryview(used)[:] = b"\xff" * nbytes
    used.release()

    area = segment.static("m", nbytes)

    assert bytes(area) == bytes(nbytes)
    assert (len(area), area.nbytes, area.key) == (nbytes, nbytes, "m")


def test_all_who_have_it_see_the_same_memory(segment: ipcbuf.Segment) -> None:
    one, two = segment.static(1, 80), segment.static(1, 80)

    np.frombuffer(memoryview(one), dtype=np.float64)[:] = 1.5

    assert np.frombuffer(memoryview(two), dtype=np.float64).tolist() == [1.5] * 10


@pytest.mark.parametrize("nbytes", [0, -1])
def test_a_length_is_positive(segment: ipcbuf.Segment, nbytes: int) -> None:
    with pytest.raises(ValueError, match=f"not {nbytes}"):
        segment.static("m", nbytes)


def test_another_length_is_refused(segment: ipcbuf.Segment) -> None:
    area = segment.static("m", 100)

    with pytest.raises(ValueError, match="nbytes=100, not 101"):
        segment.static("m", 101)
    with pytest.raises(TypeError):
        segment.static("m", 100, "init")  # type: ignore[arg-type]

    assert not area.closed


def test_more_than_there_is(segment: ipcbuf.Segment) -> None:
    with pytest.raises(ipcbuf.RecordTooLarge, match=str(1 << 30)):
        segment.static("m", 1 << 30)
    with segment.static("large", 200 << 20), pytest.raises(ipcbuf.HeapExhausted):
        segment.static("m", 100 << 20)

    assert segment.channels() == []


def test_it_is_freed_with_its_last_user(segment: ipcbuf.Segment) -> None:
    one, two = segment.static("m", 100_000), segment.static("m", 100_000)
    array = np.frombuffer(memoryview(one), dtype=np.uint8)
    with pytest.raises(BufferError):
        one.close()
    two.close()
    assert segment.has_channel("m")

    del one, array
    gc.collect()

    assert not segment.has_channel("m")
    assert segment.stats()["ring_blocks"] == 0
    with pytest.raises(ValueError, match="closed"):
        memoryview(two)
    two.close()


def test_removed_it_lives_as_long_as_its_users(segment: ipcbuf.Segment) -> None:
    old = segment.static("m", 10)
    segment.remove_channel("m")

    new = segment.static("m", 20)

    memoryview(old)[0] = 1
    assert bytes(new) == bytes(20)
    old.close()
    assert segment.stats()["ring_blocks"] == 1


# --- init -----------------------------------------------------------------------------------------


def test_init_runs_once(segment: ipcbuf.Segment) -> None:
    calls = []

    def init(memory: memoryview) -> None:
        calls.append(len(memory))
        memory[:3] = b"abc"

    areas = [segment.static("m", 5, init) for _ in range(3)]

    assert calls == [5]
    assert [bytes(area) for area in areas] == [b"abc\0\0"] * 3


def test_who_brings_none_does_not_spoil_it(segment: ipcbuf.Segment) -> None:
    area = segment.static("m", 5)
    memoryview(area)[4] = 9

    segment.static("m", 5, lambda memory: memory.__setitem__(0, 1))

    assert bytes(area) == b"\1\0\0\0\x09"


def test_init_that_raises_is_followed_by_the_next(segment: ipcbuf.Segment) -> None:
    kept = segment.static("m", 5)

    def fail(memory: memoryview) -> None:
        memory[:] = b"waste"
        raise LookupError("no data")

    with pytest.raises(LookupError, match="no data"):
        segment.static("m", 5, fail)
    segment.static("m", 5, lambda memory: memory.__setitem__(1, 7))

    assert bytes(kept) == b"\0\7\0\0\0"


def count_calls(segment: ipcbuf.Segment, barrier: Barrier, rounds: int) -> None:
    calls = segment.atomic("calls")
    kept = []
    for key in range(rounds):
        if key % 10 == 0:
            barrier.wait(PATIENCE)

        def init(memory: memoryview, key: int = key) -> None:
            calls.add(1)
            memory[:4] = key.to_bytes(4, "little")

        area = segment.static(key, 1000, init)
        assert bytes(memoryview(area)[:4]) == key.to_bytes(4, "little")
        kept.append(area)
    barrier.wait(PATIENCE)


def test_init_runs_once_however_many_race(segment: ipcbuf.Segment, start: Start) -> None:
    calls = segment.atomic("calls")
    barrier = FORK.Barrier(8)
    racers = [start(FORK, count_calls, segment, barrier, 50) for _ in range(8)]
    for racer in racers:
        racer.join(PATIENCE)

    assert [racer.exitcode for racer in racers] == [0] * 8
    assert calls.load() == 50


def begin_and_hang(segment: ipcbuf.Segment, pipe: Connection) -> None:
    def init(memory: memoryview) -> None:
        memory[:] = b"waste"
        pipe.send("in mid-init")
        signal.pause()

    segment.static("m", 5, init)


def test_killed_in_mid_init(segment: ipcbuf.Segment, start: Start) -> None:
    kept = segment.static("m", 5)
    for _ in range(3):
        here, there = FORK.Pipe()
        process = start(FORK, begin_and_hang, segment, there)
        assert here.poll(PATIENCE)
        threading.Timer(0.05, process.kill).start()
        if _ == 2:
            # The last one is waited for by who has an init itself: it runs after all.
            segment.static("m", 5, lambda memory: memory.__setitem__(2, 3))
            assert bytes(kept) == b"\0\0\3\0\0"
        else:
            assert bytes(segment.static("m", 5)) == bytes(5)  # waited, and found zeros
        process.join()
    assert segment.fsck() == []


def test_ctrl_c_ends_the_wait_for_an_init(segment: ipcbuf.Segment, start: Start) -> None:
    here, there = FORK.Pipe()
    process = start(FORK, begin_and_hang, segment, there)
    assert here.poll(PATIENCE)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()

    with pytest.raises(KeyboardInterrupt):
        segment.static("m", 5)

    timer.join()
    process.kill()
    process.join()
    assert not segment.has_channel("m")


# --- travel ---------------------------------------------------------------------------------------


def fill(area: ipcbuf.Static) -> None:
    assert bytes(area) == b"12345"
    memoryview(area)[:] = b"67890"
    area.close()


def test_it_travels(segment: ipcbuf.Segment, start: Start, start_method: str) -> None:
    area = segment.static("m", 5, lambda memory: memory.__setitem__(slice(None), b"12345"))
    child = start(multiprocessing.get_context(start_method), fill, area)
    child.join(PATIENCE)

    assert bytes(area) == b"67890"


def test_a_pickle_keeps_it(segment: ipcbuf.Segment) -> None:
    data = pickle.dumps(segment.static("m", 5, lambda memory: memory.__setitem__(0, 1)))
    gc.collect()

    area = pickle.loads(data)

    assert bytes(area) == b"\1\0\0\0\0"
    area.close()
    assert not segment.has_channel("m")


def test_a_forked_child_keeps_it(segment: ipcbuf.Segment, start: Start) -> None:
    area = segment.static("m", 5)
    here, there = FORK.Pipe()

    def child() -> None:
        here.close()
        there.recv()
        memoryview(area)[0] = 4
        there.send(segment.static("m", 5).channel_id == area.channel_id)

    start(FORK, child)
    area.close()
    here.send("go on")
    assert here.poll(PATIENCE)
    assert here.recv()
