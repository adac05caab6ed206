# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""What `Segment.stats()` returns."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["HolderStats", "SegmentStats", "SizeClassStats"]


class SizeClassStats(TypedDict):
    """The slabs that are cut into blocks of one size."""

    block_bytes: int
    """Size of a block, its header of 64 bytes included."""
    slabs: int
    used_blocks: int
    free_blocks: int


class HolderStats(TypedDict):
    """What one process holds: its records and arrays, and what it received and still uses."""

    token: int
    pid: int
    """0 if the process has ended and is not buried yet."""
    blocks: int
    bytes: int


class SegmentStats(TypedDict):
    """Counts, and bytes by state. Taken while others work, so not all of one moment.

    `committed_bytes` = `free_bytes` + `returned_bytes` + `reserved_bytes` + `slab_bytes`;
    `slab_bytes` = `used_bytes` + `waste_bytes` + `free_block_bytes` + `overhead_bytes`.
    What is in channels, and who waits there: `Segment.diagnose()`.
    """

    max_size: int
    committed_bytes: int
    """The heap's length now; all of it but `returned_bytes` is in memory."""
    free_bytes: int
    """In memory, and in nobody's slab."""
    returned_bytes: int
    """Free, and given back to the system for the time being."""
    reserved_bytes: int
    """Becoming slabs, or on their way back to the system."""
    slab_bytes: int
    used_bytes: int
    """In blocks in use, their exact lengths."""
    waste_bytes: int
    """What blocks in use are longer than was asked for."""
    free_block_bytes: int
    """Free blocks in slabs: the stock of one thread each."""
    overhead_bytes: int
    """Headers of blocks in use, and ends of slabs."""
    slabs: int
    orphan_slabs: int
    """Slabs whose thread has ended, with blocks that are in use."""
    free_blocks: int
    process_blocks: int
    """Held by processes; what is in flight is not among them."""
    process_bytes: int
    leased_blocks: int
    """Of these, messages that are delivered again if their receiver dies."""
    returned_blocks: int
    """Messages that came back to their channel and wait to be taken again."""
    flight_blocks: int
    """Of messages that were sent and not received."""
    flight_bytes: int
    ring_blocks: int
    """The memory of channels."""
    ring_bytes: int
    shared_blocks: int
    """Held by several: moved, shared, or seen by parent and child since a fork."""
    shared_bytes: int
    tickets: int
    """Small blocks that keep a shared one alive, on their way or at their receiver."""
    processes: int
    parcels: int
    """Processes that were started with handles, by spawn or a fork server, and are not buried."""
    channels: int
    messages: int
    views: int
    """Records that Python objects of this process keep alive, arrays among them."""
    view_bytes: int
    size_classes: list[SizeClassStats]
    holders: list[HolderStats]
    slots_used: int
    """The most processes there ever were at a time; their slots are used again."""
    reaps: int
    takeovers: int
    growths: int
    given_back_bytes: int
    """Given back to the system, in all."""
    poisoned: int
    """Not 0: an impossible state was met, and nobody uses the segment any more."""
