# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing.process`: the standard library's processes, which start where those refuse.

- What pickle refuses to send to a new process goes through cloudpickle: lambdas, closures,
  processes of a class that was made in a function.
- A process that was forked may start others through a fork server, also if its parent has one.
- A process may start without running the program's main module again (`without_main`).
- A daemonic process may have children. They are daemonic by default, and end with it if it ends by
  itself; if it is killed, they are left alone as any process is whose parent was killed.
"""

from __future__ import annotations

import multiprocessing.context
import multiprocessing.process
import os
import signal
import sys
import threading
from multiprocessing.process import BaseProcess

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["ForkProcess", "ForkServerProcess", "Process", "SpawnProcess"]

# What children of a fork server would import one by one.
_PRELOADED = ("ipcbuf_mp._worker", "ipcbuf_mp.queues")

_start = BaseProcess.start
_posing = threading.RLock()
# As the standard library's own locks; typeshed does not know it.
os.register_at_fork(after_in_child=_posing._at_fork_reinit)  # type: ignore[attr-defined]


def start(process: BaseProcess) -> None:
    """Start a process, as `BaseProcess.start`, from a daemonic one too."""
    config: dict[str, Any] = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    if not config.get("daemon"):
        _start(process)
        return
    with _posing:  # as what may have children
        config["daemon"] = False
        try:
            _start(process)
        finally:
            config["daemon"] = True


def terminate(process: BaseProcess) -> None:
    """End a process, as `BaseProcess.terminate`, also one that is stopped."""
    process.terminate()
    let_go_on(process)


def let_go_on(process: BaseProcess) -> None:
    """Let a process go on that may be stopped: it hears no SIGTERM, and may have a lock."""
    pid = getattr(process, "pid", None)  # a class of the context's own may have none
    if pid is not None and process.exitcode is None:
        try:  # noqa: SIM105 - contextlib is slow to import
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def _by_value(process: Any) -> Any:
    """Return what stands for a process that is being started, and is pickled by cloudpickle."""
    from ._pickling import ByValue

    stand_in: Any = ByValue(process)
    stand_in._name = process._name  # which whoever starts it looks at
    return stand_in


def by_value_if_refused(popen: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return *popen*, which starts a process, with a second try where pickle refuses it.

    Nothing was started by then: the whole process object is pickled before.
    """

    def popen_or_by_value(process: Any) -> Any:
        from pickle import PicklingError

        try:
            return popen(process)
        except (PicklingError, AttributeError, TypeError) as refusal:
            try:
                return popen(_by_value(process))
            except (PicklingError, AttributeError, TypeError):
                raise refusal from None  # the error of pickle is the one that is documented

    return popen_or_by_value


def with_parcels(popen: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return *popen*, whose child takes what it was sent with it if it dies before it has it."""

    def popen_with_parcels(process: Any) -> Any:
        if "ipcbuf" not in sys.modules:  # there is nothing that could be sent
            return popen(process)
        from ipcbuf import Parcels

        with Parcels() as parcels:
            child = popen(process)
        parcels.address(child.pid)
        return child

    return popen_with_parcels


def start_with_parcels(process: BaseProcess) -> None:
    """Start a process of any context, as `with_parcels`."""
    from ipcbuf import Parcels

    with Parcels() as parcels:
        process.start()
    pid = getattr(process, "pid", None)  # a context's process need not be one, as in tests
    if pid is not None:
        parcels.address(pid)


class without_main:  # noqa: N801  # a function to its users; contextlib is slow to import
    """Let a process that this thread starts in here not run the program's main module.

    What that module defines does not exist in the process: it has to be sent by value.
    """

    def __enter__(self) -> None:
        from multiprocessing import spawn

        this_thread = threading.get_ident()
        _posing.acquire()
        self._get_data = get_data = spawn.get_preparation_data

        def get_data_without_main(name: str) -> dict[str, Any]:
            data: dict[str, Any] = get_data(name)
            if threading.get_ident() == this_thread:
                for key in ("init_main_from_name", "init_main_from_path"):
                    data.pop(key, None)
                if data["start_method"] not in ("fork", "spawn", "forkserver"):
                    data["start_method"] = None  # the process may not know it, as that of loky
            return data

        spawn.get_preparation_data = get_data_without_main
        self._spawn = spawn

    def __exit__(self, *exc_info: object) -> None:
        self._spawn.get_preparation_data = self._get_data
        _posing.release()


def with_own_server(popen: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return *popen*, which asks the fork server, with a server that is ours.

    A process that was forked has its parent's in its variables. It cannot wait for that one, which
    the standard library tries, and raises ChildProcessError. A server that starts now imports what
    its children need.
    """

    def popen_with_own_server(process: Any) -> Any:
        from multiprocessing import forkserver

        server: Any = forkserver._forkserver
        with server._lock:
            if server._forkserver_pid is not None:
                try:
                    os.waitid(
                        os.P_PID, server._forkserver_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
                    )
                except ChildProcessError:
                    os.close(server._forkserver_alive_fd)
                    server._forkserver_address = None
                    server._forkserver_alive_fd = None
                    server._forkserver_pid = None  # a new one is started
            if server._forkserver_pid is None:
                modules = list(server._preload_modules or ())
                modules += [name for name in _PRELOADED if name not in modules]
                server._preload_modules = modules
        return popen(process)

    return popen_with_own_server


popen_spawn = by_value_if_refused(with_parcels(multiprocessing.context.SpawnProcess._Popen))
popen_forkserver = with_own_server(
    by_value_if_refused(with_parcels(multiprocessing.context.ForkServerProcess._Popen))
)


class Process(multiprocessing.context.Process):
    """A process of the current start method, as `multiprocessing.Process`."""

    start = start

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802
        from .context import default_context

        return default_context.get_context().Process._Popen(process)


class ForkProcess(multiprocessing.context.ForkProcess):
    """A process that is forked, as `multiprocessing.context.ForkProcess`."""

    start = start


class SpawnProcess(multiprocessing.context.SpawnProcess):
    """A process that begins anew, as `multiprocessing.context.SpawnProcess`."""

    start = start
    _Popen: Any = staticmethod(popen_spawn)


class ForkServerProcess(multiprocessing.context.ForkServerProcess):
    """A process that a server forks, as `multiprocessing.context.ForkServerProcess`."""

    start = start
    _Popen: Any = staticmethod(popen_forkserver)
