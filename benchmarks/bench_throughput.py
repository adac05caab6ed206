# SPDX-License-Identifier: Apache-2.0
"""How many messages go through a queue or a pipe: one process puts, another one gets.

The clock runs from the first message received to the last. The receiver is already waiting when
the sender begins. Every message is checked, in the same way for every contender: small ones are
compared with what was sent; large ones in their length and in one byte of every page, with one of
eight different messages sent in turn. The first turn, which is not counted, compares every byte.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Figures, Gate, Peer, Row, cpu_seconds, measure, options

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

PAGE = 4096
KINDS = 8  # different large messages, sent in turn
IN_FLIGHT = 8  # large messages that a sender may be ahead


# --- what is sent, and how it is checked -----------------------------------------------------------


def small_int(number: int) -> int:
    return number


def small_tuple(number: int) -> tuple[int, str, float]:
    return number, "a short text", number / 2


def equal_int(received: Any, number: int) -> bool:
    return bool(received == number)


def equal_tuple(received: Any, number: int) -> bool:
    return bool(received == small_tuple(number))


class Blocks:
    """A few messages of one size, made beforehand and sent in turn."""

    def __init__(self, make: Callable[[int, int], Any], size: int, kinds: int = KINDS) -> None:
        self._kinds = kinds
        self._messages = [make(size, kind) for kind in range(kinds)]
        self._pages = [pages(message) for message in self._messages]

    def message(self, number: int) -> Any:
        return self._messages[number % self._kinds]

    def equal(self, received: Any, number: int) -> bool:
        return bool(received == self._messages[number % self._kinds])

    def every_page_equal(self, received: Any, number: int) -> bool:
        return pages(received) == self._pages[number % self._kinds]

    def every_byte_equal(self, received: Any, number: int) -> bool:
        expected = self._messages[number % self._kinds]
        return type(received) is type(expected) and bytes(received) == bytes(expected)


def pages(message: Any) -> tuple[type, int, bytes]:
    """Return what is compared of a large message: type, length, and one byte of every page."""
    view = memoryview(message)
    return type(message), view.nbytes, view[::PAGE].tobytes()


def block_of_bytes(size: int, kind: int) -> bytes:
    return np.random.default_rng(kind).bytes(size)


def array(size: int, kind: int) -> Any:
    return np.frombuffer(block_of_bytes(size, kind), dtype=np.uint8).copy()


# --- one sender, one receiver ---------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """What goes through the queue, and what the receiver does with it."""

    make: Callable[[int], Any]
    check: Callable[[Any, int], bool]
    ahead: int = 0  # the queue's maxsize
    keep: int = 0  # how many received messages are kept alive
    write: bool = False  # whether the receiver writes every page
    pipe: bool = False  # through a pipe

    def send(self, queue: Any, messages: int, ready: Gate) -> float:
        """Put all messages; return the CPU time."""
        make = self.make
        put = queue.put
        ready.wait()
        start = cpu_seconds()
        for number in range(messages):
            put(make(number))
        queue.close()
        queue.join_thread()
        return cpu_seconds() - start

    def receive(self, queue: Any, messages: int, ready: Gate) -> tuple[float, float]:
        """Get and check all messages; return the time and the CPU time."""
        check, write = self.check, self.write
        get = queue.get
        kept: deque[Any] = deque(maxlen=self.keep)
        ready.open()
        for number in range(messages):
            message = get()
            if number == 0:
                start, cpu_start = time.perf_counter(), cpu_seconds()
            if not check(message, number):
                raise AssertionError(f"message {number} is not what was sent")
            if write:
                message[::PAGE] = 255
            if self.keep:
                kept.append(message)
            del message
        return time.perf_counter() - start, cpu_seconds() - cpu_start

    def turn(self, player: ModuleType, messages: int) -> Figures:
        """Send *messages* from one new process to another one."""
        queue = OneWay(player) if self.pipe else player.queue(self.ahead)
        ready = Gate()
        receiver = Peer(self.receive, queue, messages, ready)
        sender = Peer(self.send, queue, messages, ready)
        seconds, receiver_cpu = receiver.join()
        sender_cpu = sender.join()
        return {
            "messages/s": (messages - 1) / seconds,
            "cpu µs/message": 1e6 * (sender_cpu + receiver_cpu) / messages,
            "seconds": seconds,
        }


# --- a pipe -----------------------------------------------------------------------------------------


class OneWay:
    """A pipe, used as a queue is: what comes out at one end is put in at the other."""

    def __init__(self, player: ModuleType) -> None:
        receiving, sending = player.pipe()
        self.put, self.get = sending.send, receiving.recv

    def close(self) -> None:
        """Leave it to the end of the process."""

    def join_thread(self) -> None:
        """Return at once: there is no thread."""


# --- a crowd ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """Several processes put and several get. Every receiver checks the order of every sender."""

    senders: int
    receivers: int

    def send(self, queue: Any, number: int, messages: int, go: Gate) -> float:
        put = queue.put
        go.wait()
        start = cpu_seconds()
        for message in range(number, messages * self.senders, self.senders):
            put(message)
        queue.close()
        queue.join_thread()
        return cpu_seconds() - start

    def receive(self, queue: Any, messages: int, ready: Gate) -> tuple[float, float, float]:
        senders = self.senders
        get = queue.get
        last = [-1] * senders
        ready.open()
        for number in range(messages):
            message = get()
            if number == 0:
                start, cpu_start = time.perf_counter(), cpu_seconds()
            sender = message % senders
            if message <= last[sender]:
                raise AssertionError(f"{message} came behind {last[sender]}")
            last[sender] = message
        return start, time.perf_counter(), cpu_seconds() - cpu_start

    def turn(self, player: ModuleType, messages: int) -> Figures:
        """Send about so many messages in all; from the first one received to the last."""
        share = max(messages // (self.senders * self.receivers), 2)
        queue = player.shared_queue()
        ready, go = Gate(), Gate()
        receivers = [
            Peer(self.receive, queue, share * self.senders, ready) for _ in range(self.receivers)
        ]
        senders = [
            Peer(self.send, queue, number, share * self.receivers, go)
            for number in range(self.senders)
        ]
        for _ in receivers:
            ready.wait()
        for _ in senders:
            go.open()
        received = [receiver.join() for receiver in receivers]
        cpu = sum(sender.join() for sender in senders) + sum(cpu for _, _, cpu in received)
        messages = share * self.senders * self.receivers
        seconds = max(end for _, end, _ in received) - min(start for start, _, _ in received)
        return {
            "messages/s": messages / seconds,
            "cpu µs/message": 1e6 * cpu / messages,
            "seconds": seconds,
        }


# --- a burst --------------------------------------------------------------------------------------


def put_burst(queue: Any, messages: int, complete: Gate) -> tuple[float, float]:
    start, cpu_start = time.perf_counter(), cpu_seconds()
    for number in range(messages):
        queue.put(number)
    complete.open()
    queue.close()
    queue.join_thread()
    return start, cpu_seconds() - cpu_start


def drain(queue: Any, messages: int, complete: Gate) -> tuple[float, float]:
    complete.wait()
    cpu_start = cpu_seconds()
    for number in range(messages):
        if queue.get() != number:
            raise AssertionError(f"message {number} is not what was sent")
    return time.perf_counter(), cpu_seconds() - cpu_start


def burst(player: ModuleType, messages: int) -> Figures:
    """Put all messages while nobody gets any, then get them; from the first put to the last get."""
    queue = player.queue()
    complete = Gate()
    receiver = Peer(drain, queue, messages, complete)
    sender = Peer(put_burst, queue, messages, complete)
    end, receiver_cpu = receiver.join()
    start, sender_cpu = sender.join()
    return {
        "messages/s": messages / (end - start),
        "cpu µs/message": 1e6 * (sender_cpu + receiver_cpu) / messages,
        "seconds": end - start,
    }


# --- rows -----------------------------------------------------------------------------------------


def small(name: str, stream: Stream, most: int) -> Row:
    return Row(name, "queue", stream.turn, "messages/s", scale=20_000, most=most)


def large(
    name: str, make: Callable[[int, int], Any], size: int, keep: int = 0, pipe: bool = False
) -> Row:
    blocks = Blocks(make, size)
    stream = Stream(
        blocks.message, blocks.every_page_equal, IN_FLIGHT, keep, write=keep > 0, pipe=pipe
    )
    first_turn = replace(stream, check=blocks.every_byte_equal).turn
    scale = max(3_000 * 64 * KIB // max(size, 64 * KIB), 40)
    needs = "pipe" if pipe else "queue"
    return Row(name, needs, stream.turn, "messages/s", scale, first_turn=first_turn)


def crowd(senders: int, receivers: int) -> Row:
    name = f"Queue, small int, {senders} to {receivers}"
    turn = Crowd(senders, receivers).turn
    return Row(name, "shared_queue", turn, "messages/s", scale=20_000, most=2_000_000)


KIB, MIB = 1 << 10, 1 << 20
held = "64 held, every page written"
few_held = "8 held, every page written"
kib_blocks = Blocks(block_of_bytes, KIB)
kib_pipe = Stream(kib_blocks.message, kib_blocks.equal, pipe=True)

ROWS = [
    small("Queue, small int", Stream(small_int, equal_int), 4_000_000),
    small("Queue, small tuple (int, str, float)", Stream(small_tuple, equal_tuple), 2_000_000),
    small("Queue, 1 KiB bytes", Stream(kib_blocks.message, kib_blocks.equal), 400_000),
    large("Queue, 64 KiB bytes", block_of_bytes, 64 * KIB),
    large("Queue, 1 MiB bytes", block_of_bytes, MIB),
    large("Queue, 64 KiB array, block recycled", array, 64 * KIB),
    large(f"Queue, 64 KiB array, {held}", array, 64 * KIB, keep=64),
    large("Queue, 1 MiB array, block recycled", array, MIB),
    large(f"Queue, 1 MiB array, {held}", array, MIB, keep=64),
    large("Queue, 16 MiB array, block recycled", array, 16 * MIB),
    large(f"Queue, 16 MiB array, {few_held}", array, 16 * MIB, keep=8),
    Row("Queue, burst, then drain", "queue", burst, "messages/s", scale=100_000, most=100_000),
    *(crowd(n, n) for n in (1, 2, 4, 8, 16)),
    crowd(16, 1),
    crowd(1, 16),
    Row("Pipe, 1 KiB bytes", "pipe", kib_pipe.turn, "messages/s", scale=20_000, most=2_000_000),
    large("Pipe, 1 MiB bytes", block_of_bytes, MIB, pipe=True),
]

if __name__ == "__main__":
    sys.exit(measure(ROWS, options(__doc__)))
