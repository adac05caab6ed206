# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""dask.distributed: its executor on a scheduler and workers of this machine, by loopback.

A worker is a process with one thread. They are started by spawn and take seconds for it.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, Self

import distributed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NAME = "dask"
IMPORTS = "from distributed import Client"


class _Executor:
    def __init__(self, workers: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._cluster = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=self._folder.name,
            silence_logs="CRITICAL",
        )
        self._client = distributed.Client(self._cluster)
        # By default two equal calls are made once.
        self._executor = self._client.get_executor(pure=False)
        self.submit = self._executor.submit

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._client.close()
        self._cluster.close()
        self._folder.cleanup()

    def map(
        self, function: Callable[..., Any], values: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        if chunksize != 1:
            raise ValueError("it knows no chunks")
        return self._executor.map(function, list(values))  # type: ignore[no-any-return]


def executor(workers: int) -> Any:
    return _Executor(workers)
