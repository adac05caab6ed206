# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing.connection`, with pipes whose messages go through shared memory.

A pipe is a socket pair that carries no data, with a channel of ipcbuf for each direction
beside it. Its ends are `multiprocessing.connection.Connection` objects to anybody who asks. That
class, and everything else that is not redefined here, is the standard library's.

Why there is a socket pair at all
  It is what `select`, asyncio and `connection.wait` look at, and it tells the end: the
  kernel hangs up as soon as the last copy of the other end is gone, however it went, in
  whatever process it was. No end-of-file rests on anybody closing anything in time.

Life cycle
  `Pipe` makes both ends. A fork inherits them, a spawned child gets them with its arguments,
  and they can be sent to anybody at any time. Closing an end, or dropping it, closes it in
  this process only. When the last process has closed it, the other side sees the end.
"""

from __future__ import annotations

import errno
import io
import os
import socket
from multiprocessing import BufferTooShort, reduction
from multiprocessing import connection as _stdlib
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
    wait,
)
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import ipcbuf

from . import _pickling  # noqa: F401 - it gives ipcbuf the codec for objects

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ChannelConnection",
    "Client",
    "Connection",
    "Listener",
    "Pipe",
    "answer_challenge",
    "deliver_challenge",
    "wait",
]

C = TypeVar("C", bound="ChannelConnection")

CAPACITY = 64 * 1024  # bytes of messages; a larger message is let in alone


class End(NamedTuple):
    """One end of a channel, in a form that can be sent to another process once."""

    segment: Any  # an ipcbuf.Segment
    channel_id: int
    transit: int

    @staticmethod
    def pack(end: ipcbuf.Sender | ipcbuf.Receiver) -> End:
        """Describe *end* and keep its channel alive until the description was unpacked."""
        return End(end.segment, end.channel_id, ipcbuf.Parcels.transit(end))

    def sender(self) -> ipcbuf.Sender:
        """Open the sending end here."""
        sender: ipcbuf.Sender = self.segment.open_sender(self.channel_id, self.transit)
        return sender

    def receiver(self) -> ipcbuf.Receiver:
        """Open the receiving end here."""
        receiver: ipcbuf.Receiver = self.segment.open_receiver(self.channel_id, self.transit)
        return receiver


class ChannelConnection(Connection):
    """One end of a pipe, as `multiprocessing.connection.Connection`.

    `Pipe` makes it. Any number of threads and processes may use one end; each message goes
    to one of them. It ends with `close()`, with its last reference, or with the process.
    """

    _sender: ipcbuf.Sender | None = None
    _receiver: ipcbuf.Receiver | None = None

    if TYPE_CHECKING:  # what the base class has, and typeshed does not say
        _handle: int | None
        _readable: bool

        def _check_closed(self) -> None: ...

    def __init__(
        self, handle: int, sender: ipcbuf.Sender | None, receiver: ipcbuf.Receiver | None
    ) -> None:
        super().__init__(handle, readable=receiver is not None, writable=sender is not None)
        self._sender = sender
        self._receiver = receiver
        for end in (sender, receiver):
            if end is not None:
                end.bell_fd = handle

    # -- messages ---------------------------------------------------------------------------

    def send(self, obj: object) -> None:
        """Send an object, waiting while the pipe is full.

        Raises:
            BrokenPipeError: Nobody is left who could receive it.
        """
        sender = self._sender
        if sender is None:
            self._refuse_to_send()
        try:
            sender.send_object(obj)
        except (ipcbuf.BrokenChannel, ipcbuf.ClosedError) as error:
            _raise_as_send_error(error)

    def recv(self) -> Any:
        """Return the next object, waiting for it.

        Raises:
            EOFError: Everything was received and nobody is left who could send.
        """
        receiver = self._receiver
        if receiver is None:
            self._refuse_to_receive()
        try:
            return receiver.recv_object()
        except (ipcbuf.EndOfChannel, ipcbuf.BrokenChannel, ipcbuf.ClosedError) as error:
            _raise_as_recv_error(error)

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Send *size* bytes of *buf* from *offset* on as one message; all if None."""
        if self._sender is None:
            self._refuse_to_send()
        view = memoryview(buf)
        if view.itemsize > 1 or view.ndim != 1:
            view = view.cast("B")
        nbytes = view.nbytes
        if offset < 0:
            raise ValueError("offset is negative")
        if nbytes < offset:
            raise ValueError("buffer length < offset")
        if size is None:
            size = nbytes - offset
        elif size < 0:
            raise ValueError("size is negative")
        elif offset + size > nbytes:
            raise ValueError("buffer length < offset + size")
        self._send_bytes(view[offset : offset + size])

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Return the next message as bytes; the pickle of an object that was sent.

        Raises:
            EOFError: Everything was received and nobody is left who could send.
            OSError: The message is longer than *maxlength*; nothing more can be received.
        """
        receiver = self._receiver
        if receiver is None:
            self._refuse_to_receive()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        try:
            message = receiver.recv_bytes()
        except (ipcbuf.EndOfChannel, ipcbuf.BrokenChannel, ipcbuf.ClosedError) as error:
            _raise_as_recv_error(error)
        if maxlength is not None and len(message) > maxlength:
            self._refuse_long_message()
        return message

    def recv_bytes_into(self, buf: Any, offset: int = 0) -> int:
        """Receive a message into *buf* from byte *offset* on and return its length.

        Raises:
            BufferTooShort: It does not fit. The message is the argument of the exception.
        """
        if self._receiver is None:
            self._refuse_to_receive()
        with memoryview(buf) as view:
            itemsize = view.itemsize
            room = itemsize * len(view)
            if offset < 0:
                raise ValueError("negative offset")
            if offset > room:
                raise ValueError("offset too large")
            message = self.recv_bytes()
            size = len(message)
            if room < offset + size:
                raise BufferTooShort(message)
            io.BytesIO(message).readinto(view[offset // itemsize : (offset + size) // itemsize])
            return size

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Say whether a message, or the end, is there, waiting up to *timeout* seconds."""
        receiver = self._receiver
        if receiver is None:
            self._refuse_to_receive()
        if timeout is not None and timeout < 0:
            timeout = 0.0
        try:
            return receiver.poll(timeout)
        except ipcbuf.ClosedError as error:
            _raise_as_recv_error(error)

    # -- the descriptor ---------------------------------------------------------------------

    def fileno(self) -> int:
        """Return a descriptor that is readable while a message, or the end, is there."""
        receiver = self._receiver
        if receiver is not None:
            return receiver.fileno()
        return super().fileno()

    def _close(self, _close: Callable[[int], None] = os.close) -> None:
        sender, receiver, handle = self._sender, self._receiver, self._handle
        self._sender = self._receiver = self._handle = None
        if sender is not None:
            sender.close()
        if receiver is not None:
            receiver.close()
        if handle is not None:  # last: the ends above may still ring it
            _close(handle)

    def __reduce__(self) -> tuple[Callable[..., ChannelConnection], tuple[Any, ...]]:
        handle = super().fileno()
        sender = self._sender and End.pack(self._sender)
        receiver = self._receiver and End.pack(self._receiver)
        return _rebuild_connection, (
            self._travels_as(),
            reduction.DupFd(handle),
            sender,
            receiver,
        )

    def _travels_as(self) -> type[ChannelConnection]:
        return type(self)

    # -- what the methods of the base class use -----------------------------------------------

    def _send_bytes(self, buf: Any) -> None:
        sender = self._sender
        if sender is None:
            self._refuse_to_send()
        try:
            sender.send(buf)
        except (ipcbuf.BrokenChannel, ipcbuf.ClosedError) as error:
            _raise_as_send_error(error)

    def _recv_bytes(self, maxsize: int | None = None) -> io.BytesIO:
        stream = io.BytesIO(self.recv_bytes(maxsize))
        stream.seek(0, io.SEEK_END)  # as the standard library's, which wrote it just now
        return stream

    def _poll(self, timeout: float | None) -> bool:
        return self.poll(timeout)

    # -- refusals -----------------------------------------------------------------------------

    def _refuse_to_send(self) -> NoReturn:
        self._check_closed()
        raise OSError("connection is read-only")

    def _refuse_to_receive(self) -> NoReturn:
        self._check_closed()
        raise OSError("connection is write-only")

    def _refuse_long_message(self) -> NoReturn:
        receiver, self._receiver = self._receiver, None
        if self._sender is None:
            self._receiver = receiver
            self.close()
        else:
            self._readable = False
            if receiver is not None:
                receiver.close()
        raise OSError("bad message length")


