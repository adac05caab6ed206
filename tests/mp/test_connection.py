# SPDX-License-Identifier: Apache-2.0
"""The pipes: what the standard library's do, on both, and what only ours do."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import ipcbuf
import ipcbuf_mp
import ipcbuf_mp.connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    Start = Callable[..., Any]

PATIENCE = 60
MOMENT = 0.02
LARGE = 16 * 1024 * 1024


# --- what the child processes do --------------------------------------------------------------------


def echo(connection: Any) -> None:
    """Send every object back until None comes: a forked child has the other end, too."""
    with connection:
        while (message := connection.recv()) is not None:
            connection.send(message)


def send_each(connection: Any, messages: list[Any]) -> None:
    for message in messages:
        connection.send(message)


def send_bytes_to(connection: Any, message: bytes) -> None:
    connection.send_bytes(message)
    connection.close()


def receive_connection_and_answer(carrier: Any, message: Any) -> None:
    with carrier.recv() as connection:
        connection.send(message)


def hold_until_told(go: Any, *_held: Any) -> None:
    go.wait(PATIENCE)


def count_messages(connection: Any, answers: Any) -> None:
    """Count up to an empty message."""
    count = 0
    while connection.recv_bytes():
        count += 1
    answers.send(count)


def poll_only(connection: Any, answers: Any) -> None:
    answers.send(connection.poll(PATIENCE))


def open_descriptors(answers: Any) -> None:
    answers.send(sorted(map(int, os.listdir("/proc/self/fd"))))  # noqa: PTH208


def fill(connection: Any) -> None:
    for _ in range(1000):
        connection.send_bytes(b"x" * 60_000)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("never to be pickled")


# --- the contract -----------------------------------------------------------------------------------


def closing(*connections: Any) -> None:
    for connection in connections:
        connection.close()


class ConnectionContract:
    """What any multiprocessing connection does."""

    library: ClassVar[ModuleType]

    @pytest.fixture
    def context(self, start_method: str) -> Any:
        return self.library.get_context(start_method)

    @pytest.fixture
    def one_way(self) -> Iterator[tuple[Any, Any]]:
        """A reader and a writer."""
        ends = self.library.Pipe(duplex=False)
        yield ends
        closing(*ends)

    @pytest.fixture
    def both_ways(self) -> Iterator[tuple[Any, Any]]:
        ends = self.library.Pipe()
        yield ends
        closing(*ends)

    # -- objects ------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "message", [None, 0, "", b"", [1, (2.5, {"k": {3}})], OSError, b"x" * 40_000]
    )
    def test_objects_go_both_ways(self, both_ways: tuple[Any, Any], message: object) -> None:
        for source, target in (both_ways, both_ways[::-1]):
            source.send(message)
            got = target.recv()

            assert got == message
            assert type(got) is type(message)

    def test_messages_keep_their_order(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        for number in range(500):
            writer.send(number)

        assert [reader.recv() for _ in range(500)] == list(range(500))

    def test_what_cannot_be_pickled_is_raised_by_send(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        with pytest.raises(pickle.PicklingError, match="never to be pickled"):
            writer.send(Unpicklable())
        writer.send("next")

        assert reader.recv() == "next"

    def test_what_cannot_be_unpickled_is_raised_by_recv(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        writer.send_bytes(b"no pickle")
        writer.send("next")

        with pytest.raises(pickle.UnpicklingError):
            reader.recv()
        assert reader.recv() == "next"

    def test_bytes_and_objects_can_be_received_as_each_other(
        self, one_way: tuple[Any, Any]
    ) -> None:
        reader, writer = one_way
        for message in (1, "text", [1, {2}]):
            writer.send_bytes(pickle.dumps(message))
            assert reader.recv() == message
            writer.send(message)
            assert pickle.loads(reader.recv_bytes()) == message

    # -- bytes --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("message", [b"", b"x", b"some bytes", bytes(range(256)) * 200])
    def test_bytes_arrive_as_they_were(self, one_way: tuple[Any, Any], message: bytes) -> None:
        reader, writer = one_way
        writer.send_bytes(message)
        got = reader.recv_bytes()

        assert got == message
        assert type(got) is bytes

    @pytest.mark.parametrize(
        "buffer",
        [
            bytearray(b"abcd"),
            memoryview(b"abcd"),
            array.array("i", [1, 2, 3]),
            array.array("d", [1.5]),
        ],
    )
    def test_send_bytes_takes_any_buffer(self, one_way: tuple[Any, Any], buffer: Any) -> None:
        reader, writer = one_way
        writer.send_bytes(buffer)

        assert reader.recv_bytes() == bytes(buffer)

    def test_send_bytes_sends_a_part(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        for arguments, expected in [
            ((b"abcdef", 2), b"cdef"),
            ((b"abcdef", 2, 3), b"cde"),
            ((b"abcdef", 6), b""),
            ((b"abcdef", 0, 0), b""),
            ((array.array("h", [1, 2, 3]), 2, 2), array.array("h", [2]).tobytes()),
        ]:
            writer.send_bytes(*arguments)
            assert reader.recv_bytes() == expected

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((b"abcdef", 7), "buffer length < offset"),
            ((b"abcdef", 4, 3), r"buffer length < offset \+ size"),
            ((b"abcdef", -1), "offset is negative"),
            ((b"abcdef", 0, -1), "size is negative"),
        ],
    )
    def test_send_bytes_refuses_a_bad_range(
        self, one_way: tuple[Any, Any], arguments: tuple[Any, ...], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            one_way[1].send_bytes(*arguments)

    def test_send_bytes_refuses_what_is_no_buffer(self, one_way: tuple[Any, Any]) -> None:
        with pytest.raises(TypeError):
            one_way[1].send_bytes("text")

    def test_recv_bytes_into_counts_bytes(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        buffer = array.array("i", [0] * 10)
        writer.send_bytes(array.array("i", [1, 2, 3]))
        assert reader.recv_bytes_into(buffer, 3 * buffer.itemsize) == 3 * buffer.itemsize
        assert list(buffer) == [0, 0, 0, 1, 2, 3, 0, 0, 0, 0]

        foreign = (ctypes.c_int * 2)()
        writer.send_bytes(array.array("i", [8, 9]))
        assert reader.recv_bytes_into(foreign) == ctypes.sizeof(foreign)
        assert list(foreign) == [8, 9]

    def test_recv_bytes_into_refuses_a_bad_offset(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        writer.send_bytes(b"stays")
        for offset, message in ((-1, "negative offset"), (11, "offset too large")):
            with pytest.raises(ValueError, match=message):
                reader.recv_bytes_into(bytearray(10), offset)

        assert reader.recv_bytes() == b"stays"

    def test_a_short_buffer_gets_the_message_in_the_exception(
        self, one_way: tuple[Any, Any]
    ) -> None:
        reader, writer = one_way
        writer.send_bytes(b"twelve bytes")
        with pytest.raises(multiprocessing.BufferTooShort) as caught:
            reader.recv_bytes_into(bytearray(11))

        assert type(caught.value) is multiprocessing.BufferTooShort
        assert caught.value.args == (b"twelve bytes",)

    def test_maxlength(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        writer.send_bytes(b"12345")
        assert reader.recv_bytes(5) == b"12345"
        with pytest.raises(ValueError, match="negative maxlength"):
            reader.recv_bytes(-1)
        writer.send_bytes(b"123456")

        with pytest.raises(OSError, match="bad message length"):
            reader.recv_bytes(5)
        assert reader.closed

    def test_maxlength_of_a_duplex_end_leaves_it_for_sending(
        self, both_ways: tuple[Any, Any]
    ) -> None:
        one, other = both_ways
        one.send_bytes(b"123456")
        with pytest.raises(OSError, match="bad message length"):
            other.recv_bytes(5)

        assert not other.readable
        with pytest.raises(OSError, match="write-only"):
            other.recv()
        other.send("still")
        assert one.recv() == "still"

    # -- poll ----------------------------------------------------------------------------------------

    def test_poll_consumes_nothing(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        assert reader.poll() is False
        assert reader.poll(-1) is False
        assert reader.poll(MOMENT) is False
        writer.send_bytes(b"")
        for _ in range(3):
            assert reader.poll() is True
            assert reader.poll(None) is True
            assert reader.poll(-1) is True

        assert reader.recv_bytes() == b""
        assert reader.poll() is False

    def test_poll_is_true_at_the_end(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        writer.send(1)
        writer.close()
        assert reader.poll()
        assert reader.recv() == 1
        assert reader.poll()
        assert reader.poll(None)

        with pytest.raises(EOFError):
            reader.recv()

    def test_poll_in_a_child_takes_nothing(self, context: Any, start: Start) -> None:
        reader, writer = context.Pipe(duplex=False)
        answers, answer = context.Pipe(duplex=False)
        with reader, writer, answers, answer:
            start(context, poll_only, reader, answer)
            writer.send_bytes(b"whole")

            assert answers.recv() is True
            assert reader.recv_bytes() == b"whole"

    # -- ends ----------------------------------------------------------------------------------------

    def test_closed_ends_refuse_everything(self) -> None:
        for end in (*self.library.Pipe(), *self.library.Pipe(duplex=False)):
            end.close()
            end.close()

            assert end.closed
            for use in (
                lambda end=end: end.send(1),
                lambda end=end: end.send_bytes(b"1"),
                end.recv,
                end.recv_bytes,
                lambda end=end: end.recv_bytes_into(bytearray(1)),
                end.poll,
                end.fileno,
            ):
                with pytest.raises(OSError, match="handle is closed"):
                    use()

    def test_a_direction_is_enforced(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        assert (reader.readable, reader.writable) == (True, False)
        assert (writer.readable, writer.writable) == (False, True)

        sends: list[Callable[[], object]] = [
            lambda: reader.send(1),
            lambda: reader.send_bytes(b"1"),
        ]
        for send in sends:
            with pytest.raises(OSError, match="connection is read-only"):
                send()
        for receive in (
            writer.recv,
            writer.recv_bytes,
            lambda: writer.recv_bytes_into(bytearray(1)),
            writer.poll,
        ):
            with pytest.raises(OSError, match="connection is write-only"):
                receive()

    def test_a_context_manager_closes(self) -> None:
        one, other = self.library.Pipe()
        with one as entered, other:
            assert entered is one
            assert not one.closed

        assert one.closed
        assert other.closed

    def test_recv_after_the_writer_has_closed(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        for message in (b"1", b"2"):
            writer.send_bytes(message)
        writer.close()
        assert [reader.recv_bytes(), reader.recv_bytes()] == [b"1", b"2"]

        for receive in (
            reader.recv,
            reader.recv_bytes,
            lambda: reader.recv_bytes_into(bytearray(9)),
        ):
            with pytest.raises(EOFError) as caught:
                receive()
            assert type(caught.value) is EOFError

    def test_send_after_the_reader_has_closed(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        reader.close()

        sends: list[Callable[[], object]] = [
            lambda: writer.send(1),
            lambda: writer.send_bytes(b"1"),
        ]
        for send in sends:
            with pytest.raises(BrokenPipeError) as caught:
                send()
            assert type(caught.value) is BrokenPipeError
            assert caught.value.errno == errno.EPIPE

    def test_a_recv_that_waits_is_woken_by_the_end(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        timer = threading.Timer(MOMENT, writer.close)
        timer.start()

        with pytest.raises(EOFError):
            reader.recv()
        timer.join()

    def test_a_send_that_waits_is_woken_by_the_end(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        timer = threading.Timer(5 * MOMENT, reader.close)
        timer.start()

        with pytest.raises(BrokenPipeError):
            fill(writer)
        timer.join()

    def test_a_full_pipe_waits_for_its_reader(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        messages = [bytes([number]) * 30_000 for number in range(50)]
        thread = threading.Thread(target=lambda: [writer.send_bytes(m) for m in messages])
        thread.start()

        assert [reader.recv_bytes() for _ in messages] == messages
        thread.join(PATIENCE)

    def test_the_end_comes_with_the_exit_of_a_child(self, context: Any, start: Start) -> None:
        reader, writer = context.Pipe(duplex=False)
        with reader:
            start(context, send_each, writer, ["one", "two"])
            writer.close()

            assert [reader.recv(), reader.recv()] == ["one", "two"]
            with pytest.raises(EOFError):
                reader.recv()

    def test_no_end_while_a_child_still_has_the_writer(self, context: Any, start: Start) -> None:
        go = context.Event()
        reader, writer = context.Pipe(duplex=False)
        with reader:
            start(context, hold_until_told, go, writer)
            writer.close()
            assert not reader.poll(5 * MOMENT)
            go.set()

            assert reader.poll(PATIENCE)
            with pytest.raises(EOFError):
                reader.recv()

    def test_a_large_message(self, context: Any, start: Start) -> None:
        one, other = context.Pipe()
        message = os.urandom(1024) * (LARGE // 1024)
        with one, other:
            start(context, echo, other)
            other.close()
            one.send(message)

            assert one.recv() == message
            one.send(None)

    def test_a_child_answers(self, context: Any, start: Start) -> None:
        one, other = context.Pipe()
        with one:
            start(context, echo, other)
            other.close()
            for message in (1, "text", [None, {2}], b"x" * 30_000):
                one.send(message)
                assert one.recv() == message
            one.send(None)

    # -- the descriptor ------------------------------------------------------------------------------

    def test_fileno_is_readable_exactly_while_something_is_there(
        self, one_way: tuple[Any, Any]
    ) -> None:
        reader, writer = one_way
        assert type(reader.fileno()) is int
        poll = select.poll()
        poll.register(reader.fileno(), select.POLLIN)

        def is_readable() -> bool:
            by_select = bool(select.select([reader], [], [], 0)[0])
            assert by_select == bool(poll.poll(0)) == bool(wait([reader], 0))
            return by_select

        for _ in range(3):
            assert not is_readable()
            for number in range(3):
                writer.send(number)
            for number in range(3):
                assert is_readable()
                assert reader.recv() == number
        assert not is_readable()
        writer.close()
        assert is_readable()

    def test_fileno_after_messages_came(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        writer.send(1)

        assert wait([reader], 0) == [reader]
        assert reader.recv() == 1
        assert wait([reader], 0) == []

    def test_wait_takes_connections_and_sentinels(self, context: Any, start: Start) -> None:
        go = context.Event()
        reader, writer = context.Pipe(duplex=False)
        idle, idle_writer = context.Pipe(duplex=False)
        with reader, writer, idle, idle_writer:
            process = start(context, hold_until_told, go)
            everything = [reader, idle, process.sentinel]
            assert wait(everything, MOMENT) == []
            writer.send(1)
            assert wait(everything, PATIENCE) == [reader]
            assert reader.recv() == 1
            go.set()

            assert wait(everything, PATIENCE) == [process.sentinel]

    def test_a_child_wakes_a_wait(self, context: Any, start: Start) -> None:
        reader, writer = context.Pipe(duplex=False)
        with reader, writer:
            assert wait([reader], 0) == []
            start(context, send_each, writer, [1, 2])

            for number in (1, 2):
                assert wait([reader], PATIENCE) == [reader]
                assert reader.recv() == number

    def test_asyncio_reads_one_message_per_call(self, both_ways: tuple[Any, Any]) -> None:
        import asyncio  # late: children import this module, and it takes longest

        one, other = both_ways
        got: list[int] = []

        async def collect() -> None:
            loop = asyncio.get_running_loop()
            done = loop.create_future()

            def take_one() -> None:
                got.append(one.recv())
                if len(got) == 20:
                    done.set_result(None)

            loop.add_reader(one.fileno(), take_one)
            for number in range(20):
                other.send(number)
            await asyncio.wait_for(done, PATIENCE)
            loop.remove_reader(one.fileno())

        asyncio.run(collect())

        assert got == list(range(20))

    # -- travelling -----------------------------------------------------------------------------------

    def test_a_connection_travels_through_a_connection(self, context: Any, start: Start) -> None:
        carrier, far = context.Pipe()
        reader, writer = context.Pipe(duplex=False)
        with carrier, reader:
            start(context, receive_connection_and_answer, far, ["answer"])
            far.close()
            carrier.send(writer)
            writer.close()  # at once

            assert reader.recv() == ["answer"]
            with pytest.raises(EOFError):
                reader.recv()

    def test_what_travels_keeps_its_direction(self) -> None:
        ends = (*self.library.Pipe(), *self.library.Pipe(duplex=False))
        carrier, far = self.library.Pipe()
        with carrier, far:
            for end in ends:
                carrier.send(end)
                with far.recv() as copy:
                    assert (copy.readable, copy.writable) == (end.readable, end.writable)
                    assert type(copy) is type(end)
                    assert copy.fileno() != end.fileno()
        closing(*ends)

    def test_a_socket_travels_through_a_connection(self, both_ways: tuple[Any, Any]) -> None:
        one, other = both_ways
        near, far = socket.socketpair()
        with near, far:
            one.send(near)
            with other.recv() as copy:
                copy.sendall(b"through the copy")
                assert far.recv(100) == b"through the copy"

    def test_an_argument_survives_the_close_of_the_sender(self, context: Any, start: Start) -> None:
        reader, writer = context.Pipe(duplex=False)
        with reader:
            start(context, send_bytes_to, writer, b"late")
            writer.close()

            assert reader.recv_bytes() == b"late"

    @pytest.mark.parametrize("start_method", ["spawn", "forkserver"])  # fork inherits them all
    def test_a_child_has_no_stray_descriptors(self, context: Any, start: Start) -> None:
        answers, answer = context.Pipe(duplex=False)
        with answers, answer:
            start(context, open_descriptors, answer)
            few = answers.recv()
            pipes = [context.Pipe() for _ in range(10)]
            start(context, open_descriptors, answer)

            assert len(answers.recv()) == len(few)
        for pair in pipes:
            closing(*pair)

    # -- signals --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("blocked_in", ["recv", "send", "poll"])
    def test_a_signal_handler_runs_and_the_call_goes_on(
        self, one_way: tuple[Any, Any], blocked_in: str
    ) -> None:
        reader, writer = one_way
        caught: list[int] = []
        messages = [b"x" * 60_000] * 4
        uses: dict[str, Callable[[], object]] = {
            "recv": lambda: reader.recv_bytes(),
            "poll": lambda: reader.poll(PATIENCE),
            "send": lambda: [writer.send_bytes(message) for message in messages],
        }

        def resume() -> None:
            deadline = time.monotonic() + PATIENCE
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            while not caught and time.monotonic() < deadline:
                time.sleep(0.001)
            if blocked_in == "send":
                for _ in messages:
                    reader.recv_bytes()
            else:
                writer.send_bytes(b"done")

        before = signal.signal(signal.SIGUSR1, lambda number, _frame: caught.append(number))
        timer = threading.Timer(MOMENT, resume)
        timer.start()
        try:
            result = uses[blocked_in]()
        finally:
            timer.join(PATIENCE)
            signal.signal(signal.SIGUSR1, before)

        assert caught == [signal.SIGUSR1]
        assert result in (b"done", True, [None] * len(messages))

    @pytest.mark.parametrize("call", ["a.recv()", "a.poll(60)", "a.poll(None)", "fill()"])
    def test_control_c_interrupts(self, call: str) -> None:
        program = (
            f"import {self.library.__name__} as m\n"
            "a, b = m.Pipe()\n"
            "def fill():\n"
            "    while True: a.send_bytes(b'x' * 60000)\n"
            "print('ready', flush=True)\n"
            f"try: {call}\n"
            "except KeyboardInterrupt: print('interrupted')\n"
        )
        with subprocess.Popen(
            [sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(MOMENT)
            process.send_signal(signal.SIGINT)

            assert process.communicate(timeout=PATIENCE) == (b"interrupted\n", b"")

    # -- identity -------------------------------------------------------------------------------------

    def test_it_is_a_connection(self, both_ways: tuple[Any, Any]) -> None:
        for end in both_ways:
            assert isinstance(end, multiprocessing.connection.Connection)
            assert isinstance(end, multiprocessing.connection._ConnectionBase)


class TestConnectionOfTheStandardLibrary(ConnectionContract):
    library: ClassVar[ModuleType] = multiprocessing


class TestConnection(ConnectionContract):
    library: ClassVar[ModuleType] = ipcbuf_mp

    def test_no_data_goes_through_the_socket(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        for number in range(10):
            writer.send([number])
        waiting = array.array("i", [0])
        fcntl.ioctl(reader.fileno(), termios.FIONREAD, waiting)

        assert waiting[0] <= 1  # what makes it readable

    def test_the_capacity_is_64_kib_of_messages(self, one_way: tuple[Any, Any]) -> None:
        reader, writer = one_way
        sent = 0

        def fill() -> None:
            nonlocal sent
            for _ in range(100):
                writer.send_bytes(b"x" * 1000)
                sent += 1

        thread = threading.Thread(target=fill)
        thread.start()
        thread.join(10 * MOMENT)
        assert 30 <= sent <= 66
        for _ in range(100):
            reader.recv_bytes()
        thread.join(PATIENCE)
        assert sent == 100

    def test_a_thousand_pipes_leave_nothing(self) -> None:
        def use(number: int) -> None:
            one, other = ipcbuf_mp.Pipe()
            one.send([number])
            other.send({number})
            if number % 2:
                wait([one, other], 0)
                assert other.recv() == [number]
                other.close()

        use(0)
        use(1)
        segment = ipcbuf.default_segment()
        before = set(os.listdir("/proc/self/fd")), segment.committed  # noqa: PTH208
        for number in range(1000):
            use(number)

        assert set(os.listdir("/proc/self/fd")) == before[0]  # noqa: PTH208
        assert segment.committed <= before[1] + 2**20

    def test_several_readers_share_the_messages(self, context: Any, start: Start) -> None:
        reader, writer = context.Pipe(duplex=False)
        answers, answer = context.Pipe(duplex=False)
        with answers, answer:
            for _ in range(2):
                start(context, count_messages, reader, answer)
            reader.close()
            for _ in range(500):
                writer.send_bytes(b"x" * 100)
            for _ in range(2):
                writer.send_bytes(b"")

            assert answers.recv() + answers.recv() == 500

    def test_the_death_of_a_reader_stops_nobody(self, context: Any, start: Start) -> None:
        reader, writer = context.Pipe(duplex=False)
        answers, answer = context.Pipe(duplex=False)
        with reader, writer, answers, answer:
            process = start(context, count_messages, reader, answer)
            time.sleep(MOMENT)
            process.kill()
            process.join(PATIENCE)

            writer.send("for me")
            assert reader.recv() == "for me"
