# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing` on shared memory: the same names, faster, and not hung by a death.

    import ipcbuf_mp as multiprocessing

Everything that `multiprocessing` exports is here. `Queue`, `JoinableQueue`, `SimpleQueue`,
`Pipe` and `get_context` are ours; the rest is the standard library's own. On top there are

- `ProcessPoolExecutor`, also called `Executor`, as in `concurrent.futures`;
- `install()`, which gives a program that says `import multiprocessing` our classes, and
  `uninstall()`. `python -m ipcbuf_mp PROGRAM` does so for an unmodified program.

What is deliberately different from the standard library is listed in docs/differences.md.
"""

from __future__ import annotations

import multiprocessing as _multiprocessing
from multiprocessing import *  # noqa: F403 - all of it is what this module is

from .context import default_context as _default_context

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from . import connection as connection
    from . import executor as executor
    from . import queues as queues
    from ._install import install as install
    from ._install import uninstall as uninstall
    from .executor import Executor as Executor

    ProcessPoolExecutor = Executor

__all__ = sorted(
    {*_multiprocessing.__all__, "Executor", "ProcessPoolExecutor", "install", "uninstall"}
)

JoinableQueue = _default_context.JoinableQueue
Manager = _default_context.Manager
Pipe = _default_context.Pipe
Pool = _default_context.Pool
Queue = _default_context.Queue
SimpleQueue = _default_context.SimpleQueue
get_context = _default_context.get_context

# Where to find what is imported when it is first asked for: importing this package is to be as
# quick as importing multiprocessing.
_LATE = {
    "Executor": ".executor",
    "ProcessPoolExecutor": ".executor",
    "install": "._install",
    "uninstall": "._install",
}
_LATE_MODULES = {"connection", "executor", "queues"}


def __getattr__(name: str) -> object:
    """Import what is ours and not imported yet; look for everything else in multiprocessing."""
    from importlib import import_module

    value: object
    if name in _LATE:
        module = import_module(_LATE[name], __name__)
        value = getattr(module, "Executor" if name == "ProcessPoolExecutor" else name)
    elif name in _LATE_MODULES:
        value = import_module(f".{name}", __name__)
    elif hasattr(_multiprocessing, name):
        return getattr(_multiprocessing, name)  # not kept: it may be replaced there
    else:
        try:
            value = import_module(f"multiprocessing.{name}")
        except ModuleNotFoundError:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message, name=name) from None
    globals()[name] = value
    return value
