# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Why ours is not first in a row, for each row in which somebody else is.

The report prints a note below its table wherever another contender has the better main figure, and
ends with an error if there is none. A note for a row in which ours is first is not printed.
"""

from __future__ import annotations

from typing import Any

OURS = {"native": "channel"}  # the name of ours in a benchmark, where it is not the usual one
USUALLY = "ipcbuf_mp"

NOTES = {
    ("native", "C++, 8 bytes"): (
        "A bare ring has no header that a reaper can read, no doorbell and no look at the other"
        " end: it hangs when that dies."
    ),
    ("native", "Python, 64 bytes"): "As in C++, where Python's own share of each call is the same.",
    ("throughput_xeon", "Queue, 16 MiB array, block recycled"): (
        "Both senders copy about as fast as this machine does, some 4.5 GB/s; with tachyon-ipc it"
        " takes eleven times the processor time, for its receiver copies, too, and spins."
    ),
    ("kills", "Executor, one of two workers is killed"): (
        "dask makes the lost call again unasked, whether or not that may be done twice; ours does"
        " with `retries=`. A `Pool` loses one call, too, but never says so: its result does not come."
    ),
    ("memory", "a million small ints"): (
        "faster-fifo keeps the pickle of a message, 5 bytes, and its length in one buffer, whose"
        " size is given beforehand. Ours has a header that a reaper can read: 32 bytes with the"
        " message."
    ),
    ("memory", "100,000 times 5,000 bytes"): (
        "A message of 5,000 bytes lies in a block of the next larger size, 6,144 bytes."
    ),
    ("idle", "Queue, get blocked for 3 s"): (
        "A `get` spins before it sleeps, for about as long as waking it would take; that is paid"
        " once, whatever the wait takes, and is what makes a round trip short."
    ),
    ("idle", "Queue, a message every ms"): (
        "As above: each message may find a `get` that still spins."
    ),
    ("idle", "Executor, idle for 3 s"): (
        "A worker that waits looks five times a second whether somebody died."
    ),
    ("startup", "import"): (
        "Ours are the standard library's modules, which it imports, and the compiled engine."
    ),
    ("startup", "Queue, the first of a process"): (
        "The first one imports the engine and maps the segment that all later ones share."
    ),
    ("startup", "Executor by fork, create, one call, shutdown"): (
        "A segment is made, and each worker attaches to it; a call later it has paid."
    ),
    ("startup", "Executor by spawn, create, one call, shutdown"): (
        "As by fork; and each worker imports the compiled engine."
    ),
    ("startup", "Pool by fork, create, one call, shutdown"): "As the executor.",
}


def ours(benchmark: str) -> str:
    """Return how we are called in a benchmark."""
    return OURS.get(benchmark, USUALLY)


def first(benchmark: str, row: dict[str, Any]) -> str:
    """Return who has the best main figure: us, if nobody has a better one."""
    figures = {
        name: next(iter(found["median"].values()))
        for name, found in row["contenders"].items()
        if found["median"] and not found["failure"]
    }
    best = min if row["smaller_is_better"] else max
    us = ours(benchmark)
    if us not in row["contenders"] or figures.get(us) == best(figures.values(), default=None):
        return us
    return best(figures, key=figures.__getitem__, default=us)


def note(benchmark: str, row: dict[str, Any]) -> str | None:
    """Return the note that a row needs; None if it needs none.

    Raises:
        LookupError: It needs one, and there is none.
    """
    leader = first(benchmark, row)
    if leader == ours(benchmark):
        return None
    key = (benchmark, row["name"])
    if key not in NOTES:
        raise LookupError(
            f"{benchmark}, {row['name']!r}: {leader} is first; notes.py has no reason"
        )
    return NOTES[key]
