# SPDX-License-Identifier: Apache-2.0
"""Segments: making, finding, sending and filling them."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    Start = Callable[..., Any]

PATIENCE = 60
MIB = 1 << 20


def descriptors() -> dict[str, str]:
    """What each descriptor of this process is open on."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[entry.name] = str(entry.readlink())
    return found


# --- what the child processes do ------------------------------------------------------------------


def fill_and_tell(segment: ipcbuf.Segment, pipe: Connection) -> None:
    sender, receiver = segment.channel(shared=True)
    record = segment.allocate(100)
    memoryview(record)[:] = b"c" * 100
    sender.send(record)
    pipe.send((segment.uuid, segment.token, sender.channel_id, receiver.transit()))
    assert pipe.poll(PATIENCE)
    pipe.recv()


def send_segment(pipe: Connection) -> None:
    """Make a segment, and send it as part of a message."""
    segment = ipcbuf.Segment(max_size=8 * MIB)
    sender, receiver = segment.channel()
    sender.send(b"from a stranger")
    pipe.send((segment, receiver))
    assert pipe.poll(PATIENCE)
    assert pipe.recv() == "received"


def report_descriptors(segments: list[ipcbuf.Segment], pipe: Connection) -> None:
    names = descriptors().values()
    pipe.send((len({id(segment) for segment in segments}), sum("memfd:" in name for name in names)))


def hold_memory(segment: ipcbuf.Segment, size: int, pipe: Connection) -> None:
    kept = [segment.allocate(size)]
    pipe.send("held")
    signal.pause()
    del kept


def tokens_of(segments: list[ipcbuf.Segment], pipe: Connection) -> None:
    pipe.send([segment.token for segment in segments])


# --- making and finding ---------------------------------------------------------------------------


def test_a_segment_says_what_it_is(segment: ipcbuf.Segment) -> None:
    assert segment.max_size == 256 * MIB
    assert len(segment.uuid) == 16
    assert 0 < segment.committed <= segment.max_size
    assert segment.token != 0
    assert descriptors()[str(segment.fd)].startswith("/memfd:")
    assert segment.uuid.hex()[:8] in repr(segment)


def test_the_default_size_follows_the_machine() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    assert 0 < ipcbuf.Segment().max_size <= physical / 2


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_size_is_positive(wrong: int) -> None:
    with pytest.raises(ValueError, match="max_size must be positive"):
        ipcbuf.Segment(max_size=wrong)


def test_a_segment_is_found_by_its_name(segment: ipcbuf.Segment) -> None:
    assert ipcbuf.find_segment(segment.uuid) is segment
    assert ipcbuf.find_segment(b"0" * 16) is None


def test_attaching_twice_gives_the_same_object(segment: ipcbuf.Segment) -> None:
    assert ipcbuf.Segment.attach(segment.fd) is segment
    assert pickle.loads(pickle.dumps(segment)) is segment


