# SPDX-License-Identifier: Apache-2.0
"""The worker processes of an executor.

A worker takes the oldest task, says on the board that it is busy with it, runs it, sends what
came of it, and is idle again. `_pool.py` is the other side.

Signals
  SIGINT, from Ctrl-C, reaches the whole process group: it interrupts tasks and initializers, but
  not a worker that starts or is between tasks. A worker interrupted at the wrong instruction would
  lose a task that it has just taken. What happens to the tasks still waiting is for the parent to
  say.
  INTERRUPT is sent by the parent to end one task; its number is on the board, so that a signal
  that comes too late hits nobody. One that comes right before a system call is not heard until
  that returns, so the parent repeats it until the board says that it was.

Imports
  Few: a worker that is not forked waits for them before its first task. What only failures need
  is imported when they come.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time

import ipcbuf

from . import _pickling as _pickling  # how objects cross: sets the codec
from ._board import HEARD, INTERRUPT, SINCE, TASK, Board
from ._references import call_of

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures.process import _ExceptionWithTraceback
    from multiprocessing.process import BaseProcess
    from typing import Any

    from ._lifeline import Gate, Lifeline

# What a message on the result channel is: (task or pid, one of these, value).
RESULT = 0  # task, value
ERROR = 1  # task, exception
RETIRED = 2  # pid: the worker has run its share of tasks and leaves
FAILED = 3  # pid, traceback: it dies of its initializer, or of a task that does not unpickle
DIED = 4  # pid: from the watcher
WAKE = 5  # look at `closing` again
JUDGED = 6  # pid, (what it ran, tasks that are gone): whose results have not come by now are lost
RECORD = 7  # pid, a log record
LEAVING = 8  # pid: the worker begins the last task of its share

STOP = 0  # the task number that tells a worker to leave; real ones start at 1

INTERRUPT_SIGNAL = signal.SIGRTMAX - 7

# How often an idle worker looks whether its parent is alive: by itself, and where the kernel would
# have killed it. Each look begins a new wait, and the first second of a wait is its dearest.
_PATROL_SECONDS = 1.0
_GUARDED_PATROL_SECONDS = 60.0
_PAGE = os.sysconf("SC_PAGE_SIZE")

_in_task = False
_row: memoryview | None = None


class TaskInterrupted(KeyboardInterrupt):
    """Raised in a task whose time is up, or that was cancelled while it ran."""


class Environment(dict[str, str]):
    """Variables that are set in a worker as soon as this is unpickled there, or is used."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _set_environment, (dict(self),)


def _set_environment(variables: dict[str, str]) -> Environment:
    os.environ.update(variables)
    return Environment(variables)


