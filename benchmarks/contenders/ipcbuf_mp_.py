# SPDX-License-Identifier: Apache-2.0
"""ipcbuf's classes, used as the standard library's are."""

from __future__ import annotations

from typing import Any

import ipcbuf_mp

from ._pools import MultiprocessingPool

NAME = "ipcbuf_mp"
IMPORTS = "from ipcbuf_mp import Queue, ProcessPoolExecutor"

_context = ipcbuf_mp.get_context("fork")
_spawn = ipcbuf_mp.get_context("spawn")


def queue(maxsize: int = 0) -> Any:
    return _context.Queue(maxsize)


shared_queue = queue


def pipe() -> Any:
    return _context.Pipe()


def executor(workers: int) -> Any:
    return ipcbuf_mp.ProcessPoolExecutor(workers, mp_context=_context)


def executor_by_spawn(workers: int) -> Any:
    return ipcbuf_mp.ProcessPoolExecutor(workers, mp_context=_spawn)


def lasting_executor(workers: int) -> Any:
    return ipcbuf_mp.Executor(workers, mp_context=_context, on_worker_death="restart")


def pool(workers: int) -> Any:
    return MultiprocessingPool(_context.Pool(workers))
