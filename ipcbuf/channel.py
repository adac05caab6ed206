# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""The ends of channels as handles: how they travel between processes.

A fork inherits both ends. A pickled end keeps its channel alive until it was unpickled once;
if the receiver of the pickle dies before that, until the sender of the pickle ends.
"""

from __future__ import annotations

import copyreg
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any

from ._native import Receiver, Sender

if TYPE_CHECKING:
    from collections.abc import Callable

    from .segment import Segment

__all__ = ["Receiver", "Sender"]


def _reduce(end: Sender | Receiver) -> tuple[Callable[..., object], tuple[Any, ...]]:
    bell = reduction.DupFd(end.bell_fd) if end.bell_fd >= 0 else None
    rebuild = _open_sender if isinstance(end, Sender) else _open_receiver
    return rebuild, (end.segment, end.channel_id, end.transit(), bell)


def _open_sender(segment: Segment, channel_id: int, transit: int, bell: Any) -> Sender:
    end = segment.open_sender(channel_id, transit)
    if bell is not None:
        end.bell_fd = bell.detach()
    return end


def _open_receiver(segment: Segment, channel_id: int, transit: int, bell: Any) -> Receiver:
    end = segment.open_receiver(channel_id, transit)
    if bell is not None:
        end.bell_fd = bell.detach()
    return end


copyreg.pickle(Sender, _reduce)  # type: ignore[arg-type]
copyreg.pickle(Receiver, _reduce)  # type: ignore[arg-type]