class DeafName(str):
    """The name of a worker; as soon as it is unpickled, which is early, SIGINT is blocked there."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # A fork server's child may not be able to import this module yet.
        code = f"__import__('signal').pthread_sigmask({signal.SIG_BLOCK:d}, [{signal.SIGINT:d}])"
        return eval, (f"({code}, {str(self)!r})[1]",)


@contextlib.contextmanager
def sigint_blocked(process: BaseProcess, method: str | None) -> Iterator[None]:
    """Start *process* in here: it is deaf for SIGINT until `serve` has a handler for it.

    A child inherits what its parent blocks. That of a fork server inherits from the server, which
    must not block anything for all the others.
    """
    if method == "forkserver":
        process.name = DeafName(process.name)
        yield
        return
    if method == "spawn":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # to start it unblocks what we block
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


class WorkerOptions:
    """What all workers of a pool are told."""

    # A dataclass would take every new worker 4 ms to import, a NamedTuple 3.
    def __init__(
        self,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks: int | None = None,
        max_rss: int | None = None,
        survives: bool = False,
        log_level: int | None = None,
    ) -> None:
        """Take them down.

        Args:
            initializer: Called before the first task.
            initargs: Its arguments.
            max_tasks: How many tasks a worker runs before it leaves.
            max_rss: How many bytes it may have in memory after a task before it leaves.
            survives: A task that does not unpickle is its own failure, not the pool's.
            log_level: Send log records from there on to the parent.
        """
        self.initializer = initializer
        self.initargs = initargs
        self.max_tasks = max_tasks
        self.max_rss = max_rss
        self.survives = survives
        self.log_level = log_level


def serve(
    environment: Environment,
    tasks: ipcbuf.Receiver,
    results: ipcbuf.Sender,
    lifeline: Lifeline,
    board: Board,
    slot: int,
    options: WorkerOptions,
    hears_ctrl_c: bool,
    modules: Iterable[str] = (),
    gate: Gate | None = None,
) -> None:
    """Run tasks until told to stop. The main function of a worker process.

    *hears_ctrl_c* says that SIGINT was blocked only while this worker started.
    *modules* are those of the functions that wait; the first tasks need not wait for them.
    """
    global _row, _in_task
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_ctrl_c)
    if hears_ctrl_c:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.update(environment)  # of a forked worker
    lifeline.hang_on()
    board.keep_traceback(slot)
    _row = board.row(slot)
    signal.signal(INTERRUPT_SIGNAL, _on_interrupt)
    if options.log_level is not None:
        from ._forwarding import forward_logging

        forward_logging(results, options.log_level)
    if options.initializer is not None:
        try:
            try:
                _in_task = True
                options.initializer(*options.initargs)
            finally:
                _in_task = False
        except BaseException as error:
            from concurrent.futures._base import LOGGER

            LOGGER.critical("Exception in initializer:", exc_info=True)
            results.send_object((os.getpid(), FAILED, text_of(error)))
            return
    for name in modules:
        with contextlib.suppress(BaseException):  # the task that needs it will raise the same
            __import__(name)
    if gate is not None:
        gate.wait()
    with contextlib.suppress(ipcbuf.PeerError), tasks, results:  # until nobody is left to work for
        for left in _countdown(options.max_tasks):
            task = _next_task(tasks, lifeline)
            if task is None:
                return
            if left == 0:
                results.send_object((os.getpid(), LEAVING, None))
            _run(task, results, _row, options.survives)
            del task  # its arguments and its block, before we sleep
            if options.max_rss is not None and _rss() > options.max_rss:
                break
        results.send_object((os.getpid(), RETIRED, None))


def _countdown(max_tasks: int | None) -> Iterator[int | None]:
    """How many tasks will be left after each."""
    return itertools.repeat(None) if max_tasks is None else iter(range(max_tasks - 1, -1, -1))


def _next_task(tasks: ipcbuf.Receiver, lifeline: Lifeline) -> ipcbuf.Task | None:
    """Wait for a task; None when it is time to leave."""
    patrol = _GUARDED_PATROL_SECONDS if lifeline.is_guarded else _PATROL_SECONDS
    while True:
        try:
            task = tasks.recv_task(patrol)
        except ipcbuf.ChannelEmpty:
            if lifeline.is_cut():
                return None
        else:
            return None if task.task_id == STOP else task


def _run(task: ipcbuf.Task, results: ipcbuf.Sender, row: memoryview, survives: bool) -> None:
    """Run one task and send back what came of it."""
    global _in_task
    task_id = task.task_id
    row[SINCE] = time.monotonic_ns()
    row[TASK] = task_id
    try:
        fn, args, kwargs = call_of(task.load())
    except BaseException as error:
        if not survives:
            # As the standard library: whoever cannot read a task dies of it, and the pool breaks.
            results.send_object((os.getpid(), FAILED, text_of(error)))
            raise
        _send_error(results, task_id, error)
        row[TASK] = 0
        return
    try:
        try:
            _in_task = True
            if row[INTERRUPT] == task_id:  # while it was being loaded
                _on_interrupt(0, None)
            value = fn(*args, **kwargs)
        finally:
            _in_task = False
        results.send_object((task_id, RESULT, value))
    except BaseException as error:
        _in_task = False  # the signal may have come a moment too early for the line above
        _send_error(results, task_id, error)
    row[TASK] = 0


def _send_error(results: ipcbuf.Sender, task_id: int, error: BaseException) -> None:
    try:
        results.send_object((task_id, ERROR, _with_traceback(error)))
    except ipcbuf.PeerError:
        raise
    except BaseException as refusal:  # the exception itself does not pickle: send why
        results.send_object((task_id, ERROR, _with_traceback(refusal)))


def _with_traceback(error: BaseException) -> _ExceptionWithTraceback:
    """Give *error* the form in which it becomes its own text's `__cause__` when unpickled."""
    # Not above: where ipcbuf is installed, that imports the executor, which imports this module.
    from concurrent.futures.process import _ExceptionWithTraceback

    assert error.__traceback__ is not None
    return _ExceptionWithTraceback(error, error.__traceback__)


def text_of(error: BaseException) -> str:
    """The traceback, as Python prints it."""
    from traceback import format_exception

    return "".join(format_exception(error))


def _on_ctrl_c(signum: int, frame: object) -> None:
    if _in_task:
        raise KeyboardInterrupt


def _on_interrupt(signum: int, frame: object) -> None:
    if not _in_task or _row is None:
        return
    task_id = _row[TASK]
    if _row[INTERRUPT] == task_id != _row[HEARD]:
        _row[HEARD] = task_id
        raise TaskInterrupted("the task was cancelled, or its time is up")


def _rss() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # faster
        return int(file.read().split()[1]) * _PAGE
