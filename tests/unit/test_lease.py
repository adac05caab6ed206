# SPDX-License-Identifier: Apache-2.0
"""Leased channels: what a receiver had taken and not finished when it died is delivered again."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 30


@pytest.fixture
def ends(segment: ipcbuf.Segment) -> tuple[ipcbuf.Sender, ipcbuf.Receiver]:
    return segment.channel(lease=True)


def in_child(body: Callable[[], object]) -> int:
    """Fork, run `body`, end at once; return the child's exit code or negated signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- one process ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2048, 100_000])
def test_bytes_come_as_they_were_sent(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver], size: int
) -> None:
    sender, receiver = ends
    data = random.Random(size).randbytes(size)
    for _ in range(3):
        sender.send(data)

    assert receiver.recv(TIMEOUT) == data
    assert bytes(receiver.recv_view(TIMEOUT)) == data
    with receiver.recv_leased(TIMEOUT) as message:
        assert bytes(message.data) == data


OBJECTS: list[Any] = [
    None,
    7,
    "x" * 5000,
    b"y" * 5000,
    (1, [2.5, {"a": b"b"}]),
    {1, 2, 3},
    list(range(3000)),
    [1, "z" * 3000],
]


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda o: type(o).__name__)
def test_objects_come_as_they_were_sent(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver], obj: object
) -> None:
    sender, receiver = ends
    for _ in range(3):
        sender.send_object(obj)

    assert receiver.recv_object(TIMEOUT) == obj
    assert pickle.loads(receiver.recv_bytes()) == obj
    with receiver.recv_leased(TIMEOUT) as message:
        assert message.load() == obj
        assert message.load() == obj


def test_arrays_are_copies_that_outlive_the_lease(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver], segment: ipcbuf.Segment
) -> None:
    import ipcbuf_mp  # noqa: F401 - its codec sends arrays beside the pickle

    sender, receiver = ends
    sent: list[Any] = [np.arange(1000.0), np.ones((3, 5), dtype=np.int16), b"between"]
    sender.send_object(sent)
    message = receiver.recv_leased(TIMEOUT)
    first = message.load()
    first[0][:] = -1  # what the next one gets is not touched
    message.give_back()
    with receiver.recv_leased(TIMEOUT) as message:
        second = message.load()

    assert first[0][0] == -1
    assert np.array_equal(second[0], sent[0])
    assert np.array_equal(second[1], sent[1])
    assert second[2] == sent[2]
    assert segment.stats()["process_blocks"] == 0


def test_a_record_is_moved(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver], segment: ipcbuf.Segment
) -> None:
    sender, receiver = ends
    record = segment.allocate(70_000)
    memoryview(record)[:5] = b"hello"
    sender.send(record)
    with receiver.recv_leased(TIMEOUT) as message:
        assert bytes(message.data[:5]) == b"hello"
        assert len(message.data) == 70_000
        assert message.data.readonly


def test_what_raises_is_given_back(ends: tuple[ipcbuf.Sender, ipcbuf.Receiver]) -> None:
    sender, receiver = ends
    sender.send(b"first")
    sender.send(b"second")
    message = receiver.recv_leased(TIMEOUT)
    assert not message.redelivered
    with pytest.raises(ZeroDivisionError), message:
        raise ZeroDivisionError
    assert message.ended
    assert receiver.pending() == 2

    with receiver.recv_leased(TIMEOUT) as message:
        assert bytes(message.data) == b"first"
        assert message.redelivered
    assert receiver.recv(TIMEOUT) == b"second"


def test_what_is_dropped_without_a_word_is_given_back(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver],
) -> None:
    sender, receiver = ends
    sender.send(b"x")
    message = receiver.recv_leased(TIMEOUT)
    assert receiver.pending() == 0
    del message
    gc.collect()

    assert receiver.recv(TIMEOUT) == b"x"


def test_an_ended_lease_has_nothing(ends: tuple[ipcbuf.Sender, ipcbuf.Receiver]) -> None:
    sender, receiver = ends
    sender.send(b"x")
    message = receiver.recv_leased(TIMEOUT)
    message.done()
    message.done()
    message.give_back()  # over is over

    assert receiver.pending() == 0
    with pytest.raises(ValueError, match="ended"):
        message.data  # noqa: B018
    with pytest.raises(ValueError, match="ended"):
        message.load()


