# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Segments: making one, finding those this process has, and sending them to others.

A segment with a name is a file that any process of the same user opens by that name.
A segment travels as a descriptor. While a child is being spawned the descriptor goes along,
once per child however many handles of the segment the child gets. At any other time the
handle names the sender and its descriptor, and a receiver that does not have the segment yet
opens that through `/proc`, which the kernel allows to the same user.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen

from . import _native
from .errors import SegmentError, SegmentNotFound

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    from .info import SegmentInfo
    from .stats import SegmentStats

__all__ = [
    "Segment",
    "default_segment",
    "find_segment",
    "gc",
    "list_segments",
    "unlink",
]

_known: weakref.WeakValueDictionary[bytes, Segment] = weakref.WeakValueDictionary()
_lock = threading.RLock()
_default: Segment | None = None
_named: weakref.WeakSet[Segment] = weakref.WeakSet()
_has_cleared = False


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it during the fork


os.register_at_fork(after_in_child=_renew_lock)


class Segment(_native.Segment):
    """One mapped region of shared memory in which processes share a heap and channels.

    An anonymous segment has no name and no file: it ends with its last process. A named one is
    created or opened by whichever process of the user comes first; it is seen complete or not at
    all. It grows when needed; memory is reserved before it is used, so a full machine is a
    `HeapExhausted` and never a SIGBUS.

    A named segment ends with its last user, too: who closes it last, or exits last, removes the
    name. If all users were killed, the next process that asks for the name, or `ipcbuf.gc()`,
    removes what they left, and the name leads to a fresh segment.

    Args:
        name: Any printable text without "/", at most 200 bytes as UTF-8, that does not begin
            with a dot. None: an anonymous segment.
        max_size: Bytes the heap may grow to, as the creator says. None: half of what the machine
            and its memory cgroups allow, at most 64 GiB.
        exist_ok: If false, a segment of that name that is in use is an error.
        create: If false, only open; a segment of that name that nobody uses does not count.
        allow_disk: Accept an IPCBUF_DIR that lies on a disk instead of in memory.

    Raises:
        ValueError: The name is no name.
        SegmentExists: `exist_ok` is false, and somebody uses that name.
        SegmentNotFound: `create` is false, and nobody does.
        SegmentPermission: The file or its directory belongs to somebody else, or lets others in.
        NotASegment, VersionMismatch, AbiMismatch, SegmentTruncated, SegmentCorrupted:
            What is wrong with the file. Nothing of it was mapped.
        SegmentError: The system refused the memory or the address space.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        max_size: int | None = None,
        exist_ok: bool = True,
        create: bool = True,
        allow_disk: bool = False,
    ) -> None:
        if max_size is not None and max_size <= 0:
            raise ValueError(f"max_size must be positive, not {max_size}")
        if name is None:
            if not (create and exist_ok):
                raise ValueError("create and exist_ok are about a name, and none was given")
            super().__init__(max_size=max_size or 0)
        else:
            _check_name(name)
            _clear_stale_once()
            super().__init__(name, max_size or 0, create, exist_ok, allow_disk)
            _named.add(self)
        _known.setdefault(self.uuid, self)

    def close(self) -> None:
        """Leave the segment: it goes on for its other users. Twice is allowed.

        The ends of channels that were opened through this object are closed; whatever is asked
        of them or of this object later raises `ClosedError`. Records, arrays, static memory and
        atomics that are alive stay valid: they keep the memory mapped, and this process counted
        as a user, until the last of them is gone. If this process was the last user, the name is
        removed.
        """
        with _lock:
            if self.closed:
                return
            if _known.get(self.uuid) is self:
                del _known[self.uuid]
            self.close_native()

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the name. Users go on; who asks for the name from now on gets a fresh segment.

        Args:
            missing_ok: Do not raise if the name is gone already.

        Raises:
            SegmentNotFound: The name is gone, or leads to another segment by now.
            ValueError: This process did not open the segment by a name.
        """
        with contextlib.suppress(*([SegmentNotFound] if missing_ok else [])):
            self.unlink_native()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

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

    def stats(self) -> SegmentStats:  # type: ignore[override]
        """Return counts, and bytes by state, holder and block size; cheap enough for once a second.

        Taken while others work, so its numbers are not all of one moment.
        """
        # The compiled module's text says dict: what is in it is stated in stats.py.
        stats: SegmentStats = super().stats()  # type: ignore[assignment]
        return stats

    def __reduce__(self) -> tuple[Callable[..., Segment], tuple[Any, ...]]:
        popen = get_spawning_popen()
        if popen is None:
            return _find_or_open, (self.uuid, os.getpid(), self.fd, self.name)
        handles: dict[bytes, object] = popen.__dict__.setdefault("_ipcbuf_segments", {})
        if self.uuid not in handles:
            handles[self.uuid] = reduction.DupFd(self.fd)
        return _find_or_attach, (self.uuid, handles[self.uuid], self is _default, self.name)

    def __repr__(self) -> str:
        if self.closed:
            return "<Segment, closed>"
        what = self.uuid.hex()[:8] if self.name is None else repr(self.name)
        return f"<Segment {what}, {self.committed} of {self.max_size} bytes committed>"


