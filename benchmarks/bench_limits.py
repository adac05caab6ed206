# SPDX-License-Identifier: Apache-2.0
"""What the machine itself can do: round trips of a cache line, a futex, a pipe, and copies.

The other figures can be read as a share of these. `core/limits.c` measures; the compiler is `cc`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import Outcome, Row, already_had, describe, measure, options

SOURCE = Path(__file__).parent / "core" / "limits.c"
MACHINE = "this machine"
NAMES = {
    "cache-line": "a cache line, there and back between two cores",
    "futex": "a futex, there and back between two cores",
    "pipe": "a byte through two pipes, there and back between two cores",
    "copy-64-KiB": "copying 64 KiB, in the cache",
    "copy-64-MiB": "copying 64 MiB",
}


def limits(rounds: int) -> list[dict[str, Any]]:
    """Build the program, run it so many times, and return a row for each limit."""
    outcomes: dict[tuple[str, str], Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "limits"
        subprocess.run(["cc", "-O2", "-std=c11", "-o", program, SOURCE], check=True)
        for _ in range(rounds):
            found = subprocess.run([program], check=True, capture_output=True, text=True)
            for line in found.stdout.splitlines():
                name, unit, value = line.split()
                outcomes.setdefault((name, unit), Outcome()).turns.append({unit: float(value)})
    return [
        describe(
            Row(NAMES[name], "", already_had, unit, 0, smaller_is_better=unit != "GB/s"),
            {MACHINE: outcome},
        )
        for (name, unit), outcome in outcomes.items()
    ]


if __name__ == "__main__":
    chosen = options(__doc__)
    sys.exit(measure([], chosen, [], limits(chosen.rounds)))
