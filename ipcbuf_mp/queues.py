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
import queue
import threading
import time
import traceback
from collections import deque
from multiprocessing import queues as _stdlib
from multiprocessing import reduction
from queue import Empty, Full
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ipcbuf

from .connection import ChannelConnection, End, make_pipe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from multiprocessing.context import BaseContext

__all__ = ["JoinableQueue", "Queue", "ShutDown", "SimpleQueue"]

T = TypeVar("T")
R = TypeVar("R")

# Of the methods that stand alone in the native class, each goes through its general form in
# the standard library: overriding `put` there changes `put_nowait` too.
_GENERAL_FORM = {"put_nowait": "put", "get_nowait": "get"}


if TYPE_CHECKING:

    class ShutDown(Exception):
        """A queue was shut down: nothing can be put, and everything was got."""

elif hasattr(queue, "ShutDown"):  # Python 3.13
    ShutDown = queue.ShutDown
else:

    class ShutDown(Exception):
        """A queue was shut down: nothing can be put, and everything was got."""

    ShutDown.__module__ = "ipcbuf_mp"

ipcbuf.set_queue_end(ShutDown)

_SLICE = 0.2  # seconds between two looks at who is alive


class _Descriptor:
    """An open file descriptor that is closed with the last reference to this object."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        _close(self.number)


def _leave_open(_handle: int) -> None:
    pass


class _QueueEnd(ChannelConnection):
    """What a queue shows as `_reader` and `_writer`: an end of its own channel."""

    def __init__(
        self,
        descriptor: _Descriptor,
        sender: ipcbuf.Sender | None,
        receiver: ipcbuf.Receiver | None,
    ) -> None:
        super().__init__(descriptor.number, sender, receiver)
        self._descriptor = descriptor

    def _close(self, _close: Callable[[int], None] = _leave_open) -> None:
        super()._close(_close)  # the descriptor is shared with the queue

    def _travels_as(self) -> type[ChannelConnection]:
        return ChannelConnection  # alone, with a descriptor of its own


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
    _raises_if_orphaned = False

    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: BaseContext | None = None,
        maxbytes: int = 0,
        copy: bool = False,
        orphan: str = "wait",
    ) -> None:
        self._make(maxsize, maxbytes, lease=False)
        if orphan not in ("wait", "raise"):
            raise ValueError(f"orphan must be 'wait' or 'raise', not {orphan!r}")
        self.receiver.copies = copy
        if orphan == "raise":
            if type(self) is Queue:
                self.__class__ = _WatchingQueue
            elif type(self).get is ipcbuf.ObjectQueue.get:
                raise TypeError("a subclass of Queue has no orphan=")
            self._raises_if_orphaned = True

    def _make(self, maxsize: int, maxbytes: int, lease: bool) -> None:
        if maxbytes < 0:
            raise ValueError("maxbytes must not be negative")
        sender, receiver = ipcbuf.default_segment().channel(
            max_items=max(maxsize, 0),
            max_bytes=maxbytes,
            shared=True,
            bell="eventfd",
            lease=lease,
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
            (self._opid, self._ignore_epipe, self.receiver.copies, self._raises_if_orphaned),
        )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        sender, receiver, descriptor, maxsize, rest = state
        self._opid, self._ignore_epipe, copies, self._raises_if_orphaned = rest
        bell = _Descriptor(descriptor.detach())
        self._set_up(sender.sender(), receiver.receiver(), bell, maxsize)
        self.receiver.copies = copies

    # -- what the standard library's queue has not ------------------------------------------------

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue in all processes, as `queue.Queue.shutdown`.

        From now on `put` raises `ShutDown`, and `get` does once everything was got; who waits in
        one of them is woken. Calling it again is allowed.

        Args:
            immediate: Throw away what is in the queue, so that every `get` raises.
        """
        self.shut_down()
        if immediate:
            while True:
                try:
                    self._throw_away()
                except (ShutDown, Empty):
                    break
                except Exception:  # of unpickling; it is gone as well
                    continue

    def _throw_away(self) -> None:
        ipcbuf.ObjectQueue.get(self, False)

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> int:
        """Put each of *items* within *timeout* seconds in all; return how many were put."""
        deadline = None if timeout is None else time.monotonic() + timeout
        count = 0
        for item in items:
            try:
                self.put(item, True, _seconds_to(deadline))
            except Full:
                return count
            count += 1
        return count

    def get_many(self, most: int, timeout: float | None = None) -> list[T]:
        """Wait for an object up to *timeout* seconds; return it and those behind it.

        Args:
            most: How many to return at most.
            timeout: Seconds to wait for the first one; without end if None.

        Raises:
            Empty: There was none in time.
        """
        if most < 1:
            raise ValueError("most must be at least 1")
        items = [self.get(True, timeout)]
        try:
            while len(items) < most:
                items.append(self.get(False))
        except (Empty, ShutDown, EOFError):
            pass
        return items

    async def aput(self, obj: T, timeout: float | None = None) -> None:
        """Put *obj*, for `await` in an asyncio event loop. If cancelled, nothing was put."""
        self._require_open()
        try:
            await self.sender.asend_object(obj, timeout)
        except ipcbuf.ChannelFull:
            raise Full from None
        except ipcbuf.BrokenChannel:
            raise ShutDown from None

    async def aget(self, timeout: float | None = None) -> T:
        """Return the oldest object, for `await`. If cancelled, nothing was taken."""
        self._require_open()
        obj: T = await _received(self.receiver.arecv_object(timeout))
        return obj

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError(f"Queue {self!r} is closed")

    def _get_or_orphaned(self, block: bool, timeout: float | None) -> T:
        get: Callable[..., T] = ipcbuf.ObjectQueue.get
        if not self._raises_if_orphaned:
            return get(self, block, timeout)
        deadline = time.monotonic() + timeout if timeout is not None else None
        while True:
            left = _seconds_to(deadline) if block else 0.0
            try:
                return get(self, True, _SLICE if left is None else min(left, _SLICE))
            except Empty:
                if self._is_orphaned():
                    if ipcbuf.ObjectQueue.empty(self):
                        message = "no other process has this queue"
                        raise EOFError(message) from None
                elif left is not None and left <= _SLICE:
                    raise

    def _is_orphaned(self) -> bool:
        self.receiver.segment.reap()
        for channel in self.receiver.segment.diagnose():
            if channel["id"] == self.receiver.channel_id:
                holders = channel["sender"]["holders"]
                return all(
                    holder["pid"] == os.getpid() and holder["kind"] == "process"
                    for holder in holders
                )
        return False

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
    def _reader(self) -> ChannelConnection:
        """The receiving end, for `connection.wait`, `poll` and `fileno`."""
        if self._reader_end is None:
            assert self._descriptor is not None
            self._reader_end = _QueueEnd(self._descriptor, None, self.receiver)
        return self._reader_end

    @property
    def _writer(self) -> ChannelConnection:
        if self._writer_end is None:
            assert self._descriptor is not None
            self._writer_end = _QueueEnd(self._descriptor, self.sender, None)
        return self._writer_end


