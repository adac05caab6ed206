# SPDX-License-Identifier: Apache-2.0
"""A `concurrent.futures.ProcessPoolExecutor` on shared memory. `_pool.py` says how it works.

The module can be called: `ipcbuf_mp.executor()` makes an executor here, and
`ipcbuf_mp.executor("tcp://scheduler:8786")` one with the same methods on dask.distributed.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import time
import types
import weakref
from collections import deque
from collections.abc import Sized
from concurrent.futures import Executor as _AnyExecutor
from concurrent.futures import Future
from concurrent.futures.process import (
    BrokenProcessPool,
)
from concurrent.futures.process import (
    ProcessPoolExecutor as _StandardExecutor,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import ipcbuf

from ._futures import TaskFuture
from ._pool import Pool, PoolOptions
from ._process import let_go_on
from ._references import task_of
from ._worker import TaskInterrupted, WorkerOptions
from .context import engine_works, get_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from multiprocessing.context import BaseContext

    from numpy.typing import NDArray

__all__ = ["BrokenProcessPool", "Executor", "ProcessPoolExecutor", "TaskInterrupted"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _TaskOptions:
    """What is different about some tasks."""

    timeout: float | None = None
    retries: int = 0
    cancel_running: bool = False

    def check(self, survives: bool) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout must be positive, not {self.timeout}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative: {self.retries}")
        if self.retries and not survives:
            raise ValueError('retries need an executor with on_worker_death="restart"')

    @property
    def is_plain(self) -> bool:
        return self.timeout is None and not self.retries and not self.cancel_running


class _Calls(_AnyExecutor):
    """What can be done with calls, all by `submit`: whoever replaces that one sees each call."""

    def _reference(self) -> Callable[[], _Calls | None]:
        """Return what a `map` that goes on has of us: it does not keep the executor alive."""
        return weakref.ref(self)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[T]:
        """Yield `fn(*args)` for the tuples of `zip(*iterables)`, in their order.

        Args:
            fn: What to call.
            *iterables: As many as *fn* takes arguments.
            timeout: Seconds from now in which each result must be there; None waits for ever.
            chunksize: How many calls make one task.
            buffersize: How many tasks may be sent whose results were not yielded.
                The iterables are read on as results are taken. None: all are sent now.
            progress: Show a bar with tqdm, which has to be installed.

        Raises:
            TimeoutError: A result was not there in time.
            Exception: What `fn(*args)` raised, in its turn.
        """
        _check_sizes(chunksize, buffersize)
        deadline = None if timeout is None else time.monotonic() + timeout
        bar = _bar(iterables) if progress else None
        calls: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        if chunksize > 1:
            calls = ((fn, chunk) for chunk in _chunks(calls, chunksize))
            send: Callable[..., Any] = _run_chunk
        else:
            send = fn
        futures: deque[Future[Any]] = deque()
        try:
            for args in itertools.islice(calls, buffersize):
                futures.append(self.submit(send, *args))
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        more = None
        if buffersize is not None:
            executor = self._reference()

            def more() -> None:
                """Send the next task, if there is one."""
                if (this := executor()) is not None:
                    try:
                        for args in itertools.islice(calls, 1):
                            futures.append(this.submit(send, *args))
                    except BaseException as error:  # raised when its turn comes
                        failed: Future[Any] = Future()
                        failed.set_exception(error)
                        futures.append(failed)

        results = _in_order(futures, more, deadline)
        if chunksize > 1:
            results = _flatten(results)
        return results if bar is None else _counted(results, bar)

    async def asubmit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `fn(*args, **kwargs)`, run by a worker, in asyncio.

        Cancelling the awaiting task cancels the call as `Future.cancel` does.
        """
        from asyncio import wrap_future  # late: few need it, and it takes longer than all the rest

        return await wrap_future(self.submit(fn, *args, **kwargs))

    async def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> AsyncIterator[T]:
        """Yield results in asyncio, as `map` does: `async for result in executor.amap(...)`."""
        from asyncio import wrap_future

        _check_sizes(chunksize, buffersize)
        calls = _chunks(zip(*iterables, strict=False), chunksize)
        futures = deque(
            wrap_future(self.submit(_run_chunk, fn, chunk))
            for chunk in itertools.islice(calls, buffersize)
        )
        try:
            while futures:
                results = await futures[0]
                futures.popleft()
                for chunk in itertools.islice(calls, 0 if buffersize is None else 1):
                    futures.append(wrap_future(self.submit(_run_chunk, fn, chunk)))
                for result in results:
                    yield result
        finally:
            for future in futures:
                future.cancel()


