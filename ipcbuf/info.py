# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""What can be seen of channels and of named segments, as tuples with names.

Apart from what every process needs, which does without typing: that takes longer to import than
all of it.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ChannelInfo", "SegmentInfo"]


class ChannelInfo(NamedTuple):
    """What `Segment.channels` says of one channel.

    Attributes:
        key: None: an anonymous channel, or one whose key was removed.
        type: "record", "static" or "atomic".
        id: Names it in this segment, for `doctor` and handles.
        shared: Whether each end takes any number of users.
        producers: Handles of the sending end that living processes have; of a static segment or
            an atomic, all its handles.
        consumers: The same of the receiving end.
        messages: How many are in it.
        bytes: How many bytes they count; of a static segment its length.
        max_items: Messages it holds at most; 0: any number.
        max_bytes: Bytes it holds at most; 0: any number.
    """

    key: int | str | None
    type: str
    id: int
    shared: bool
    producers: int
    consumers: int
    messages: int
    bytes: int
    max_items: int
    max_bytes: int


class SegmentInfo(NamedTuple):
    """What can be seen of a named segment from outside."""

    name: str
    memory: int
    """Bytes of memory it takes now."""
    max_size: int
    """Bytes its heap may grow to; 0 if that cannot be known."""
    pids: tuple[int, ...]
    """Its living users, by the numbers they have in their own pid namespaces."""
    stale: bool
    """Nobody alive uses it: the next user, or `gc`, removes it."""
    problem: str | None
    """The name of the exception that opening it would raise, None if it is sound."""
