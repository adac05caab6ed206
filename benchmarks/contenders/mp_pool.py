# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing.Pool`, with the names of an executor."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NAME = "Pool"

_context = multiprocessing.get_context("fork")


class PoolExecutor:
    """What the benchmarks call of an executor; a subclass says which pool."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        self._pool.join()

    def submit(self, function: Callable[..., Any], *args: object) -> Any:
        return _Result(self._pool.apply_async(function, args))

    def map(
        self, function: Callable[..., Any], values: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        return self._pool.imap(function, values, chunksize)  # type: ignore[no-any-return]


class _Result:
    def __init__(self, result: Any) -> None:
        self.result = result.get


def executor(workers: int) -> Any:
    return PoolExecutor(_context.Pool(workers))
