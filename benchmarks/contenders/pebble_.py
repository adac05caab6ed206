# SPDX-License-Identifier: Apache-2.0
"""Pebble's ProcessPool, with the names of an executor."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

from pebble import ProcessPool

from ._pools import PoolExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NAME = "pebble"
IMPORTS = "from pebble import ProcessPool"


class _Executor(PoolExecutor):
    def submit(self, function: Callable[..., Any], *args: object) -> Any:
        return self._pool.schedule(function, args=args)

    def map(
        self, function: Callable[..., Any], values: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        return self._pool.map(function, values, chunksize=chunksize).result()  # type: ignore[no-any-return]


def executor(workers: int) -> Any:
    context = multiprocessing.get_context("fork")
    return _Executor(ProcessPool(max_workers=workers, context=context))
