# SPDX-License-Identifier: Apache-2.0
"""Which segments are in use on this machine, found without attaching to them.

Named segments are found by their names. Anonymous ones are found through the descriptors that
processes have of them, as far as this user may read those; only the header's constants are read.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import SegmentNotFound
from .segment import Segment, list_segments

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FoundSegment", "find_segments", "open_segment"]

_MEMFD = "/memfd:ipcbuf"
_MAGIC = b"IpcBuF1\0"
_CONSTANTS = struct.Struct("=8sII16sQ")  # magic, version, ABI word, uuid, max_size


@dataclass(frozen=True)
class FoundSegment:
    """A segment that somebody uses, or a named one that nobody uses any more.

    Attributes:
        name: Of a named segment, else None.
        uuid: 32 hexadecimal digits of an anonymous one, else None.
        pids: The processes that use it, as far as this user may look.
        memory: Bytes of memory that its file takes now.
        max_size: Bytes its heap may grow to.
        stale: A named segment whose users are all dead.
        problem: The name of the exception that opening it would raise, None if it is sound.
        path: The file that opens an anonymous one, else None.
    """

    name: str | None
    uuid: str | None
    pids: tuple[int, ...]
    memory: int
    max_size: int
    stale: bool
    problem: str | None
    path: str | None

    @property
    def label(self) -> str:
        """What to call it: its name, else the beginning of its uuid."""
        return self.name or str(self.uuid)[:8]

    def attach(self) -> Segment:
        """Attach to it, as `Segment.attach`.

        Raises:
            SegmentNotFound: It ended meanwhile.
            SegmentError: It cannot be attached to; each reason has its class.
        """
        if self.path is None:
            return Segment(self.name, create=False, allow_disk=True)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise SegmentNotFound(error.errno, f"segment {self.label} is gone") from None
        try:
            return Segment.attach(fd)
        finally:
            os.close(fd)


def find_segments() -> list[FoundSegment]:
    """Return every segment of this user: the named ones, then the anonymous ones in use."""
    found = [
        FoundSegment(
            item.name, None, item.pids, item.memory, item.max_size, item.stale, item.problem, None
        )
        for item in list_segments()
    ]
    users: dict[tuple[int, int], list[int]] = {}
    paths: dict[tuple[int, int], str] = {}
    for pid, path in _memory_files():
        try:
            status = Path(path).stat()
        except OSError:
            continue  # closed meanwhile
        file = (status.st_dev, status.st_ino)
        pids = users.setdefault(file, [])
        if pid not in pids:
            pids.append(pid)
        paths.setdefault(file, path)
    for file, pids in users.items():
        item = _describe(paths[file], tuple(sorted(pids)))
        if item is not None:
            found.append(item)
    return found


def open_segment(which: str) -> list[Segment]:
    """Attach to the segment of that name or uuid (its beginning), or to those of a process.

    Raises:
        SegmentNotFound: There is none.
        SegmentError: It cannot be attached to.
    """
    found = find_segments()
    chosen = [item for item in found if item.name == which]
    if not chosen and which.isdecimal():
        chosen = [item for item in found if int(which) in item.pids]
    if not chosen and len(which) >= 4:
        chosen = [item for item in found if (item.uuid or "").startswith(which)]
    if not chosen:
        raise SegmentNotFound(
            2, f"no segment is named {which!r}, begins with that uuid, or belongs to that process"
        )
    return [item.attach() for item in chosen]


def _memory_files() -> Iterator[tuple[int, str]]:
    """Yield process and path of every descriptor of an anonymous segment that we may read."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            descriptors = list((entry / "fd").iterdir())
        except OSError:
            continue  # of another user, or gone
        for path in descriptors:
            try:
                target = str(path.readlink())
            except OSError:
                continue
            if target.startswith(_MEMFD):
                yield int(entry.name), str(path)


def _describe(path: str, pids: tuple[int, ...]) -> FoundSegment | None:
    """Read the header's constants. None: it is no segment, or is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        memory = 512 * os.fstat(fd).st_blocks
        header = os.pread(fd, _CONSTANTS.size, 0)
    finally:
        os.close(fd)
    if len(header) < _CONSTANTS.size:
        return None
    magic, _, _, uuid, max_size = _CONSTANTS.unpack(header)
    if magic != _MAGIC:
        return None
    return FoundSegment(None, uuid.hex(), pids, memory, max_size, False, None, path)
