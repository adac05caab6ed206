# SPDX-License-Identifier: Apache-2.0
"""Atomics: a 64-bit number with a key, changed in one step, waited for and announced."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Any]

PATIENCE = 60
MOMENT = 0.02
FORK = multiprocessing.get_context("fork")
LEAST, MOST = -(2**63), 2**63 - 1


def test_who_makes_it_sets_the_value(segment: ipcbuf.Segment) -> None:
    first = segment.atomic("n", -5)
    second = segment.atomic("n", 7)

    assert (first.load(), second.load(), segment.atomic("other").load()) == (-5, -5, 0)
    second.store(8)
    assert first.load() == 8
    assert first.key == "n"


def test_each_step(segment: ipcbuf.Segment) -> None:
    cell = segment.atomic("n", 10)

    assert cell.add(-3) == 10
    assert cell.exchange(20) == 7
    assert not cell.compare_exchange(7, 1)
    assert cell.compare_exchange(20, 30)
    assert cell.load() == 30


def test_sums_wrap_around(segment: ipcbuf.Segment) -> None:
    cell = segment.atomic("n", MOST)

    assert cell.add(1) == MOST
    assert cell.add(-1) == LEAST
    assert cell.load() == MOST


@pytest.mark.parametrize("value", [LEAST - 1, MOST + 1, 10**30])
def test_more_than_64_bits_are_refused(segment: ipcbuf.Segment, value: int) -> None:
    cell = segment.atomic("n")
    for call in (cell.store, cell.add, cell.exchange, cell.wait):
        with pytest.raises(OverflowError, match=str(value)):
            call(value)
    with pytest.raises(OverflowError):
        segment.atomic("m", value)
    with pytest.raises(TypeError):
        cell.store(1.5)  # type: ignore[arg-type]

    assert cell.load() == 0


def test_closed_it_is_refused_and_gone(segment: ipcbuf.Segment) -> None:
    with segment.atomic("n") as cell:
        pass
    assert cell.closed
    for call in (cell.load, cell.notify, lambda: cell.wait(0, 0)):
        with pytest.raises(ipcbuf.ClosedError):
            call()

    assert not segment.has_channel("n")


# --- waiting --------------------------------------------------------------------------------------


def test_wait_returns_at_once_what_is_different(segment: ipcbuf.Segment) -> None:
    assert segment.atomic("n", 3).wait(2) == 3


@pytest.mark.parametrize("timeout", [0, -1, MOMENT])
def test_wait_gives_up_after_its_time(segment: ipcbuf.Segment, timeout: float) -> None:
    begin = time.monotonic()

    assert segment.atomic("n", 3).wait(3, timeout) == 3

    assert time.monotonic() - begin >= timeout


def test_notify_wakes_all_or_some(segment: ipcbuf.Segment) -> None:
    cell = segment.atomic("n")
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.append(cell.wait(0, PATIENCE))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()

    cell.store(5)
    cell.notify(1)
    cell.notify(0)
    cell.notify()
    for thread in threads:
        thread.join(PATIENCE)

    assert seen == [5] * 4
    with pytest.raises(ValueError, match="-1"):
        cell.notify(-1)


def test_closing_lets_who_waits_finish(segment: ipcbuf.Segment) -> None:
    cell, other = segment.atomic("n"), segment.atomic("n")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(cell.wait(0, PATIENCE)))
    thread.start()
    cell.close()

    other.store(9)
    other.notify()
    thread.join(PATIENCE)

    assert seen in ([9], [])  # closed before the thread came inside: it raised
    other.close()
    assert not segment.has_channel("n")


def test_ctrl_c_ends_a_wait(segment: ipcbuf.Segment) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()

    with pytest.raises(KeyboardInterrupt):
        segment.atomic("n").wait(0, PATIENCE)

    timer.join()


# --- between processes ----------------------------------------------------------------------------


def ping_pong(segment: ipcbuf.Segment, mine: int, rounds: int) -> None:
    cell = segment.atomic("turn")
    for turn in range(mine, 2 * rounds, 2):
        while (now := cell.load()) != turn:
            cell.wait(now, PATIENCE)
        cell.store(turn + 1)
        cell.notify(1)


def test_two_processes_take_turns(segment: ipcbuf.Segment, start: Start) -> None:
    cell = segment.atomic("turn")
    players = [start(FORK, ping_pong, segment, mine, 500) for mine in (0, 1)]
    for player in players:
        player.join(PATIENCE)

    assert cell.load() == 1000


def add_many(segment: ipcbuf.Segment, times: int) -> None:
    cell = segment.atomic("sum")
    for _ in range(times):
        cell.add(3)
        while not cell.compare_exchange(now := cell.load(), now + 1):
            pass


def test_no_sum_is_lost(segment: ipcbuf.Segment, start: Start) -> None:
    cell = segment.atomic("sum")
    for process in [start(FORK, add_many, segment, 5000) for _ in range(4)]:
        process.join(PATIENCE)

    assert cell.load() == 4 * 5000 * 4


def wait_for_ever(cell: ipcbuf.Atomic) -> None:
    cell.add(1)
    cell.wait(1)


def test_a_killed_waiter_harms_nobody(segment: ipcbuf.Segment, start: Start) -> None:
    cell = segment.atomic("n")
    victim = start(FORK, wait_for_ever, cell)
    while cell.load() == 0:
        cell.wait(0, PATIENCE)
    victim.kill()
    victim.join()

    def change() -> None:
        cell.store(7)
        cell.notify()

    timer = threading.Timer(MOMENT, change)
    timer.start()

    assert cell.wait(1, PATIENCE) == 7

    timer.join()
    (info,) = segment.channels()
    assert info.producers == 1


def double(cell: ipcbuf.Atomic) -> None:
    cell.add(cell.load())
    cell.close()


def test_it_travels(segment: ipcbuf.Segment, start: Start, start_method: str) -> None:
    cell = segment.atomic("n", 21)
    start(multiprocessing.get_context(start_method), double, cell).join(PATIENCE)

    assert cell.load() == 42


def test_a_pickle_keeps_it(segment: ipcbuf.Segment) -> None:
    data = pickle.dumps(segment.atomic("n", 6))
    gc.collect()

    cell = pickle.loads(data)

    assert cell.load() == 6
    cell.close()
    assert not segment.has_channel("n")
