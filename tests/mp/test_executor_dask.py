# SPDX-License-Identifier: Apache-2.0
"""One contract for the local executor and the one on dask, with a real scheduler and workers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, as_completed, wait
from concurrent.futures import Executor as AnyExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest

import ipcbuf
import ipcbuf_mp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.stress, pytest.mark.timeout(300)]

LONG = 60.0


def add(x: int, y: int) -> int:
    return x + y


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def fail(text: str) -> None:
    raise ValueError(text)  # this very line


def draw() -> float:
    return random.random()


def initialize(value: str) -> None:
    os.environ["IPCBUF_TEST_INITIALIZED"] = value


def get_initialized() -> str | None:
    return os.environ.get("IPCBUF_TEST_INITIALIZED")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and two worker processes on loopback."""
    pytest.importorskip("distributed")
    folder = tmp_path_factory.mktemp("dask")
    contact = folder / "scheduler.json"
    common = ["--scheduler-file", str(contact), "--no-dashboard"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    programs = [
        ["scheduler", *common, "--host", "127.0.0.1", "--port", "0"],
        *[["worker", *common, "--nthreads", "2", "--no-nanny", "--local-directory", str(folder)]] * 2,
    ]  # fmt: skip
    running = []
    with (folder / "log").open("wb") as log:
        for program in programs:
            command = [sys.executable, "-m", "dask", *program]
            running.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
            )
    deadline = time.monotonic() + LONG
    while not contact.exists():
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)
    address = json.loads(contact.read_text())["address"]
    import dask
    import distributed

    # What dask keeps in this process is there before the first test looks.
    with dask.config.set(temporary_directory=str(folder)):
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, LONG)
            called = threading.Event()
            client.submit(abs, -1).add_done_callback(lambda _: called.set())
            assert called.wait(LONG)
        yield address
    for process in reversed(running):
        process.terminate()
    for process in running:
        process.wait(LONG)


