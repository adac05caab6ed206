# SPDX-License-Identifier: Apache-2.0
"""ipcbuf's classes, used as the standard library's are."""

from __future__ import annotations

from typing import Any

import ipcbuf_mp

NAME = "ipcbuf_mp"

_context = ipcbuf_mp.get_context("fork")


def queue(maxsize: int = 0) -> Any:
    return _context.Queue(maxsize)


shared_queue = queue


def pipe() -> Any:
    return _context.Pipe()


def executor(workers: int) -> Any:
    return ipcbuf_mp.ProcessPoolExecutor(workers, mp_context=_context)