class ProcessPoolExecutor(_Calls, _StandardExecutor):
    """As `concurrent.futures.ProcessPoolExecutor`, and much faster.

    Differences:
        - Arguments are encoded in `submit`, by the caller's thread. Lambdas and closures can be
          sent.
        - `Future.cancel` works until a worker takes the task.
        - `BrokenProcessPool` says which worker died, of what, and what it was doing.
        - `map` has `buffersize`, and there are `terminate_workers` and `kill_workers`, on every
          Python.
        - A worker's death can cost one task instead of all; tasks can have a time-out and be
          cancelled while they run.

    Any number of threads may use it. It ends with `shutdown`, with its last reference or with the
    interpreter; what was submitted is finished first.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the standard library's executor where shared memory does not work."""
        if not engine_works():
            return _StandardExecutor(*args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        on_worker_death: str = "break",
        max_rss_per_child: int | None = None,
        max_queued: int = 0,
        max_queued_bytes: int = 0,
        grace: float = 1.0,
        forward_logging: bool = False,
        env: dict[str, str] | None = None,
        import_main: bool = True,
    ) -> None:
        """Make an executor; workers start with the first calls.

        Args:
            max_workers: How many processes at most; None means one for each processor.
            mp_context: How they are started, from `get_context`.
            initializer: Called in each worker before its first task. If it fails, the pool breaks.
            initargs: Its arguments.
            max_tasks_per_child: Replace a worker after so many tasks. Not with fork.
            on_worker_death: "break": all futures that are pending fail with `BrokenProcessPool`,
                as in the standard library. "restart": the worker is replaced, the task that it
                ran fails with `WorkerLost` or is tried again, and nothing else is lost. With fork
                the replacement is forked from a thread, as `multiprocessing.Pool` does it.
            max_rss_per_child: Replace a worker that after a task has more bytes in memory.
            max_queued: How many tasks may wait for a worker before `submit` waits; 0: any number.
            max_queued_bytes: How many bytes of them, or one larger task; 0: any number.
            grace: Seconds from the interruption of a task to the kill of its worker.
            forward_logging: Handle what workers log in this process.
            env: Environment variables of the workers, set before they unpickle anything.
            import_main: False: workers do not run the program's main module again, and what it
                defines goes by value, so a script needs no `if __name__ == "__main__":`. Forked
                workers have the module as it was.

        Raises:
            ValueError: A number is out of range, or *max_tasks_per_child* is given with fork.
        """
        if max_workers is None:
            max_workers = _processor_count()
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if mp_context is None:
            mp_context = get_context("spawn" if max_tasks_per_child is not None else None)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if mp_context.get_start_method(allow_none=False) == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start "
                    "method; supply a different mp_context."
                )
        if on_worker_death not in ("break", "restart"):
            raise ValueError(f'on_worker_death is "break" or "restart", not {on_worker_death!r}')
        if max_rss_per_child is not None and max_rss_per_child <= 0:
            raise ValueError("max_rss_per_child must be positive")
        if min(max_queued, max_queued_bytes, grace) < 0:
            raise ValueError("max_queued, max_queued_bytes and grace must not be negative")
        self._survives = on_worker_death == "restart"
        self._max_tasks_per_child = max_tasks_per_child
        workers = WorkerOptions(
            initializer,
            initargs,
            max_tasks_per_child,
            max_rss_per_child,
            self._survives,
            logging.getLogger().getEffectiveLevel() if forward_logging else None,
        )
        options = PoolOptions(self._survives, grace, max_queued, max_queued_bytes, import_main)
        self._pool = Pool(max_workers, mp_context, env or {}, workers, options)
        self._is_shut_down = False
        weakref.finalize(self, self._pool.close).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Send `fn(*args, **kwargs)` to a worker and return its future.

        Arguments are encoded before this returns: changing them afterwards does not change the
        call. What cannot be pickled is the future's exception.

        Raises:
            BrokenProcessPool: A worker has died.
            RuntimeError: The executor was shut down, or the interpreter exits.
            HeapExhausted, RecordTooLarge: There is no room for the arguments.
        """
        return self._submit(fn, args, kwargs)

    def _submit(
        self,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: _TaskOptions | None = None,
        /,
    ) -> Future[T]:
        pool = self._pool
        future = TaskFuture()
        future._pool = pool
        future._fn = fn
        if self._survives:
            future._call = fn, args, kwargs
        if options is not None:
            future._plain = options.is_plain
            future._retries = options.retries
            future._timeout = options.timeout
            future._interruptible = options.cancel_running
        with pool.lock:
            if not pool.open:
                raise pool.refuse()
            future._task_id = task_id = next(pool.task_ids)
            pool.pending[task_id] = future
            try:
                if pool.can_grow and len(pool.pending) + pool.refused > len(pool.processes):
                    pool.grow()
            except BaseException:
                pool.forget(task_id)
                raise
        deaths = pool.deaths
        try:
            future._offset = pool.send_task(task_of(fn, args, kwargs), task_id)
        except BaseException as error:
            pool.forget(task_id)
            if pool.broken:  # while we were sending
                raise BrokenProcessPool(pool.broken) from None
            if not isinstance(error, Exception) or isinstance(error, ipcbuf.IpcbufError):
                raise
            pool.refused += 1
            # Without this frame, which has the future.
            trace = error.__traceback__
            future.set_exception(error.with_traceback(trace and trace.tb_next))
            return future
        if deaths != pool.deaths:
            pool.look_for(task_id)
        if options is not None and options.timeout is not None:
            pool.limit(task_id, options.timeout)
        return future

    def with_options(
        self,
        *,
        timeout: float | None = None,
        retries: int = 0,
        cancel_running: bool = False,
    ) -> _WithOptions:
        """Return an executor on the same workers whose tasks have these options.

            executor.with_options(timeout=10).submit(fn, *args)

        Args:
            timeout: Seconds that a task may run. Then `TaskInterrupted`, a `KeyboardInterrupt`,
                is raised in it; if it goes on nevertheless, its worker is killed and replaced.
                Its future has `TimeoutError`. Other tasks never notice.
            retries: How often a task is tried again whose worker died. Its arguments are then
                pickled again. Needs `on_worker_death="restart"`.
            cancel_running: `Future.cancel` also ends a task that runs, in the same way.

        Raises:
            ValueError: An option is out of range, or retries cannot be had.
        """
        options = _TaskOptions(timeout, retries, cancel_running)
        options.check(self._survives)
        return _WithOptions(self, options)

    def share(self, data: NDArray[Any] | bytes | bytearray | memoryview) -> ipcbuf.Shared:
        """Return a handle through which all tasks read one copy of *data*, as `ipcbuf.share`.

        table = executor.share(array)
        executor.map(task, itertools.repeat(table), rows)  # the task reads `table.array`
        """
        return ipcbuf.share(data)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end when those submitted are done.

        Args:
            wait: Return only when the workers have ended.
            cancel_futures: Cancel what no worker has taken yet.
        """
        self._pool.close()
        if cancel_futures:
            self._pool.cancel_pending()
        if wait:
            self._pool.join()
        self._is_shut_down = True

    def terminate_workers(self) -> None:
        """Shut down at once: cancel what is pending and terminate the workers."""
        self._force_shutdown("terminate")

    def kill_workers(self) -> None:
        """Shut down at once: cancel what is pending and kill the workers."""
        self._force_shutdown("kill")

    def _force_shutdown(self, operation: str) -> None:
        if operation not in ("terminate", "kill"):
            raise ValueError(f"Unsupported operation: {operation!r}")
        pool = self._pool
        pool.forced = True
        with pool.lock:
            processes = pool.everybody()
        self.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                getattr(process, operation)()
                let_go_on(process)

    def __getattr__(self, name: str) -> Any:
        """Give what other projects read, as they find it in the standard library's executor."""
        if name not in _READ_BY_OTHERS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        pool = self.__dict__["_pool"]
        if self._is_shut_down and name in _GONE_AFTER_SHUTDOWN:
            return None
        return _READ_BY_OTHERS[name](pool)