def list_segments() -> list[SegmentInfo]:
    """Return the named segments of this user, sorted by name, without becoming a user of any.

    Raises:
        SegmentPermission: Their directory belongs to somebody else, or lets others in.
    """
    from .info import SegmentInfo

    return [SegmentInfo(*row) for row in _native.list_segments()]


def gc() -> list[str]:
    """Remove what users that are all dead have left, and return the names that were removed.

    Segments that were cut short or written over are removed, too, once nobody uses them; what
    never was a segment is left alone, and so is what another version or machine made. A name that begins with ".tmp-" is a segment whose creator died before it was whole.

    Raises:
        SegmentPermission: The directory belongs to somebody else, or lets others in.
    """
    return _native.collect_segments(True)


def unlink(name: str, *, missing_ok: bool = False) -> None:
    """Remove the name of a segment, whatever is behind it. Its users go on.

    Args:
        name: The name.
        missing_ok: Do not raise if there is no such name.

    Raises:
        SegmentNotFound: There is no such name.
        ValueError: It cannot be a name.
    """
    _check_name(name)
    with contextlib.suppress(*([SegmentNotFound] if missing_ok else [])):
        _native.unlink_segment(name)


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a segment is a str, not {type(name).__name__}")
    if not name.isprintable():
        raise ValueError(f"the name of a segment must be printable: {name!r}")


def _clear_stale_once() -> None:
    """The next user clears what dead ones left; once in each process, at its first name."""
    global _has_cleared
    if not _has_cleared:
        _has_cleared = True
        atexit.register(_retire_all)
        with contextlib.suppress(SegmentError):  # opening the segment will say it
            _native.collect_segments(False)


def _retire_all() -> None:
    """At the end of the process: the last user takes the name along."""
    for segment in list(_named):
        if not segment.closed:
            segment.retire_native()


def default_segment() -> Segment:
    """Return the segment of this process tree: the inherited one, else a new one."""
    global _default
    if _default is None or _default.closed:
        with _lock:
            if _default is None or _default.closed:
                _default = Segment()
    return _default


def find_segment(uuid: bytes) -> Segment | None:
    """Return this process's object for the segment of that name, None if it has none."""
    return _known.get(uuid)


def _open_same(uuid: bytes, name: str | None) -> Segment | None:
    """Open the segment of that uuid by its name, if the name still leads to it from here."""
    if name is None:
        return None
    try:
        segment = Segment(name, create=False, allow_disk=True)
    except SegmentError:
        return None
    if segment.uuid == uuid:
        return _known.setdefault(uuid, segment)
    segment.close()
    return None


def _find_or_attach(
    uuid: bytes, descriptor: Any, is_default: bool, name: str | None = None
) -> Segment:
    """Rebuild a segment in a spawned child."""
    global _default
    fd = descriptor.detach()
    with _lock:
        segment = find_segment(uuid)
        if segment is None:
            segment = _open_same(uuid, name) or Segment.attach(fd)
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


def _find_or_open(uuid: bytes, pid: int, number: int, name: str | None = None) -> Segment:
    """Rebuild a segment from a message."""
    with _lock:
        segment = find_segment(uuid) or _open_same(uuid, name)
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
