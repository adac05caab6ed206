# SPDX-License-Identifier: Apache-2.0
"""Channels by key: made or joined by role, left, counted, waited for, removed."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier

    Start = Callable[..., Any]

PATIENCE = 60
MOMENT = 0.02
FORK = multiprocessing.get_context("fork")


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [0, -1, 2**63 - 1, -(2**63), "a", "é" * 30, "x" * 60, "\0", "7"])
def test_a_key_comes_back_as_it_was(segment: ipcbuf.Segment, key: int | str) -> None:
    sender = segment.sender(key)

    assert [info.key for info in segment.channels()] == [key]
    assert segment.has_channel(key)
    assert segment.receiver(key).channel_id == sender.channel_id


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        ("", ValueError, "empty"),
        ("x" * 61, ValueError, "60 bytes of UTF-8, not 61"),
        ("é" * 31, ValueError, "not 62"),
        (2**63, ValueError, "64 bits"),
        (-(2**63) - 1, ValueError, "64 bits"),
        (1.0, TypeError, "float"),
        (b"key", TypeError, "bytes"),
        (None, TypeError, "NoneType"),
        (True, TypeError, "bool"),
        ("\ud800", ValueError, "surrogates"),
    ],
)
def test_what_is_no_key_is_refused(
    segment: ipcbuf.Segment, key: Any, error: type[Exception], words: str
) -> None:
    for call in (segment.sender, segment.receiver, segment.has_channel, segment.remove_channel):
        with pytest.raises(error, match=words):
            call(key)

    assert segment.channels() == []


def test_a_number_and_its_text_are_two_keys(segment: ipcbuf.Segment) -> None:
    assert segment.sender(1).channel_id != segment.sender("1").channel_id


# --- made or joined -------------------------------------------------------------------------------


def test_a_receiver_without_a_sender_so_far_waits(segment: ipcbuf.Segment) -> None:
    receiver = segment.receiver("a")

    with pytest.raises(ipcbuf.ChannelEmpty):
        receiver.recv(timeout=MOMENT)
    sender = segment.sender("a")
    sender.send(b"1")

    assert receiver.recv(timeout=PATIENCE) == b"1"


def test_a_sender_without_a_receiver_so_far_fills_the_channel(segment: ipcbuf.Segment) -> None:
    sender = segment.sender("a", max_items=2)
    sender.send(b"1")
    assert sender.has_room()
    sender.send(b"2")
    assert not sender.has_room()

    with pytest.raises(ipcbuf.ChannelFull):
        sender.send(b"3", timeout=MOMENT)

    receiver = segment.receiver("a")
    assert receiver.has_data()
    assert [receiver.recv(timeout=PATIENCE) for _ in range(2)] == [b"1", b"2"]
    assert not receiver.has_data()


def test_an_end_that_was_left_may_be_joined_again(segment: ipcbuf.Segment) -> None:
    receiver = segment.receiver("a")
    for text in (b"1", b"2"):
        with segment.sender("a") as sender:
            sender.send(text)
        assert receiver.recv(timeout=PATIENCE) == text
        with pytest.raises(ipcbuf.EndOfChannel):
            receiver.recv(timeout=PATIENCE)
    sender = segment.sender("a")
    receiver.close()
    with pytest.raises(ipcbuf.BrokenChannel):
        sender.send(b"3")

    receiver = segment.receiver("a")

    sender.send(b"4")
    assert receiver.recv(timeout=PATIENCE) == b"4"


def test_a_channel_goes_with_its_last_user(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.sender("a"), segment.receiver("a")
    sender.send(b"x" * 100_000)
    sender.close()
    assert segment.has_channel("a")

    receiver.close()

    assert not segment.has_channel("a")
    assert not segment.has_channels()
    assert segment.stats()["process_blocks"] == 0
    assert segment.fsck() == []


def test_who_gives_limits_first_sets_them(segment: ipcbuf.Segment) -> None:
    receiver = segment.receiver("a")
    sender = segment.sender("a", max_items=1)
    sender.send(b"1")

    with pytest.raises(ipcbuf.ChannelFull):
        sender.send(b"2", timeout=0)

    (info,) = segment.channels()
    assert (info.max_items, info.messages, info.producers, info.consumers) == (1, 1, 1, 1)
    receiver.close()


@pytest.mark.parametrize(
    ("made", "asked", "words"),
    [
        ({"max_items": 3}, {"max_items": 4}, "max_items=3, not 4"),
        ({"max_items": 0}, {"max_items": 4}, "max_items=0, not 4"),
        ({"max_bytes": 10}, {"max_bytes": 11}, "max_bytes=10, not 11"),
        ({}, {"shared": True}, "shared=False, not True"),
        ({"shared": True}, {"shared": False}, "shared=True, not False"),
        ({"lease": True}, {"lease": False}, "lease=True, not False"),
    ],
)
def test_who_asks_for_something_else_is_refused(
    segment: ipcbuf.Segment, made: dict[str, Any], asked: dict[str, Any], words: str
) -> None:
    sender = segment.sender("a", **made)

    with pytest.raises(ValueError, match=words):
        segment.receiver("a", **asked)

    segment.receiver("a", **made)
    sender.close()


def test_a_key_of_another_type_is_refused(segment: ipcbuf.Segment) -> None:
    sender, area, cell = segment.sender("s"), segment.static("m", 8), segment.atomic("a")

    with pytest.raises(ValueError, match="'s' has type=record, not static"):
        segment.static("s", 8)
    with pytest.raises(ValueError, match="'m' has type=static, not atomic"):
        segment.atomic("m")
    with pytest.raises(ValueError, match="'a' has type=atomic, not record"):
        segment.receiver("a")

    assert {info.type for info in segment.channels()} == {"record", "static", "atomic"}
    assert (sender.closed, area.closed, cell.closed) == (False, False, False)


@pytest.mark.parametrize("asked", [{"max_items": -1}, {"max_bytes": 2**64}])
def test_a_limit_is_a_number(segment: ipcbuf.Segment, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be an int from 0"):
        segment.sender("a", **asked)
    with pytest.raises(TypeError):
        segment.sender("a", max_items="many")  # type: ignore[arg-type]


def test_more_channels_than_rows() -> None:
    segment = ipcbuf.Segment(max_size=1 << 20)
    cells = [segment.atomic(i) for i in range(256)]

    with pytest.raises(ipcbuf.TooManyProcesses, match="256 channels") as caught:
        segment.atomic("one more")

    assert (caught.value.limit, caught.value.what) == (256, "channels")
    cells.pop().close()
    assert segment.atomic("one more", 5).load() == 5


# --- exclusive ends -------------------------------------------------------------------------------


def hold(segment: ipcbuf.Segment, what: str, pipe: Connection) -> None:
    end = getattr(segment, what)("a")
    if what == "sender":
        end.send(b"from the dead")
    pipe.send("held")
    signal.pause()


def held_elsewhere(
    start: Start, segment: ipcbuf.Segment, what: str, method: str = "fork"
) -> Callable[[], int]:
    """Start a process that has that end of channel "a"; what is returned kills it."""
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = start(context, hold, segment, what, there)
    assert here.poll(PATIENCE)
    assert here.recv() == "held"

    def kill() -> int:
        pid: int = process.pid
        process.kill()
        process.join()
        return pid

    kill.pid = process.pid  # type: ignore[attr-defined]
    return kill


def test_a_second_user_hears_who_the_first_is(segment: ipcbuf.Segment, start: Start) -> None:
    kill = held_elsewhere(start, segment, "sender")

    with pytest.raises(ipcbuf.BusyError, match=f"process {kill.pid}"):  # type: ignore[attr-defined]
        segment.sender("a")

    kill()
    sender = segment.sender("a")
    with pytest.raises(ipcbuf.BusyError, match=f"process {os.getpid()}"):
        segment.sender("a")
    sender.close()


def test_shared_ends_take_any_number(segment: ipcbuf.Segment) -> None:
    senders = [segment.sender("a", shared=True) for _ in range(5)]
    receiver = segment.receiver("a")
    assert (receiver.sender_count, senders[0].receiver_count) == (5, 1)
    for number, sender in enumerate(senders):
        sender.send(b"%d" % number)

    del sender
    senders.clear()
    gc.collect()

    assert (receiver.sender_count, receiver.has_senders()) == (0, False)
    assert list(receiver) == [b"0", b"1", b"2", b"3", b"4"]


# --- deaths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_dead_are_not_counted(segment: ipcbuf.Segment, start: Start, method: str) -> None:
    receiver = segment.receiver("a")
    kill = held_elsewhere(start, segment, "sender", method)
    assert (receiver.sender_count, receiver.has_senders()) == (1, True)

    kill()

    assert (receiver.sender_count, receiver.has_senders()) == (0, False)
    assert receiver.recv(timeout=PATIENCE) == b"from the dead"
    with pytest.raises(ipcbuf.BrokenChannel):
        receiver.recv(timeout=PATIENCE)
    with segment.sender("a") as sender:
        sender.send(b"from the living")
    assert receiver.recv(timeout=PATIENCE) == b"from the living"


def test_a_sender_notices_that_its_receiver_died(segment: ipcbuf.Segment, start: Start) -> None:
    sender = segment.sender("a", max_items=1)
    kill = held_elsewhere(start, segment, "receiver")
    sender.send(b"1")
    threading.Timer(MOMENT, kill).start()

    with pytest.raises(ipcbuf.BrokenChannel):
        sender.send(b"2", timeout=PATIENCE)

    assert segment.receiver("a").recv(timeout=PATIENCE) == b"1"


def test_what_only_the_dead_had_is_gone(segment: ipcbuf.Segment, start: Start) -> None:
    kill = held_elsewhere(start, segment, "sender")
    assert segment.has_channel("a")

    kill()

    assert not segment.has_channel("a")
    receiver = segment.receiver("a", shared=True)  # a new one
    assert not receiver.has_data()


def come_and_go(segment: ipcbuf.Segment, seed: int) -> None:
    choose = random.Random(seed)
    while True:
        with contextlib.suppress(ipcbuf.BusyError, ipcbuf.BrokenChannel):
            match choose.randrange(4):
                case 0:
                    segment.sender("exclusive").send(b"x" * choose.randrange(5000), timeout=0)
                case 1:
                    segment.receiver("shared", shared=True).poll()
                case 2:
                    segment.static("memory", 5000, lambda memory: memory[0])
                case 3:
                    segment.remove_channel(choose.choice(["exclusive", "shared", "memory"]))


def test_killed_at_random_moments_they_leave_nothing(segment: ipcbuf.Segment, start: Start) -> None:
    seed = random.randrange(10**9)
    print("seed", seed)
    choose = random.Random(seed)
    for _ in range(12):
        processes = [start(FORK, come_and_go, segment, choose.randrange(10**9)) for _ in range(2)]
        time.sleep(choose.random() * 0.03)
        for process in processes:
            process.kill()
            process.join()
        assert not segment.has_channel("exclusive")
        segment.sender("exclusive").close()
        segment.reap()
        assert segment.channels() == []
        assert segment.fsck() == []


# --- races ----------------------------------------------------------------------------------------

ROUNDS = 50
RACERS = 8


def race(segment: ipcbuf.Segment, name: int, barrier: Barrier) -> None:
    kept = []
    for key in range(ROUNDS):
        if key % 10 == 0:
            barrier.wait(PATIENCE)
        sender = segment.sender(key, shared=True)
        sender.send(b"%d" % name)
        kept.append(sender)
    barrier.wait(PATIENCE)


def test_all_who_race_for_a_key_meet(segment: ipcbuf.Segment, start: Start) -> None:
    barrier = FORK.Barrier(RACERS + 1)
    for name in range(RACERS):
        start(FORK, race, segment, name, barrier)
    met = []
    for key in range(ROUNDS):
        if key % 10 == 0:
            barrier.wait(PATIENCE)
        with segment.receiver(key, shared=True) as receiver:
            met.append(sorted(int(receiver.recv(timeout=PATIENCE)) for _ in range(RACERS)))
    barrier.wait(PATIENCE)

    assert met == [list(range(RACERS))] * ROUNDS


def test_threads_race_for_an_exclusive_end(segment: ipcbuf.Segment) -> None:
    outcome: list[object] = []
    barrier = threading.Barrier(4)

    def join() -> None:
        barrier.wait(PATIENCE)
        try:
            outcome.append(segment.sender("a"))
        except ipcbuf.BusyError as error:
            outcome.append(error)

    threads = [threading.Thread(target=join) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert sorted(type(thing).__name__ for thing in outcome) == ["BusyError"] * 3 + ["Sender"]


# --- finding and waiting --------------------------------------------------------------------------


def make_later(segment: ipcbuf.Segment, pipe: Connection) -> None:
    pipe.recv()
    with segment.sender("late"):
        pipe.recv()


def test_wait_for_a_channel_of_another_process(segment: ipcbuf.Segment, start: Start) -> None:
    here, there = FORK.Pipe()
    start(FORK, make_later, segment, there)
    assert not segment.wait_for_channel("late", timeout=MOMENT)
    assert not segment.wait_for_channel("late", timeout=0)

    here.send("go on")

    assert segment.wait_for_channel("late", timeout=PATIENCE)
    assert segment.wait_for_channel("late")
    here.send("leave")


def test_ctrl_c_ends_the_wait_for_a_channel(segment: ipcbuf.Segment) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()

    with pytest.raises(KeyboardInterrupt):
        segment.wait_for_channel("never", timeout=PATIENCE)

    timer.join()


def test_all_channels_are_listed(segment: ipcbuf.Segment) -> None:
    assert segment.channels() == []
    assert not segment.has_channels()
    ends = [*segment.channel(max_bytes=99), segment.sender(5, max_items=7), segment.static(6, 1234)]

    by_key = {info.key: info for info in segment.channels()}

    assert set(by_key) == {None, 5, 6}
    assert segment.has_channels()
    assert (by_key[None].max_bytes, by_key[5].max_items, by_key[6].bytes) == (99, 7, 1234)
    assert (by_key[5].producers, by_key[5].consumers) == (1, 0)
    assert ipcbuf.ChannelInfo(*by_key[5]) == by_key[5]
    del ends


# --- removal --------------------------------------------------------------------------------------


def test_removal_ends_a_channel_under_use(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.sender("a"), segment.receiver("a")
    sender.send(b"1")

    assert segment.remove_channel("a")

    assert not segment.remove_channel("a")
    assert not segment.has_channel("a")
    with pytest.raises(ipcbuf.BrokenChannel):
        sender.send(b"2")
    assert receiver.recv(timeout=0) == b"1"
    with pytest.raises(ipcbuf.EndOfChannel):
        receiver.recv(timeout=0)
    other = segment.receiver("a")
    assert other.channel_id != receiver.channel_id
    assert not other.has_data()
    sender.close()
    receiver.close()
    assert [info.id for info in segment.channels()] == [other.channel_id]


def test_removal_wakes_who_waits(segment: ipcbuf.Segment) -> None:
    receiver = segment.receiver("a")
    timer = threading.Timer(MOMENT, segment.remove_channel, ("a",))
    timer.start()

    with pytest.raises(ipcbuf.EndOfChannel):
        receiver.recv(timeout=PATIENCE)

    timer.join()


def test_all_keys_are_removed_at_once(segment: ipcbuf.Segment) -> None:
    ends = [segment.sender(key) for key in range(5)]
    anonymous = segment.channel()
    area, cell = segment.static("m", 10), segment.atomic("a", 3)

    assert segment.remove_channels() == 7

    assert [info.key for info in segment.channels()] == [None] * 8
    memoryview(area)[0] = 1  # who has it keeps it
    assert cell.load() == 3
    anonymous[0].send(b"untouched")
    assert anonymous[1].recv(timeout=0) == b"untouched"
    del ends


# --- travel ---------------------------------------------------------------------------------------


def send_twice(sender: ipcbuf.Sender) -> None:
    sender.send(b"1")
    sender.send(b"2")
    sender.close()


def test_an_end_with_a_key_travels(
    segment: ipcbuf.Segment, start: Start, start_method: str
) -> None:
    sender, receiver = segment.sender("a"), segment.receiver("a")
    start(multiprocessing.get_context(start_method), send_twice, sender)
    sender.close()

    assert list(receiver) == [b"1", b"2"]


def test_a_pickle_keeps_the_channel(segment: ipcbuf.Segment) -> None:
    data = pickle.dumps(segment.sender("a"))
    gc.collect()
    assert segment.has_channel("a")

    sender = pickle.loads(data)

    sender.send(b"1")
    assert segment.receiver("a").recv(timeout=PATIENCE) == b"1"


UNRELATED = """
import os, sys, ipcbuf
fd = os.open(sys.argv[1], os.O_RDWR)
segment = ipcbuf.Segment.attach(fd)
assert segment.wait_for_channel("answers", timeout=60)
answers = segment.sender("answers")
for message in segment.receiver("questions"):
    answers.send(message[::-1])
"""


def test_unrelated_processes_meet_by_key(segment: ipcbuf.Segment) -> None:
    path = f"/proc/{os.getpid()}/fd/{segment.fd}"
    with subprocess.Popen([sys.executable, "-c", UNRELATED, path]) as process:
        questions, answers = segment.sender("questions"), segment.receiver("answers")
        questions.send(b"abc")
        assert answers.recv(timeout=PATIENCE) == b"cba"
        questions.close()
        with pytest.raises(ipcbuf.EndOfChannel):
            answers.recv(timeout=PATIENCE)
        assert process.wait(PATIENCE) == 0
