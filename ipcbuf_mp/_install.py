# SPDX-License-Identifier: Apache-2.0
"""`install()`: put ipcbuf's classes under a program that says `import multiprocessing`.

Replaced are, in modules of the standard library, and put back by `uninstall()`:

- the methods of every context that make queues, pipes and pools, whoever made the context, and so
  `multiprocessing.Queue` and its like;
- how processes start (`_process.py`);
- `multiprocessing.connection.Pipe`;
- `ProcessPoolExecutor` in `concurrent.futures` and `concurrent.futures.process`.

The modules of the last two are patched when somebody imports them. Importing them here would
make every child slower to start, and few children need them all.

The classes in `multiprocessing.queues` stay. They find each other by name there, and so do
classes made from them: one that is made before `install()` in the parent, but after it in a
spawned child, would be two different things.

Children have our classes before they import the main module. A forked child inherits them. A
child of the other start methods first unpickles its preparation data, and the `sys_path` in there
installs ipcbuf while it is unpickled (`_InstallingPath`). The fork server does not unpickle it; it
is given its `repr`, and evaluates that before it preloads anything. As the children are patched
too, so are their children. Processes started in any other way are left alone.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.context
import multiprocessing.process
import multiprocessing.spawn
import os.path
import sys
from contextlib import ExitStack
from importlib import import_module

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_installed: ExitStack | None = None  # how to put everything back


def install() -> None:
    """Replace the queues, pipes and process pools of the standard library by ipcbuf's.

    Call it before the program's other modules are imported: a class that was imported before,
    as by `from concurrent.futures import ProcessPoolExecutor`, stays what it was.
    Installing twice is the same as installing once. Where ipcbuf cannot work, this warns and
    leaves everything as it is.
    """
    from .context import engine_works

    if engine_works():
        install_in_child()


def install_in_child() -> None:
    """As `install()`, where the parent has found out that ipcbuf works."""
    global _installed
    if _installed is not None:
        return
    from . import _process
    from .context import ContextMethods

    with ExitStack() as undo:
        for name, method in vars(ContextMethods).items():
            if not name.startswith("_"):
                _replace(undo, multiprocessing.context.BaseContext, name, method)
                default = multiprocessing.context._default_context
                _replace(undo, multiprocessing, name, getattr(default, name))

        _replace(undo, multiprocessing.process.BaseProcess, "start", _process.start)
        spawn, server = (
            multiprocessing.context.SpawnProcess,
            multiprocessing.context.ForkServerProcess,
        )
        _replace(undo, spawn, "_Popen", staticmethod(_process.popen_spawn))
        _replace(undo, server, "_Popen", staticmethod(_process.popen_forkserver))

        prepare = _with_install(multiprocessing.spawn.get_preparation_data)
        _replace(undo, multiprocessing.spawn, "get_preparation_data", prepare)

        finder = _LateFinder()
        sys.meta_path.insert(0, finder)
        undo.callback(sys.meta_path.remove, finder)
        _installed = undo.pop_all()
    for module in _LATE:
        _replace_late(module)


def uninstall() -> None:
    """Put everything back that `install()` replaced, in this process.

    Objects made in between stay ipcbuf's, names that modules imported in between stay as they
    were imported, and running children stay as they are.
    """
    global _installed
    if _installed is not None:
        undo, _installed = _installed, None
        undo.close()


_MISSING = object()


def _replace(undo: ExitStack, owner: object, name: str, value: object) -> None:
    """Set an attribute, and let *undo* restore the old value, or its absence."""
    old = vars(owner).get(name, _MISSING)
    if old is _MISSING:
        undo.callback(delattr, owner, name)
    else:
        undo.callback(setattr, owner, name, old)
    setattr(owner, name, value)


# --- children -------------------------------------------------------------------------------------


class _InstallingPath(list[str]):
    """A `sys.path` for a child; whoever unpickles it, or evaluates its repr, has installed ipcbuf.

    The child may not be able to import this package until it has this very path. So what travels
    is a call of `eval`, which sets the path, installs, and returns the path as a plain list.
    """

    CODE = """[
        setattr(__import__('sys'), 'path', home + path),
        __import__('ipcbuf_mp._install', fromlist=['*']).install_in_child(),
        home and __import__('ipcbuf'),
        setattr(__import__('sys'), 'path', path),
    ] and path"""

    def _variables(self) -> dict[str, list[str]]:
        # Our own folder may be off the program's path: `python -m ipcbuf_mp` takes the current one
        # off. Then what is usually imported later, ipcbuf, has to be imported while it is on it.
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
        return {"path": list(self), "home": [] if home in self else [home]}

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, dict[str, list[str]]]]:
        return eval, (self.CODE, self._variables())

    def __repr__(self) -> str:
        return f"eval({self.CODE!r}, {self._variables()!r})"


def _with_install(
    get_preparation_data: Callable[[str], dict[str, Any]],
) -> Callable[[str], dict[str, Any]]:
    """Return *get_preparation_data* with an installing path in what it returns."""

    @functools.wraps(get_preparation_data)
    def get_installing_data(name: str) -> dict[str, Any]:
        data = get_preparation_data(name)
        data["sys_path"] = _InstallingPath(data["sys_path"])
        return data

    return get_installing_data


# --- what is replaced when it is imported ---------------------------------------------------------

# Module of the standard library: a name in it; module of ours, and the name there.
_LATE = {
    "multiprocessing.connection": ("Pipe", "ipcbuf_mp.connection", "Pipe"),
    "concurrent.futures.process": ("ProcessPoolExecutor", "ipcbuf_mp.executor", "Executor"),
}
# Ours import theirs. When that happens in the middle of ours, replacing waits for the end of ours.
_WATCHED = {watched: theirs for theirs, (_, ours, _) in _LATE.items() for watched in (theirs, ours)}


def _replace_late(module: str) -> None:
    """Replace what is ours in *module* of the standard library, if it and ours are imported."""
    theirs = sys.modules.get(module)
    if theirs is None or _installed is None:
        return
    name, our_module, our_name = _LATE[module]
    ours = import_module(our_module)
    value = getattr(ours, our_name, None)
    if value is None or getattr(theirs, name) is value:
        return
    _replace(_installed, theirs, name, value)
    if name == "ProcessPoolExecutor":  # the package has it too, at the latest when asked for it
        _replace(_installed, sys.modules["concurrent.futures"], name, value)


class _LateFinder:
    """Finds the watched modules as the other finders do, and adds a step to their loading."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _WATCHED:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                _then_replace(spec.loader, _WATCHED[name])
                return spec
        return None


def _then_replace(loader: Any, module: str) -> None:
    """Let the one module that *loader* will execute be followed by `_replace_late(module)`."""

    def exec_module(executed: ModuleType) -> None:
        del loader.exec_module  # the class has the real one
        loader.exec_module(executed)
        _replace_late(module)

    loader.exec_module = exec_module
