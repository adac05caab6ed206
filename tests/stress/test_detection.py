# SPDX-License-Identifier: Apache-2.0
"""How soon a blocked call notices that its peer was killed; see detection.py."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("detection.py")


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_deaths_are_noticed_in_time() -> None:
    seed = int(os.environ.get("IPCBUF_SEED", random.SystemRandom().getrandbits(32)))
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--rounds", "300", "--seed", str(seed)],
        timeout=850,
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout, result.stderr)

    assert result.returncode == 0, f"seed {seed}\n{result.stdout}\n{result.stderr}"
