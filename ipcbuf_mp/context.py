# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing.context`, with our queues and pipes.

Every context here is the standard library's of the same start method, with a few methods
replaced. Its locks and managers are the standard library's, its processes too but for how they
start (`_process.py`).

Which start method is the current one is a single fact of the process, and the standard
library keeps it: `set_start_method` here and there do the same, and children agree.

The modules with the classes are imported when the first object is made: a program that only
imports this package starts as quickly as one that imports `multiprocessing`.
"""

from __future__ import annotations

import errno
import functools
from multiprocessing import context as _stdlib
from multiprocessing.context import BaseContext

from . import _process

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from . import connection, queues

__all__ = [
    "ContextMethods",
    "DefaultContext",
    "ForkContext",
    "ForkServerContext",
    "SpawnContext",
    "default_context",
    "get_context",
]

_stdlib_default: _stdlib.DefaultContext = _stdlib._default_context

# As they are before anybody replaces them: what a kernel that lacks something gets.
_stdlib_methods = {
    name: getattr(BaseContext, name)
    for name in ("JoinableQueue", "Pipe", "Pool", "Queue", "SimpleQueue")
}

_LACKING = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@functools.cache
def engine_works() -> bool:
    """Say whether shared memory works here, and make the default segment if it does.

    Children that start later inherit the segment, so every queue and every context asks.
    Where it does not work, say once why the standard library's objects are used instead.
    """
    try:
        import ipcbuf

        ipcbuf.default_segment()
    except (ImportError, NotImplementedError) as error:
        reason: Exception = error
    except OSError as error:
        if error.errno not in _LACKING:
            raise  # no memory, or no descriptor: not a property of the system
        reason = error
    else:
        return True
    import warnings

    message = f"ipcbuf cannot work here, multiprocessing's own queues and pipes are used: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=3)
    return False


class ContextMethods:
    """The methods that a context has from us instead of from `BaseContext`.

    They ask nothing of `self` but `get_context()`, so they fit into any context.
    """

    def Queue(  # noqa: N802
        self, maxsize: int = 0, *, maxbytes: int = 0, copy: bool = False, orphan: str = "wait"
    ) -> queues.Queue[Any]:
        """Return a queue, as `multiprocessing.Queue`.

        Args:
            maxsize: Objects that it holds at most; 0: any number.
            maxbytes: Bytes of objects that it holds at most, or one larger object; 0: any number.
            copy: Whether arrays that are got are in private memory.
            orphan: "raise": a `get` of which nothing can come, because no other process has the
                queue any more, is an EOFError. "wait": it waits, as the standard library's.
        """
        if not engine_works():
            return _from_stdlib("Queue", self, maxsize)  # type: ignore[no-any-return]
        from .queues import Queue

        return Queue(maxsize, ctx=_concrete(self), maxbytes=maxbytes, copy=copy, orphan=orphan)

    def JoinableQueue(  # noqa: N802
        self,
        maxsize: int = 0,
        *,
        maxbytes: int = 0,
        copy: bool = False,
        orphan: str = "wait",
        lease: bool = False,
    ) -> queues.JoinableQueue[Any]:
        """Return a queue with `task_done` and `join`, as `multiprocessing.JoinableQueue`.

        The options are those of `Queue`, and
            lease: Whether what a killed process had got is put back for the others.
        """
        if not engine_works():
            return _from_stdlib("JoinableQueue", self, maxsize)  # type: ignore[no-any-return]
        from .queues import JoinableQueue

        return JoinableQueue(
            maxsize,
            ctx=_concrete(self),
            maxbytes=maxbytes,
            copy=copy,
            orphan=orphan,
            lease=lease,
        )

    def SimpleQueue(self) -> queues.SimpleQueue[Any]:  # noqa: N802
        """Return a shared pipe, as `multiprocessing.SimpleQueue`."""
        if not engine_works():
            return _from_stdlib("SimpleQueue", self)  # type: ignore[no-any-return]
        from .queues import SimpleQueue

        return SimpleQueue(ctx=_concrete(self))

    def Pipe(  # noqa: N802
        self, duplex: bool = True
    ) -> tuple[connection.Connection, connection.Connection]:
        """Return the two ends of a pipe, as `multiprocessing.Pipe`."""
        if not engine_works():
            return _from_stdlib("Pipe", self, duplex)  # type: ignore[no-any-return]
        from .connection import Pipe

        return Pipe(duplex)

    def Pool(  # noqa: N802
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        *,
        retries: int = 0,
    ) -> Any:
        """Return a pool of worker processes, as `multiprocessing.Pool`; see `pool.Pool`."""
        options = processes, initializer, initargs, maxtasksperchild
        if not engine_works():
            return _from_stdlib("Pool", self, *options)
        from .pool import Pool

        return Pool(*options, context=_concrete(self), retries=retries)


def _from_stdlib(name: str, context: object, *args: object) -> Any:
    return _stdlib_methods[name](context, *args)


def _concrete(context: Any) -> BaseContext:
    concrete: BaseContext = context.get_context()
    return concrete


class _FixedMethod(ContextMethods):
    """What the contexts of one start method have in common."""

    def get_context(self, method: str | None = None) -> Any:
        """Return this context, or the one of another start method."""
        if method is None:
            return self
        return _context_of(method)


class ForkContext(_FixedMethod, _stdlib.ForkContext):  # type: ignore[misc]
    """Starts processes by fork, as `multiprocessing.context.ForkContext`."""

    Process = _process.ForkProcess


class SpawnContext(_FixedMethod, _stdlib.SpawnContext):  # type: ignore[misc]
    """Starts processes by spawn, as `multiprocessing.context.SpawnContext`."""

    Process = _process.SpawnProcess


class ForkServerContext(_FixedMethod, _stdlib.ForkServerContext):  # type: ignore[misc]
    """Starts processes through a server, as `multiprocessing.context.ForkServerContext`."""

    Process = _process.ForkServerProcess


_contexts: dict[str, BaseContext] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}


def _context_of(method: str) -> BaseContext:
    try:
        context = _contexts[method]
    except KeyError:
        raise ValueError(f"cannot find context for {method!r}") from None
    context._check_available()
    engine_works()
    return context


class DefaultContext(ContextMethods, _stdlib.DefaultContext):  # type: ignore[misc]
    """The context of whatever the current start method is, as the standard library's."""

    Process = _process.Process

    def __init__(self) -> None:
        """Keep nothing: the standard library's default context knows everything."""

    @property
    def _default_context(self) -> BaseContext:
        return _stdlib_default._default_context  # type: ignore[attr-defined,no-any-return]

    @property
    def _actual_context(self) -> BaseContext | None:
        return _stdlib_default._actual_context  # type: ignore[attr-defined,no-any-return]

    @_actual_context.setter
    def _actual_context(self, context: BaseContext | None) -> None:
        _stdlib_default._actual_context = context  # type: ignore[attr-defined]

    def get_context(self, method: str | None = None) -> Any:
        """Return the context of *method*; of the current start method if None."""
        return _context_of(method or _stdlib_default.get_start_method())

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Set the start method of this process, once unless *force* is given."""
        _stdlib_default.set_start_method(method, force)

    def get_start_method(self, allow_none: bool = False) -> Any:
        """Return the current start method; None if *allow_none* and none was used or set."""
        return _stdlib_default.get_start_method(allow_none)


default_context = DefaultContext()
get_context = default_context.get_context


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        return getattr(_stdlib, name)
