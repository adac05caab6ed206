# SPDX-License-Identifier: Apache-2.0
"""Every exception ipcbuf raises.

IpcbufError
├── ClosedError (ValueError)            this process closed the object
├── BusyError (RuntimeError)            an exclusive end already has a user
├── RecordTooLarge (ValueError)         the record can never fit this segment
├── ChannelEmpty (queue.Empty)          a receive found nothing in time
├── ChannelFull (queue.Full)            a send found no room in time
├── PeerError                           something happened on the other side
│   ├── EndOfChannel (EOFError)         every sender closed; everything was read
│   ├── BrokenChannel (EOFError, BrokenPipeError)
│   │                                   the peer closed early or died
│   ├── PeerDied (RuntimeError)         what we wait for was taken by the dead
│   └── WorkerLost (RuntimeError)       a worker process ended with a task in hand
├── HeapExhausted (MemoryError, OSError)
│                                       no free run of that size, and no growth
├── TooManyProcesses (OSError)          no free process slot, or row for a channel, in the segment
└── SegmentError (OSError)
    ├── SegmentExists (FileExistsError)
    ├── SegmentNotFound (FileNotFoundError)
    ├── SegmentPermission (PermissionError)
    ├── NotASegment                     the file is something else
    ├── VersionMismatch                 another version of the layout
    ├── AbiMismatch                     another word size, byte order or page size
    ├── SegmentTruncated                shorter than its header says
    ├── SegmentCorrupted                a number in it contradicts another
    └── SegmentLost                     it was there, and is not any more

The other bases are the classes that the standard library raises in the same
situation, so code written for `multiprocessing` keeps working.

An exception that carries values keeps them as attributes and survives pickling:
it may be raised in one process and shown in another.
"""

from __future__ import annotations

import errno
import queue
import signal

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "AbiMismatch",
    "BrokenChannel",
    "BusyError",
    "ChannelEmpty",
    "ChannelFull",
    "ClosedError",
    "EndOfChannel",
    "HeapExhausted",
    "IpcbufError",
    "NotASegment",
    "PeerDied",
    "PeerError",
    "RecordTooLarge",
    "SegmentCorrupted",
    "SegmentError",
    "SegmentExists",
    "SegmentLost",
    "SegmentNotFound",
    "SegmentPermission",
    "SegmentTruncated",
    "TooManyProcesses",
    "VersionMismatch",
    "WorkerLost",
]


class IpcbufError(Exception):
    """Anything that ipcbuf itself raises.

    A wrong argument is not in this tree: it is a TypeError or ValueError as anywhere in Python.
    """


class ClosedError(IpcbufError, ValueError):
    """This process has closed the object.

    What the other side closed is an `EndOfChannel` or a `BrokenChannel`.
    """


class BusyError(IpcbufError, RuntimeError):
    """An exclusive end of a channel already has a user.

    An end that was made with `shared=True` never raises it.
    """


class RecordTooLarge(IpcbufError, ValueError):
    """The record can never fit, however long one waits.

    A record that fits once others were read is a `ChannelFull` instead, one that fits once memory
    is freed a `HeapExhausted`.

    Args:
        nbytes: The length of the record.
        limit: The longest record that the segment takes.
    """

    def __init__(self, nbytes: int, limit: int) -> None:
        super().__init__(nbytes, limit)
        self.nbytes = nbytes
        self.limit = limit

    def __str__(self) -> str:
        return f"record of {self.nbytes} bytes; this segment takes at most {self.limit}"


class ChannelEmpty(IpcbufError, queue.Empty):
    """A receive found nothing in time.

    Not raised once nothing can come any more: that is `EndOfChannel` or `BrokenChannel`.
    """


class ChannelFull(IpcbufError, queue.Full):
    """A send found no room in time.

    Not raised by an unbounded channel, and not by one that has nobody left to read it.
    """


class PeerError(IpcbufError):
    """Something happened on the other side of a channel."""


class EndOfChannel(PeerError, EOFError):
    """Every sender closed, and everything they sent was read.

    Never raised while a message is left.
    """


class BrokenChannel(PeerError, EOFError, BrokenPipeError):
    """The peer closed early or died.

    A receiver gets everything that had been published first. A sender gets it at once.
    """

    def __init__(self, message: str = "the other end of the channel is gone") -> None:
        # EOFError comes first in the order of bases and knows nothing of errno.
        BrokenPipeError.__init__(self, errno.EPIPE, message)

    def __reduce__(self) -> tuple[Callable[..., BrokenChannel], tuple[object, ...]]:
        return type(self), (self.strerror,)


