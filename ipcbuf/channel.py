# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""The ends of channels as handles, and what there is under a key: how they travel.

A fork inherits all of them. A pickled one keeps its channel alive until it was unpickled once;
if the receiver of the pickle dies before that, until the sender of the pickle ends. One that goes
to a process that is being started ends with that process (`parcels.py`).
"""

from __future__ import annotations

import copyreg
from multiprocessing import reduction

from ._native import Atomic, Receiver, Sender, Static
from .parcels import Parcels

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .segment import Segment

__all__ = ["Atomic", "Receiver", "Sender", "Static"]


def _reduce(end: Sender | Receiver) -> tuple[Callable[..., object], tuple[Any, ...]]:
    bell = reduction.DupFd(end.bell_fd) if end.bell_fd >= 0 else None
    rebuild = _open_sender if isinstance(end, Sender) else _open_receiver
    return rebuild, (end.segment, end.channel_id, Parcels.transit(end), bell)


def _open_sender(segment: Segment, channel_id: int, parcel: int, bell: Any) -> Sender:
    end = segment.open_sender(channel_id, parcel)
    if bell is not None:
        end.bell_fd = bell.detach()
    return end


def _open_receiver(segment: Segment, channel_id: int, parcel: int, bell: Any) -> Receiver:
    end = segment.open_receiver(channel_id, parcel)
    if bell is not None:
        end.bell_fd = bell.detach()
    return end


def _reduce_static(area: Static) -> tuple[Callable[..., object], tuple[Any, ...]]:
    return _open_static, (area.segment, area.channel_id, Parcels.transit(area))


def _open_static(segment: Segment, channel_id: int, parcel: int) -> Static:
    return segment.open_static(channel_id, parcel)


def _reduce_atomic(cell: Atomic) -> tuple[Callable[..., object], tuple[Any, ...]]:
    return _open_atomic, (cell.segment, cell.channel_id, Parcels.transit(cell))


def _open_atomic(segment: Segment, channel_id: int, parcel: int) -> Atomic:
    return segment.open_atomic(channel_id, parcel)


def _reduce_method(method: Any) -> tuple[Callable[..., object], tuple[object, str]]:
    return getattr, (method.__self__, method.__name__)


# `sender.send` and `queue.put` as arguments, which pickle knows of Python's own methods alone.
_BoundMethod: type[Any] = type(Sender.send.__get__(object()))

copyreg.pickle(_BoundMethod, _reduce_method)
copyreg.pickle(Static, _reduce_static)  # type: ignore[arg-type]
copyreg.pickle(Atomic, _reduce_atomic)  # type: ignore[arg-type]
copyreg.pickle(Sender, _reduce)  # type: ignore[arg-type]
copyreg.pickle(Receiver, _reduce)  # type: ignore[arg-type]
