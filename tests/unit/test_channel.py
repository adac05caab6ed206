# SPDX-License-Identifier: Apache-2.0
"""Channels: bytes and records from a sender to a receiver, and how each ends."""

from __future__ import annotations

import array
import contextlib
import ctypes
import itertools
import multiprocessing
import os
import pickle
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    Start = Callable[..., Any]

PATIENCE = 60
MOMENT = 0.02  # for a wait that is to end without result
MIB = 1 << 20

# Around every border: inline or block, size classes, pages.
SIZES = [0, 1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 100, 239, 240, 241, 255, 256, 257, 500, 1000]
SIZES += [1023, 1024, 1025, 2040, 2048, 2060, 4095, 4096, 4097, 32_700, 32_768, 65_535, 65_536]
SIZES += [65_537, 100_000, MIB - 1, MIB, MIB + 1]
LARGE = [8 * MIB + 1, 32 * MIB - 7, 48 * MIB + 1]


def content_of(size: int, seed: int = 0) -> bytes:
    return random.Random(size * 7919 + seed).randbytes(size)


# --- what the child processes do ------------------------------------------------------------------


def echo(requests: ipcbuf.Receiver, answers: ipcbuf.Sender) -> None:
    with answers:
        for message in requests:
            answers.send(message)


def send_contents(sender: ipcbuf.Sender, sizes: list[int]) -> None:
    with sender:
        for size in sizes:
            sender.send(content_of(size), timeout=PATIENCE)


def send_records(segment: ipcbuf.Segment, sender: ipcbuf.Sender, sizes: list[int]) -> None:
    for size in sizes:
        record = segment.allocate(size)
        memoryview(record)[:] = content_of(size)
        sender.send(record, timeout=PATIENCE)
    sender.close()


def send_then_wait(sender: ipcbuf.Sender, count: int, pipe: Connection) -> None:
    for number in range(count):
        sender.send(b"%d" % number)
    pipe.send("sent")
    signal.pause()


def receive_then_wait(receiver: ipcbuf.Receiver, count: int, pipe: Connection) -> None:
    for _ in range(count):
        receiver.recv(timeout=PATIENCE)
    pipe.send("received")
    signal.pause()


def name_of_error(call: Callable[[], object], pipe: Connection) -> None:
    try:
        pipe.send(repr(call()))
    except Exception as error:
        pipe.send(type(error).__name__)


def use_sender(sender: ipcbuf.Sender, pipe: Connection) -> None:
    name_of_error(lambda: sender.send(b"second", timeout=0), pipe)


def use_receiver(receiver: ipcbuf.Receiver, pipe: Connection) -> None:
    name_of_error(lambda: receiver.recv(timeout=0), pipe)


def send_numbered(sender: ipcbuf.Sender, name: int, count: int) -> None:
    for number in range(count):
        sender.send(b"%d %d" % (name, number))


def collect(receiver: ipcbuf.Receiver, sender: ipcbuf.Sender, pipe: Connection) -> None:
    sender.close()  # a fork inherits it, and there is no end while anybody could send
    pipe.send([tuple(map(int, message.split())) for message in receiver])


