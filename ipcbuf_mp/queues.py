# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing.queues` on shared memory.

`Queue` is one channel of ipcbuf that all processes send to and receive from. Its order is
total, and there is no feeder thread: what `put` returned from is in shared memory, and what
cannot be pickled is the caller's error. `SimpleQueue` is a pipe, as in the standard library.

Life cycle
  A fork inherits a queue, a spawned child gets it with its arguments, and it can be sent
  through other queues and pipes. The messages live as long as any process has the queue.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections import deque
from multiprocessing import reduction
from queue import Full
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ipcbuf

from .connection import Connection, End, make_pipe
from .context import default_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

T = TypeVar("T")

# Of the methods that stand alone in the native class, each goes through its general form in
# the standard library: overriding `put` there changes `put_nowait` too.
_GENERAL_FORM = {"put_nowait": "put", "get_nowait": "get"}


class _Descriptor:
    """An open file descriptor that is closed with the last reference to this object."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        _close(self.number)


class _QueueEnd(Connection):
    """What a queue shows as `_reader` and `_writer`: an end of its own channel."""

    def __init__(
        self,
        descriptor: _Descriptor,
        sender: ipcbuf.Sender | None,
        receiver: ipcbuf.Receiver | None,
    ) -> None:
        super().__init__(descriptor.number, sender, receiver)
        self._descriptor = descriptor

    def _close(self, _close: object = None) -> None:
        super()._close(_leave_open)  # the descriptor is shared with the queue

    def _travels_as(self) -> type[Connection]:
        return Connection  # alone, with a descriptor of its own


def _leave_open(_handle: int) -> None:
    pass


if TYPE_CHECKING:
    # For `isinstance`; nothing of theirs runs, and the states that are pickled differ.
    class _StdlibQueue: ...

    class _StdlibJoinableQueue: ...

    class _StdlibSimpleQueue: ...

    class _Typed(ipcbuf.ObjectQueue, Generic[T]):
        def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None: ...
        def put_nowait(self, obj: T) -> None: ...
        def get(self, block: bool = True, timeout: float | None = None) -> T: ...
        def get_nowait(self) -> T: ...

else:
    from multiprocessing.queues import JoinableQueue as _StdlibJoinableQueue
    from multiprocessing.queues import Queue as _StdlibQueue
    from multiprocessing.queues import SimpleQueue as _StdlibSimpleQueue

    class _Typed:
        """`_Typed[T]` is the native class, which takes no parameters while running."""

        def __class_getitem__(cls, item: object) -> type:
            return ipcbuf.ObjectQueue


class Queue(_Typed[T], _StdlibQueue):
    """A queue for any number of processes, as `multiprocessing.Queue`.

    Contexts make it. It ends in a process with `close()` or with its last reference there.
    Differences: `put` copies the object before it returns, raises what pickling raises, and
    raises `HeapExhausted` where the standard library would go on taking memory.
    """

    # Nothing waits here to be sent, and no thread sends it.
    _buffer: tuple[object, ...] = ()
    _thread = None
    _jointhread = None
    _joincancelled = False

    _descriptor: _Descriptor | None = None

    def __init__(self, maxsize: int = 0, *, ctx: BaseContext | None = None) -> None:
        sender, receiver = ipcbuf.default_segment().channel(
            max_items=max(maxsize, 0), shared=True, bell="eventfd"
        )
        bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._set_up(sender, receiver, _Descriptor(bell), maxsize)
        self._opid = os.getpid()
        self._ignore_epipe = False

    def _set_up(
        self,
        sender: ipcbuf.Sender,
        receiver: ipcbuf.Receiver,
        descriptor: _Descriptor,
        maxsize: int,
    ) -> None:
        sender.bell_fd = receiver.bell_fd = descriptor.number
        ipcbuf.ObjectQueue.__init__(self, sender, receiver, max(maxsize, 0))
        self._descriptor = descriptor
        self._given_maxsize = maxsize
        self._reader_end: _QueueEnd | None = None
        self._writer_end: _QueueEnd | None = None
        self._closed_with_items = False
        # Nobody here needs them; programs that take them to read or write alone still work.
        self._rlock = threading.Lock()
        self._wlock = threading.Lock()

    def __del__(self) -> None:
        if self._descriptor is not None:  # else __init__ failed
            self.close_native()  # before the descriptor is closed: the ends may still ring it

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, general in _GENERAL_FORM.items():
            if general in cls.__dict__ and name not in cls.__dict__:
                setattr(cls, name, getattr(_ThroughGeneralForm, name))
        if "_on_queue_feeder_error" in cls.__dict__:
            cls.put = _reporting_to_hook(cls.put)  # type: ignore[method-assign]

    __class_getitem__: Any = classmethod(GenericAlias)

    # -- pickling -----------------------------------------------------------------------------

    def __getstate__(self) -> tuple[Any, ...]:
        if self.closed or self._descriptor is None:
            raise ValueError(f"Queue {self!r} is closed")
        return (
            End.pack(self.sender),
            End.pack(self.receiver),
            reduction.DupFd(self._descriptor.number),
            self._given_maxsize,
            self._opid,
            self._ignore_epipe,
        )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        sender, receiver, descriptor, maxsize, self._opid, self._ignore_epipe = state
        bell = _Descriptor(descriptor.detach())
        self._set_up(sender.sender(), receiver.receiver(), bell, maxsize)

    # -- the rest of the interface --------------------------------------------------------------

    def empty(self) -> bool:
        """Say whether a `get_nowait` would find nothing.

        Raises:
            OSError: This process closed the queue with messages in it.
        """
        if not self.closed:
            return super().empty()
        if self._closed_with_items:
            raise OSError("handle is closed")
        return True

    def close(self) -> None:
        """Promise that this process neither puts nor gets any more.

        What it has put stays for the others.
        """
        if not self.closed:
            self._closed_with_items = not super().empty()
            self.close_native()

    def join_thread(self) -> None:
        """Return at once: `put` waits for nothing that would be to be joined."""
        assert self.closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Do nothing: exit never waits for what is in the queue, and never loses it."""
        self._joincancelled = True

    def _terminate_broken(self) -> None:
        self.close()

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: object) -> None:
        """Take an error of pickling *obj*, where a subclass overrides this method.

        A queue whose class does not override it raises the error in `put`.
        """
        traceback.print_exception(e)

    # -- what programs reach for inside the standard library's queue ------------------------------

    @property
    def _maxsize(self) -> int:
        if self._given_maxsize > 0:
            return self._given_maxsize
        from multiprocessing import synchronize

        unlimited: int = synchronize.SEM_VALUE_MAX  # type: ignore[attr-defined]
        return unlimited

    @property
    def _closed(self) -> bool:
        return self.closed

    @property
    def _reader(self) -> Connection:
        """The receiving end, for `connection.wait`, `poll` and `fileno`."""
        if self._reader_end is None:
            assert self._descriptor is not None
            self._reader_end = _QueueEnd(self._descriptor, None, self.receiver)
        return self._reader_end

    @property
    def _writer(self) -> Connection:
        if self._writer_end is None:
            assert self._descriptor is not None
            self._writer_end = _QueueEnd(self._descriptor, self.sender, None)
        return self._writer_end


