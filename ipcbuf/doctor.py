# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom in vain, and what else is wrong with a segment.

for finding in examine(segment):
    print(finding.text)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .segment import Segment

__all__ = ["Finding", "channel_name", "duration", "examine"]

_ENDS = {
    "receiver": ("sender", "producer", "for a message"),
    "sender": ("receiver", "consumer", "for room"),
}
_NEARLY_FULL = 0.95


@dataclass(frozen=True)
class Finding:
    """Something that a person should know.

    Attributes:
        kind: One of poisoned, unburied, waits-in-vain, stopped, deadlock, memory.
        text: A sentence.
        pids: The processes it is about.
        channel: The channel's id, None if it is about no channel.
    """

    kind: str
    text: str
    pids: tuple[int, ...] = ()
    channel: int | None = None


@dataclass(frozen=True)
class _Wait:
    """A process that sleeps at one end of a channel."""

    pid: int
    channel: int
    name: str
    what: str
    seconds: float
    others: frozenset[int]  # who could end the wait


def examine(segment: Segment) -> list[Finding]:
    """Return what is wrong; [] if nothing is.

    Looks without locks, so what is in the middle of a change may be misread once: look twice.
    """
    processes = segment.processes()
    channels = segment.diagnose()
    dead = {row["pid"] for row in processes if row["dead"]}
    waits = list(_waits(channels, dead))
    return [
        *_sick(segment.stats()),
        *_unburied(processes),
        *_in_vain(channels, waits, dead),
        *_stopped(channels, waits, dead),
        *_deadlocks(waits),
    ]


def channel_name(channel: dict[str, Any]) -> str:
    """What to call a channel: its key, else its number."""
    key = channel["key"]
    return f"#{channel['id']}" if key is None else repr(key)


def duration(seconds: float) -> str:
    """A duration for people."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


# --- each kind of finding -------------------------------------------------------------------------


def _sick(stats: Any) -> Iterator[Finding]:
    if stats["poisoned"]:
        yield Finding(
            "poisoned",
            f"the segment is poisoned (line {stats['poisoned']}): a process found an impossible "
            "state, so every call raises SegmentCorrupted; end its processes",
        )
    used = stats["committed_bytes"] - stats["free_bytes"]
    if used > _NEARLY_FULL * stats["max_size"]:
        yield Finding(
            "memory",
            f"{used:,} of at most {stats['max_size']:,} bytes are in use; the next large record "
            "raises HeapExhausted: free records, or make the segment with a larger max_size",
        )


def _unburied(processes: list[dict[str, Any]]) -> Iterator[Finding]:
    for row in processes:
        if row["dead"]:
            yield Finding(
                "unburied",
                f"{_process_name(row)} is dead and was not buried yet; the next who waits, "
                "attaches or runs short of memory does it",
                (row["pid"],) if row["pid"] else (),
            )


def _process_name(row: dict[str, Any]) -> str:
    return f"process {row['pid']}" if row["pid"] else f"the {row['state']} slot {row['slot']}"


def _waits(channels: list[dict[str, Any]], dead: set[int]) -> Iterator[_Wait]:
    for channel in channels:
        for end, (other, _, what) in _ENDS.items():
            pid = channel[end]["sleeper"]
            if pid is not None and pid not in dead:
                others = _living(channel[other], dead)
                yield _Wait(
                    pid,
                    channel["id"],
                    channel_name(channel),
                    what,
                    channel[end]["sleeps_for"],
                    frozenset(others),
                )


def _living(end: dict[str, Any], dead: set[int]) -> set[int]:
    holders = {row["pid"] for row in end["holders"] if row["pid"] is not None}
    if end["owner"] is not None:
        holders &= {end["owner"]}  # whoever inherited an exclusive end cannot use it
    return holders - dead


def _in_vain(
    channels: list[dict[str, Any]], waits: list[_Wait], dead: set[int]
) -> Iterator[Finding]:
    rows = {channel["id"]: channel for channel in channels}
    for wait in waits:
        channel = rows[wait.channel]
        end = "receiver" if wait.what == "for a message" else "sender"
        other, role, _ = _ENDS[end]
        side = channel[other]
        if side["state"] == "awaited" or wait.others - {wait.pid}:
            continue
        text = f"process {wait.pid} has waited {duration(wait.seconds)} {wait.what} on channel "
        text += wait.name
        if side["last_pid"] is not None:
            gone = "died" if side["state"] == "dead" or side["last_pid"] in dead else "left"
            text += (
                f", whose last {role} {side['last_pid']} {gone} {duration(side['left_ago'])} ago"
            )
        else:
            text += f", which has no {role}" + (" but itself" if wait.others else "")
        yield Finding("waits-in-vain", text, (wait.pid,), wait.channel)


def _stopped(
    channels: list[dict[str, Any]], waits: list[_Wait], dead: set[int]
) -> Iterator[Finding]:
    for channel in channels:
        for end in _ENDS:
            pid = channel[end]["inside"]
            if pid is not None and pid not in dead and _is_stopped(pid):
                yield Finding(
                    "stopped",
                    f"process {pid} was stopped while it used the {end} of channel "
                    f"{channel_name(channel)}; others wait until it is continued (SIGCONT)",
                    (pid,),
                    channel["id"],
                )
    for wait in waits:
        others = wait.others - {wait.pid}
        if others and all(map(_is_stopped, others)):
            names = ", ".join(map(str, sorted(others)))
            yield Finding(
                "stopped",
                f"process {wait.pid} has waited {duration(wait.seconds)} {wait.what} on channel "
                f"{wait.name}, and process {names} on the other side is stopped (SIGCONT continues)",
                (wait.pid, *sorted(others)),
                wait.channel,
            )


def _is_stopped(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return state in (b"T", b"t")


def _deadlocks(waits: list[_Wait]) -> Iterator[Finding]:
    """Processes of which each waits for nobody but the others."""
    by_pid: dict[int, list[_Wait]] = {}
    for wait in waits:
        if wait.others - {wait.pid}:
            by_pid.setdefault(wait.pid, []).append(wait)
    # Whoever may be helped by somebody that does not wait is not stuck, and so on.
    stuck = set(by_pid)
    changed = True
    while changed:
        free = {pid for pid in stuck if any((wait.others - {pid}) - stuck for wait in by_pid[pid])}
        changed = bool(free)
        stuck -= free
    if stuck:
        parts = [
            f"{pid} waits {wait.what} on channel {wait.name} of "
            f"{', '.join(map(str, sorted(wait.others - {pid})))}"
            for pid in sorted(stuck)
            for wait in by_pid[pid]
        ]
        if all(_has_one_thread(pid) for pid in stuck):
            yield Finding(
                "deadlock", "these wait for each other: " + "; ".join(parts), tuple(sorted(stuck))
            )


def _has_one_thread(pid: int) -> bool:
    """Another thread of a waiting process might help; then it is no deadlock."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    except OSError:
        return False