def test_a_view_keeps_the_bytes(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver], segment: ipcbuf.Segment
) -> None:
    """Done: memory with the last view. Given back: delivered with the last view gone."""
    sender, receiver = ends
    for _ in range(2):
        sender.send(b"0123456789" * 1000)
    message = receiver.recv_leased(TIMEOUT)
    view = message.data
    message.done()
    assert segment.stats()["process_blocks"] == 1
    assert segment.stats()["leased_blocks"] == 0
    assert bytes(view[:10]) == b"0123456789"
    view.release()
    assert segment.stats()["process_blocks"] == 0

    message = receiver.recv_leased(TIMEOUT)
    view = message.data
    message.give_back()
    assert receiver.pending() == 0
    assert bytes(view[-1:]) == b"9"
    view.release()
    assert receiver.pending() == 1


def test_an_object_has_no_bytes_to_look_at(ends: tuple[ipcbuf.Sender, ipcbuf.Receiver]) -> None:
    sender, receiver = ends
    sender.send_object([1])
    with receiver.recv_leased(TIMEOUT) as message, pytest.raises(ValueError, match="load"):
        message.data  # noqa: B018


def test_channels_without_leases_say_so(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    sender.send(b"x")
    assert not receiver.leased
    with pytest.raises(ValueError, match="lease=True"):
        receiver.recv_leased(TIMEOUT)
    sender, receiver = segment.channel(lease=True)
    assert sender.leased
    assert sender.shared
    with pytest.raises(ValueError, match="task"):
        sender.send_task(1, 1)
    with pytest.raises(ValueError, match="socket"):
        segment.channel(lease=True, bell="socket")


def test_an_object_queue_has_them_too(segment: ipcbuf.Segment) -> None:
    queue = ipcbuf.ObjectQueue(*segment.channel(lease=True))
    queue.put([1, "x" * 5000])
    message = queue.receiver.recv_leased(TIMEOUT)
    assert queue.qsize() == 0
    message.give_back()

    assert queue.qsize() == 1
    assert queue.get(timeout=TIMEOUT) == [1, "x" * 5000]


def test_a_bounded_channel_has_room_again(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(lease=True, max_items=1)
    sender.send(b"1")
    with pytest.raises(ipcbuf.ChannelFull):
        sender.send(b"2", timeout=0)
    receiver.recv_leased(TIMEOUT).give_back()
    with pytest.raises(ipcbuf.ChannelFull):
        sender.send(b"2", timeout=0)
    waiting = threading.Thread(target=lambda: sender.send(b"2", TIMEOUT))
    waiting.start()
    assert receiver.recv(TIMEOUT) == b"1"
    waiting.join(TIMEOUT)
    assert receiver.recv(TIMEOUT) == b"2"


def test_a_sleeping_receiver_is_woken(ends: tuple[ipcbuf.Sender, ipcbuf.Receiver]) -> None:
    sender, receiver = ends
    sender.send(b"x")
    message = receiver.recv_leased(TIMEOUT)
    got: list[bytes] = []
    waiting = threading.Thread(target=lambda: got.append(receiver.recv(TIMEOUT)))
    waiting.start()
    message.give_back()
    waiting.join(TIMEOUT)

    assert got == [b"x"]


def test_a_descriptor_tells_of_what_was_handed_back(segment: ipcbuf.Segment) -> None:
    """Also of a channel with a bell of its own, which who hands back need not have."""
    sender, receiver = segment.channel(lease=True, bell="eventfd")
    own = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    sender.bell_fd = receiver.bell_fd = own
    try:
        descriptor = receiver.fileno()

        def is_readable(timeout: float = 0) -> bool:
            return bool(select.select([descriptor], [], [], timeout)[0])

        assert not is_readable()
        sender.send(b"x")
        assert is_readable(TIMEOUT)
        message = receiver.recv_leased(TIMEOUT)
        assert not is_readable()
        message.give_back()
        assert is_readable(TIMEOUT)
        receiver.recv_leased(TIMEOUT).done()
        assert not is_readable()

        sender.send(b"y")

        def take_and_die() -> None:
            taken = receiver.recv_leased(TIMEOUT)
            die()
            taken.done()

        assert in_child(take_and_die) == -signal.SIGKILL
        assert is_readable(TIMEOUT)  # the death was noticed, and what the dead had is there
        assert receiver.recv(TIMEOUT) == b"y"
    finally:
        os.close(own)


# --- several --------------------------------------------------------------------------------------


def test_what_the_dead_had_is_delivered_again(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver], segment: ipcbuf.Segment
) -> None:
    sender, receiver = ends
    for number in range(5):
        sender.send_object(number)

    def work() -> None:
        assert receiver.recv_object(TIMEOUT) == 0
        receiver.recv_leased(TIMEOUT).done()
        held = [receiver.recv_leased(TIMEOUT) for _ in range(2)]
        assert [m.load() for m in held] == [2, 3]
        die()

    assert in_child(work) == -signal.SIGKILL
    segment.reap()
    got = []
    for _ in range(3):
        with receiver.recv_leased(TIMEOUT) as message:
            got.append((message.load(), message.redelivered))

    assert got == [(2, True), (3, True), (4, False)]
    assert segment.stats()["returned_blocks"] == 0


def test_a_child_has_no_part_in_its_parents_lease(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver], segment: ipcbuf.Segment
) -> None:
    sender, receiver = ends
    sender.send(b"a" * 5000)
    sender.send(b"b" * 5000)
    unseen = receiver.recv_leased(TIMEOUT)
    seen = receiver.recv_leased(TIMEOUT)
    view = seen.data

    def look() -> None:
        with pytest.raises(ValueError, match="ended"):
            unseen.data  # noqa: B018
        unseen.done()  # nothing to end
        assert bytes(view[:2]) == b"bb"
        with pytest.raises(ValueError, match="process that received it"):
            seen.done()
        os._exit(7)

    assert in_child(look) == 7
    segment.reap()
    assert bytes(view[:2]) == b"bb"
    view.release()
    unseen.done()
    seen.give_back()
    assert receiver.recv(TIMEOUT) == b"b" * 5000
    assert receiver.pending() == 0


