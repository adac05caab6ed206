# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing` on shared memory: the same names, faster, and not hung by a death.

    import ipcbuf_mp as multiprocessing

Everything that `multiprocessing` exports is here. `Queue`, `JoinableQueue`, `SimpleQueue`,
`Pipe`, `Pool`, `Process` and `get_context` are ours; the rest is the standard library's own. On top there are

- `ProcessPoolExecutor`, also called `Executor`, as in `concurrent.futures`;
- `install()`, which gives a program that says `import multiprocessing` our classes, and
  `uninstall()`. `python -m ipcbuf_mp PROGRAM` does so for an unmodified program.

What is deliberately different from the standard library is listed in docs/differences.md.
"""

from __future__ import annotations

import multiprocessing as _multiprocessing
import sys as _sys

from .context import default_context as _default_context

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from multiprocessing import Array as Array
    from multiprocessing import AuthenticationError as AuthenticationError
    from multiprocessing import Barrier as Barrier
    from multiprocessing import BoundedSemaphore as BoundedSemaphore
    from multiprocessing import BufferTooShort as BufferTooShort
    from multiprocessing import Condition as Condition
    from multiprocessing import Event as Event
    from multiprocessing import Lock as Lock
    from multiprocessing import ProcessError as ProcessError
    from multiprocessing import RawArray as RawArray
    from multiprocessing import RawValue as RawValue
    from multiprocessing import RLock as RLock
    from multiprocessing import Semaphore as Semaphore
    from multiprocessing import TimeoutError as TimeoutError  # noqa: A004
    from multiprocessing import Value as Value
    from multiprocessing import active_children as active_children
    from multiprocessing import allow_connection_pickling as allow_connection_pickling
    from multiprocessing import cpu_count as cpu_count
    from multiprocessing import current_process as current_process
    from multiprocessing import freeze_support as freeze_support
    from multiprocessing import get_logger as get_logger
    from multiprocessing import log_to_stderr as log_to_stderr
    from multiprocessing import parent_process as parent_process
    from multiprocessing import reducer as reducer
    from multiprocessing import set_executable as set_executable
    from multiprocessing import set_forkserver_preload as set_forkserver_preload

    from . import connection as connection
    from . import pool as pool
    from . import queues as queues
    from ._install import install as install
    from ._install import uninstall as uninstall
    from ._process import Process as Process
    from .executor import Executor as Executor
    from .executor import executor as executor  # the module, which can be called
    from .queues import JoinableQueue as JoinableQueue
    from .queues import Queue as Queue
    from .queues import ShutDown as ShutDown
    from .queues import SimpleQueue as SimpleQueue

    ProcessPoolExecutor = Executor
    __version__: str
else:
    # All that multiprocessing exports in the running Python, as far as it is not ours.
    globals().update({name: getattr(_multiprocessing, name) for name in _multiprocessing.__all__})

    JoinableQueue = _default_context.JoinableQueue
    Process = _default_context.Process
    Queue = _default_context.Queue
    SimpleQueue = _default_context.SimpleQueue
del TYPE_CHECKING

__all__ = sorted(
    {
        *_multiprocessing.__all__,
        "Executor",
        "ProcessPoolExecutor",
        "ShutDown",
        "install",
        "uninstall",
    }
)

Manager = _default_context.Manager
Pipe = _default_context.Pipe
Pool = _default_context.Pool
get_all_start_methods = _default_context.get_all_start_methods
get_context = _default_context.get_context
get_start_method = _default_context.get_start_method
set_start_method = _default_context.set_start_method

# Where to find what is imported when it is first asked for: importing this package is to be as
# quick as importing multiprocessing.
_LATE = {
    "Executor": ".executor",
    "ProcessPoolExecutor": ".executor",
    "ShutDown": ".queues",
    "install": "._install",
    "uninstall": "._install",
}
_LATE_MODULES = {"connection", "executor", "pool", "queues"}


def __getattr__(name: str) -> object:
    """Import what is ours and not imported yet; look for everything else in multiprocessing."""
    from importlib import import_module

    value: object
    if name in _LATE:
        module = import_module(_LATE[name], __name__)
        value = getattr(module, "Executor" if name == "ProcessPoolExecutor" else name)
    elif name in _LATE_MODULES:
        value = import_module(f".{name}", __name__)
    elif name == "__version__":
        value = import_module("ipcbuf").__version__
    elif hasattr(_multiprocessing, name):
        return getattr(_multiprocessing, name)  # not kept: it may be replaced there
    else:
        try:
            value = import_module(f".{name}", __name__)
        except ModuleNotFoundError:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message, name=name) from None
    globals()[name] = value
    return value


class _StdlibModules:
    """Finds `ipcbuf_mp.managers` and its like, which are the standard library's modules."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        package, _, rest = name.partition(".")
        if package != __name__ or not rest:
            return None
        from importlib.util import find_spec, spec_from_loader

        theirs = f"multiprocessing.{rest}"
        return find_spec(theirs) and spec_from_loader(name, _StdlibModule(theirs))  # type: ignore[arg-type]


class _StdlibModule:
    """Gives a module of the standard library another name."""

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def create_module(spec: object) -> None:
        """Leave it to the import system: what it makes is thrown away."""

    def exec_module(self, module: object) -> None:
        from importlib import import_module

        _sys.modules[module.__name__] = import_module(self.name)  # type: ignore[attr-defined]


_sys.meta_path.append(_StdlibModules)  # type: ignore[arg-type] # behind those that find ours
