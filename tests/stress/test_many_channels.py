# SPDX-License-Identifier: Apache-2.0
"""Thousands of channels in one segment, and the death of half their owners; many_channels.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("many_channels.py")


def run(channels: int, blocked: int, seconds: float) -> None:
    """Run in a process of its own: a thousand threads are not for a test process."""
    command = [sys.executable, str(SCRIPT), "--channels", str(channels), "--blocked", str(blocked)]
    result = subprocess.run(command, timeout=seconds, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)

    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


def test_five_hundred_channels() -> None:
    run(500, 50, 100)


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_ten_thousand_channels() -> None:
    run(10_000, 1_000, 550)
