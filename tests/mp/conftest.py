# SPDX-License-Identifier: Apache-2.0
"""Processes for the tests of the drop-in classes, joined and judged when the test is over."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

PATIENCE = 60  # seconds that nothing here needs, on however busy a machine


@pytest.fixture
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Start a process: `start(context, target, *args)`. It has to end well by itself."""
    processes: list[BaseProcess] = []
    kept: list[object] = []  # the standard library's locks must outlive the start of a child

    def start(context: BaseContext, target: Callable[..., Any], *args: object) -> BaseProcess:
        process: BaseProcess = context.Process(target=target, args=args)  # type: ignore[attr-defined]
        process.start()
        processes.append(process)
        kept.append(args)
        return process

    yield start

    for process in processes:
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
            pytest.fail(f"{process} did not end")
        # Only the test itself can have killed it.
        assert process.exitcode in (0, -signal.SIGKILL), process
        process.close()
    kept.clear()  # pytest keeps the function above for a while
