# SPDX-License-Identifier: Apache-2.0
"""What a process pool executor does: the standard library's and ours, with every start method.

`ExecutorContract` is what programs rely on, `TestIpcbuf` adds what only ours does.
Tasks tell that they run, and are told to end, through files: these work between any processes.
Every worker that is not forked imports this module, so what few tests need they import.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import io
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any, cast

import pytest

import ipcbuf
import ipcbuf_mp
from ipcbuf_mp.executor import Executor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ProcessPoolExecutor

LONG = 30.0  # for what must come; nothing takes so long
MEBIBYTE = 1 << 20
StandardExecutor = concurrent.futures.process.ProcessPoolExecutor


# --- tasks ----------------------------------------------------------------------------------------


def add(x: int, y: int) -> int:
    return x + y


def resident() -> int:
    """Return how many bytes of memory this process has for itself."""
    whole, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (whole - shared) * os.sysconf("SC_PAGE_SIZE")


def look_at(shared: ipcbuf.Shared, index: int) -> tuple[int, bool]:
    return int(shared.array[index]), shared.array.flags.writeable


def need_environment() -> None:
    assert os.environ["IPCBUF_TEST_ENV"] == "yes"


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def fail(message: str) -> None:
    raise ValueError(message)  # this very line


def leave(code: int) -> None:
    sys.exit(code)


def refuse_to_pickle() -> object:
    return threading.Lock()


def hold(started: Path, release: Path, value: Any = None) -> Any:
    """Say that the task runs, and wait for being released."""
    started.touch()
    wait_until(release.exists)
    return value


def signed(array: Any) -> Any:
    array[0] += 1  # arguments are writable
    return -array


def fill(nbytes: int) -> bytes:
    return bytes(nbytes)


def nested(executor_class: type[ProcessPoolExecutor], method: str, n: int) -> list[int]:
    with executor_class(1, mp_context=multiprocessing.get_context(method)) as executor:
        return list(executor.map(add, range(n), range(n)))


_left_open: list[Any] = []


def nested_left_open(method: str) -> int:
    executor = Executor(1, mp_context=multiprocessing.get_context(method))
    _left_open.append(executor)
    return executor.submit(add, 2, 3).result()


initialized_with: object = None


def initialize(value: object) -> None:
    global initialized_with
    initialized_with = value


def get_initialized() -> object:
    return initialized_with


class FalseError(Exception):
    def __bool__(self) -> bool:
        return False


def fail_falsely(*_: object) -> None:
    raise FalseError


def fail_to_initialize() -> None:
    logging.getLogger("concurrent.futures").addHandler(logging.NullHandler())
    logging.getLogger("concurrent.futures").propagate = False
    raise ValueError("no way to begin")


class CrashesAtPickling:
    def __reduce__(self) -> Any:
        os._exit(1)


class CrashesAtUnpickling:
    def __reduce__(self) -> Any:
        return os._exit, (1,)


class FailsAtUnpickling:
    def __reduce__(self) -> Any:
        return fail_quietly, ()


def fail_quietly() -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  the traceback is expected
    raise pickle.UnpicklingError("unreadable")


def build(cls: Any) -> Any:
    return cls()


class Plain:
    def method(self) -> None:
        """Do nothing."""


# --- tools ----------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], object], seconds: float = LONG) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {condition}")
        time.sleep(0.002)


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def add_to(self, n: int) -> int:
        return self.start + n

    @staticmethod
    def make(start: int) -> Counter:
        return Counter(start)


class Held:
    """A task that holds a worker until it is released."""

    def __init__(self, executor: ProcessPoolExecutor, folder: Path, value: Any = None) -> None:
        number = next(self._numbers)
        self._started, self._release = folder / f"started{number}", folder / f"release{number}"
        self.future = executor.submit(hold, self._started, self._release, value)

    _numbers = itertools.count()

    def wait_for_start(self) -> Held:
        wait_until(self._started.exists)
        return self

    def release(self) -> None:
        self._release.touch()


def run_script(program: str | Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a program of its own, its text or its file, leading a session of its own."""
    which = [str(program)] if isinstance(program, Path) else ["-c", dedent(program)]
    return subprocess.Popen(
        [sys.executable, *which, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish_script(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=LONG)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        out, err = process.communicate()
        pytest.fail(f"hangs\n{out}\n{err}")
    return process.returncode, out, err


def members_of_session(leader: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


# --- the contract ---------------------------------------------------------------------------------


class ExecutorContract:
    """What any `ProcessPoolExecutor` does. Subclasses say which one."""

    executor_class: type[ProcessPoolExecutor]

    @pytest.fixture
    def context(self, start_method: str) -> Any:
        return multiprocessing.get_context(start_method)

    @pytest.fixture
    def make(self, context: Any) -> Iterator[Callable[..., ProcessPoolExecutor]]:
        """Make executors that are shut down at the end."""
        made = []

        def make(max_workers: int = 2, **options: Any) -> ProcessPoolExecutor:
            executor = self.executor_class(max_workers, mp_context=context, **options)
            made.append(weakref.ref(executor))
            return executor

        yield make
        for reference in made:
            if (executor := reference()) is not None:
                executor.shutdown()

    @pytest.fixture
    def executor(self, make: Callable[..., ProcessPoolExecutor]) -> ProcessPoolExecutor:
        return make()

    # Results.

    def test_submit_gives_the_result_in_a_real_future(self, executor: ProcessPoolExecutor) -> None:
        future = executor.submit(add, 2, y=3)

        assert future.result(LONG) == 5
        assert isinstance(future, Future)
        assert future.done()
        assert not future.running()
        assert not future.cancel()
        assert not future.cancelled()

    def test_submit_passes_keywords_that_are_its_own(self, executor: ProcessPoolExecutor) -> None:
        future = executor.submit(capture, 1, self=2, fn=3, timeout=4)

        assert future.result(LONG) == ((1,), {"self": 2, "fn": 3, "timeout": 4})
        with pytest.raises(TypeError):
            executor.submit(fn=capture)  # type: ignore[call-arg]

    def test_arguments_and_results_of_many_kinds(self, executor: ProcessPoolExecutor) -> None:
        kinds: list[Any] = [
            None,
            True,
            -(2**80),
            1.5,
            b"bytes",
            "text\ud800",
            (1, [2, {"three": {4}}]),
            ValueError("as a value"),
            Path("/"),
            range(3),
            b"x" * 3 * MEBIBYTE,
        ]

        for kind, (args, _) in zip(kinds, executor.map(capture, kinds), strict=True):
            assert type(args[0]) is type(kind)
            assert repr(args[0]) == repr(kind)

    def test_an_array_of_a_mebibyte_goes_in_and_out(self, executor: ProcessPoolExecutor) -> None:
        import numpy as np

        array = np.arange(MEBIBYTE // 8)

        for _ in range(5):
            result = executor.submit(signed, array).result(LONG)

        assert array[0] == 0
        assert result[0] == -1
        assert np.array_equal(result[1:], -array[1:])
        result[1] = 7  # writable

    def test_an_exception_brings_the_workers_traceback(self, executor: ProcessPoolExecutor) -> None:
        error = executor.submit(fail, "twice").exception(LONG)

        assert type(error) is ValueError
        assert error.args == ("twice",)
        cause = error.__cause__
        assert type(cause) is concurrent.futures.process._RemoteTraceback
        assert "raise ValueError(message)  # this very line" in str(cause)

    def test_system_exit_in_a_task_is_its_exception(self, executor: ProcessPoolExecutor) -> None:
        with pytest.raises(SystemExit, match="3"):
            executor.submit(leave, 3).result(LONG)

        assert executor.submit(add, 1, 1).result(LONG) == 2

    def test_a_task_that_does_not_pickle_hurts_nobody_else(
        self, executor: ProcessPoolExecutor
    ) -> None:
        good = executor.submit(add, 1, 1)

        # Ours raises in submit, the standard library's in result.
        with pytest.raises(TypeError, match="cannot pickle"):
            executor.submit(capture, threading.Lock()).result(LONG)

        assert good.result(LONG) == 2
        assert executor.submit(add, 1, 2).result(LONG) == 3

    def test_a_result_that_does_not_pickle_is_an_exception(
        self, executor: ProcessPoolExecutor
    ) -> None:
        error = executor.submit(refuse_to_pickle).exception(LONG)

        assert isinstance(error, TypeError)
        assert type(error.__cause__) is concurrent.futures.process._RemoteTraceback
        assert executor.submit(add, 1, 2).result(LONG) == 3

    # map.

    @pytest.mark.parametrize("chunksize", [1, 3, 100])
    def test_map_keeps_the_order(self, executor: ProcessPoolExecutor, chunksize: int) -> None:
        results = executor.map(pow, range(20), range(25), chunksize=chunksize)

        assert list(results) == list(map(pow, range(20), range(20)))

    def test_map_raises_what_a_call_raised_in_its_turn(self, executor: ProcessPoolExecutor) -> None:
        results = executor.map(divmod, [1, 1, 1], [2, 0, 5])

        assert next(results) == (0, 1)
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_map_times_out(self, executor: ProcessPoolExecutor, tmp_path: Path) -> None:
        release = tmp_path / "release"
        executor.submit(add, 1, 1).result(LONG)  # a worker is ready

        results = executor.map(
            hold, [tmp_path / "started"] * 2, [Path("/"), release], ["first", "second"], timeout=1
        )

        assert next(results) == "first"
        with pytest.raises(TimeoutError):
            next(results)
        release.touch()

    def test_map_refuses_a_chunksize_below_one(self, executor: ProcessPoolExecutor) -> None:
        with pytest.raises(ValueError, match="chunksize must be >= 1"):
            executor.map(add, [1], [2], chunksize=0)

    @pytest.mark.parametrize("chunksize", [1, 2])
    def test_map_uses_the_submit_that_there_is(
        self, executor: ProcessPoolExecutor, chunksize: int
    ) -> None:
        # As tqdm.contrib.concurrent.process_map, which counts what is done.
        futures = []
        submit = executor.submit

        def counting(*args: Any, **kwargs: Any) -> Future[Any]:
            futures.append(submit(*args, **kwargs))
            return futures[-1]

        executor.submit = counting  # type: ignore[method-assign]  # on purpose

        assert list(executor.map(add, range(4), range(4), chunksize=chunksize)) == [0, 2, 4, 6]
        assert len(futures) == 4 // chunksize
        del executor.submit  # it refers to the executor

    def test_map_keeps_no_reference_to_what_it_gave(self, executor: ProcessPoolExecutor) -> None:
        for thing in executor.map(build, [Plain] * 3):
            reference = weakref.ref(thing)
            del thing

            assert reference() is None

    # Construction and attributes.

    def test_arguments_are_checked(self, context: Any) -> None:
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="max_workers must be greater than 0"):
                self.executor_class(wrong)
        with pytest.raises(TypeError, match="initializer must be a callable"):
            self.executor_class(1, initializer="x")  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="max_tasks_per_child must be an integer"):
            self.executor_class(1, max_tasks_per_child=1.5)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="max_tasks_per_child must be >= 1"):
            self.executor_class(1, max_tasks_per_child=0)
        if context.get_start_method() == "fork":
            with pytest.raises(ValueError, match="incompatible with the 'fork'"):
                self.executor_class(1, mp_context=context, max_tasks_per_child=1)
        by_default = cast("Any", self.executor_class(1, max_tasks_per_child=1))
        assert by_default._mp_context.get_start_method() == "spawn"

    def test_it_is_an_executor_with_the_attributes_others_read(
        self, make: Callable[..., ProcessPoolExecutor], start_method: str
    ) -> None:
        made = make(max_workers=3)
        made.submit(add, 1, 1).result(LONG)
        executor: Any = made

        assert isinstance(made, StandardExecutor)
        assert executor._max_workers == 3
        assert executor._mp_context.get_start_method() == start_method
        assert len(executor._processes) == (3 if start_method == "fork" else 1)
        assert all(process.pid == pid for pid, process in executor._processes.items())
        assert not executor._broken
        assert not executor._shutdown_thread
        assert executor._executor_manager_thread.is_alive()
        executor._call_queue.join_thread  # noqa: B018  exists

    def test_workers_start_on_demand_and_idle_ones_are_used_again(
        self, make: Callable[..., ProcessPoolExecutor], start_method: str, tmp_path: Path
    ) -> None:
        executor = make(max_workers=4)
        processes = []
        for _ in range(3):
            executor.submit(add, 1, 1).result(LONG)
            processes.append(len(cast("Any", executor)._processes))
        held = [Held(executor, tmp_path) for _ in range(2)]
        for task in held:
            task.wait_for_start()
        processes.append(len(cast("Any", executor)._processes))
        for task in held:
            task.release()

        assert processes == ([4] * 4 if start_method == "fork" else [1, 1, 1, 2])

    # Initializer.

    def test_the_initializer_runs_in_each_worker(
        self, make: Callable[..., ProcessPoolExecutor]
    ) -> None:
        executor = make(initializer=initialize, initargs=("ready",))

        futures = [executor.submit(get_initialized) for _ in range(4)]

        assert [future.result(LONG) for future in futures] == ["ready"] * 4

    def test_a_failing_initializer_breaks_the_pool(
        self, make: Callable[..., ProcessPoolExecutor]
    ) -> None:
        executor = make(initializer=fail_to_initialize)

        with pytest.raises(BrokenProcessPool):
            executor.submit(get_initialized).result(LONG)
        with pytest.raises(BrokenProcessPool):
            executor.submit(get_initialized)
        assert cast("Any", executor)._broken

    # Waiting.

    def test_wait_and_as_completed(self, executor: ProcessPoolExecutor, tmp_path: Path) -> None:
        held = Held(executor, tmp_path, "held").wait_for_start()
        quick = executor.submit(add, 1, 1)

        first = concurrent.futures.wait(
            [held.future, quick], LONG, return_when=concurrent.futures.FIRST_COMPLETED
        )
        held.release()
        results = [f.result() for f in concurrent.futures.as_completed([held.future, quick], LONG)]

        assert first.done == {quick}
        assert sorted(results, key=str) == [2, "held"]

    def test_callbacks_are_called_and_may_submit(self, executor: ProcessPoolExecutor) -> None:
        second: Future[Future[int]] = Future()

        def on_done(future: Future[int]) -> None:
            second.set_result(executor.submit(add, future.result(), 10))

        executor.submit(add, 1, 1).add_done_callback(on_done)

        assert second.result(LONG).result(LONG) == 12

    def test_asyncio_awaits_and_cancels(
        self, executor: ProcessPoolExecutor, tmp_path: Path
    ) -> None:
        import asyncio

        async def main() -> list[Any]:
            loop = asyncio.get_running_loop()
            results = await asyncio.gather(
                *(loop.run_in_executor(executor, add, i, i) for i in range(5))
            )
            with pytest.raises(ValueError, match="from afar"):
                await loop.run_in_executor(executor, fail, "from afar")
            held = [Held(executor, tmp_path) for _ in range(4)]  # more than start at once
            await asyncio.to_thread(held[0].wait_for_start)
            waiting = loop.run_in_executor(executor, add, 1, 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            for task in held:
                task.release()
            return results

        assert asyncio.run(main()) == [0, 2, 4, 6, 8]

    def test_many_threads_submit(self, executor: ProcessPoolExecutor) -> None:
        def submit_some(start: int) -> list[int]:
            futures = [executor.submit(add, start, i) for i in range(50)]
            return [future.result(LONG) for future in futures]

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            results = list(threads.map(submit_some, range(0, 800, 100)))

        assert results == [[start + i for i in range(50)] for start in range(0, 800, 100)]

    # Cancelling.

    def test_a_pending_task_is_cancelled_and_never_runs(
        self, make: Callable[..., ProcessPoolExecutor], tmp_path: Path
    ) -> None:
        executor = make(max_workers=1)
        held = [Held(executor, tmp_path) for _ in range(3)]  # the standard library queues 2
        held[0].wait_for_start()
        trace = tmp_path / "trace"
        pending = executor.submit(trace.touch)
        called: list[Future[None]] = []
        pending.add_done_callback(called.append)

        assert pending.cancel()
        assert pending.cancel()
        assert pending.cancelled()
        assert called == [pending]
        with pytest.raises(CancelledError):
            pending.result()
        for task in held:
            task.release()
        assert concurrent.futures.wait([pending], LONG).done
        assert executor.submit(add, 1, 1).result(LONG) == 2
        assert not trace.exists()

    def test_a_running_task_is_not_cancelled(
        self, executor: ProcessPoolExecutor, tmp_path: Path
    ) -> None:
        held = Held(executor, tmp_path, "value").wait_for_start()

        assert held.future.running()
        assert not held.future.cancel()
        held.release()
        assert held.future.result(LONG) == "value"
        assert not held.future.running()

    # Ending.

    def test_shutdown_finishes_what_is_pending(self, executor: ProcessPoolExecutor) -> None:
        futures = [executor.submit(time.sleep, 0.01) for _ in range(20)]
        processes = cast("Any", executor)._processes

        executor.shutdown()
        executor.shutdown()

        assert all(future.done() for future in futures)
        assert not any(process.is_alive() for process in processes.values())
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(add, 1, 1)

    def test_shutdown_of_an_unused_executor(self, executor: ProcessPoolExecutor) -> None:
        executor.shutdown()
        executor.shutdown(wait=False)

    def test_shutdown_without_waiting(self, executor: ProcessPoolExecutor, tmp_path: Path) -> None:
        held = Held(executor, tmp_path, "value").wait_for_start()
        thread = cast("Any", executor)._executor_manager_thread

        executor.shutdown(wait=False)

        assert not held.future.done()
        held.release()
        assert held.future.result(LONG) == "value"
        thread.join(LONG)
        assert not thread.is_alive()

    def test_shutdown_can_cancel_what_is_pending(
        self, make: Callable[..., ProcessPoolExecutor], tmp_path: Path
    ) -> None:
        executor = make(max_workers=1)
        held = Held(executor, tmp_path, "value").wait_for_start()
        pending = [executor.submit(add, 1, 1) for _ in range(10)]
        threading.Timer(0.1, held.release).start()

        executor.shutdown(cancel_futures=True)

        assert held.future.result(LONG) == "value"
        assert all(future.done() for future in pending)
        assert sum(future.cancelled() for future in pending) >= 8  # two may be queued already

    def test_cancelling_just_before_shutdown_does_not_hang(
        self, executor: ProcessPoolExecutor
    ) -> None:
        executor.submit(add, 1, 1).result(LONG)
        executor.submit(add, 1, 1).cancel()

        executor.shutdown()

    def test_shutdown_from_a_callback(self, executor: ProcessPoolExecutor) -> None:
        future = executor.submit(add, 1, 1)
        thread = cast("Any", executor)._executor_manager_thread

        future.add_done_callback(lambda _: executor.shutdown(wait=False))

        thread.join(LONG)
        assert not thread.is_alive()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(add, 1, 1)

    def test_a_dropped_executor_cleans_up_by_itself(
        self, make: Callable[..., ProcessPoolExecutor]
    ) -> None:
        executor = make()
        results = executor.map(add, range(5), range(5))
        processes = cast("Any", executor)._processes
        thread = cast("Any", executor)._executor_manager_thread
        del executor
        gc.collect()

        thread.join(LONG)
        assert not thread.is_alive()
        assert not any(process.is_alive() for process in list(processes.values()))
        assert list(results) == [0, 2, 4, 6, 8]

    def test_it_keeps_no_argument_alive(self, executor: ProcessPoolExecutor) -> None:
        thing = Plain()
        reference = weakref.ref(thing)
        executor.submit(thing.method)
        del thing

        wait_until(lambda: reference() is None)

    def test_pending_work_is_finished_at_exit(self, start_method: str, tmp_path: Path) -> None:
        script = run_script(
            """
            import importlib, multiprocessing, pathlib, sys
            module, name, method, folder = sys.argv[1:]
            if __name__ == "__main__":
                executor = getattr(importlib.import_module(module), name)(
                    2, mp_context=multiprocessing.get_context(method)
                )
                for i in range(20):
                    executor.submit(pathlib.Path(folder, str(i)).touch)
            """,
            self.executor_class.__module__,
            self.executor_class.__name__,
            start_method,
            str(tmp_path),
        )

        assert finish_script(script) == (0, "", "")
        assert len(list(tmp_path.iterdir())) == 20
        wait_until(lambda: members_of_session(script.pid) == [])

    def test_submit_from_atexit_is_refused(self, start_method: str) -> None:
        script = run_script(
            """
            import atexit, importlib, multiprocessing, sys
            module, name, method = sys.argv[1:]

            @atexit.register
            def too_late():
                try:
                    executor.submit(abs, 1)
                except RuntimeError as error:
                    print(error)

            if __name__ == "__main__":
                executor = getattr(importlib.import_module(module), name)(
                    1, mp_context=multiprocessing.get_context(method)
                )
                executor.submit(abs, 1).result()
            """,
            self.executor_class.__module__,
            self.executor_class.__name__,
            start_method,
        )

        status, out, err = finish_script(script)
        assert (status, err) == (0, "")
        assert out.startswith("cannot schedule new futures after")

    # Deaths.

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_the_death_of_a_busy_worker_breaks_the_pool(
        self, executor: ProcessPoolExecutor, tmp_path: Path, number: signal.Signals
    ) -> None:
        done = executor.submit(add, 1, 1)
        done.result(LONG)
        pid = executor.submit(os.getpid).result(LONG)
        held = [Held(executor, tmp_path) for _ in range(2)]
        for task in held:
            task.wait_for_start()
        pending = [executor.submit(add, 1, 1) for _ in range(10)]

        os.kill(pid, number)

        for future in [*pending, *(task.future for task in held)]:
            with pytest.raises(BrokenProcessPool):
                future.result(LONG)
        assert done.result() == 2
        with pytest.raises(BrokenProcessPool):
            executor.submit(add, 1, 1)
        executor.shutdown()

    def test_the_death_of_an_idle_worker_breaks_the_pool(
        self, executor: ProcessPoolExecutor
    ) -> None:
        pid = executor.submit(os.getpid).result(LONG)

        os.kill(pid, signal.SIGKILL)

        wait_until(lambda: cast("Any", executor)._broken)
        with pytest.raises(BrokenProcessPool):
            executor.submit(add, 1, 1)

    @pytest.mark.parametrize(
        "call",
        [
            functools.partial(os._exit, 1),
            functools.partial(build, CrashesAtPickling),
            functools.partial(build, CrashesAtUnpickling()),
            functools.partial(build, FailsAtUnpickling()),
            functools.partial(build, FailsAtUnpickling),
        ],
        ids=["run", "pickle result", "unpickle task", "fail to unpickle task", "unpickle result"],
    )
    def test_a_crash_at_any_stage_breaks_the_pool(
        self, executor: ProcessPoolExecutor, call: Callable[[], Any]
    ) -> None:
        stderr = sys.stderr
        try:
            with pytest.raises(BrokenProcessPool):
                executor.submit(call).result(LONG)
        finally:
            if sys.stderr is not stderr:  # the last case ran here
                sys.stderr.close()
                sys.stderr = stderr
        executor.shutdown()

    def test_a_crash_during_shutdown_does_not_hang(self, executor: ProcessPoolExecutor) -> None:
        future = executor.submit(functools.partial(os._exit, 1))

        executor.shutdown()

        assert isinstance(future.exception(), BrokenProcessPool)

    # Processes within processes.

    def test_executors_within_tasks(self, executor: ProcessPoolExecutor, start_method: str) -> None:
        results = executor.map(nested, [self.executor_class] * 2, [start_method] * 2, [3, 4])

        assert list(results) == [[0, 2, 4], [0, 2, 4, 6]]

    def test_a_fork_while_in_use_disturbs_nobody(self, executor: ProcessPoolExecutor) -> None:
        futures = [executor.submit(add, i, i) for i in range(100)]
        children = [multiprocessing.get_context("fork").Process(target=gc.collect) for _ in "abc"]
        for child in children:
            child.start()
        futures += [executor.submit(add, i, i) for i in range(100)]

        assert [future.result(LONG) for future in futures] == [2 * i for i in range(100)] * 2
        for child in children:
            child.join(LONG)
            assert child.exitcode == 0

    def test_workers_are_replaced_after_their_share(
        self, make: Callable[..., ProcessPoolExecutor], start_method: str
    ) -> None:
        if start_method == "fork":
            return  # refused, see test_arguments_are_checked
        executor = make(max_workers=1, max_tasks_per_child=2)

        pids = [executor.submit(os.getpid).result(LONG) for _ in range(4)]

        assert pids[0] == pids[1] != pids[2] == pids[3]
        assert len(cast("Any", executor)._processes) <= 1


class TestStandardLibrary(ExecutorContract):
    """Shows that the contract is the real one."""

    executor_class = StandardExecutor


class TestIpcbuf(ExecutorContract):
    """Ours, and what only ours does."""

    executor_class = Executor

    @pytest.fixture
    def context(self, start_method: str) -> Any:
        return ipcbuf_mp.get_context(start_method)

    def test_it_is_what_the_package_exports(self) -> None:
        assert ipcbuf_mp.ProcessPoolExecutor is ipcbuf_mp.Executor is Executor
        assert Executor.__name__ == StandardExecutor.__name__
        assert issubclass(Executor, StandardExecutor)

    def test_it_works_with_contexts_of_the_standard_library(self, start_method: str) -> None:
        with Executor(1, mp_context=multiprocessing.get_context(start_method)) as executor:
            assert executor.submit(add, 1, 1).result(LONG) == 2

    def test_an_exception_that_is_false_is_raised(self, executor: Executor) -> None:
        with pytest.raises(FalseError):
            executor.submit(fail_falsely).result(LONG)
        with pytest.raises(FalseError):
            list(executor.map(fail_falsely, [1]))

    def test_by_default_it_has_a_worker_for_each_processor(self) -> None:
        with Executor() as executor:
            assert executor._max_workers == (os.cpu_count() or 1)
            assert executor.submit(add, 1, 1).result(LONG) == 2

    def test_a_task_that_does_not_pickle_is_known_at_once(self, executor: Executor) -> None:
        future = executor.submit(capture, threading.Lock())

        assert future.done()
        with pytest.raises(TypeError, match="cannot pickle"):
            future.result()
        assert executor._pending_work_items == {}

    def test_what_pickle_refuses_goes_by_value(self, executor: Executor) -> None:
        offset = 10

        def closure(x: int) -> Callable[[int], int]:
            return lambda y: x + y + offset

        negated: Future[int] = executor.submit(lambda x: -x, 3)

        assert negated.result(LONG) == -3
        assert executor.submit(closure, 1).result(LONG)(2) == 13

    def test_functions_change_as_they_do_with_pickle(
        self, make: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        executor = make(max_workers=1)
        counter = Counter(1)
        bound = counter.add_to

        first = executor.submit(bound, 1)
        counter.start = 100  # a bound method goes with what it is bound to, as it is then
        second = executor.submit(bound, 1)
        in_a_loop: list[Future[int]] = [
            executor.submit(cast("Any", lambda n=n: n)) for n in range(3)
        ]
        original = add
        monkeypatch.setattr(sys.modules[__name__], "add", capture)  # not in the workers
        stranger = executor.submit(original, 1, 2)
        wrong: Future[Any] = executor.submit(cast("Any", ("os", "getpid")))

        assert (first.result(LONG), second.result(LONG)) == (2, 101)
        assert [future.result(LONG) for future in in_a_loop] == [0, 1, 2]
        assert stranger.result(LONG) == 3
        with pytest.raises(TypeError, match="not callable"):
            wrong.result(LONG)
        assert executor.submit(os.path.basename, "a/b").result(LONG) == "b"
        assert executor.submit(Counter.make, 5).result(LONG).start == 5

    def test_an_object_changed_by_a_task_is_fresh_for_the_next(
        self, make: Callable[..., Executor]
    ) -> None:
        executor = make(max_workers=1)
        seen: list[int] = []

        def see() -> int:
            seen.append(1)
            return len(seen)

        results = [executor.submit(see) for _ in range(3)]

        assert [future.result(LONG) for future in results] == [1, 1, 1]

    def test_a_function_sent_by_value_sees_globals_as_they_are_when_it_is_sent(
        self, make: Callable[..., Executor]
    ) -> None:
        executor = make(max_workers=1)
        names: dict[str, Any] = {"__name__": "__main__", "factor": 1}
        exec("def times(x): return factor * x", names)
        times = names["times"]

        first = executor.submit(times, 5)
        names["factor"] = 2
        second = executor.submit(times, 5)

        assert (first.result(LONG), second.result(LONG)) == (5, 10)

    def test_different_lambdas_leave_nothing_in_the_workers(self) -> None:
        count = int(os.environ.get("IPCBUF_LAMBDAS", "2000"))
        context = ipcbuf_mp.get_context("fork")
        with Executor(1, mp_context=context) as executor:

            def call(numbers: range) -> None:
                futures = [executor.submit(cast("Any", lambda n=n: n)) for n in numbers]
                assert [future.result(LONG) for future in futures] == list(numbers)

            call(range(200))
            before = executor.submit(resident).result(LONG)
            for start in range(0, count, 500):
                call(range(start, start + 500))
            assert executor.submit(resident).result(LONG) - before < 4 * MEBIBYTE

    def test_what_is_shared_is_one_copy_that_workers_read(self, executor: Executor) -> None:
        np = pytest.importorskip("numpy")
        array = np.arange(MEBIBYTE, dtype="i8")
        shared = executor.share(array)
        before = ipcbuf.default_segment().stats()["used_bytes"]

        futures = [executor.submit(look_at, shared, i) for i in range(20)]

        assert [future.result(LONG) for future in futures] == [(i, False) for i in range(20)]
        assert ipcbuf.default_segment().stats()["used_bytes"] - before < MEBIBYTE
        array[0] = 7
        assert executor.submit(look_at, shared, 0).result(LONG) == (0, False)
        assert executor.submit(len, executor.share(b"bytes")).result(LONG) == 5

    def test_the_environment_is_set_before_anything_is_read(
        self, make: Callable[..., Executor]
    ) -> None:
        executor = make(env={"IPCBUF_TEST_ENV": "yes"}, initializer=need_environment)

        assert executor.submit(os.getenv, "IPCBUF_TEST_ENV").result(LONG) == "yes"
        assert "IPCBUF_TEST_ENV" not in os.environ

    def test_map_shows_its_progress(
        self, executor: Executor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tqdm = pytest.importorskip("tqdm.auto")
        bars: list[Any] = []
        bar = tqdm.tqdm

        def quiet(total: int | None) -> Any:
            bars.append(bar(total=total, file=io.StringIO()))
            return bars[-1]

        monkeypatch.setattr(bar, "monitor_interval", 0)  # no thread
        monkeypatch.setattr(tqdm, "tqdm", quiet)

        assert list(executor.map(abs, [-1, -2, -3], [], progress=True)) == []
        assert list(executor.map(abs, [-1, -2, -3], progress=True)) == [1, 2, 3]
        assert list(executor.map(abs, iter([-1, -2]), chunksize=2, progress=True)) == [1, 2]
        assert [(bar.n, bar.total) for bar in bars] == [(0, 0), (3, 3), (2, None)]

    def test_many_small_tasks(self, executor: Executor) -> None:
        results = list(executor.map(add, range(5000), range(5000)))

        assert results == [2 * i for i in range(5000)]
        assert executor._pending_work_items == {}

    def test_arguments_are_taken_when_submitted(
        self, make: Callable[..., Executor], tmp_path: Path
    ) -> None:
        import numpy as np

        executor = make(max_workers=1)
        held = Held(executor, tmp_path).wait_for_start()
        changing = [1]
        array = np.zeros(MEBIBYTE)
        futures: list[Future[Any]] = [
            executor.submit(capture, changing),
            executor.submit(np.sum, array),
        ]
        changing.append(2)
        array[:] = 1

        held.release()

        assert futures[0].result(LONG) == (([1],), {})
        assert futures[1].result(LONG) == 0

    def test_cancel_works_until_a_worker_takes_the_task(
        self, make: Callable[..., Executor], tmp_path: Path
    ) -> None:
        executor = make(max_workers=1)
        held = Held(executor, tmp_path).wait_for_start()
        next_one = executor.submit(add, 1, 1)

        assert not next_one.running()
        assert next_one.cancel()
        held.release()

    def test_cancelling_many_from_many_threads(self, executor: Executor) -> None:
        futures = [executor.submit(add, i, i) for i in range(2000)]
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            for _ in range(2):
                threads.map(lambda future: future.cancel(), futures)

        done = concurrent.futures.wait(futures, LONG).done

        assert len(done) == 2000
        for i, future in enumerate(futures):
            assert future.cancelled() or future.result() == 2 * i
        assert executor._pending_work_items == {}

    def test_a_broken_pool_names_worker_signal_and_task(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        pid = executor.submit(os.getpid).result(LONG)
        held = [Held(executor, tmp_path).wait_for_start() for _ in range(2)]

        os.kill(pid, signal.SIGKILL)

        with pytest.raises(BrokenProcessPool) as caught:
            held[0].future.result(LONG)
        assert f"Worker process {pid} was killed by SIGKILL while running task" in str(caught.value)
        assert "hold" in str(caught.value)
        assert f"Process {pid} terminated abruptly with exit code -9" in str(caught.value.__cause__)
        other = held[1].future.exception(LONG)
        assert other is not caught.value  # its own, to be raised in its own thread

    def test_a_broken_pool_says_why_the_initializer_failed(
        self, make: Callable[..., Executor]
    ) -> None:
        error = make(initializer=fail_to_initialize).submit(add, 1, 1).exception(LONG)

        assert isinstance(error, BrokenProcessPool)
        assert "ValueError: no way to begin" in str(error.__cause__)

    def test_results_sent_before_a_death_are_kept(self, executor: Executor, tmp_path: Path) -> None:
        block = threading.Event()
        first = executor.submit(add, 1, 1)
        first.add_done_callback(lambda _: block.wait(LONG))  # stops the collector
        held = [Held(executor, tmp_path, i) for i in range(2)]
        pids = list(cast("Any", executor)._processes)
        for task in held:
            task.wait_for_start()
            task.release()
        probe = Held(executor, tmp_path).wait_for_start()  # a worker has finished one of them
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        block.set()

        outcomes = [task.future.exception(LONG) for task in held]

        assert outcomes.count(None) >= 1
        assert isinstance(probe.future.exception(LONG), BrokenProcessPool)

    def test_a_full_heap_fails_calls_and_nothing_else(
        self, make: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        segment = ipcbuf.Segment(max_size=16 * MEBIBYTE)
        monkeypatch.setattr(ipcbuf, "default_segment", lambda: segment)
        executor = make()

        with pytest.raises(ipcbuf.RecordTooLarge):
            executor.submit(len, bytes(32 * MEBIBYTE))
        with pytest.raises(ipcbuf.RecordTooLarge):
            executor.submit(fill, 32 * MEBIBYTE).result(LONG)
        block = threading.Event()
        executor.submit(add, 1, 1).add_done_callback(lambda _: block.wait(LONG))
        futures = [executor.submit(fill, MEBIBYTE) for _ in range(40)]  # nobody collects them
        wait_until(lambda: not executor._pool._task_receiver.pending())
        block.set()
        outcomes = {type(future.exception(LONG)) for future in futures}

        assert outcomes == {type(None), ipcbuf.HeapExhausted}
        del futures
        assert executor.submit(len, bytes(MEBIBYTE)).result(LONG) == MEBIBYTE
        executor.shutdown()
        assert segment.fsck() == []
        assert segment.stats()["process_blocks"] == 0

    # The standard library hangs here every now and then.
    @pytest.mark.parametrize("moment", [0.0, 0.01, 0.05])
    def test_a_death_amid_large_transfers_hangs_nobody(
        self, executor: Executor, moment: float
    ) -> None:
        pid = executor.submit(os.getpid).result(LONG)
        size = 8 * MEBIBYTE
        threading.Timer(moment, os.kill, (pid, signal.SIGKILL)).start()

        futures: list[Future[Any]] = []
        with contextlib.suppress(BrokenProcessPool):
            for _ in range(10):
                futures.append(executor.submit(len, bytes(size)))
                futures.append(executor.submit(fill, size))
            wait_until(lambda: executor._broken)

        for future in futures:
            try:
                result = future.result(LONG)
            except BrokenProcessPool:
                continue
            assert result in (size, bytes(size))
        executor.shutdown()

    def test_kill_workers_ends_all_at_once(self, executor: Executor) -> None:
        futures = [executor.submit(time.sleep, LONG) for _ in range(4)]

        executor.kill_workers()

        for future in futures:
            with pytest.raises((CancelledError, BrokenProcessPool)):
                future.result(LONG)
        executor.shutdown()

    def test_map_reads_no_further_than_its_buffer(self, executor: Executor) -> None:
        numbers = itertools.count()
        results = executor.map(str, numbers, buffersize=4)
        taken = [next(numbers)]
        got = [next(results) for _ in range(3)]
        taken.append(next(numbers))

        assert got == ["0", "1", "2"]
        assert taken == [4, 8]
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="buffersize must be None or > 0"):
                executor.map(str, [1], buffersize=wrong)
        with pytest.raises(TypeError, match="buffersize must be an integer or None"):
            executor.map(str, [1], buffersize="2")  # type: ignore[arg-type]
        assert list(executor.map(add, range(9), range(9), chunksize=2, buffersize=2)) == [
            2 * i for i in range(9)
        ]

    def test_an_error_while_refilling_comes_in_its_turn(self, executor: Executor) -> None:
        things = iter([1, 2, threading.Lock(), 4])
        results = executor.map(capture, things, buffersize=1)

        assert next(results) == ((1,), {})
        assert next(results) == ((2,), {})
        with pytest.raises(TypeError, match="cannot pickle"):
            next(results)

    def test_workers_are_replaced_while_many_tasks_wait(
        self, make: Callable[..., Executor], start_method: str
    ) -> None:
        if start_method == "fork":
            return  # refused, see test_arguments_are_checked
        executor = make(max_tasks_per_child=2)

        pids = [future.result(LONG) for future in [executor.submit(os.getpid) for _ in range(9)]]

        assert max(pids.count(pid) for pid in pids) <= 2  # the standard library hangs

    def test_an_executor_left_open_in_a_worker_ends_with_it(
        self, executor: Executor, start_method: str
    ) -> None:
        assert executor.submit(nested_left_open, start_method).result(LONG) == 5

        executor.shutdown()

    def test_a_forked_copy_refuses(self, executor: Executor) -> None:
        future = executor.submit(time.sleep, 0.2)
        pid = os.fork()
        if pid == 0:
            refused = 1
            with contextlib.suppress(BrokenProcessPool):
                executor.submit(add, 1, 1)
                refused = 0
            future.cancel()  # of the copy only
            executor.shutdown()
            os._exit(refused)

        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        assert future.result(LONG) is None
        assert executor.submit(add, 1, 1).result(LONG) == 2

    def test_a_dying_parent_takes_its_workers_along(
        self, start_method: str, tmp_path: Path
    ) -> None:
        script = run_script(
            """
            import multiprocessing, os, pathlib, sys, time
            from ipcbuf_mp import ProcessPoolExecutor
            if __name__ == "__main__":
                executor = ProcessPoolExecutor(
                    3, mp_context=multiprocessing.get_context(sys.argv[1])
                )
                busy = executor.submit(time.sleep, 1000)
                pids = {executor.submit(os.getpid).result() for _ in range(20)}
                if os.fork():
                    print(*executor._processes, flush=True)
                time.sleep(1000)
            """,
            start_method,
            TMPDIR=str(tmp_path),  # the fork server's socket stays behind
        )
        assert script.stdout is not None
        pids = [int(pid) for pid in script.stdout.readline().split()]
        assert len(pids) == (3 if start_method == "fork" else 2)

        script.kill()

        wait_until(lambda: not any(is_running(pid) for pid in pids))
        os.killpg(script.pid, signal.SIGKILL)  # its other child, which inherited all it had
        script.communicate()
        wait_until(lambda: members_of_session(script.pid) == [])

    def test_ctrl_c_ends_a_program_and_its_workers(self, start_method: str) -> None:
        script = run_script(
            """
            import multiprocessing, sys, time
            from ipcbuf_mp import ProcessPoolExecutor
            if __name__ == "__main__":
                context = multiprocessing.get_context(sys.argv[1])
                with ProcessPoolExecutor(2, mp_context=context) as executor:
                    executor.submit(abs, 1).result()
                    future = executor.submit(time.sleep, 1000)
                    while not future.running():
                        time.sleep(0.001)
                    print("ready", flush=True)
                    future.result()
            """,
            start_method,
        )
        assert script.stdout is not None
        assert script.stdout.readline() == "ready\n"

        os.killpg(script.pid, signal.SIGINT)
        status, _, errors = finish_script(script)

        assert status != 0
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert "Process " not in errors  # no worker printed one of its own
        wait_until(lambda: members_of_session(script.pid) == [])

    def test_ctrl_c_does_not_end_a_worker_that_starts(
        self, start_method: str, tmp_path: Path
    ) -> None:
        program = tmp_path / "program.py"
        program.write_text(
            dedent(
                """
                import multiprocessing, os, signal, sys
                from ipcbuf_mp import ProcessPoolExecutor

                def press_ctrl_c():
                    os.kill(os.getpid(), signal.SIGINT)

                if __name__ == "__main__":
                    os.register_at_fork(after_in_child=press_ctrl_c)
                    context = multiprocessing.get_context(sys.argv[1])
                    with ProcessPoolExecutor(1, mp_context=context) as executor:
                        print(executor.submit(abs, -1).result())
                elif multiprocessing.current_process().name != "MainProcess":
                    press_ctrl_c()  # not in the fork server, which imports this since Python 3.14
                """
            )
        )

        status, output, errors = finish_script(run_script(program, start_method))

        assert (status, output, errors) == (0, "1\n", "")

    def test_ctrl_c_ends_an_initializer(self, start_method: str) -> None:
        script = run_script(
            """
            import multiprocessing, signal, sys
            from ipcbuf_mp import ProcessPoolExecutor
            from concurrent.futures.process import BrokenProcessPool

            if __name__ == "__main__":
                context = multiprocessing.get_context(sys.argv[1])
                with ProcessPoolExecutor(
                    1,
                    mp_context=context,
                    initializer=signal.raise_signal,
                    initargs=(signal.SIGINT,),
                ) as executor:
                    try:
                        executor.submit(abs, -1).result()
                    except BrokenProcessPool:
                        print("broken")
            """,
            start_method,
        )

        status, output, errors = finish_script(script)

        assert (status, output) == (0, "broken\n")
        assert "KeyboardInterrupt" in errors

    def test_an_executor_with_an_error_in_main_ends(self, start_method: str) -> None:
        script = run_script(
            """
            import multiprocessing, sys, time
            from ipcbuf_mp import ProcessPoolExecutor
            if __name__ == "__main__":
                executor = ProcessPoolExecutor(
                    2, mp_context=multiprocessing.get_context(sys.argv[1])
                )
                executor.submit(time.sleep, 0.1)
                raise SystemExit(3)
            """,
            start_method,
        )

        assert finish_script(script) == (3, "", "")
        wait_until(lambda: members_of_session(script.pid) == [])