def in_thread(call: Callable[[], object]) -> Callable[[], object]:
    """Start the call in a thread; what is returned waits for its result or exception."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> object:
        thread.join(PATIENCE)
        assert not thread.is_alive()
        return outcome[0]

    return result


def wait_until_asleep() -> None:
    """Wait until every other thread of this process sleeps in the kernel."""
    own = str(threading.get_native_id())
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        states = set()
        for entry in os.listdir("/proc/self/task"):  # noqa: PTH208
            if entry != own:
                with open(f"/proc/self/task/{entry}/stat") as file:  # noqa: PTH123
                    states.add(file.read().rpartition(") ")[2][0])
        if states <= {"S"}:
            return
        time.sleep(0.001)
    pytest.fail("another thread is not asleep")


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES + LARGE)
def test_the_exact_length_is_kept(segment: ipcbuf.Segment, size: int) -> None:
    sender, receiver = segment.channel()
    content = content_of(size)

    sender.send(content)
    assert receiver.recv(timeout=PATIENCE) == content
    sender.send(content)
    view = receiver.recv_view(timeout=PATIENCE)

    assert view.nbytes == size
    assert memoryview(view) == content


def test_random_lengths_keep_their_order(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    rng = random.Random(4)
    expected: list[bytes] = []
    for _ in range(3000):
        while rng.random() < 0.52 and len(expected) < 200:
            content = rng.randbytes(int(2 ** rng.uniform(0, 17)) - 1)
            sender.send(content)
            expected.append(content)
        if expected:
            assert receiver.recv(timeout=PATIENCE) == expected.pop(0)
    for content in expected:
        assert receiver.recv(timeout=PATIENCE) == content

    assert not receiver.poll()


LIKE_BYTES: dict[str, Any] = {
    "bytes": b"0123456789abcdef" * 3,
    "bytearray": bytearray(b"0123456789abcdef" * 3),
    "memoryview": memoryview(b"x0123456789abcdefx" * 3)[1:17],
    "array": array.array("d", [1.5, 2.5, 3.5]),
    "numpy": np.arange(100, dtype=np.int32).reshape(10, 10),
    "ctypes": (ctypes.c_uint64 * 5)(1, 2, 3, 4, 5),
    "PickleBuffer": pickle.PickleBuffer(b"out of band"),
}


@pytest.mark.parametrize("data", LIKE_BYTES.values(), ids=LIKE_BYTES)
def test_anything_like_bytes_can_be_sent(segment: ipcbuf.Segment, data: Any) -> None:
    sender, receiver = segment.channel()

    sender.send(data)

    assert receiver.recv(timeout=PATIENCE) == bytes(memoryview(data).cast("B"))


@pytest.mark.parametrize("wrong", ["text", 5, None, [b"list"]])
def test_what_is_not_like_bytes_is_refused(segment: ipcbuf.Segment, wrong: Any) -> None:
    sender, receiver = segment.channel()

    with pytest.raises(TypeError):
        sender.send(wrong)

    assert not receiver.poll()


def test_memory_with_gaps_is_refused(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()

    with_gaps: Any = np.arange(20)[::2]
    with pytest.raises((BufferError, ValueError)):
        sender.send(with_gaps)

    assert not receiver.poll()


# --- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -0.5, MOMENT])
def test_recv_gives_up_after_its_time(segment: ipcbuf.Segment, timeout: float) -> None:
    _sender, receiver = segment.channel()
    begin = time.monotonic()

    with pytest.raises(ipcbuf.ChannelEmpty) as caught:
        receiver.recv(timeout=timeout)

    assert isinstance(caught.value, queue.Empty)
    assert time.monotonic() - begin >= timeout
    with pytest.raises(ipcbuf.ChannelEmpty):
        receiver.recv_view(timeout=timeout)
    with pytest.raises(ipcbuf.ChannelEmpty):
        receiver.recv_object(timeout=timeout)
    assert not receiver.poll(timeout)


@pytest.mark.parametrize("timeout", [0, -1, MOMENT])
def test_send_gives_up_after_its_time(segment: ipcbuf.Segment, timeout: float) -> None:
    sender, receiver = segment.channel(max_items=1)
    sender.send(b"first")
    begin = time.monotonic()

    with pytest.raises(ipcbuf.ChannelFull) as caught:
        sender.send(b"second", timeout=timeout)

    assert isinstance(caught.value, queue.Full)
    assert time.monotonic() - begin >= timeout
    assert receiver.recv(timeout=PATIENCE) == b"first"
    assert not receiver.poll()


def test_a_timeout_is_a_number(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()

    with pytest.raises(ValueError, match="not a number"):
        receiver.recv(timeout=float("nan"))
    with pytest.raises(TypeError):
        receiver.recv(timeout="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        sender.send(b"", timeout="1")  # type: ignore[arg-type]
    sender.send(b"x", timeout=float("inf"))
    assert receiver.recv(timeout=float("inf")) == b"x"


def test_a_sleeping_recv_is_woken_by_a_message(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    result = in_thread(receiver.recv)
    wait_until_asleep()

    sender.send(b"wake")

    assert result() == b"wake"


def test_a_sleeping_send_is_woken_by_room(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_items=1)
    sender.send(b"first")
    result = in_thread(lambda: sender.send(b"second"))
    wait_until_asleep()

    assert receiver.recv(timeout=PATIENCE) == b"first"

    assert result() is None
    assert receiver.recv(timeout=PATIENCE) == b"second"


def test_poll_takes_nothing(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    assert receiver.poll() is False
    result = in_thread(lambda: receiver.poll(None))
    wait_until_asleep()

    sender.send(b"once")

    assert result() is True
    assert receiver.poll() is True
    assert receiver.pending() == sender.pending() == 1
    assert receiver.recv(timeout=PATIENCE) == b"once"
    assert receiver.poll() is False


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_a_channel_holds_max_items(segment: ipcbuf.Segment, limit: int) -> None:
    sender, receiver = segment.channel(max_items=limit)
    for number in range(limit):
        sender.send(b"%d" % number, timeout=0)

    for number in range(3 * limit):
        with pytest.raises(ipcbuf.ChannelFull):
            sender.send(b"too many", timeout=0)
        assert receiver.recv(timeout=0) == b"%d" % number
        sender.send(b"%d" % (limit + number), timeout=0)

    assert sender.pending() == limit


def test_a_channel_holds_max_bytes_or_one_larger_message(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_bytes=10_000)
    sent = 0
    while True:
        try:
            sender.send(bytes(1000), timeout=0)
        except ipcbuf.ChannelFull:
            break
        sent += 1
    assert 5 <= sent <= 10

    for _ in range(sent):
        assert len(receiver.recv(timeout=0)) == 1000
    sender.send(bytes(MIB), timeout=0)
    with pytest.raises(ipcbuf.ChannelFull):
        sender.send(b"x", timeout=0)
    assert len(receiver.recv(timeout=0)) == MIB
    sender.send(b"x", timeout=0)
    assert receiver.recv(timeout=0) == b"x"


def test_an_unbounded_channel_takes_any_backlog(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    empty = segment.stats()

    for turn in range(3):
        for number in range(50_000):
            sender.send(b"%d" % number, timeout=0)
        assert receiver.pending() == 50_000
        for number in range(50_000):
            assert receiver.recv(timeout=0) == b"%d" % number
        if turn == 0:
            first = segment.committed

    assert segment.committed == first  # memory follows the backlog, not the traffic
    assert segment.stats()["ring_blocks"] == empty["ring_blocks"] == 1


def test_a_channel_that_stays_a_little_behind_does_not_grow(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    for number in range(10):
        sender.send(bytes(50) + b"%d" % number)

    for number in range(20_000):
        sender.send(bytes(50) + b"%d" % (number + 10))
        assert receiver.recv(timeout=0)[50:] == b"%d" % number

    assert segment.stats()["ring_blocks"] <= 2


# --- between processes ----------------------------------------------------------------------------


def test_both_ways_between_processes(
    segment: ipcbuf.Segment, start_method: str, start: Start
) -> None:
    requests, there = segment.channel()
    back, answers = segment.channel()
    process = start(multiprocessing.get_context(start_method), echo, there, back)
    there.close()
    back.close()
    for size in SIZES:
        requests.send(content_of(size))
        assert answers.recv(timeout=PATIENCE) == content_of(size)

    requests.close()

    with pytest.raises(ipcbuf.EndOfChannel):
        answers.recv(timeout=PATIENCE)
    process.join(PATIENCE)


def test_large_messages_between_processes(
    segment: ipcbuf.Segment, start_method: str, start: Start
) -> None:
    sender, receiver = segment.channel(max_bytes=64 * MIB)
    sizes = [*LARGE, *SIZES, *LARGE]
    start(multiprocessing.get_context(start_method), send_contents, sender, sizes)
    sender.close()

    assert [content_of(size) for size in sizes] == list(receiver)


def test_records_between_processes(
    segment: ipcbuf.Segment, start_method: str, start: Start
) -> None:
    sender, receiver = segment.channel(max_items=4)
    start(multiprocessing.get_context(start_method), send_records, segment, sender, SIZES)
    sender.close()

    for size in SIZES:
        view = receiver.recv_view(timeout=PATIENCE)
        assert memoryview(view) == content_of(size)
    with pytest.raises(ipcbuf.EndOfChannel):
        receiver.recv_view(timeout=PATIENCE)


def test_many_on_both_sides_of_a_shared_channel(
    segment: ipcbuf.Segment, start_method: str, start: Start
) -> None:
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()
    sender, receiver = segment.channel(shared=True, max_items=16)
    assert sender.shared
    assert receiver.shared
    for name in range(3):
        start(context, send_numbered, sender, name, 500)
    for _ in range(3):
        start(context, collect, receiver, sender, there)
    sender.close()
    receiver.close()

    parts = []
    for _ in range(3):
        assert here.poll(PATIENCE)
        parts.append(here.recv())

    assert sorted(itertools.chain(*parts)) == [
        (name, number) for name in range(3) for number in range(500)
    ]
    for part in parts:
        for name in range(3):
            numbers = [number for who, number in part if who == name]
            assert numbers == sorted(numbers)


def test_many_threads_on_both_sides(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(shared=True, max_items=3)

    def send(name: int) -> None:
        for number in range(2000):
            sender.send(b"%d %d" % (name, number))

    def receive() -> list[bytes]:
        return list(receiver)

    senders = [in_thread(partial(send, name)) for name in range(4)]
    receivers = [in_thread(receive) for _ in range(4)]
    assert [result() for result in senders] == [None] * 4
    sender.close()
    parts: list[Any] = [result() for result in receivers]

    assert sorted(itertools.chain(*parts)) == sorted(
        b"%d %d" % (name, number) for name in range(4) for number in range(2000)
    )


def test_ends_travel_through_a_channel(segment: ipcbuf.Segment) -> None:
    carrier_in, carrier_out = segment.channel()
    sender, receiver = segment.channel()
    sender.send(b"early")

    carrier_in.send_object((sender, receiver))
    sender.close()
    receiver.close()
    sender, receiver = carrier_out.recv_object(timeout=PATIENCE)
    sender.send(b"late")
    sender.close()

    assert list(receiver) == [b"early", b"late"]


# --- exclusive ends -------------------------------------------------------------------------------


def test_a_second_thread_at_an_exclusive_end_is_told(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_items=1)
    sender.send(b"first")
    blocked = in_thread(lambda: sender.send(b"second"))
    wait_until_asleep()

    results = {type(_error_of(lambda: sender.send(b"third", timeout=0))) for _ in range(200)}

    # Asleep, the thread is not inside; what counts is that nothing is torn or lost.
    assert results <= {ipcbuf.BusyError, ipcbuf.ChannelFull}
    assert receiver.recv(timeout=PATIENCE) == b"first"
    assert blocked() is None
    assert receiver.recv(timeout=PATIENCE) == b"second"


def _error_of(call: Callable[[], object]) -> BaseException:
    with pytest.raises(ipcbuf.IpcbufError) as caught:
        call()
    return caught.value


def test_threads_at_an_exclusive_end_never_mix_their_messages(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()

    def send(name: int) -> int:
        sent = 0
        while sent < 500:
            try:
                sender.send(bytes([name]) * 100_000)
            except ipcbuf.BusyError:
                continue
            sent += 1
        return sent

    results = [in_thread(partial(send, name)) for name in range(3)]
    counts = [0, 0, 0]
    for _ in range(1500):
        message = receiver.recv(timeout=PATIENCE)
        assert message == message[:1] * 100_000
        counts[message[0]] += 1

    assert [result() for result in results] == counts == [500, 500, 500]


def test_a_second_process_at_an_exclusive_end_is_told(
    segment: ipcbuf.Segment, start_method: str, start: Start
) -> None:
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()
    sender, receiver = segment.channel()
    sender.send(b"first")
    assert receiver.recv(timeout=PATIENCE) == b"first"

    for use, end in ((use_sender, sender), (use_receiver, receiver)):
        start(context, use, end, there)
        assert here.poll(PATIENCE)
        assert here.recv() == "BusyError"

    sender.send(b"still ours")
    assert receiver.recv(timeout=PATIENCE) == b"still ours"


def test_an_end_that_nobody_used_is_free_for_a_child(
    segment: ipcbuf.Segment, start_method: str, start: Start
) -> None:
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()
    sender, receiver = segment.channel()

    start(context, use_sender, sender, there)
    assert here.poll(PATIENCE)

    assert here.recv() == "None"
    assert receiver.recv(timeout=PATIENCE) == b"second"


def test_a_child_may_close_an_end_that_a_thread_was_in(segment: ipcbuf.Segment) -> None:
    """A fork copies the end as it is at that moment, without the thread."""
    sender, receiver = segment.channel(max_items=4)
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            with contextlib.suppress(ipcbuf.ChannelFull):
                sender.send(b"x" * 500, timeout=0.01)

    def receive() -> None:
        while not stop.is_set():
            with contextlib.suppress(ipcbuf.ChannelEmpty):
                receiver.recv(timeout=0.01)

    results = [in_thread(send), in_thread(receive)]
    try:
        for _ in range(100):
            pid = os.fork()
            if pid == 0:
                try:
                    sender.close()
                    receiver.close()
                    os._exit(0)
                finally:
                    os._exit(1)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
    finally:
        stop.set()

    assert [result() for result in results] == [None, None]  # ours are open still


# --- the end --------------------------------------------------------------------------------------


def test_iterating_ends_with_the_channel(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    with sender:
        for number in range(5):
            sender.send(b"%d" % number)

    with receiver:
        assert list(receiver) == [b"0", b"1", b"2", b"3", b"4"]
        assert list(receiver) == []
        assert receiver.poll() is True  # a recv would not wait
        with pytest.raises(ipcbuf.EndOfChannel) as caught:
            receiver.recv()

    assert isinstance(caught.value, EOFError)
    assert sender.closed
    assert receiver.closed


def test_a_closed_end_is_not_used(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    sender.send(b"left")
    receiver.close()
    receiver.close()  # twice is allowed
    for call in (receiver.recv, receiver.recv_view, receiver.recv_object, receiver.poll):
        with pytest.raises(ipcbuf.ClosedError) as caught:
            call()
        assert isinstance(caught.value, ValueError)
    with pytest.raises(ipcbuf.ClosedError):
        list(receiver)

    sender.close()
    sender.close()

    with pytest.raises(ipcbuf.ClosedError):
        sender.send(b"more")


def test_sending_to_nobody_is_an_error(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    sender.send(b"unread" * 100_000)
    receiver.close()

    with pytest.raises(ipcbuf.BrokenChannel) as caught:
        sender.send(b"more")

    assert isinstance(caught.value, BrokenPipeError)
    sender.close()
    assert segment.stats()["flight_blocks"] == 0  # what nobody can receive is freed
    assert segment.stats()["channels"] == 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_sleeping_recv_sees_the_sender_close(segment: ipcbuf.Segment, shared: bool) -> None:
    sender, receiver = segment.channel(shared=shared)
    if not shared:
        sender.send(b"mine")
        receiver.recv(timeout=PATIENCE)
    result = in_thread(receiver.recv)
    wait_until_asleep()

    sender.close()

    assert isinstance(result(), ipcbuf.EndOfChannel)


@pytest.mark.parametrize("shared", [False, True])
def test_a_sleeping_send_sees_the_receiver_close(segment: ipcbuf.Segment, shared: bool) -> None:
    sender, receiver = segment.channel(shared=shared, max_items=1)
    sender.send(b"unread")
    result = in_thread(lambda: sender.send(b"more"))
    wait_until_asleep()

    receiver.close()

    assert isinstance(result(), ipcbuf.BrokenChannel)


def test_dropping_the_last_reference_closes(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    sender.send(b"last")

    del sender

    assert list(receiver) == [b"last"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_killed_sender_ends_the_channel_behind_its_messages(
    segment: ipcbuf.Segment, start_method: str, start: Start, shared: bool
) -> None:
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()
    sender, receiver = segment.channel(shared=shared)
    process = start(context, send_then_wait, sender, 1000, there)
    sender.close()
    assert here.poll(PATIENCE)
    here.recv()
    assert receiver.recv(timeout=PATIENCE) == b"0"
    result = in_thread(lambda: [receiver.recv() for _ in range(1000)])

    process.kill()

    # Of an end that many may use, nobody can say that another sender would have been needed.
    expected = ipcbuf.EndOfChannel if shared else ipcbuf.BrokenChannel
    assert type(result()) is expected
    assert segment.stats()["messages"] == 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_killed_receiver_ends_a_sleeping_send(
    segment: ipcbuf.Segment, start_method: str, start: Start, shared: bool
) -> None:
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()
    sender, receiver = segment.channel(shared=shared, max_items=2)
    process = start(context, receive_then_wait, receiver, 1, there)
    receiver.close()
    sender.send(b"taken", timeout=PATIENCE)
    assert here.poll(PATIENCE)
    here.recv()
    sender.send(b"left", timeout=PATIENCE)
    sender.send(b"left", timeout=PATIENCE)
    result = in_thread(lambda: sender.send(b"no room"))
    wait_until_asleep()

    process.kill()

    assert isinstance(result(), ipcbuf.BrokenChannel)


def test_a_poll_sees_a_killed_sender(segment: ipcbuf.Segment, start: Start) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    sender, receiver = segment.channel()
    process = start(context, send_then_wait, sender, 0, there)
    sender.close()
    assert here.poll(PATIENCE)
    result = in_thread(lambda: receiver.poll(None))
    wait_until_asleep()

    process.kill()

    assert result() is True
    with pytest.raises((ipcbuf.BrokenChannel, ipcbuf.EndOfChannel)):
        receiver.recv(timeout=PATIENCE)


def test_a_handle_of_a_finished_channel_is_refused(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    number = sender.channel_id
    sender.close()
    receiver.close()

    with pytest.raises(ipcbuf.ClosedError):
        segment.open_sender(number)
    with pytest.raises(ipcbuf.ClosedError):
        segment.open_receiver(number)
    with pytest.raises(ipcbuf.ClosedError):
        segment.open_receiver(0xFFFFFFF)


def test_channels_are_reused(segment: ipcbuf.Segment) -> None:
    committed = None
    for number in range(3000):
        sender, receiver = segment.channel()
        sender.send(b"%d" % number)
        assert receiver.recv(timeout=0) == b"%d" % number
        sender.close()
        receiver.close()
        committed = committed or segment.committed

    assert segment.committed == committed
    assert segment.stats()["channels"] == 0


# --- signals --------------------------------------------------------------------------------------

INTERRUPTED = f"""
import os, pathlib, queue, signal, sys, threading, time
sys.path.append({str(Path(__file__).parents[2])!r})
import ipcbuf, ipcbuf_mp