_READ_BY_OTHERS: dict[str, Callable[[Pool], Any]] = {
    "_broken": lambda pool: pool.broken or False,
    "_call_queue": lambda pool: _NoQueue(),
    "_executor_manager_thread": lambda pool: pool.collector,
    "_max_workers": lambda pool: pool.max_workers,
    "_mp_context": lambda pool: pool.context,
    "_pending_work_items": lambda pool: pool.pending,
    "_processes": lambda pool: pool.processes,
    "_shutdown_lock": lambda pool: pool.lock,
    "_shutdown_thread": lambda pool: pool.closing,
}
_GONE_AFTER_SHUTDOWN = {"_call_queue", "_executor_manager_thread", "_processes"}

Executor = ProcessPoolExecutor


class _WithOptions(_Calls):
    """An executor's other face: the same workers, other options. `with_options` makes it."""

    def __init__(self, executor: ProcessPoolExecutor, options: _TaskOptions) -> None:
        self._executor = executor
        self._options = options

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Send a call to a worker, as the executor's own `submit`."""
        return self._executor._submit(fn, args, kwargs, self._options)

    def _reference(self) -> Callable[[], _Calls | None]:
        executor = weakref.ref(self._executor)  # this face of it may be gone
        options = self._options

        def get() -> _Calls | None:
            return None if (alive := executor()) is None else _WithOptions(alive, options)

        return get

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the executor down."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


