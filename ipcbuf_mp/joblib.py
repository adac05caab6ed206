# SPDX-License-Identifier: Apache-2.0
"""joblib on an executor of ours: importing this registers the backend "ipcbuf".

    import ipcbuf_mp.joblib
    with joblib.parallel_config("ipcbuf"):
        GridSearchCV(...).fit(X, y)

The executor is kept between calls of `Parallel`, and shared by them, as joblib keeps loky's. A
worker that dies costs the call that it worked for, as with loky, and not the next one.
No worker runs the main module again: what a script, a prompt or a notebook defines goes by value,
as with loky, and a script needs no `if __name__ == "__main__":`.
Within a worker, `Parallel` runs in threads and below that one after the other, as joblib has it.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import pickle
import threading
import warnings
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

import joblib
from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase

from .executor import BrokenProcessPool, Executor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BrokenProcessPool", "IpcbufBackend", "shutdown"]

_lock = threading.Lock()
_executors: list[tuple[dict[str, Any], Executor]] = []  # with what each was made


class IpcbufBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """The backend "ipcbuf".

    Args:
        mp_context: How workers are started: a context or the name of a start method. Forking
            the server by default: libraries that run threads of OpenMP hang in a forked child.
        initializer: Called in each worker before its first task.
        initargs: Its arguments.
        idle_worker_timeout: Ignored, for idle workers cost no processor time.
        **options: What `Executor` takes beside these.
    """

    supports_retrieve_callback = True
    supports_sharedmem = False
    supports_inner_max_num_threads = True
    uses_threads = False

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        mp_context: Any = "forkserver",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        idle_worker_timeout: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        if isinstance(mp_context, str):
            from .context import get_context

            mp_context = get_context(mp_context)
        self._how = {
            "mp_context": mp_context,
            "initializer": initializer,
            "initargs": initargs,
            "import_main": False,
            **options,
        }
        self._workers: Executor | None = None
        self._futures: set[Future[Any]] = set()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks run at the same time."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if multiprocessing.current_process().daemon:
            return self._only_one(n_jobs, "in a daemonic process")
        if not (self.in_main_thread() or self.nesting_level == 0):
            return self._only_one(n_jobs, "below threads")
        if n_jobs < 0:
            return max(int(joblib.cpu_count()) + 1 + n_jobs, 1)
        return n_jobs

    def _only_one(self, n_jobs: int, where: str) -> int:
        if n_jobs != 1:
            # In the words of joblib's own backends, which programs filter warnings by.
            message = f"Ipcbuf-backed parallel loops cannot be nested {where}, setting n_jobs=1"
            warnings.warn(message, stacklevel=4)
        return 1

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: Any = None,
        require: Any = None,
        **options: Any,
    ) -> int:
        """Get an executor with so many workers; return their number."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise joblib.parallel.FallbackToBackend(
                joblib._parallel_backends.SequentialBackend(nesting_level=self.nesting_level)
            )
        self.parallel = parallel
        for name in self._how.keys() & options.keys():
            self._how[name] = options[name]
        environment = self._worker_environment(n_jobs)
        how = {**self._how, "max_workers": n_jobs, "env": environment}
        with _lock:
            executor = _find(how)
            if executor is None:
                executor = self._make(how)
                _executors.append((how, executor))
        self._workers = executor
        return n_jobs

    def _make(self, how: dict[str, Any]) -> Executor:
        begin = functools.partial(_begin, how["initializer"])
        return Executor(**{**how, "initializer": begin})

    def _worker_environment(self, n_jobs: int) -> dict[str, str]:
        """How many threads a worker's numeric libraries may start."""
        return dict(self._prepare_worker_env(n_jobs=n_jobs))

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Any:
        """Send a batch of tasks to a worker."""
        assert self._workers is not None
        future: Future[Any] = self._workers.submit(func)
        # A TaskFuture; its offset is that of the task that was sent.
        if future.done() and not future._offset:  # type: ignore[attr-defined]
            future = _refused(future)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch, or raise."""
        try:
            return out.result()
        except CancelledError:
            raise RuntimeError(
                "The executor underlying Parallel was shut down, likely because the generator of "
                "an earlier call was collected before it was exhausted."
            ) from None

    def retrieve_result(self, out: Future[Any], timeout: float | None = None) -> Any:
        """Wait for the results of a batch."""
        return out.result(timeout)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End what is pending and running; be ready again if *ensure_ready*."""
        executor = self._workers
        self._workers = None
        with _lock:
            _executors[:] = [each for each in _executors if each[1] is not executor]
        if executor is not None:
            executor.kill_workers()
            executor.shutdown()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def terminate(self) -> None:
        """Forget the batches' statistics; the workers stay for the next call."""
        self._workers = None
        self.reset_batch_stats()


def shutdown() -> None:
    """End the workers that are kept. The next call of `Parallel` starts new ones."""
    with _lock:
        executors = _executors[:]
        _executors.clear()
    for _, executor in executors:
        executor.shutdown()


def _find(how: dict[str, Any]) -> Executor | None:
    """Return the executor that was made so, and forget those that have ended."""
    _executors[:] = [each for each in _executors if not each[1]._broken]
    for made_how, executor in _executors:
        try:
            if made_how == how and not executor._is_shut_down:
                return executor
        except Exception:  # arguments that do not compare, such as arrays
            continue
    return None


def _refused(future: Future[Any]) -> Future[Any]:
    """Return the future of a task that could not be sent, with the exception that loky has."""
    error = pickle.PicklingError("Could not pickle the task to send to the workers.")
    error.__cause__ = future.exception()
    refused: Future[Any] = Future()
    refused.set_exception(error)
    return refused


def _begin(initializer: Callable[..., object] | None, *initargs: Any) -> None:
    """Begin a worker, where importing this module has registered the backend, for calls within."""
    with contextlib.suppress(ImportError, AttributeError):
        from joblib.externals.loky import process_executor

        process_executor._CURRENT_DEPTH += 1  # what joblib's other backends ask for
    if initializer is not None:
        initializer(*initargs)


joblib.register_parallel_backend("ipcbuf", IpcbufBackend)
