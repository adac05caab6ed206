# SPDX-License-Identifier: Apache-2.0
"""Pebble's ProcessPool, with the names of an executor."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any, Self

from pebble import ProcessPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NAME = "pebble"


class _Executor:
    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pool = ProcessPool(max_workers=workers, context=context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        self._pool.join()

    def submit(self, function: Callable[..., Any], *args: object) -> Any:
        return self._pool.schedule(function, args=args)

    def map(
        self, function: Callable[..., Any], values: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        return self._pool.map(function, values, chunksize=chunksize).result()  # type: ignore[no-any-return]


def executor(workers: int) -> Any:
    return _Executor(workers)
