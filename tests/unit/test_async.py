# SPDX-License-Identifier: Apache-2.0
"""The ends of channels in asyncio: waiting, order, cancelling, ends, loops, forks, signals."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from multiprocessing.connection import Connection

PATIENCE = 60
MOMENT = 0.02


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


async def settle() -> None:
    """Let every task come to where it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


# --- receiving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bell", ["futex", "eventfd"])
def test_messages_come_in_order_from_a_thread_and_from_before(
    segment: ipcbuf.Segment, bell: str
) -> None:
    sender, receiver = segment.channel(shared=True, bell=bell)
    if bell == "eventfd":
        sender.bell_fd = receiver.bell_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    sender.send(b"0")

    def send() -> None:
        for number in range(1, 50):
            time.sleep(random.random() / 1000)
            sender.send(b"%d" % number)

    async def main() -> list[int]:
        thread = threading.Thread(target=send)
        thread.start()
        got = [int(await receiver.arecv(PATIENCE)) for _ in range(50)]
        thread.join()
        return got

    assert run(main()) == list(range(50))
    if bell == "eventfd":
        os.close(receiver.bell_fd)


def test_each_kind_of_message_is_awaited(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_items=1)

    async def main() -> None:
        for kind in ("bytes", "view", "object"):
            wanted: Any = {"key": [1, 2.5]} if kind == "object" else bytes(100_000)
            receive: Any = {
                "bytes": receiver.arecv,
                "view": receiver.arecv_view,
                "object": receiver.arecv_object,
            }[kind]
            task = asyncio.create_task(receive())
            await settle()
            if kind == "object":
                await sender.asend_object(wanted)
            else:
                await sender.asend(wanted)
            got: Any = await task
            assert bytes(got) == wanted if kind == "view" else got == wanted

    run(main())


