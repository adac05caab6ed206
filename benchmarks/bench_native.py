# SPDX-License-Identifier: Apache-2.0
"""What a native channel costs beside a bare ring: small records, one process sends, another receives.

`just bench-native` builds what this needs: a program in C++ that does its own rounds, and a ring
bound with nanobind. Where they are not built, the rows are left out with a line saying so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness import (
    Figures,
    Gate,
    Outcome,
    Peer,
    Row,
    already_had,
    cores,
    cpu_seconds,
    describe,
    measure,
    options,
    pin,
)

import ipcbuf

if TYPE_CHECKING:
    import argparse

BUILT = Path(__file__).parent.parent / "build" / "bench"
ITEMS = 1024  # records that may be in flight
WARM_UP = 5_000
MESSAGES = [bytes([kind]) * 64 for kind in range(8)]  # sent in turn


# --- C++ ------------------------------------------------------------------------------------------


def cpp_rows(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the program and return its figures as the harness describes a row."""
    program = BUILT / "bench_channel"
    if chosen.only not in "C++, 8 bytes":
        return []
    if not program.exists():
        print(f"C++, 8 bytes, is skipped: there is no {program.name}; see just bench-native")
        return []
    command = [program, "--rounds", str(chosen.rounds), "--seconds", str(chosen.seconds)]
    found = subprocess.run([*command, "--json", "-"], check=True, capture_output=True, text=True)
    outcomes = {
        name: Outcome(turns=contender["turns"])
        for name, contender in json.loads(found.stdout)["contenders"].items()
    }
    return [describe(Row("C++, 8 bytes", "", already_had, "messages/s", 0), outcomes)]


# --- Python ---------------------------------------------------------------------------------------


def contenders() -> list[Any]:
    """Return what makes the two ends of a channel, the bare ring first."""
    sys.path.insert(0, str(BUILT))
    try:
        import bare_ring
    except ImportError:
        print("Python, 64 bytes, is skipped: there is no bare_ring; see just bench-native")
        return []

    def bare() -> tuple[Any, Any]:
        ring = bare_ring.BareRing()
        return ring, ring

    def exclusive() -> tuple[Any, Any]:
        return ipcbuf.Segment().channel(max_items=ITEMS)

    def shared() -> tuple[Any, Any]:
        return ipcbuf.Segment().channel(max_items=ITEMS, shared=True)

    return [
        SimpleNamespace(NAME="bare ring", ends=bare),
        SimpleNamespace(NAME="channel", ends=exclusive),
        SimpleNamespace(NAME="shared ends", ends=shared),
    ]


def send_all(ends: tuple[Any, Any], count: int, core: int, gate: Gate) -> float:
    pin(core)
    gate.wait()
    began = cpu_seconds()
    send = ends[0].send
    for number in range(count):
        send(MESSAGES[number & 7])
    return cpu_seconds() - began


def receive_all(ends: tuple[Any, Any], count: int, core: int, gate: Gate) -> tuple[float, float]:
    pin(core)
    gate.open()
    recv = ends[1].recv
    for number in range(WARM_UP):
        if recv() != MESSAGES[number & 7]:
            raise ValueError("a message differs from what was sent")
    began, cpu = time.perf_counter(), cpu_seconds()
    for number in range(WARM_UP, count):
        if recv() != MESSAGES[number & 7]:
            raise ValueError("a message differs from what was sent")
    return time.perf_counter() - began, cpu_seconds() - cpu


def one_to_one(contender: Any, scale: int) -> Figures:
    """Return the rate of one turn."""
    ends, gate = contender.ends(), Gate()
    count = WARM_UP + scale
    sender = Peer(send_all, ends, count, cores()[-1], gate)
    receiver = Peer(receive_all, ends, count, cores()[0], gate)
    seconds, cpu = receiver.join()
    cpu += sender.join()
    return {"messages/s": scale / seconds, "cpu µs/message": cpu / count * 1e6, "seconds": seconds}


ROWS = [Row("Python, 64 bytes", "ends", one_to_one, "messages/s", 200_000)]


if __name__ == "__main__":
    chosen = options(__doc__.splitlines()[0], rounds=11)
    if len(cores()) < 2:
        sys.exit("these need two cores")
    sys.exit(measure(ROWS, chosen, contenders(), cpp_rows(chosen)))