def tell():
    # Once the main thread sleeps in the kernel.
    stat = pathlib.Path("/proc/self/stat")
    quiet = 0
    while quiet < 20:
        quiet = quiet + 1 if stat.read_text().rpartition(") ")[2][0] == "S" else 0
        time.sleep(0.002)
    print("asleep", flush=True)

segment = ipcbuf.Segment(max_size=1 << 24)
sender, receiver = segment.channel(max_items=1)
shared_sender, shared_receiver = segment.channel(max_items=1, shared=True)
context = ipcbuf_mp.get_context("fork")
full, empty = context.Queue(1), context.Queue()
reader, writer = context.Pipe(duplex=False)
simple = context.SimpleQueue()
full.put(0)
"""

WAITS = {
    "recv": "receiver.recv()",
    "recv_view": "receiver.recv_view()",
    "recv_object": "receiver.recv_object()",
    "poll": "receiver.poll(None)",
    "iteration": "next(receiver)",
    "send": "sender.send(b'1'); sender.send(b'2')",
    "send_object": "sender.send(b'1'); sender.send_object(2)",
    "shared recv": "shared_receiver.recv()",
    "shared send": "shared_sender.send(b'1'); shared_sender.send(b'2')",
    "recv with timeout": "receiver.recv(timeout=100)",
    "Queue.get": "empty.get()",
    "Queue.get with timeout": "empty.get(timeout=100)",
    "Queue.put": "full.put(1)",
    "Pipe.recv": "reader.recv()",
    "Pipe.poll": "reader.poll(None)",
    "Pipe.send": "writer.send(bytes(1 << 20)); writer.send(bytes(1 << 20))",
    "SimpleQueue.get": "simple.get()",
}


@pytest.fixture
def run_waiting() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Run code in a process of its own; it has said that it is asleep when this returns."""
    running: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", INTERRUPTED + code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "asleep\n", process.communicate()
        return process

    yield run

    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_ctrl_c_interrupts(wait: str, run_waiting: Callable[..., subprocess.Popen[str]]) -> None:
    process = run_waiting(f"""
threading.Thread(target=tell, daemon=True).start()
try:
    {wait}
except KeyboardInterrupt:
    print("interrupted")
""")

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)

    assert (out, err, process.returncode) == ("interrupted\n", "", 0)


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_wait_goes_on_after_a_signal(
    wait: str, run_waiting: Callable[..., subprocess.Popen[str]]
) -> None:
    """A thousand signals a second do not end a wait, nor does it starve the handlers."""
    process = run_waiting(f"""
count = 0
def tick(*_):
    global count
    count += 1
    if count == 300:
        print("asleep", flush=True)
    if count == 600:
        raise TimeoutError
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
try:
    {wait}
except TimeoutError:
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("still waiting")
""")

    out, err = process.communicate(timeout=PATIENCE)

    assert (out, err, process.returncode) == ("still waiting\n", "", 0)


