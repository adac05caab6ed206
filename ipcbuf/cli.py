# SPDX-License-Identifier: Apache-2.0
"""The command line: `ipcbuf` or `python -m ipcbuf`.

    ls         the segments of this user
    info       everything that can be counted in one
    top        channels as they run: depth, rates, who waits and since when
    doctor     who waits for whom in vain, and what else is wrong
    fsck       the walk over everything
    gc         remove what dead users left
    selftest   kill processes at random, and check that nothing was lost

A segment is named by its name, the beginning of its uuid, or the number of a process that uses
it. Exit codes: 0 all is well, 1 something is wrong, 2 wrong arguments, 3 no such segment, or it
cannot be attached to.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from .discovery import find_segments, open_segment
from .doctor import channel_name, duration, examine
from .errors import SegmentError
from .table import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .segment import Segment
    from .selftest import Result

__all__ = ["main"]

OK, WRONG, USAGE, NO_SEGMENT = range(4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except SegmentError as error:
        print(f"ipcbuf: {type(error).__name__}: {error.strerror or error}", file=sys.stderr)
        return NO_SEGMENT
    except KeyboardInterrupt:
        return OK if options.command == "top" else 130
    except BrokenPipeError:  # `ipcbuf ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipcbuf",
        description="Look at segments of shared memory, and clear up after the dead.",
        epilog="Exit codes: 0 all is well, 1 something is wrong, 2 wrong arguments, "
        "3 no such segment, or it cannot be attached to.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str, *, which: str | None = None) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON instead of tables")
        if which is not None:
            sub.add_argument(
                "segment", nargs=which, help="name, beginning of the uuid, or a process's number"
            )
        sub.set_defaults(run=run)
        return sub

    command("ls", _ls, "List the segments of this user.")
    command("info", _info, "Show everything that can be counted in a segment.", which="+")
    top = command("top", _top, "Show channels as they run.", which="*")
    top.add_argument("--interval", type=float, default=1.0, help="seconds between two looks")
    top.add_argument("--count", type=int, default=0, help="looks until it ends; 0: until Ctrl-C")
    command("doctor", _doctor, "Find who waits in vain, and what else is wrong.", which="*")
    command("fsck", _fsck, "Walk over everything; exact only if nobody uses it.", which="+")
    command("gc", _gc, "Remove named segments whose users are all dead.")
    selftest = command("selftest", _selftest, "Kill processes at random and check the rest.")
    selftest.add_argument("--kills", type=int, default=1000, help="how many processes to kill")
    selftest.add_argument("--seed", type=int, default=None, help="of the random choices")
    return parser


# --- ls, gc ---------------------------------------------------------------------------------------


def _ls(options: argparse.Namespace) -> int:
    found = find_segments()
    if options.json:
        _print_json([dataclasses.asdict(item) for item in found])
    else:
        print_table(
            ["segment", "processes", "memory", "may grow to"],
            [
                [
                    item.label,
                    item.problem or ("stale" if item.stale else " ".join(map(str, item.pids))),
                    _bytes(item.memory),
                    _bytes(item.max_size),
                ]
                for item in found
            ],
        )
    return OK


def _gc(options: argparse.Namespace) -> int:
    from .segment import gc

    removed = gc()
    if options.json:
        _print_json(removed)
    else:
        for name in removed:
            print(f"removed {name}")
    return OK


# --- info, fsck -----------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> int:
    segments = _open(options.segment)
    if options.json:
        _print_json([_facts(segment) for segment in segments])
        return OK
    for segment in segments:
        facts = _facts(segment)
        print(f"{_label(segment)}  {facts['uuid']}")
        print_table(
            ["", ""],
            [
                [name, _bytes(value) if name.endswith(("bytes", "size")) else f"{value:,}"]
                for name, value in facts["stats"].items()
                if isinstance(value, int)
            ],
        )
        print_table(
            ["process", "slot", "state"],
            [
                [row["pid"] or "", row["slot"], "dead" if row["dead"] else row["state"]]
                for row in facts["processes"]
            ],
        )
        _print_channels(facts["channels"])
    return OK


def _fsck(options: argparse.Namespace) -> int:
    problems = {_label(segment): segment.fsck() for segment in _open(options.segment)}
    if options.json:
        _print_json(problems)
    else:
        for label, texts in problems.items():
            print(f"{label}: {'sound' if not texts else f'{len(texts)} contradictions'}")
            for text in texts:
                print(f"  {text}")
    return WRONG if any(problems.values()) else OK


# --- top, doctor ----------------------------------------------------------------------------------


def _top(options: argparse.Namespace) -> int:
    before: dict[tuple[str, int], dict[str, Any]] = {}
    then = time.monotonic()
    looks = 0
    while True:
        now = time.monotonic()
        rows = {}
        for segment in _open_all(options.segment):
            for channel in segment.diagnose():
                rows[_label(segment), channel["id"]] = channel
        shown = [
            {
                "segment": label,
                **channel,
                **_rates(channel, before.get((label, number)), now - then),
            }
            for (label, number), channel in rows.items()
        ]
        looks += 1
        if options.json:
            print(json.dumps(shown), flush=True)  # one line for each look
        else:
            if sys.stdout.isatty():
                print("\033[H\033[J", end="")
            print(time.strftime("%H:%M:%S"))
            _print_channels(shown)
            sys.stdout.flush()
        if looks == options.count:
            return OK
        before, then = rows, now
        time.sleep(options.interval)


def _rates(
    channel: dict[str, Any], before: dict[str, Any] | None, seconds: float
) -> dict[str, float | None]:
    """Messages per second that were sent and received since the last look."""
    if before is None or seconds <= 0:
        return {"sent_per_second": None, "received_per_second": None}
    return {
        f"{name}_per_second": ((channel[f"{name}_count"] - before[f"{name}_count"]) & 0xFFFFFFFF)
        / seconds
        for name in ("sent", "received")
    }


def _print_channels(channels: list[dict[str, Any]]) -> None:
    print_table(
        [
            "channel",
            "type",
            "messages",
            "bytes",
            "in/s",
            "out/s",
            "producers",
            "consumers",
            "waits",
        ],
        [
            [
                channel_name(channel),
                channel["type"],
                f"{channel['messages']:,}",
                _bytes(channel["bytes"]),
                _rate(channel.get("sent_per_second")),
                _rate(channel.get("received_per_second")),
                _pids(channel["sender"]),
                _pids(channel["receiver"]),
                _sleepers(channel),
            ]
            for channel in channels
        ],
    )


def _rate(per_second: float | None) -> str:
    return "" if per_second is None else f"{per_second:,.0f}"


def _pids(end: dict[str, Any]) -> str:
    pids = sorted({row["pid"] for row in end["holders"] if row["pid"] is not None})
    if pids:
        return " ".join(map(str, pids))
    return "" if end["state"] == "open" else str(end["state"])


def _sleepers(channel: dict[str, Any]) -> str:
    """Who waits on this channel, for what and since when."""
    return ", ".join(
        f"{channel[end]['sleeper']} {what} {duration(channel[end]['sleeps_for'])}"
        for end, what in (("receiver", "for a message"), ("sender", "for room"))
        if channel[end]["sleeper"] is not None
    )


def _doctor(options: argparse.Namespace) -> int:
    findings = {_label(segment): examine(segment) for segment in _open_all(options.segment)}
    stale = [item.label for item in find_segments() if item.stale] if not options.segment else []
    if options.json:
        report: dict[str, Any] = {
            label: [dataclasses.asdict(item) for item in items] for label, items in findings.items()
        }
        _print_json({"segments": report, "stale": stale})
    else:
        for label, items in findings.items():
            for item in items:
                print(f"{label}: {item.text}")
        for label in stale:
            print(f"{label}: all its users are dead; `ipcbuf gc` removes it")
        if not any(findings.values()) and not stale:
            count = len(findings)
            print(f"{count} segment{'s' if count != 1 else ''}, nothing is wrong")
    return WRONG if any(findings.values()) or stale else OK


# --- selftest -------------------------------------------------------------------------------------


def _selftest(options: argparse.Namespace) -> int:
    from .selftest import run

    def show(so_far: Result) -> None:
        text = f"\r{so_far.kills:,} of {options.kills:,} kills, {so_far.messages:,} messages"
        sys.stderr.write(text + "\n" * (so_far.kills == options.kills or not so_far.ok))
        sys.stderr.flush()

    result = run(options.kills, options.seed, show if sys.stderr.isatty() else None)
    if options.json:
        _print_json(dataclasses.asdict(result))
    else:
        print(result)
    return OK if result.ok else WRONG


# --- what several need ----------------------------------------------------------------------------


def _open(names: list[str]) -> list[Segment]:
    return [segment for name in names for segment in open_segment(name)]


def _open_all(names: list[str]) -> list[Segment]:
    """Those named; without a name all that are in use and can be attached to."""
    if names:
        return _open(names)
    segments = []
    for item in find_segments():
        if not item.stale:
            try:
                segments.append(item.attach())
            except SegmentError as error:
                print(f"{item.label}: {type(error).__name__}: {error}", file=sys.stderr)
    return segments


def _label(segment: Segment) -> str:
    return segment.name or segment.uuid.hex()[:8]


def _facts(segment: Segment) -> dict[str, Any]:
    return {
        "name": segment.name,
        "uuid": segment.uuid.hex(),
        "stats": dict(segment.stats()),
        "processes": segment.processes(),
        "channels": segment.diagnose(),
    }


def _bytes(number: int) -> str:
    """A number of bytes for people."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2, default=str)
    print()
