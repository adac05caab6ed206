# SPDX-License-Identifier: Apache-2.0
"""Kill one producer and one consumer of a busy queue, round after round; see kill_rounds.py."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_rounds.py")


def run(rounds: int, method: str, seconds: float, kind: str = "Queue") -> None:
    """Run in a process of its own: what the rounds leave in a segment is then theirs alone."""
    seed = int(os.environ.get("IPCBUF_SEED", random.SystemRandom().getrandbits(32)))
    command = [sys.executable, str(SCRIPT), "--rounds", str(rounds), "--method", method]
    result = subprocess.run(
        [*command, "--seed", str(seed), "--kind", kind],
        timeout=seconds,
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout, result.stderr)

    assert result.returncode == 0, f"seed {seed}\n{result.stdout}\n{result.stderr}"


def test_survivors_of_a_busy_queue_go_on() -> None:
    run(20, "fork", 100)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_survivors_of_a_busy_queue_go_on_however_they_were_started(method: str) -> None:
    run(2, method, 100)


@pytest.mark.parametrize("kind", ["JoinableQueue", "SimpleQueue", "Pipe", "Pool"])
def test_survivors_of_everything_else_go_on(kind: str) -> None:
    run(4, "fork", 100, kind)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_survivors_of_a_pool_go_on_however_they_were_started(method: str) -> None:
    run(2, method, 100, "Pool")


@pytest.mark.stress
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["JoinableQueue", "SimpleQueue", "Pipe", "Pool"])
def test_many_rounds_of_kills_of_everything_else(kind: str) -> None:
    run(25, "fork", 380, kind)


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_a_hundred_rounds_of_kills() -> None:
    run(100, "fork", 850)
