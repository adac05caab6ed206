# SPDX-License-Identifier: Apache-2.0
"""`ipcbuf.wait` and `fileno()`: many ends and descriptors at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PATIENCE = 60
MOMENT = 0.02


def in_a_moment(action: Any) -> threading.Timer:
    timer = threading.Timer(MOMENT, action)
    timer.start()
    return timer


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- what is ready --------------------------------------------------------------------------------


def test_the_ready_ones_come_in_the_order_given(segment: ipcbuf.Segment) -> None:
    pairs = [segment.channel(max_items=1) for _ in range(5)]
    pairs[3][0].send(b"")
    pairs[1][0].send(b"")
    receivers = [receiver for _, receiver in pairs]
    senders = [sender for sender, _ in pairs]

    assert ipcbuf.wait(receivers, 0) == [receivers[1], receivers[3]]
    assert ipcbuf.wait(reversed(receivers), PATIENCE) == [receivers[3], receivers[1]]
    assert ipcbuf.wait(senders) == [senders[0], senders[2], senders[4]]
    assert ipcbuf.wait([receivers[1], receivers[1]]) == [receivers[1], receivers[1]]
    assert receivers[1].pending() == 1  # nothing is taken


def test_a_time_out_gives_an_empty_list(segment: ipcbuf.Segment) -> None:
    _sender, receiver = segment.channel()
    for timeout in (0, -1, MOMENT):
        begin = time.monotonic()
        assert ipcbuf.wait([receiver], timeout) == []
        assert time.monotonic() - begin >= timeout
    assert ipcbuf.wait([]) == []


def test_a_message_room_and_the_end_of_a_wait(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_items=1)
    _other_sender, other = segment.channel()
    timer = in_a_moment(lambda: sender.send(b""))
    assert ipcbuf.wait([other, receiver], PATIENCE) == [receiver]
    timer.join()
    timer = in_a_moment(receiver.recv)
    assert ipcbuf.wait([other, sender], PATIENCE) == [sender]
    timer.join()
    timer = in_a_moment(sender.close)
    assert ipcbuf.wait([other, receiver], PATIENCE) == [receiver]
    timer.join()
    with pytest.raises(ipcbuf.EndOfChannel):
        receiver.recv(0)


@pytest.mark.parametrize("count", [1, 128, 129, 1000])
def test_any_number_of_ends(segment: ipcbuf.Segment, count: int) -> None:
    """A thousand ends take fewer descriptors than a process may have."""
    pairs = [segment.channel() for _ in range(count)]
    receivers = [receiver for _, receiver in pairs]
    assert ipcbuf.wait(receivers, MOMENT) == []
    for chosen in (0, count // 2, count - 1):
        timer = in_a_moment(lambda chosen=chosen: pairs[chosen][0].send(b""))
        assert ipcbuf.wait(receivers, PATIENCE) == [receivers[chosen]]
        timer.join()
        receivers[chosen].recv(0)


def test_a_thousand_quiet_ends_cost_little(segment: ipcbuf.Segment) -> None:
    pairs = [segment.channel() for _ in range(1000)]
    quiet = [receiver for _, receiver in pairs]
    begin = time.process_time()
    assert ipcbuf.wait(quiet, 0.5) == []
    assert time.process_time() - begin < 0.25


def test_descriptors_and_what_has_one_are_waited_for_too(segment: ipcbuf.Segment) -> None:
    _sender, receiver = segment.channel()
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    connection, far = multiprocessing.Pipe()
    everything = [receiver, reading, ours, connection]
    try:
        assert ipcbuf.wait(everything, MOMENT) == []
        theirs.send(b"x")
        os.write(writing, b"x")
        assert ipcbuf.wait(everything, PATIENCE) == [reading, ours]
        timer = in_a_moment(far.close)
        assert ipcbuf.wait([receiver, connection], PATIENCE) == [connection]
        timer.join()
    finally:
        os.close(reading)
        os.close(writing)
        ours.close()
        theirs.close()
        connection.close()


def test_a_sentinel_is_waited_for(segment: ipcbuf.Segment, start: Any) -> None:
    _sender, receiver = segment.channel()
    child = start(multiprocessing.get_context("spawn"), time.sleep, MOMENT)

    assert ipcbuf.wait([receiver, child.sentinel], PATIENCE) == [child.sentinel]


def test_ends_of_pipes_with_sockets_are_waited_for(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(shared=True, bell="socket")
    _other_sender, other = segment.channel()
    ours, theirs = socket.socketpair()
    receiver.bell_fd, sender.bell_fd = ours.fileno(), theirs.fileno()
    assert ipcbuf.wait([other, receiver], MOMENT) == []
    timer = in_a_moment(lambda: sender.send(b""))
    assert ipcbuf.wait([other, receiver], PATIENCE) == [receiver]
    timer.join()
    receiver.recv(0)
    timer = in_a_moment(theirs.close)
    assert ipcbuf.wait([other, receiver], PATIENCE) == [receiver]
    timer.join()
    sender.close()
    ours.close()


def test_what_cannot_be_waited_for_is_refused(segment: ipcbuf.Segment) -> None:
    _sender, receiver = segment.channel()
    with pytest.raises(TypeError):
        ipcbuf.wait([receiver, "text"])
    with pytest.raises(TypeError):
        ipcbuf.wait(receiver.channel_id)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        ipcbuf.wait([-1])
    with pytest.raises(ipcbuf.SegmentError, match="Bad file descriptor"):
        ipcbuf.wait([receiver, 9999], 1)
    receiver.close()
    with pytest.raises(ipcbuf.ClosedError):
        ipcbuf.wait([receiver], 1)


def test_an_end_closed_meanwhile_ends_the_wait(segment: ipcbuf.Segment) -> None:
    for count in (1, 3, 150):
        pairs = [segment.channel(shared=True) for _ in range(count)]
        timer = in_a_moment(pairs[-1][1].close)
        with pytest.raises(ipcbuf.ClosedError):
            ipcbuf.wait([receiver for _, receiver in pairs], PATIENCE)
        timer.join()


# --- processes ------------------------------------------------------------------------------------


def answer(requests: ipcbuf.Receiver, answers: ipcbuf.Sender) -> None:
    with answers:
        for message in requests:
            answers.send(message)


def test_the_answers_of_many_processes_are_collected(
    segment: ipcbuf.Segment, start: Any, start_method: str
) -> None:
    context = multiprocessing.get_context(start_method)
    requests, answers = [], []
    for _ in range(3):
        request, theirs = segment.channel()
        their_answer, mine = segment.channel()
        start(context, answer, theirs, their_answer)
        requests.append(request)
        answers.append(mine)
        theirs.close()
        their_answer.close()
    left = dict.fromkeys(answers, 20)
    for request in requests:
        for _ in range(20):
            request.send(b"")
    while left:
        ready = ipcbuf.wait(left, PATIENCE)
        assert ready
        for receiver in ready:
            receiver.recv(0)
            left[receiver] -= 1
            if left[receiver] == 0:
                del left[receiver]
    for request in requests:
        request.close()


def send_then_wait(sender: ipcbuf.Sender, pipe: Connection) -> None:
    sender.send(b"")
    pipe.send(None)
    signal.pause()


@pytest.mark.parametrize("count", [2, 150])
def test_a_killed_peer_ends_the_wait(segment: ipcbuf.Segment, start: Any, count: int) -> None:
    context = multiprocessing.get_context("fork")
    pairs = [segment.channel() for _ in range(count)]
    pipe, theirs = context.Pipe()
    child = start(context, send_then_wait, pairs[1][0], theirs)
    pipe.recv()
    receivers = [receiver for _, receiver in pairs]
    assert receivers[1].recv(0) == b""
    timer = in_a_moment(child.kill)

    assert ipcbuf.wait(receivers, PATIENCE) == [receivers[1]]

    timer.join()
    with pytest.raises(ipcbuf.BrokenChannel):
        receivers[1].recv(0)


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 150])
def test_control_c_ends_the_wait(segment: ipcbuf.Segment, count: int) -> None:
    pairs = [segment.channel() for _ in range(count)]
    timer = in_a_moment(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ipcbuf.wait([receiver for _, receiver in pairs], PATIENCE)
    timer.join()


@pytest.mark.parametrize("count", [2, 150])
def test_a_storm_of_signals_neither_ends_nor_prolongs_a_wait(
    segment: ipcbuf.Segment, count: int
) -> None:
    pairs = [segment.channel() for _ in range(count)]
    receivers = [receiver for _, receiver in pairs]
    ticks = 0

    def tick(_signum: int, _frame: object) -> None:
        nonlocal ticks
        ticks += 1

    before = signal.signal(signal.SIGVTALRM, tick)
    stop = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def storm() -> None:
        while not stop.wait(0.001):
            signal.pthread_kill(main, signal.SIGVTALRM)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        begin = time.monotonic()
        assert ipcbuf.wait(receivers, 0.3) == []
        assert time.monotonic() - begin >= 0.3
        for _ in range(10):
            timer = in_a_moment(lambda: pairs[1][0].send(b""))
            assert ipcbuf.wait(receivers, PATIENCE) == [receivers[1]]
            receivers[1].recv(0)
            timer.join()
    finally:
        stop.set()
        thread.join(PATIENCE)
        signal.signal(signal.SIGVTALRM, before)
    assert ticks > 50


# --- descriptors of single ends -------------------------------------------------------------------


def is_readable(fd: int, timeout: float = PATIENCE) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def test_a_descriptor_follows_the_messages(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    fd = receiver.fileno()
    for _ in range(20):
        assert not is_readable(fd, 0)
        sender.send(b"1")
        sender.send(b"2")
        assert is_readable(fd)
        receiver.recv()
        assert is_readable(fd, 0)
        receiver.recv()
    sender.close()
    assert is_readable(fd)
    assert receiver.fileno() == fd


def test_the_senders_descriptor_follows_the_room(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_items=1)
    fd = sender.fileno()
    assert is_readable(fd, 0)
    sender.send(b"")
    assert not is_readable(fd, MOMENT)
    receiver.recv()
    assert is_readable(fd)


def test_a_descriptor_goes_with_its_object(segment: ipcbuf.Segment) -> None:
    before = open_descriptors()
    for _ in range(5):
        _sender, receiver = segment.channel()
        receiver.fileno()
        del _sender, receiver
    assert open_descriptors() == before


def test_no_descriptor_left_is_an_error_and_no_harm(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() - 1, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(ipcbuf.SegmentError, match="Too many open files"):
            receiver.fileno()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    sender.send(b"")
    assert is_readable(receiver.fileno())


def child_of_a_watcher(receiver: ipcbuf.Receiver, fd: int, pipe: Connection) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:  # without asking for the descriptor again
        assert poll.poll(PATIENCE * 1000)
        try:
            pipe.send(receiver.recv(0))
            break
        except ipcbuf.ChannelEmpty:
            continue


def test_a_forked_child_may_poll_the_number_it_knows(segment: ipcbuf.Segment, start: Any) -> None:
    context = multiprocessing.get_context("fork")
    sender, receiver = segment.channel(shared=True)
    fd = receiver.fileno()
    pipe, theirs = context.Pipe()
    start(context, child_of_a_watcher, receiver, fd, theirs)
    time.sleep(MOMENT)
    sender.send(b"message")

    assert pipe.recv() == b"message"
    sender.send(b"another")
    assert is_readable(fd)


EXIT = """
import ipcbuf, sys, threading, asyncio
segment = ipcbuf.Segment(max_size=1 << 26)
pairs = [segment.channel() for _ in range(200)]
kept = [receiver.fileno() for _, receiver in pairs]
threading.Thread(target=ipcbuf.wait, args=([r for _, r in pairs],), daemon=True).start()
pairs[0][0].send(b"")
async def forget():
    asyncio.create_task(pairs[1][1].arecv())
    await asyncio.sleep(0.01)
asyncio.run(forget())
print("bye")
"""


def test_the_interpreter_ends_while_ends_are_watched() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")
