# SPDX-License-Identifier: Apache-2.0
"""How many messages go through a queue: one process puts, another one gets.

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

    def __init__(self, make: Callable[[int, int], Any], size: int) -> None:
        self._messages = [make(size, kind) for kind in range(KINDS)]
        self._pages = [pages(message) for message in self._messages]

    def message(self, number: int) -> Any:
        return self._messages[number % KINDS]

    def equal(self, received: Any, number: int) -> bool:
        return bool(received == self._messages[number % KINDS])

    def every_page_equal(self, received: Any, number: int) -> bool:
        return pages(received) == self._pages[number % KINDS]

    def every_byte_equal(self, received: Any, number: int) -> bool:
        expected = self._messages[number % KINDS]
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
        queue = player.queue(self.ahead)
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


def large(name: str, make: Callable[[int, int], Any], size: int, keep: int = 0) -> Row:
    blocks = Blocks(make, size)
    stream = Stream(
        blocks.message, blocks.every_page_equal, ahead=IN_FLIGHT, keep=keep, write=keep > 0
    )
    first_turn = replace(stream, check=blocks.every_byte_equal).turn
    scale = 300 if size > 1 << 18 else 3_000
    return Row(name, "queue", stream.turn, "messages/s", scale, first_turn=first_turn)


KIB, MIB = 1 << 10, 1 << 20
held = "64 held, every page written"
kib_blocks = Blocks(block_of_bytes, KIB)

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
    Row("Queue, burst, then drain", "queue", burst, "messages/s", scale=100_000, most=100_000),
]

if __name__ == "__main__":
    sys.exit(measure(ROWS, options(__doc__)))