@pytest.mark.parametrize("wait", ["receiver.recv()", "empty.get()", "reader.recv()", "full.put(1)"])
def test_daemon_threads_in_a_wait_do_not_hinder_the_exit(wait: str) -> None:
    code = f"""
threads = [threading.Thread(target=lambda: {wait}, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
time.sleep(0.05)
print("end of main")
"""
    for _ in range(5):
        result = subprocess.run(
            [sys.executable, "-P", "-c", INTERRUPTED + code],
            timeout=PATIENCE,
            capture_output=True,
            text=True,
            check=False,
        )

        assert result.stdout == "end of main\n"
        assert result.returncode == 0
        assert "BusyError" in result.stderr or result.stderr == ""


def test_daemon_threads_that_receive_do_not_hinder_the_exit() -> None:
    """Threads come back from a wait, and ask for the GIL, while the interpreter is torn down."""
    code = """
def pump():
    while True:
        empty.put(1)
        empty.get()
for _ in range(4):
    threading.Thread(target=pump, daemon=True).start()
time.sleep(0.05)
"""
    for _ in range(10):
        result = subprocess.run(
            [sys.executable, "-P", "-c", INTERRUPTED + code],
            timeout=PATIENCE,
            capture_output=True,
            text=True,
            check=False,
        )

        assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