def _seconds_to(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


async def _received(message: Awaitable[R]) -> R:
    """Await what a receiver takes, with the exceptions of a queue."""
    try:
        return await message
    except ipcbuf.ChannelEmpty:
        raise Empty from None
    except (ipcbuf.EndOfChannel, ipcbuf.BrokenChannel):
        raise ShutDown from None


class _ThroughGeneralForm:
    """Methods for the subclasses of Queue that override `put` or `get`."""

    @staticmethod
    def put_nowait(queue: Queue[Any], obj: object) -> None:
        queue.put(obj, False)

    @staticmethod
    def get_nowait(queue: Queue[Any]) -> Any:
        return queue.get(False)


class _WatchingQueue(Queue[T]):
    """A queue with options that need more than the native `get`."""

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        self._require_open()
        return self._get_or_orphaned(block, timeout)


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


class _Tally:
    """Who has got how much of a queue and not reported it as finished.

    A page that the processes share has two words for each of them, by its slot in the segment: its
    token, and how many objects it has got more than it has reported. Only the process itself writes
    them. What the dead have written is not needed: what they had is what is missing.
    """

    SLOTS = 4096  # the slot is the low part of a token

    def __init__(self, segment: ipcbuf.Segment) -> None:
        key = f"ipcbuf_mp.JoinableQueue {os.urandom(16).hex()}"
        self.done = segment.atomic(key + "d")
        self._area = segment.static(key, 16 * self.SLOTS)
        self._set_up()

    def _set_up(self) -> None:
        self.segment = self.done.segment
        self._words = memoryview(self._area).cast("B").cast("q")
        self._pid = 0
        self._lock = threading.Lock()
        self._at = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_tally, (self.done, self._area)

    def add(self, count: int) -> None:
        """Count what this process has got, or has reported (negative)."""
        if self._pid != os.getpid():
            self.enter()
        with self._lock:
            self._words[self._at + 1] += count

    def mine(self) -> int:
        """Return how much this process has got more than it has reported."""
        return self._words[self._at + 1] if self._pid == os.getpid() else 0

    def enter(self) -> None:
        """Write this process in. What it gets is counted from here on."""
        if self._pid == os.getpid():
            return
        self._lock = threading.Lock()  # the parent's may be held by a thread that is not here
        token = self.segment.token
        self._at = token % self.SLOTS * 2
        if self._words[self._at] != token:  # of somebody who is dead
            self._words[self._at + 1] = 0
            self._words[self._at] = token
        self._pid = os.getpid()

    def held(self) -> tuple[int, int]:
        """Return how much the living have, and how much all have together."""
        self.segment.reap()
        living = {row["token"] for row in self.segment.processes() if not row["dead"]}
        words = self._words
        of_living = of_all = 0
        for at in range(0, 2 * self.SLOTS, 2):
            token = words[at]
            if token != 0:
                of_all += words[at + 1]
                if token in living:
                    of_living += words[at + 1]
        return of_living, of_all


def _rebuild_tally(done: ipcbuf.Atomic, area: ipcbuf.Static) -> _Tally:
    tally: _Tally = _Tally.__new__(_Tally)
    tally.done = done
    tally._area = area
    tally._set_up()
    return tally


class _Unfinished:
    """What programs that look into a JoinableQueue find where the standard library's semaphore is."""

    def __init__(self, of: JoinableQueue[Any]) -> None:
        self._queue = of

    def get_value(self) -> int:
        """Return how many objects were put and not yet reported as finished."""
        if self._queue.sender.leased:
            return self._queue.qsize() + len(self._queue._leases)  # of others it is not known
        done = self._queue._tally.done.load()
        return max(0, _ahead(self._queue.counts()[0], done))


_COUNTED = 1 << 32  # counts of a channel are modulo that


def _ahead(count: int, of: int) -> int:
    return (count - of + _COUNTED // 2) % _COUNTED - _COUNTED // 2


class JoinableQueue(Queue[T], _StdlibJoinableQueue):
    """A queue whose users report what they have finished, as `multiprocessing.JoinableQueue`.

    What counts as unfinished is what was ever put less what was ever reported. If all of it was got
    by processes that are dead, `join` says so instead of waiting for ever. With *lease*, what they
    had got is put back for somebody else, and `join` waits for that.
    """

    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: BaseContext | None = None,
        maxbytes: int = 0,
        copy: bool = False,
        orphan: str = "wait",
        lease: bool = False,
    ) -> None:
        if lease:
            if copy or orphan != "wait":
                raise ValueError("a queue with lease=True gives copies, and its orphan is 'wait'")
            self._make(maxsize, maxbytes, lease=True)
        else:
            super().__init__(maxsize, maxbytes=maxbytes, copy=copy, orphan=orphan)
        segment: Any = self.sender.segment
        self._tally = _Tally(segment)
        self._leases: deque[ipcbuf.Leased] = deque()

    def __getstate__(self) -> tuple[Any, ...]:
        return (*super().__getstate__(), self._tally)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        super().__setstate__(state[:-1])
        self._tally = state[-1]
        self._leases = deque()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Return the oldest object as `Queue.get`, to be reported by `task_done`."""
        self._require_open()
        if self.sender.leased:
            return self._get_leased(block, timeout)
        self._tally.enter()
        obj = self._get_or_orphaned(block, timeout)
        self._tally.add(1)
        return obj

    def _get_leased(self, block: bool, timeout: float | None) -> T:
        try:
            lease = self.receiver.recv_leased(timeout if block else 0)
        except ipcbuf.ChannelEmpty:
            raise Empty from None
        except (ipcbuf.EndOfChannel, ipcbuf.BrokenChannel):
            raise ShutDown from None
        return self._load(lease)

    def _load(self, lease: ipcbuf.Leased) -> T:
        try:
            obj: T = lease.load()
        except BaseException:
            lease.done()  # it would kill, or fail, whoever comes next as well
            raise
        self._leases.append(lease)
        return obj

    async def aget(self, timeout: float | None = None) -> T:
        """Return the oldest object, for `await`, to be reported by `task_done`."""
        self._require_open()
        if self.sender.leased:
            return self._load(await _received(self.receiver.arecv_leased(timeout)))
        self._tally.enter()
        obj = await super().aget(timeout)
        self._tally.add(1)
        return obj

    def _throw_away(self) -> None:
        if self.sender.leased:
            self.receiver.recv_leased(0).done()
            return
        super()._throw_away()
        self._report(0)

    def task_done(self) -> None:
        """Report one object that was got as finished; with leases, the one got first.

        Raises:
            ValueError: It was called more often than objects were put, or got here if they are
                under a lease.
        """
        if self.sender.leased:
            try:
                self._leases.popleft().done()
            except IndexError:
                raise ValueError("task_done() called too many times") from None
            self._tally.done.notify()
        else:
            self._report(1)

    def _report(self, got_here: int) -> None:
        done = self._tally.done
        while True:
            before = done.load()
            # Who puts or gets may be stopped, or killed, before the count of what he has put or
            # got; so the larger one is right, and what was got here was got.
            left = max(_ahead(count, before) for count in ipcbuf.ObjectQueue.counts(self))
            if left <= 0 and not (got_here and self._tally.mine() > 0):
                raise ValueError("task_done() called too many times")
            if done.compare_exchange(before, before + 1):
                break
        if got_here:
            self._tally.add(-1)
        if left <= 1:
            done.notify()

    def join(self) -> None:
        """Wait until everything that was put has been reported as finished.

        Raises:
            PeerDied: What is missing was got by processes that have died.
        """
        self._require_open()
        if self.sender.leased:
            while not self._is_finished():
                self._tally.done.wait(self._tally.done.load(), _SLICE / 10)
            return
        done, segment = self._tally.done, self._tally.segment
        stable_since, seen = time.monotonic(), (0, 0, 0)
        while True:
            reported = done.load()
            put, got = ipcbuf.ObjectQueue.counts(self)
            left = (put - reported) % _COUNTED
            if left == 0:
                return
            if done.wait(reported, _SLICE / 4) != reported or put != got:
                if _ahead(put, got) < 0:
                    segment.reap()  # somebody was killed before the count of what he had put
                continue
            now = put, got, reported
            if now != seen:
                stable_since, seen = time.monotonic(), now
            of_living, of_all = self._tally.held()
            if of_living > 0 or ipcbuf.ObjectQueue.counts(self) != (put, got):
                continue
            # A process that has just got something, and not counted it yet, will do so.
            uncounted = (got - reported - of_all) % _COUNTED
            if uncounted and time.monotonic() - stable_since < 5 * _SLICE:
                continue
            if done.load() == reported:
                raise ipcbuf.PeerDied(left)

    @property
    def _unfinished_tasks(self) -> _Unfinished:
        return _Unfinished(self)

    def _is_finished(self) -> bool:
        """Say whether nothing is in the queue, and nothing under a lease."""
        before = ipcbuf.ObjectQueue.counts(self)
        if self._leases or self.qsize() or self.has_leases() or self.qsize():
            return False
        return ipcbuf.ObjectQueue.counts(self) == before


class _LockableReader(ChannelConnection):
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

    def _set_up(self, reader: _LockableReader, writer: ChannelConnection) -> None:
        self._reader = reader
        self._writer = writer
        self._rlock = reader.lock
        self._wlock = threading.Lock()
        self._poll = reader.poll

    def __getstate__(self) -> tuple[_LockableReader, ChannelConnection]:
        return self._reader, self._writer

    def __setstate__(self, state: tuple[_LockableReader, ChannelConnection]) -> None:
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


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        return getattr(_stdlib, name)
