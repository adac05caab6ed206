# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""The kill test that everybody can run, and that it notices what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ipcbuf import selftest

PROGRAM = "import sys; from ipcbuf import selftest; r = selftest.run(50, {seed}); print(r); "


def run(program: str) -> str:
    """In a process of its own, with one thread."""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_fifty_kills_lose_nothing() -> None:
    said = run(PROGRAM.format(seed="None") + "sys.exit(not r.ok)")

    assert said.startswith("50 kills and ")
    assert said.endswith(": nothing lost, doubled, torn or leaked\n")


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("life[D] += 100", "lost"),  # said to be sent; more than the killed may have taken
        ("life[F + life[C]] = life[F + life[C] - 1]; life[C] += 1", "doubled"),
        ("w.ends[0][0].segment.channel()[1].transit()", "leaked"),
    ],
)
def test_it_notices_what_is_wrong(fault: str, word: str) -> None:
    program = f"""
from ipcbuf import selftest
C, D, F = selftest._COUNT, selftest._DONE, selftest._FIRST
look = selftest._Killer.look
def look_at_a_fault(self):
    w = selftest._Worker(self.new_life(), len(self.lives) - 1, self.ends, self.rng)
    w.put(0, 1); w.put(0, 1)
    while w.take(0, 0) and not w.life[C] > 1:
        pass
    w.put(0, 1)
    life = w.life
    {fault}
    look(self)
selftest._Killer.look = look_at_a_fault
r = selftest.run(5, 1)
assert not r.ok and r.{word}, r
"""
    run(program)


def test_a_negative_number_of_kills_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 kills"):
        selftest.run(-1)
