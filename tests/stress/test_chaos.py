# SPDX-License-Identifier: Apache-2.0
"""Everything at once in one segment, and one process after another is killed; see chaos.py."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("chaos.py")


def run(kills: int, seconds: float) -> None:
    seed = int(os.environ.get("IPCBUF_SEED", random.SystemRandom().getrandbits(32)))
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", str(kills), "--seed", str(seed)],
        timeout=seconds,
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout, result.stderr)

    assert result.returncode == 0, f"seed {seed}\n{result.stdout}\n{result.stderr}"


def test_nothing_is_torn_or_left_where_processes_are_killed() -> None:
    run(40, 100)


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_five_hundred_kills() -> None:
    run(500, 850)