class _ThroughGeneralForm:
    """Methods for the subclasses of Queue that override `put` or `get`."""

    @staticmethod
    def put_nowait(queue: Queue[Any], obj: object) -> None:
        queue.put(obj, False)

    @staticmethod
    def get_nowait(queue: Queue[Any]) -> Any:
        return queue.get(False)


def _reporting_to_hook(put: Callable[..., None]) -> Callable[..., None]:
    """Return *put* with its pickling errors given to `_on_queue_feeder_error`."""

    def reporting_put(
        self: Queue[Any], obj: object, block: bool = True, timeout: float | None = None
    ) -> None:
        try:
            put(self, obj, block, timeout)
        except (Full, ipcbuf.IpcbufError):  # the queue's own errors
            raise
        except Exception as error:
            if self.closed:
                raise
            self._on_queue_feeder_error(error, obj)

    return reporting_put


class JoinableQueue(Queue[T], _StdlibJoinableQueue):
    """A queue whose users report what they have finished, as `multiprocessing.JoinableQueue`."""

    def __init__(self, maxsize: int = 0, *, ctx: BaseContext | None = None) -> None:
        super().__init__(maxsize, ctx=ctx)
        ctx = ctx or default_context
        self._unfinished_tasks = ctx.Semaphore(0)
        self._cond = ctx.Condition()

    def __getstate__(self) -> tuple[Any, ...]:
        return (*super().__getstate__(), self._cond, self._unfinished_tasks)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        super().__setstate__(state[:-2])
        self._cond, self._unfinished_tasks = state[-2:]

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Put *obj* as `Queue.put` and count it as unfinished."""
        if self.closed:
            raise ValueError(f"Queue {self!r} is closed")
        self._unfinished_tasks.release()  # counted first: a getter may finish it at once
        try:
            super().put(obj, block, timeout)
        except BaseException:
            self._uncount()
            raise

    def task_done(self) -> None:
        """Report one item that was got as finished.

        Raises:
            ValueError: More items were reported than were put.
        """
        if not self._uncount():
            raise ValueError("task_done() called too many times")

    def _uncount(self) -> bool:
        with self._cond:
            if not self._unfinished_tasks.acquire(False):
                return False
            if self._unfinished_tasks._semlock._is_zero():  # type: ignore[attr-defined]
                self._cond.notify_all()
            return True

    def join(self) -> None:
        """Wait until every item that was put has been reported as finished."""
        with self._cond:
            if not self._unfinished_tasks._semlock._is_zero():  # type: ignore[attr-defined]
                self._cond.wait()


class _LockableReader(Connection):
    """The reading end of a SimpleQueue, and a lock as the standard library has beside it.

    There, who holds the lock reads alone: after a `poll` that said yes, a `recv` does not wait.
    Here nobody waits for anybody's lock, so what `poll` saw is kept for the `recv` instead.
    """

    def __init__(
        self, handle: int, sender: ipcbuf.Sender | None, receiver: ipcbuf.Receiver | None
    ) -> None:
        super().__init__(handle, sender, receiver)
        self.lock = threading.Lock()
        self._kept: deque[object] = deque()

    def poll(self, timeout: float | None = 0.0) -> bool:
        if self._kept:
            return True
        receiver = self._receiver
        if receiver is None or not self.lock.locked():
            return super().poll(timeout)
        try:
            self._kept.append(receiver.recv_object(timeout))
        except ipcbuf.ChannelEmpty:
            return False
        except (ipcbuf.EndOfChannel, ipcbuf.BrokenChannel):
            pass  # `recv` will say so
        return True

    def recv(self) -> Any:
        if self._kept:
            return self._kept.popleft()
        return super().recv()


class SimpleQueue(_StdlibSimpleQueue, Generic[T]):
    """A pipe that many processes share, as `multiprocessing.SimpleQueue`.

    Contexts make it. Nobody holds a lock while waiting in it, so no death can leave one held.
    """

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        self._set_up(*make_pipe(_LockableReader, duplex=False))

    def _set_up(self, reader: _LockableReader, writer: Connection) -> None:
        self._reader = reader
        self._writer = writer
        self._rlock = reader.lock
        self._wlock = threading.Lock()
        self._poll = reader.poll

    def __getstate__(self) -> tuple[_LockableReader, Connection]:
        return self._reader, self._writer

    def __setstate__(self, state: tuple[_LockableReader, Connection]) -> None:
        self._set_up(*state)

    def put(self, obj: T) -> None:
        """Put *obj*, waiting while 64 KiB are in the queue."""
        self._writer.send(obj)

    def get(self) -> T:
        """Return the next object, waiting for it."""
        return self._reader.recv()  # type: ignore[no-any-return]

    def empty(self) -> bool:
        """Say whether a `get` would have to wait."""
        return not self._poll()

    def close(self) -> None:
        """Close both ends in this process. Doing it twice is allowed."""
        self._reader.close()
        self._writer.close()