class PeerDied(PeerError, RuntimeError):
    """What this process waits for was taken by processes that are dead.

    Not raised while a living process may still finish it.

    Args:
        open_tasks: How many items were taken by the dead and never reported done.
    """

    def __init__(self, open_tasks: int) -> None:
        super().__init__(open_tasks)
        self.open_tasks = open_tasks

    def __str__(self) -> str:
        return f"{self.open_tasks} items were taken by processes that died before task_done()"


class WorkerLost(PeerError, RuntimeError):
    """A worker process ended with a task in hand.

    Not raised for an exception in the task: that is the task's own.

    Args:
        pid: The worker's process id.
        exitcode: Its exit code; the negated number of the signal that killed it; None if unknown.
        task: What it was doing, for the message.
    """

    def __init__(self, pid: int, exitcode: int | None, task: str = "a task") -> None:
        super().__init__(pid, exitcode, task)
        self.pid = pid
        self.exitcode = exitcode
        self.task = task

    def __str__(self) -> str:
        return f"worker process {self.pid} {_manner_of_end(self.exitcode)} with {self.task} in hand"


def _manner_of_end(exitcode: int | None) -> str:
    if exitcode is None:
        return "died"
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-exitcode}"


class HeapExhausted(IpcbufError, MemoryError, OSError):
    """The segment has no free run of that size and could not grow.

    The segment goes on working: once memory was freed, the same request succeeds.
    Never a SIGBUS: memory is reserved before it is used.

    Args:
        requested: How many bytes were asked for.
        committed: How many bytes of the segment are backed by memory.
        max_size: How many bytes the segment may grow to.
        free: How many of the committed bytes are free.
        largest: The longest run of free bytes.
        reason: What stopped the segment from growing.
    """

    def __init__(
        self,
        requested: int,
        committed: int = 0,
        max_size: int = 0,
        free: int = 0,
        largest: int = 0,
        reason: str = "max_size reached",
    ) -> None:
        message = (
            f"no room for {requested} bytes: {committed} of at most {max_size} bytes committed, "
            f"{free} free, longest free run {largest}; cannot grow: {reason}"
        )
        # MemoryError comes first in the order of bases and knows nothing of errno.
        OSError.__init__(self, errno.ENOMEM, message)
        self.requested = requested
        self.committed = committed
        self.max_size = max_size
        self.free = free
        self.largest = largest
        self.reason = reason

    def __reduce__(self) -> tuple[Callable[..., HeapExhausted], tuple[object, ...]]:
        numbers = (self.requested, self.committed, self.max_size, self.free, self.largest)
        return type(self), (*numbers, self.reason)


class TooManyProcesses(IpcbufError, OSError):
    """A table of the segment is full: of process slots, of channels, of shared entries.

    The rows of dead processes are reused, so this counts what the living have. The tables for
    channels and for shared entries (blocks or ends that many processes hold) are as long as
    `max_size` allows for.

    Args:
        limit: How many rows the table has.
        what: What a row stands for: "processes", "channels" or "shared entries".
    """

    def __init__(self, limit: int, what: str = "processes") -> None:
        if what == "processes":
            message = f"{limit} processes use this segment; it takes no more"
        else:
            message = (
                f"the segment has {limit} {what}; it takes no more. Close some, "
                "or make the segment with a larger max_size"
            )
        super().__init__(errno.EUSERS, message)
        self.limit = limit
        self.what = what

    def __reduce__(self) -> tuple[Callable[..., TooManyProcesses], tuple[object, ...]]:
        return type(self), (self.limit, self.what)


class SegmentError(IpcbufError, OSError):
    """A segment could not be made, opened, or trusted."""


class SegmentExists(SegmentError, FileExistsError):
    """A segment of that name exists already, and a new one was asked for."""


class SegmentNotFound(SegmentError, FileNotFoundError):
    """No segment of that name exists, and an existing one was asked for."""


class SegmentPermission(SegmentError, PermissionError):
    """The segment, or the folder it is in, belongs to somebody else."""


class NotASegment(SegmentError):
    """The file does not begin as a segment does. Nothing of it was mapped."""


class VersionMismatch(SegmentError):
    """The segment was made by a version of ipcbuf with another layout."""


class AbiMismatch(SegmentError):
    """The segment was made with another word size, byte order or page size."""


class SegmentTruncated(SegmentError):
    """The file is shorter than its header says."""


class SegmentCorrupted(SegmentError):
    """A number read from the segment contradicts another; nothing was done with it."""


class SegmentLost(SegmentError):
    """The segment was there, and is not any more."""