def test_threads_find_one_default_segment() -> None:
    script = """
import sys, threading
sys.path.append(sys.argv[1])
import ipcbuf
barrier, found = threading.Barrier(8), []
def find():
    barrier.wait()
    found.append(ipcbuf.default_segment())
threads = [threading.Thread(target=find) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len({s.uuid for s in found}))
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", script, str(Path(__file__).parents[2])],
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout == "1\n"


def test_what_is_not_a_segment_is_refused() -> None:
    fd = os.memfd_create("other")
    try:
        with pytest.raises(ipcbuf.NotASegment):
            ipcbuf.Segment.attach(fd)
        os.write(fd, b"\x7fELF" + bytes(8192))
        with pytest.raises(ipcbuf.NotASegment):
            ipcbuf.Segment.attach(fd)
    finally:
        os.close(fd)
    with pytest.raises(ipcbuf.SegmentError) as caught:
        ipcbuf.Segment.attach(fd)
    assert caught.value.errno == errno.EBADF
    reader, writer = os.pipe()
    with pytest.raises(ipcbuf.NotASegment):
        ipcbuf.Segment.attach(reader)
    os.close(reader)
    os.close(writer)


def test_a_damaged_header_is_refused_by_name(segment: ipcbuf.Segment) -> None:
    header = os.pread(segment.fd, 4096, 0)
    size = os.fstat(segment.fd).st_size

    def refusal(content: bytes, length: int) -> type[BaseException]:
        fd = os.memfd_create("copy")
        try:
            os.write(fd, content)
            os.ftruncate(fd, length)
            with pytest.raises(ipcbuf.SegmentError) as caught:
                ipcbuf.Segment.attach(fd)
            return caught.type
        finally:
            os.close(fd)

    assert refusal(header, 8192) is ipcbuf.SegmentTruncated
    assert refusal(header[:20], 20) is ipcbuf.SegmentTruncated
    assert refusal(header[:7], 7) is ipcbuf.NotASegment
    assert refusal(header[7::-1] + header[8:], size) is ipcbuf.AbiMismatch
    version = struct.pack("<I", 99)
    assert refusal(header[:8] + version + header[12:], size) is ipcbuf.VersionMismatch
    # Every other bit of the constants is guarded by the checksum.
    kinds = {
        refusal(header[:at] + bytes([header[at] ^ 0x40]) + header[at + 1 :], size)
        for at in range(16, 96)
    }
    assert kinds <= {ipcbuf.SegmentCorrupted, ipcbuf.AbiMismatch}


def test_the_memory_is_sealed_against_shrinking(segment: ipcbuf.Segment) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 4096)


def test_nothing_remains_of_a_dropped_segment() -> None:
    before = descriptors()
    made = [ipcbuf.Segment(max_size=4 * MIB) for _ in range(20)]
    uuids = [segment.uuid.hex() for segment in made]

    del made
    gc.collect()

    assert all(ipcbuf.find_segment(bytes.fromhex(uuid)) is None for uuid in uuids)
    assert descriptors() == before


# --- in other processes ---------------------------------------------------------------------------


def test_a_child_has_the_segment_with_a_slot_of_its_own(
    segment: ipcbuf.Segment, start_method: str, start: Start
) -> None:
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()
    process = start(context, fill_and_tell, segment, there)
    assert here.poll(PATIENCE)
    uuid, token, channel_id, transit = here.recv()

    assert uuid == segment.uuid
    assert token != segment.token
    assert segment.stats()["processes"] == 2
    receiver = segment.open_receiver(channel_id, transit)
    here.send("opened")
    assert receiver.recv(timeout=PATIENCE) == b"c" * 100
    process.join(PATIENCE)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_many_handles_travel_as_one_descriptor(
    segment: ipcbuf.Segment, method: str, start: Start
) -> None:
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()

    start(context, report_descriptors, [segment] * 10, there)

    assert here.poll(PATIENCE)
    assert here.recv() == (1, 1)


def test_a_segment_is_found_through_a_message(start_method: str, start: Start) -> None:
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()
    start(context, send_segment, there)

    assert here.poll(PATIENCE)
    segment, receiver = here.recv()

    assert receiver.recv(timeout=PATIENCE) == b"from a stranger"
    assert receiver.segment is segment is ipcbuf.find_segment(segment.uuid)
    here.send("received")


def test_a_segment_whose_sender_is_gone_is_not_found() -> None:
    other = ipcbuf.Segment(max_size=4 * MIB)
    data = pickle.dumps(other)
    del other
    gc.collect()

    with pytest.raises(ipcbuf.SegmentNotFound):
        pickle.loads(data)


def test_several_segments_at_once(start_method: str, start: Start) -> None:
    segments = [ipcbuf.Segment(max_size=(4 + i) * MIB) for i in range(5)]
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()

    start(context, tokens_of, segments, there)

    assert here.poll(PATIENCE)
    assert len(here.recv()) == 5
    channels = [segment.channel() for segment in segments]
    for i, (sender, _) in enumerate(channels):
        sender.send(bytes([i]) * 100_000)
    assert [receiver.recv(timeout=PATIENCE)[0] for _, receiver in channels] == [0, 1, 2, 3, 4]
    assert [segment.fsck() for segment in segments] == [[]] * 5


# --- filling --------------------------------------------------------------------------------------


def fill(segment: ipcbuf.Segment, size: int) -> tuple[list[ipcbuf.Record], ipcbuf.HeapExhausted]:
    kept = []
    try:
        while True:
            kept.append(segment.allocate(size))
    except ipcbuf.HeapExhausted as error:
        return kept, error.with_traceback(None)  # whose frame would keep the records alive


def send_until_exhausted(sender: ipcbuf.Sender, message: Callable[[int], bytes]) -> int:
    """Send message(0), message(1) and so on; return how many there was room for."""
    sent = 0
    with contextlib.suppress(ipcbuf.HeapExhausted):
        while True:
            sender.send(message(sent))
            sent += 1
    return sent


@pytest.mark.parametrize("size", [1, 1000, 30_000, 100_000, MIB])
def test_a_full_segment_says_so_with_numbers_and_goes_on(size: int) -> None:
    segment = ipcbuf.Segment(max_size=16 * MIB)

    kept, error = fill(segment, size)

    assert (error.requested, error.max_size) == (size, 16 * MIB)
    assert error.committed == segment.committed == 16 * MIB
    assert error.largest <= error.free < 2 * MIB
    assert f"{16 * MIB}" in str(error)
    assert isinstance(error, MemoryError)
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOMEM
    assert len(kept) * size > (4 if size > 256 else 0.02) * MIB

    kept.pop()
    kept.append(segment.allocate(size))
    kept.clear()
    assert segment.fsck() == []
    again, _ = fill(segment, size)
    assert segment.fsck() == []
    again.clear()
    assert segment.allocate(12 * MIB).nbytes == 12 * MIB  # runs were merged again


def test_sizes_may_change_in_a_full_segment() -> None:
    segment = ipcbuf.Segment(max_size=16 * MIB)
    rng = np.random.default_rng(1)

    for size in rng.integers(1, 3 * MIB, 60):
        kept, _ = fill(segment, int(size))
        assert kept
        del kept

    assert segment.fsck() == []
    assert segment.stats()["process_blocks"] == 0


def test_what_threads_freed_is_found_again() -> None:
    segment = ipcbuf.Segment(max_size=16 * MIB)

    def fill_here() -> None:
        counts.append(len(fill(segment, 50_000)[0]))

    counts: list[int] = []
    for _ in range(6):
        thread = threading.Thread(target=fill_here)
        thread.start()
        thread.join(PATIENCE)

    assert min(counts) == max(counts) > 100


def test_a_full_segment_stops_a_send_but_not_the_channel() -> None:
    segment = ipcbuf.Segment(max_size=8 * MIB)
    sender, receiver = segment.channel()

    sent = send_until_exhausted(sender, lambda number: bytes([number]) * 300_000)

    assert sent == sender.pending() > 10
    for number in range(sent):
        assert receiver.recv(timeout=PATIENCE) == bytes([number]) * 300_000
        sender.send(b"small")
    assert [receiver.recv(timeout=PATIENCE) for _ in range(sent)] == [b"small"] * sent
    assert segment.fsck() == []


def test_a_backlog_that_fills_the_segment_is_not_lost() -> None:
    segment = ipcbuf.Segment(max_size=4 * MIB)
    sender, receiver = segment.channel()

    sent = send_until_exhausted(sender, lambda number: b"%d" % number)

    assert sent > 10_000
    for number in range(sent):
        assert receiver.recv(timeout=PATIENCE) == b"%d" % number
    sender.send(b"on")
    assert receiver.recv(timeout=PATIENCE) == b"on"
    assert segment.fsck() == []


def test_what_the_dead_held_is_free_again(start_method: str, start: Start) -> None:
    segment = ipcbuf.Segment(max_size=16 * MIB)
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()
    for _ in range(3):
        process = start(context, hold_memory, segment, 10 * MIB, there)
        assert here.poll(PATIENCE)
        here.recv()
        with pytest.raises(ipcbuf.HeapExhausted):
            segment.allocate(10 * MIB)

        process.kill()
        process.join(PATIENCE)

        assert segment.allocate(10 * MIB).nbytes == 10 * MIB  # found without a call to reap
    assert segment.stats()["processes"] == 1
    assert segment.fsck() == []


def test_reap_counts_the_dead(segment: ipcbuf.Segment, start: Start) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    segment.reap()
    processes = [start(context, hold_memory, segment, 1000, there) for _ in range(4)]
    for _ in processes:
        assert here.poll(PATIENCE)
        here.recv()
    before = segment.stats()

    for process in processes:
        process.kill()
    for process in processes:
        process.join(PATIENCE)

    assert before["processes"] == 5
    assert before["process_blocks"] == 4
    assert segment.reap() == 4
    assert segment.reap() == 0
    assert segment.stats()["processes"] == 1
    assert segment.stats()["process_blocks"] == 0


def test_processes_names_the_living_and_the_dead() -> None:
    segment = ipcbuf.Segment()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie is dead

    rows = {row["pid"]: row for row in segment.processes()}
    os.waitpid(pid, 0)

    assert rows.keys() == {os.getpid(), pid}
    assert not rows[os.getpid()]["dead"]
    assert rows[pid]["dead"]
    assert segment.reap() == 1
    assert [row["pid"] for row in segment.processes()] == [os.getpid()]
