# SPDX-License-Identifier: Apache-2.0
"""The same executor on more than one machine, by dask.distributed.

`ipcbuf_mp.executor("tcp://scheduler:8786")` makes one. Scheduling, transport and the workers are
dask's; this gives them the contract of `concurrent.futures`, where dask's own executor differs:

- A call is a call: dask takes two equal ones for one (`pure`), and takes keywords such as `key`
  and `workers` for itself. Here a call has a key of its own and its keywords are its own.
- `map` knows `chunksize` and `buffersize`, `shutdown` knows `cancel_futures`.
- An exception's `__cause__` is the text of the worker's traceback.
- What cannot cross machines says so when it is submitted.

Whether `Future.cancel` ends a task that runs is dask's decision: it is cancelled, and the worker
goes on in its thread.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import threading
import weakref
from concurrent.futures import Executor as _AnyExecutor
from concurrent.futures import Future
from concurrent.futures._base import LOGGER, InvalidStateError
from concurrent.futures.process import BrokenProcessPool, _ExceptionWithTraceback
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import uuid4

import cloudpickle
import distributed

from .executor import _Calls

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DaskExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

_ONLY_HERE = {
    "max_tasks_per_child": "how long workers live is said where they are started, with `dask worker --lifetime`",
    "max_rss_per_child": "how much memory workers use is said where they are started",
    "mp_context": "workers exist already",
    "max_queued_bytes": "dask counts tasks",
    "forward_logging": "use Client.forward_logging()",
    "import_main": "workers never run the main module",
    "grace": "dask does not end tasks that run",
}
# Types whose objects name something of this machine.
_HEAP_MODULES = ("ipcbuf", "ipcbuf_mp")


class DaskExecutor(_Calls, _AnyExecutor):
    """An executor on the workers of a dask cluster."""

    def __init__(
        self,
        where: str | distributed.Client,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        on_worker_death: str = "break",
        retries: int = 0,
        max_queued: int = 0,
        **options: Any,
    ) -> None:
        """Connect to a scheduler.

        Args:
            where: Its address, or a client, which is not closed with the executor.
            max_workers: None, or the most calls that are with the scheduler at a time.
            initializer: Called once in each worker process, before its first call.
            initargs: Its arguments.
            on_worker_death: As for the local executor. Dask replaces workers in any case.
            retries: How often dask runs a call again whose worker died.
            max_queued: As for the local executor.
            **options: Those of the local executor that have no meaning here.

        Raises:
            NotImplementedError: An option has no meaning here.
        """
        for name, value in options.items():
            if name not in _ONLY_HERE:
                raise TypeError(f"{type(self).__name__} got an unexpected keyword {name!r}")
            if value is not None:
                raise NotImplementedError(f"{name} on dask: {_ONLY_HERE[name]}")
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._owns_client = isinstance(where, str)
        self._client = _connect(where)
        self._breaks = on_worker_death == "break"
        self._retries = retries
        self._prepare = None if initializer is None else (uuid4().hex, initializer, initargs)
        limit = max_queued + max_workers if max_workers and max_queued else max_workers
        self._room = threading.BoundedSemaphore(limit) if limit else None
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._pending: dict[Future[Any], Any] = {}
        self._is_shut_down = False
        self._broken: str | None = None
        weakref.finalize(self, _close_later, self._pending, self._client, self._owns_client)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Send `fn(*args, **kwargs)` to a worker and return its future.

        Raises:
            BrokenProcessPool: A worker has died.
            RuntimeError: The executor was shut down.
            Exception: What pickling the call raises, among them `TypeError` for shared memory,
                is the future's.
        """
        with self._lock:
            self._refuse()
        future: Future[T] = _DaskFuture()
        try:
            call = _encode((fn, args, kwargs))
        except Exception as error:
            future.set_exception(error)
            return future
        if self._room is not None:
            self._room.acquire()
        with self._lock:
            try:
                self._refuse()
                task = self._client.submit(
                    _run, call, self._prepare, key=f"ipcbuf-{uuid4().hex}", pure=False,
                    retries=self._retries,
                )  # fmt: skip
            except BaseException:
                self._leave()
                raise
            self._pending[future] = task
        future._task = task  # type: ignore[attr-defined]
        future.add_done_callback(self._forget)
        task.add_done_callback(lambda task: self._complete(future, task))
        return future

    def _refuse(self) -> None:
        if self._broken:
            raise BrokenProcessPool(self._broken)
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _leave(self) -> None:
        if self._room is not None:
            self._room.release()

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.pop(future, None)
            self._leave()
            self._ended.notify_all()

    def _complete(self, future: Future[Any], task: Any) -> None:
        """Give the future what came of the task. In a thread of dask's."""
        value: Any = None
        failure: BaseException | None = None
        try:
            if task.cancelled():
                future.cancel()
                return
            failure = task.exception()
            if failure is None:
                ok, value = pickle.loads(task.result())
                if not ok:
                    failure, value = value, None
            elif isinstance(failure, distributed.KilledWorker):
                text = f"A worker of the cluster died: {failure}"
                if self._breaks:
                    self._break(text)
                failure = BrokenProcessPool(text)
        except BaseException as error:
            failure = error
        try:
            if failure is None:
                future.set_result(value)
            else:
                future.set_exception(failure)
        except InvalidStateError:
            pass
        except BaseException:
            LOGGER.exception("exception calling callback for %r", future)

    def _break(self, text: str) -> None:
        self._broken = text
        with self._lock:
            others = list(self._pending.items())
        for future, task in others:
            task.cancel()
            with contextlib.suppress(InvalidStateError):
                future.set_exception(BrokenProcessPool(text))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and leave the cluster when those submitted are done."""
        with self._lock:
            self._is_shut_down = True
            futures = list(self._pending)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            with self._ended:
                self._ended.wait_for(lambda: not self._pending)
            if self._owns_client:
                self._client.close()


def _connect(where: Any) -> Any:
    return distributed.Client(where, set_as_default=False) if isinstance(where, str) else where


class _DaskFuture(Future[Any]):
    """A future that is cancelled in the cluster, too."""

    _task: Any = None

    def cancel(self) -> bool:
        """Cancel the call, unless it is done."""
        cancelled = super().cancel()
        if cancelled:
            if self._task is not None:
                self._task.cancel()
            with self._condition:
                if self._state == "CANCELLED":
                    self.set_running_or_notify_cancel()
        return cancelled


def _close_later(pending: dict[Future[Any], Any], client: Any, owns_client: bool) -> None:
    """Leave the cluster when a dropped executor has nothing to wait for any more."""
    if not owns_client:
        return
    left = list(pending)
    if not left:
        with contextlib.suppress(Exception):
            client.close(timeout=1)
        return
    lock = threading.Lock()

    def done(future: Future[Any]) -> None:
        with lock:
            left.remove(future)
            last = not left
        if last:
            threading.Thread(target=client.close, daemon=True).start()

    for future in list(left):
        future.add_done_callback(done)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
    """Refuses what exists on this machine only."""

    def reducer_override(self, obj: Any) -> Any:
        module = type(obj).__module__.split(".", 1)[0]
        if module in _HEAP_MODULES and not isinstance(obj, (type, BaseException)):
            raise TypeError(
                f"a {type(obj).__qualname__} is in the shared memory of this machine and cannot "
                "go to another; send a copy, or use Client.scatter"
            )
        return super().reducer_override(obj)


def _encode(call: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 5).dump(call)
    return buffer.getvalue()


_prepared: set[str] = set()  # executors whose initializer this worker has called
_prepared_lock = threading.Lock()


def _run(call: bytes, prepare: Any) -> bytes:
    """Run a call in a worker; return `(True, result)` or `(False, exception)`, pickled."""
    try:
        if prepare is not None:
            _prepare_once(*prepare)
        fn, args, kwargs = pickle.loads(call)
        return cloudpickle.dumps((True, fn(*args, **kwargs)))  # type: ignore[no-any-return]
    except BaseException as error:
        try:
            return _encode_failure(error)
        except BaseException as refusal:
            return _encode_failure(refusal)


def _encode_failure(error: BaseException) -> bytes:
    assert error.__traceback__ is not None
    return cloudpickle.dumps((False, _ExceptionWithTraceback(error, error.__traceback__)))  # type: ignore[no-any-return]


def _prepare_once(key: str, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    with _prepared_lock:
        if key not in _prepared:
            initializer(*initargs)
            _prepared.add(key)
