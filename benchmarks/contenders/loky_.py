# SPDX-License-Identifier: Apache-2.0
"""loky: joblib's executor. Its workers are started by its own fork and exec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from loky import ProcessPoolExecutor

NAME = "loky"
IMPORTS = "from loky import ProcessPoolExecutor"


def executor(workers: int) -> Any:
    return ProcessPoolExecutor(workers)


def end(executor: Any) -> None:
    executor.shutdown(kill_workers=True)
    for file in Path("/dev/shm").glob(f"sem.loky-{os.getpid()}-*"):
        file.unlink(missing_ok=True)
