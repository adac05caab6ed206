# SPDX-License-Identifier: Apache-2.0
"""mpire's WorkerPool, with the names of an executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpire import WorkerPool

from ._pools import MultiprocessingPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NAME = "mpire"
IMPORTS = "from mpire import WorkerPool"


class _Executor(MultiprocessingPool):
    """Two pools: after `apply_async`, `imap` of the same one calls functions wrongly (2.10.2)."""

    def __init__(self, workers: int) -> None:
        super().__init__(WorkerPool(workers, start_method="fork"))
        self._map_pool = WorkerPool(workers, start_method="fork", keep_alive=True)
        list(self._map_pool.imap(abs, list(range(workers))))  # starts the workers

    def __exit__(self, *_: object) -> None:
        for pool in (self._pool, self._map_pool):
            pool.stop_and_join()

    def map(
        self, function: Callable[..., Any], values: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        return self._map_pool.imap(function, list(values), chunk_size=chunksize)  # type: ignore[no-any-return]


def executor(workers: int) -> Any:
    return _Executor(workers)
