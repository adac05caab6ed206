# SPDX-License-Identifier: Apache-2.0
"""loky: joblib's executor. Its workers are started by its own fork and exec."""

from __future__ import annotations

from typing import Any

from loky import ProcessPoolExecutor

NAME = "loky"


def executor(workers: int) -> Any:
    return ProcessPoolExecutor(workers)
