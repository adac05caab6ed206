# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing.Pool` where executors are compared."""

from __future__ import annotations

import multiprocessing
from typing import Any

from ._pools import MultiprocessingPool

NAME = "Pool"

_context = multiprocessing.get_context("fork")


def executor(workers: int) -> Any:
    return MultiprocessingPool(_context.Pool(workers))