def test_a_lease_that_a_child_looks_at_ends_with_both(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver], segment: ipcbuf.Segment
) -> None:
    sender, receiver = ends
    sender.send(b"x" * 5000)

    def take_and_fork() -> None:
        view = receiver.recv_leased(TIMEOUT).data
        in_child(lambda: bytes(view[:1]))
        die()

    assert in_child(take_and_fork) == -signal.SIGKILL
    segment.reap()

    assert receiver.recv(TIMEOUT) == b"x" * 5000


def test_the_end_waits_for_a_message_that_may_come_back(
    ends: tuple[ipcbuf.Sender, ipcbuf.Receiver],
) -> None:
    sender, receiver = ends
    sender.send(b"x")
    taken, go = multiprocessing.Pipe()

    def take() -> None:
        sender.close()
        message = receiver.recv_leased(TIMEOUT)
        go.send(1)
        go.recv()
        message.done()
        go.recv()

    process = multiprocessing.get_context("fork").Process(target=take)
    process.start()
    taken.recv()
    sender.close()
    with pytest.raises(ipcbuf.ChannelEmpty):
        receiver.recv(timeout=0.05)
    taken.send(1)
    with pytest.raises(ipcbuf.EndOfChannel):
        receiver.recv(timeout=TIMEOUT)
    taken.send(1)
    process.join(TIMEOUT)


def consume(receiver: ipcbuf.Receiver, taken: Any, done: Any) -> None:
    while True:
        try:
            message = receiver.recv_leased(timeout=TIMEOUT)
        except ipcbuf.EndOfChannel:
            return
        number = message.load()
        taken[number] += 1  # one writer at a time: only the holder of the message
        time.sleep(0)
        done[number] = 1
        message.done()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_random_kills_lose_nothing(segment: ipcbuf.Segment, method: str) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    context: Any = multiprocessing.get_context(method)
    count, kills = (3000, 25) if method == "fork" else (300, 4)
    sender, receiver = segment.channel(lease=True)
    taken = context.Array("i", count, lock=False)
    done = context.Array("i", count, lock=False)

    def start() -> Any:
        process = context.Process(target=consume, args=(receiver, taken, done))
        process.start()
        return process

    workers = [start() for _ in range(3)]
    for number in range(count):
        sender.send_object(number)
    killed = 0
    while killed < kills:
        time.sleep(rng.random() * 0.01)
        at = rng.randrange(3)
        workers[at].kill()
        workers[at].join(TIMEOUT)
        killed += 1
        workers[at] = start()
    sender.close()
    if method == "fork":  # the children have the sending end too, so the channel does not end
        while not all(done):
            time.sleep(0.01)
        for process in workers:
            process.kill()
    for process in workers:
        process.join(TIMEOUT)
    segment.reap()

    assert all(done)
    # Once, and once more for each kill of a holder: never more than that in all.
    assert all(1 <= n <= 1 + killed + 3 for n in taken)
    assert sum(taken) <= count + killed + 3
    stats = segment.stats()
    assert stats["messages"] + stats["returned_blocks"] + stats["leased_blocks"] == 0
    assert segment.fsck() == []
