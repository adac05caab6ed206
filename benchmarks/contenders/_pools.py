# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Pools with the names of an executor: what the contenders that are pools have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class PoolExecutor:
    """Around something that is closed, then joined; a subclass has `submit` and `map`."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        self._pool.join()


class MultiprocessingPool(PoolExecutor):
    """`multiprocessing.Pool`, or what has its methods."""

    def submit(self, function: Callable[..., Any], *args: object) -> Any:
        return _Result(self._pool.apply_async(function, args))

    def map(
        self, function: Callable[..., Any], values: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        return self._pool.imap(function, values, chunksize)  # type: ignore[no-any-return]


class _Result:
    def __init__(self, result: Any) -> None:
        self.result = result.get
