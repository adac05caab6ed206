# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Channels and records in shared memory, for processes that may be killed at any moment.

    segment = ipcbuf.Segment()
    sender, receiver = segment.channel()
    record = segment.allocate(1 << 20)  # fill it through memoryview or numpy
    sender.send(record)  # no byte is copied
    view = receiver.recv_view()  # frees the memory with its last reference

Layers, each using only the ones below: `ipcbuf_mp` (the drop-in classes), `ipcbuf` (thin
Python), `ipcbuf._native` (the binding), the C++ core, its platform calls.
"""

import copyreg as _copyreg
import pickle as _pickle

from . import arrays as _arrays
from ._native import (
    Leased,
    ObjectQueue,
    Record,
    Results,
    Task,
    Ticket,
    set_object_codec,
    set_queue_end,
    wait,
)
from .arrays import Shared, empty, from_array, move, share, zeros
from .channel import Atomic, Receiver, Sender, Static
from .errors import (
    AbiMismatch,
    BrokenChannel,
    BusyError,
    ChannelEmpty,
    ChannelFull,
    ClosedError,
    EndOfChannel,
    HeapExhausted,
    IpcbufError,
    NotASegment,
    PeerDied,
    PeerError,
    RecordTooLarge,
    SegmentCorrupted,
    SegmentError,
    SegmentExists,
    SegmentLost,
    SegmentNotFound,
    SegmentPermission,
    SegmentTruncated,
    TooManyProcesses,
    VersionMismatch,
    WorkerLost,
)
from .parcels import Parcels
from .segment import (
    Segment,
    default_segment,
    find_segment,
    gc,
    list_segments,
    unlink,
)

__all__ = [
    "AbiMismatch",
    "Atomic",
    "BrokenChannel",
    "BusyError",
    "ChannelEmpty",
    "ChannelFull",
    "ChannelInfo",
    "ClosedError",
    "EndOfChannel",
    "HeapExhausted",
    "IpcbufError",
    "Leased",
    "NotASegment",
    "ObjectQueue",
    "Parcels",
    "PeerDied",
    "PeerError",
    "Receiver",
    "Record",
    "RecordTooLarge",
    "Results",
    "Segment",
    "SegmentCorrupted",
    "SegmentError",
    "SegmentExists",
    "SegmentInfo",
    "SegmentLost",
    "SegmentNotFound",
    "SegmentPermission",
    "SegmentTruncated",
    "Sender",
    "Shared",
    "Static",
    "Task",
    "Ticket",
    "TooManyProcesses",
    "VersionMismatch",
    "WorkerLost",
    "default_segment",
    "empty",
    "find_segment",
    "from_array",
    "gc",
    "list_segments",
    "move",
    "set_object_codec",
    "set_queue_end",
    "share",
    "unlink",
    "wait",
    "zeros",
]

set_object_codec(_arrays._dumps, _arrays._loads, _pickle.dumps, (_copyreg.dispatch_table,))

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from .info import ChannelInfo, SegmentInfo

    __version__: str
else:

    def __getattr__(name: str) -> object:
        """Return what is imported, or looked up, only when asked for: that takes time."""
        if name in ("ChannelInfo", "SegmentInfo"):
            from . import info

            return getattr(info, name)
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        from importlib.metadata import version

        globals()[name] = found = version("ipcbuf")
        return found