def _rebuild_connection(
    kind: type[ChannelConnection], descriptor: Any, sender: End | None, receiver: End | None
) -> ChannelConnection:
    return kind(descriptor.detach(), sender and sender.sender(), receiver and receiver.receiver())


def _raise_as_send_error(error: Exception) -> NoReturn:
    if isinstance(error, ipcbuf.ClosedError):  # by another thread, while we were in it
        raise OSError("handle is closed") from None
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None


def _raise_as_recv_error(error: Exception) -> NoReturn:
    if isinstance(error, ipcbuf.ClosedError):
        raise OSError("handle is closed") from None
    raise EOFError from None


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:  # noqa: N802
    """Return the two ends of a pipe; the first only receives unless it is duplex."""
    return make_pipe(ChannelConnection, duplex)


def make_pipe(first_kind: type[C], duplex: bool) -> tuple[C, ChannelConnection]:
    """Return the two ends of a pipe, the first one of the class *first_kind*."""
    segment = ipcbuf.default_segment()
    sender, receiver = segment.channel(max_bytes=CAPACITY, shared=True, bell="socket")
    answers: tuple[ipcbuf.Sender | None, ipcbuf.Receiver | None] = (None, None)
    if duplex:
        answers = segment.channel(max_bytes=CAPACITY, shared=True, bell="socket")
    first, second = socket.socketpair()
    return (
        first_kind(first.detach(), answers[0], receiver),
        ChannelConnection(second.detach(), sender, answers[1]),
    )


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        return getattr(_stdlib, name)