@pytest.fixture(params=["local", "dask"])
def make(request: pytest.FixtureRequest, cluster: str) -> Iterator[Callable[..., AnyExecutor]]:
    where = None if request.param == "local" else cluster
    made: list[AnyExecutor] = []

    def make(**options: Any) -> AnyExecutor:
        made.append(ipcbuf_mp.executor(where, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(cancel_futures=True)


@pytest.mark.filterwarnings("ignore")
class TestContract:
    def test_results_and_keywords(self, make: Callable[..., AnyExecutor]) -> None:
        executor = make(max_workers=2)

        assert isinstance(executor.submit(add, 1, 2), Future)
        assert executor.submit(add, 1, y=2).result(LONG) == 3
        swallowed = {"key": 1, "workers": 2, "retries": 3, "priority": 4, "pure": 5, "self": 6}
        assert executor.submit(capture, fn=0, **swallowed).result(LONG) == (
            (),
            {"fn": 0, **swallowed},
        )
        assert executor.submit(lambda x: x + 1, 1).result(LONG) == 2

    def test_equal_calls_are_two_calls(self, make: Callable[..., AnyExecutor]) -> None:
        executor = make()

        assert executor.submit(draw).result(LONG) != executor.submit(draw).result(LONG)

    def test_map(self, make: Callable[..., AnyExecutor]) -> None:
        executor = cast("Any", make(max_workers=2))

        for options in ({}, {"chunksize": 3}, {"buffersize": 2}, {"chunksize": 2, "buffersize": 1}):
            assert list(executor.map(add, range(10), range(10), **options)) == [
                2 * i for i in range(10)
            ]
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(add, [1], [1], chunksize=0)
        results = executor.map(fail, ["a"])
        with pytest.raises(ValueError, match="a"):
            next(results)

    def test_an_exception_brings_the_workers_traceback(
        self, make: Callable[..., AnyExecutor]
    ) -> None:
        error = make().submit(fail, "text").exception(LONG)

        assert type(error) is ValueError
        assert error.args == ("text",)
        assert "# this very line" in str(error.__cause__)

    def test_what_does_not_pickle(self, make: Callable[..., AnyExecutor]) -> None:
        executor = make()

        with pytest.raises(TypeError, match="cannot pickle"):
            executor.submit(capture, threading.Lock()).result(LONG)
        with pytest.raises(TypeError, match="cannot pickle"):
            executor.submit(threading.Lock).result(LONG)
        assert executor.submit(add, 1, 1).result(LONG) == 2

    def test_wait_and_callbacks(self, make: Callable[..., AnyExecutor]) -> None:
        executor = make(max_workers=2)
        futures = [executor.submit(add, i, i) for i in range(20)]
        called = threading.Event()
        futures[0].add_done_callback(lambda _: called.set())

        assert {future.result() for future in as_completed(futures, LONG)} == set(range(0, 40, 2))
        assert not wait(futures, LONG).not_done
        assert called.wait(LONG)

    def test_cancel_futures(self, make: Callable[..., AnyExecutor]) -> None:
        executor = make(max_workers=2)
        futures = [executor.submit(time.sleep, 0.2) for _ in range(2)]
        executor.shutdown(wait=True, cancel_futures=True)

        for future in futures:
            assert future.done()
            if not future.cancelled():
                assert future.result() is None
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(add, 1, 1)

    def test_shutdown_finishes_what_is_pending(self, make: Callable[..., AnyExecutor]) -> None:
        executor = make(max_workers=2)
        futures = [executor.submit(add, i, 1) for i in range(10)]

        executor.shutdown()

        assert [future.result(0) for future in futures] == list(range(1, 11))

    def test_the_initializer_runs_before_the_first_call(
        self, make: Callable[..., AnyExecutor]
    ) -> None:
        executor = make(max_workers=2, initializer=initialize, initargs=("b",))

        assert executor.submit(get_initialized).result(LONG) == "b"

    def test_asyncio(self, make: Callable[..., AnyExecutor]) -> None:
        executor = cast("Any", make())

        async def main() -> list[int]:
            assert await executor.asubmit(add, 1, 1) == 2
            return [each async for each in executor.amap(add, range(3), range(3))]

        assert asyncio.run(main()) == [0, 2, 4]

    def test_a_cancelled_call(self, make: Callable[..., AnyExecutor]) -> None:
        executor = make(max_workers=1)
        first = executor.submit(time.sleep, 0.3)
        if "Dask" in type(executor).__name__:
            assert first.cancel()
        else:
            second = executor.submit(add, 1, 1)
            assert second.cancel()
            with pytest.raises(CancelledError):
                second.result(LONG)
        assert executor.submit(add, 1, 1).result(LONG) == 2


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_cross_hosts_says_so(cluster: str) -> None:
    import numpy as np

    with ipcbuf_mp.executor(cluster) as executor:
        shared = ipcbuf.zeros((4,), np.float64)
        sender, _ = ipcbuf.default_segment().channel()
        for thing in (sender, ipcbuf.share(shared)):
            with pytest.raises(TypeError, match=r"shared memory of this machine"):
                executor.submit(capture, thing).result(LONG)
        assert executor.submit(np.sum, np.ones(4)).result(LONG) == 4


@pytest.mark.filterwarnings("ignore")
def test_options_that_mean_nothing_there(cluster: str) -> None:
    with pytest.raises(NotImplementedError, match="max_tasks_per_child on dask"):
        ipcbuf_mp.executor(cluster, max_tasks_per_child=3)
    with pytest.raises(TypeError, match="unexpected keyword 'nonsense'"):
        ipcbuf_mp.executor(cluster, nonsense=3)


def test_both_spellings() -> None:
    from ipcbuf_mp.executor import Executor

    with ipcbuf_mp.executor(max_workers=1) as executor:
        assert type(executor) is Executor is ipcbuf_mp.executor.Executor
