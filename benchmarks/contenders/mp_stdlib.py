# SPDX-License-Identifier: Apache-2.0
"""The standard library: what everything else is compared with."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from ._pools import MultiprocessingPool

NAME = "multiprocessing"
IMPORTS = "import multiprocessing.queues, concurrent.futures.process"

_context = multiprocessing.get_context("fork")
_spawn = multiprocessing.get_context("spawn")


def queue(maxsize: int = 0) -> Any:
    return _context.Queue(maxsize)


shared_queue = queue


def pipe() -> Any:
    return _context.Pipe()


def executor(workers: int) -> Any:
    return ProcessPoolExecutor(workers, mp_context=_context)


def executor_by_spawn(workers: int) -> Any:
    return ProcessPoolExecutor(workers, mp_context=_spawn)


def pool(workers: int) -> Any:
    return MultiprocessingPool(_context.Pool(workers))