class _NoQueue:
    """Stands where the standard library has a queue with a feeder thread to wait for."""

    def join_thread(self) -> None:
        """Return: there is no thread."""

    def close(self) -> None:
        """Return: there is no queue."""


def _run_chunk(fn: Callable[..., T], chunk: tuple[tuple[Any, ...], ...]) -> list[T]:
    return [fn(*args) for args in chunk]


def _chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    while chunk := tuple(itertools.islice(calls, size)):
        yield chunk


def _in_order(
    futures: deque[Future[T]], more: Callable[[], None] | None, deadline: float | None
) -> Iterator[T]:
    """Yield results in the order of submission, and keep no reference to what was yielded."""
    try:
        while futures:
            timeout = None if deadline is None else deadline - time.monotonic()
            result = [_result_or_cancel(futures.popleft(), timeout)]
            if more is not None:
                more()
            yield result.pop()
    finally:
        for future in futures:
            future.cancel()


def _result_or_cancel(future: Future[T], timeout: float | None) -> T:
    try:
        try:
            return future.result(timeout)
        finally:
            future.cancel()
    finally:
        del future  # breaks a cycle with the exception's traceback


def _flatten(lists: Iterator[Any]) -> Iterator[Any]:
    for results in lists:
        results.reverse()
        while results:
            yield results.pop()


def _processor_count() -> int:
    count = getattr(os, "process_cpu_count", os.cpu_count)  # 3.13: those we may use
    return count() or 1


def _check_sizes(chunksize: int, buffersize: int | None) -> None:
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None:
        if not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize < 1:
            raise ValueError("buffersize must be None or > 0")


def _bar(iterables: tuple[Iterable[Any], ...]) -> Any:
    from tqdm.auto import tqdm

    sizes = [len(each) for each in iterables if isinstance(each, Sized)]
    return tqdm(total=min(sizes) if sizes else None)


def _counted(results: Iterator[T], bar: Any) -> Iterator[T]:
    with bar:
        for result in results:
            bar.update()
            yield result


class _ExecutorModule(types.ModuleType):
    """This module, which can be called."""

    if TYPE_CHECKING:
        BrokenProcessPool = BrokenProcessPool
        Executor = ProcessPoolExecutor
        ProcessPoolExecutor = ProcessPoolExecutor
        TaskInterrupted = TaskInterrupted

    def __call__(self, where: Any = None, **options: Any) -> _AnyExecutor:
        """Make an executor where there are workers.

        Args:
            where: None: processes on this machine. The address of a dask scheduler, or a
                `distributed.Client`: workers of that cluster; needs `ipcbuf[dask]`.
            **options: As `Executor` takes them.

        Raises:
            NotImplementedError: An option has no meaning there.
        """
        if where is None:
            return ProcessPoolExecutor(**options)
        from .distributed import DaskExecutor

        return DaskExecutor(where, **options)


_module = sys.modules[__name__]
_module.__class__ = _ExecutorModule
if TYPE_CHECKING:
    executor = _ExecutorModule("")
