# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Segments: making one, finding those this process has, and sending them to others.

A segment travels as a descriptor. While a child is being spawned the descriptor goes along,
once per child however many handles of the segment the child gets. At any other time the
handle names the sender and its descriptor, and a receiver that does not have the segment yet
opens that through `/proc`, which the kernel allows to the same user.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any

from . import _native
from .errors import SegmentNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Segment", "default_segment", "find_segment"]

_known: weakref.WeakValueDictionary[bytes, Segment] = weakref.WeakValueDictionary()
_lock = threading.RLock()
_default: Segment | None = None


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it during the fork


os.register_at_fork(after_in_child=_renew_lock)


class Segment(_native.Segment):
    """One mapped region of shared memory in which processes share a heap and channels.

    An anonymous segment has no name and no file: it ends with its last process. It grows
    when needed; memory is reserved before it is used, so a full machine is a `HeapExhausted`
    and never a SIGBUS.

    Args:
        max_size: Bytes the heap may grow to. None: half of what the machine and its memory
            cgroups allow, at most 64 GiB.

    Raises:
        SegmentError: The system refused the memory or the address space.
    """

    def __init__(self, max_size: int | None = None) -> None:
        if max_size is not None and max_size <= 0:
            raise ValueError(f"max_size must be positive, not {max_size}")
        super().__init__(max_size=max_size or 0)
        _known[self.uuid] = self

    @classmethod
    def attach(cls, fd: int, /) -> Segment:
        """Map the segment behind a descriptor, which stays the caller's.

        Returns:
            The object that this process has for the segment, if it has one.

        Raises:
            NotASegment, VersionMismatch, AbiMismatch, SegmentTruncated, SegmentCorrupted:
                What is wrong with the file. Nothing of it was mapped.
        """
        with _lock:
            fresh = cls.__new__(cls)
            _native.Segment.__init__(fresh, fd=fd)
            return _known.setdefault(fresh.uuid, fresh)

    def __reduce__(self) -> tuple[Callable[..., Segment], tuple[Any, ...]]:
        popen = get_spawning_popen()
        if popen is None:
            return _find_or_open, (self.uuid, os.getpid(), self.fd)
        handles: dict[bytes, object] = popen.__dict__.setdefault("_ipcbuf_segments", {})
        if self.uuid not in handles:
            handles[self.uuid] = reduction.DupFd(self.fd)
        return _find_or_attach, (self.uuid, handles[self.uuid], self is _default)

    def __repr__(self) -> str:
        return (
            f"<Segment {self.uuid.hex()[:8]}, {self.committed} of {self.max_size} bytes committed>"
        )


def default_segment() -> Segment:
    """Return the segment of this process tree: the inherited one, else a new one."""
    global _default
    if _default is None:
        with _lock:
            if _default is None:
                _default = Segment()
    return _default


def find_segment(uuid: bytes) -> Segment | None:
    """Return this process's object for the segment of that name, None if it has none."""
    return _known.get(uuid)


def _find_or_attach(uuid: bytes, descriptor: Any, is_default: bool) -> Segment:
    """Rebuild a segment in a spawned child."""
    global _default
    fd = descriptor.detach()
    with _lock:
        segment = find_segment(uuid)
        if segment is None:
            segment = Segment.attach(fd)
            os.close(fd)
        elif fd != segment.fd:
            # Handles share one descriptor: the first of them has closed it, unless the child
            # had the segment from its parent's fork.
            with contextlib.suppress(OSError):
                if os.path.sameopenfile(fd, segment.fd):
                    os.close(fd)
        if is_default and _default is None:
            _default = segment
    return segment


def _find_or_open(uuid: bytes, pid: int, number: int) -> Segment:
    """Rebuild a segment from a message."""
    with _lock:
        segment = find_segment(uuid)
        if segment is not None:
            return segment
        try:
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SegmentNotFound(
                error.errno,
                f"the segment of process {pid} cannot be opened: {error.strerror}; "
                "its sender must be alive and of the same user",
            ) from None
        try:
            segment = Segment.attach(fd)
        finally:
            os.close(fd)
        if segment.uuid != uuid:
            raise SegmentNotFound(2, f"descriptor {number} of process {pid} is another segment")
        return segment