def test_iteration_ends_with_the_channel(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()

    async def main() -> list[bytes]:
        async def send() -> None:
            for number in range(20):
                await sender.asend(b"%d" % number)
                if number % 3 == 0:
                    await asyncio.sleep(0.001)
            sender.close()

        task = asyncio.create_task(send())
        got = [message async for message in receiver]
        await task
        return got

    assert run(main()) == [b"%d" % number for number in range(20)]


def test_a_time_out_is_channel_empty_and_zero_does_not_wait(segment: ipcbuf.Segment) -> None:
    _sender, receiver = segment.channel()

    async def main() -> None:
        for timeout in (0, -1, MOMENT):
            begin = time.monotonic()
            with pytest.raises(ipcbuf.ChannelEmpty):
                await receiver.arecv(timeout)
            assert time.monotonic() - begin >= timeout

    run(main())


def test_tasks_at_one_end_are_served_in_the_order_they_came(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()

    async def main() -> list[bytes]:
        tasks = []
        for _ in range(10):
            tasks.append(asyncio.create_task(receiver.arecv(PATIENCE)))
            await settle()
        for number in range(10):
            sender.send(b"%d" % number)
        assert receiver.pending() == 10  # who comes later does not pass by
        late = asyncio.create_task(receiver.arecv(PATIENCE))
        got = await asyncio.gather(*tasks)
        sender.send(b"late")
        assert await late == b"late"
        return got

    assert run(main()) == [b"%d" % number for number in range(10)]


def test_a_cancelled_task_has_taken_nothing(segment: ipcbuf.Segment) -> None:
    """Cancelled at every moment around the arrival: each message comes to somebody, once."""
    sender, receiver = segment.channel()
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    dice = random.Random(seed)

    async def main() -> list[int]:
        got = []
        for number in range(300):
            tasks = [asyncio.create_task(receiver.arecv(PATIENCE)) for _ in range(2)]
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            sender.send(b"%d" % number)
            if dice.random() < 0.5:
                await asyncio.sleep(dice.random() / 2000)
            for _ in range(dice.randrange(6)):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, bytes):
                    got.append(int(result))
                else:
                    assert isinstance(result, asyncio.CancelledError)
        with contextlib.suppress(ipcbuf.ChannelEmpty):
            while True:
                got.append(int(await receiver.arecv(0)))
        return got

    assert run(main()) == list(range(300)), seed


def test_a_time_out_around_it_loses_nothing(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    stop = threading.Event()

    def send() -> None:
        for number in range(200):
            sender.send(b"%d" % number)
            stop.wait(random.random() / 500)
        sender.close()

    async def main() -> list[int]:
        got = []
        while True:
            try:
                got.append(int(await asyncio.wait_for(receiver.arecv(), 0.0005)))
            except TimeoutError:
                continue
            except ipcbuf.EndOfChannel:
                return got

    thread = threading.Thread(target=send)
    thread.start()
    assert run(main()) == list(range(200))
    thread.join()


def test_closing_an_end_wakes_who_waits_at_it(segment: ipcbuf.Segment) -> None:
    _sender, receiver = segment.channel()

    async def main() -> None:
        tasks = [asyncio.create_task(receiver.arecv()) for _ in range(3)]
        await settle()
        receiver.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ipcbuf.ClosedError)

    run(main())
    with pytest.raises(ipcbuf.ClosedError):
        receiver.fileno()


def hold_a_lease(receiver: ipcbuf.Receiver, pipe: Connection) -> None:
    lease = receiver.recv_leased(PATIENCE)
    pipe.send(None)
    signal.pause()
    del lease


def test_a_message_of_a_dead_receiver_is_awaited_beyond_the_end(
    segment: ipcbuf.Segment, start: Any
) -> None:
    context = multiprocessing.get_context("fork")
    sender, receiver = segment.channel(shared=True, lease=True)
    pipe, theirs = context.Pipe()
    child = start(context, hold_a_lease, receiver, theirs)
    sender.send(b"work")
    pipe.recv()
    sender.close()

    async def main() -> None:
        task = asyncio.create_task(receiver.arecv())
        begin = time.process_time()
        await asyncio.sleep(0.2)
        assert not task.done()
        assert time.process_time() - begin < 0.1  # it does not turn in circles
        child.kill()
        assert await task == b"work"
        with pytest.raises(ipcbuf.EndOfChannel):
            await receiver.arecv()

    run(main())


# --- sending --------------------------------------------------------------------------------------


def test_sending_waits_for_room_and_keeps_the_order(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_items=2)

    async def main() -> list[bytes]:
        tasks = []
        for number in range(10):
            tasks.append(asyncio.create_task(sender.asend(b"%d" % number)))
            await settle()
        with pytest.raises(ipcbuf.ChannelFull):
            await sender.asend(b"too many", MOMENT)
        got = [await receiver.arecv(PATIENCE) for _ in range(10)]
        await asyncio.gather(*tasks)
        return got

    assert run(main()) == [b"%d" % number for number in range(10)]


def test_a_large_message_waits_without_turning_in_circles(segment: ipcbuf.Segment) -> None:
    """Room for a small one is not room for it; the processor is not kept busy meanwhile."""
    sender, receiver = segment.channel(max_bytes=10_000)
    sender.send(bytes(6000))

    async def main() -> None:
        task = asyncio.create_task(sender.asend(bytes(6000)))
        begin = time.process_time()
        await asyncio.sleep(0.3)
        assert not task.done()
        assert time.process_time() - begin < 0.15
        await receiver.arecv()
        await task

    run(main())


def test_sending_fails_when_nobody_is_left_to_receive(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_items=1)

    async def main() -> None:
        await sender.asend(b"")
        task = asyncio.create_task(sender.asend(b""))
        await settle()
        receiver.close()
        with pytest.raises(ipcbuf.BrokenChannel):
            await task

    run(main())


# --- loops, threads, processes --------------------------------------------------------------------


def test_loops_one_after_another_and_in_threads(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(shared=True)

    async def receive() -> bytes:
        return await receiver.arecv(PATIENCE)

    async def main(number: int) -> bytes:
        task = asyncio.create_task(receive())
        await settle()
        sender.send(b"%d" % number)
        return await task

    for number in range(3):
        assert run(main(number)) == b"%d" % number

    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(run(receive()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(3):
        sender.send(b"%d" % number)
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(got) == [b"0", b"1", b"2"]


def echo(requests: ipcbuf.Receiver, answers: ipcbuf.Sender) -> None:
    async def main() -> None:
        async for message in requests:
            await answers.asend(message)
        answers.close()

    asyncio.run(main())


def test_processes_talk_from_loop_to_loop(
    segment: ipcbuf.Segment, start: Any, start_method: str
) -> None:
    context = multiprocessing.get_context(start_method)
    requests, their_requests = segment.channel()
    their_answers, answers = segment.channel()
    start(context, echo, their_requests, their_answers)
    their_answers.close()
    their_requests.close()

    async def main() -> None:
        for number in itertools.chain(range(20), [10**6]):
            message = bytes(number)
            await requests.asend(message, PATIENCE)
            assert await answers.arecv(PATIENCE) == message
        requests.close()
        assert [message async for message in answers] == []

    run(main())


def receive_in_a_loop(receiver: ipcbuf.Receiver, pipe: Connection) -> None:
    pipe.send(run(receiver.arecv(PATIENCE)))


def test_a_forked_child_goes_on_with_the_descriptor_it_inherits(
    segment: ipcbuf.Segment, start: Any
) -> None:
    context = multiprocessing.get_context("fork")
    sender, receiver = segment.channel(shared=True)
    before = receiver.fileno()
    pipe, theirs = context.Pipe()
    start(context, receive_in_a_loop, receiver, theirs)
    sender.send(b"for the child")

    assert pipe.recv() == b"for the child"
    sender.send(b"for us")
    assert run(receiver.arecv(PATIENCE)) == b"for us"
    assert receiver.fileno() == before


def send_then_wait(sender: ipcbuf.Sender, pipe: Connection) -> None:
    sender.send(b"first")
    pipe.send(None)
    signal.pause()


def test_a_killed_sender_ends_the_wait(segment: ipcbuf.Segment, start: Any) -> None:
    context = multiprocessing.get_context("fork")
    sender, receiver = segment.channel()
    pipe, theirs = context.Pipe()
    child = start(context, send_then_wait, sender, theirs)
    pipe.recv()

    async def main() -> None:
        assert await receiver.arecv() == b"first"
        task = asyncio.create_task(receiver.arecv())
        await asyncio.sleep(MOMENT)
        child.kill()
        with pytest.raises(ipcbuf.BrokenChannel):
            await task

    run(main())


def test_a_storm_of_signals_disturbs_nobody(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel()
    ticks = 0

    def tick(_signum: int, _frame: object) -> None:
        nonlocal ticks
        ticks += 1

    async def main() -> int:
        end = time.monotonic() + 1
        number = 0
        while time.monotonic() < end:
            task = asyncio.create_task(receiver.arecv(PATIENCE))
            if number % 2 == 0:
                await asyncio.sleep(0.002)
            await sender.asend(b"%d" % number)
            assert await task == b"%d" % number
            with pytest.raises(ipcbuf.ChannelEmpty):
                await receiver.arecv(0.001)
            number += 1
        return number

    before = signal.signal(signal.SIGVTALRM, tick)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGVTALRM])
    stop = threading.Event()
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def storm() -> None:
        while not stop.wait(0.001):
            signal.pthread_kill(main_thread, signal.SIGVTALRM)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        assert run(main()) > 10
    finally:
        stop.set()
        thread.join(PATIENCE)
        signal.signal(signal.SIGVTALRM, before)
    assert ticks > 50
