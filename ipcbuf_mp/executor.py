# SPDX-License-Identifier: Apache-2.0
"""A `concurrent.futures.ProcessPoolExecutor` on shared memory.

The way of a call through the processes:

|============ the process that owns the executor ============|= workers =====|

 any thread                                                   idle workers pull
+----------+  fn, args, kwargs, encoded     +------------+    +-----------+
| submit() | =============================> | task       | => | _serve()  |
+----------+  in the caller's thread        | channel    |    | process 1 |
   |    ^                                   +------------+    |    ...    |
   |    | Future                                              | process n |
   v    |                                                     +-----------+
+---------------+                                                |   |  "busy with
| pending       |                                                |   |   task 7"
| 7: Future, fn |                                                |   v
| ...           |                                                | +-------+
+---------------+                                                | | board |
        ^                                                        | +-------+
        | set_result()                      +------------+       |
+-----------+  7, _RESULT, value            | result     | <=====+
| collector | <============================ | channel    |
| thread    |                               +------------+
+-----------+                                     ^
                                                  | pid, _DIED, None
+-----------+  pidfd of every worker              |
| watcher   | ====================================+
| thread    |
+-----------+

submit():
- gives the call a number and enters its future in `pending`
- starts a worker if there are more calls than workers (all of them at the first call, under fork)
- encodes the call and sends it; a call that cannot be pickled raises here

A worker:
- takes the oldest call, says on the board that it is busy with it, runs it, sends what came of it

The collector:
- completes futures as results come, all that are there for one wake-up
- waits for the result channel alone: whatever else it has to know comes through it too, so the
  death of a worker is read after everything that this worker had sent
- stops the workers and ends when the executor was shut down or collected, or the interpreter
  exits, and no call is pending; if a worker died, it fails what is pending instead

Life of a task: pending -> running -> done, or pending -> cancelled. The state is a word in the
task's block in shared memory, changed by compare-and-swap, so `Future.cancel()` works until the
moment when a worker takes the task.

Who holds whom: the futures and both threads hold the `_Pool`, only the user holds the `Executor`.
When that is collected, the pool is told to finish.

Why no lock is held while encoding: it runs any code, which may take long or submit again. A task
is in `pending` before it is sent, and the collector does not end before `pending` is empty.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import multiprocessing
import os
import select
import signal
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, LOGGER, PENDING, InvalidStateError
from concurrent.futures.process import (
    BrokenProcessPool,
    _ExceptionWithTraceback,
    _RemoteTraceback,
)
from concurrent.futures.process import (
    ProcessPoolExecutor as _StandardExecutor,
)
from multiprocessing import reduction, util
from traceback import format_exception
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import ipcbuf

from . import _pickling as _pickling  # how objects cross: sets the codec
from .context import engine_works, get_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

__all__ = ["BrokenProcessPool", "Executor", "ProcessPoolExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

# What a message on the result channel is: (task or pid, one of these, value).
_RESULT = 0  # task, value
_ERROR = 1  # task, exception
_RETIRED = 2  # pid: the worker has run its share of tasks and leaves
_FAILED = 3  # pid, traceback: it dies of its initializer, or of a task that does not unpickle
_DIED = 4  # pid: from the watcher
_WAKE = 5  # look at `closing` again

_STOP = 0  # the task number that tells a worker to leave; real ones start at 1
_PATROL_SECONDS = 1.0  # how often an idle worker looks whether its parent is alive
_GRACE_SECONDS = 5.0  # what a worker of a broken pool has from SIGTERM to SIGKILL
_RETRY_SECONDS = 0.05  # the watcher's patience with a full heap


# --- in the worker ------------------------------------------------------------------------------

_in_task = False  # SIGINT is for tasks; see _on_interrupt


def _serve(
    tasks: ipcbuf.Receiver,
    results: ipcbuf.Sender,
    lifeline: _Lifeline,
    board: _Board,
    slot: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_tasks: int | None,
) -> None:
    """Run tasks until told to stop. The main function of a worker process."""
    lifeline.hang_on()
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as error:
            LOGGER.critical("Exception in initializer:", exc_info=True)
            results.send_object((os.getpid(), _FAILED, _text_of(error)))
            return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)
    busy_with = board.slot(slot)
    with contextlib.suppress(ipcbuf.PeerError), tasks, results:  # until nobody is left to work for
        for _ in itertools.count() if max_tasks is None else range(max_tasks):
            task = _next_task(tasks, lifeline)
            if task is None:
                return
            _run(task, results, busy_with)
            del task  # its arguments and its block, before we sleep
        results.send_object((os.getpid(), _RETIRED, None))


def _next_task(tasks: ipcbuf.Receiver, lifeline: _Lifeline) -> ipcbuf.Task | None:
    """Wait for a task; None when it is time to leave."""
    while True:
        try:
            task = tasks.recv_task(_PATROL_SECONDS)
        except ipcbuf.ChannelEmpty:
            if lifeline.is_cut():
                return None
        else:
            return None if task.task_id == _STOP else task


def _run(task: ipcbuf.Task, results: ipcbuf.Sender, busy_with: memoryview) -> None:
    """Run one task and send back what came of it."""
    global _in_task
    task_id = task.task_id
    busy_with[0] = task_id
    try:
        fn, args, kwargs = task.load()
    except BaseException as error:
        # As the standard library: whoever cannot read a task dies of it, and the pool breaks.
        results.send_object((os.getpid(), _FAILED, _text_of(error)))
        raise
    try:
        try:
            _in_task = True
            value = fn(*args, **kwargs)
        finally:
            _in_task = False
        results.send_object((task_id, _RESULT, value))
    except BaseException as error:
        _send_error(results, task_id, error)
    busy_with[0] = 0


def _send_error(results: ipcbuf.Sender, task_id: int, error: BaseException) -> None:
    try:
        results.send_object((task_id, _ERROR, _with_traceback(error)))
    except ipcbuf.PeerError:
        raise
    except BaseException as refusal:  # the exception itself does not pickle: send why
        results.send_object((task_id, _ERROR, _with_traceback(refusal)))


def _with_traceback(error: BaseException) -> _ExceptionWithTraceback:
    """Give *error* the form in which it becomes its own text's `__cause__` when unpickled."""
    assert error.__traceback__ is not None
    return _ExceptionWithTraceback(error, error.__traceback__)


def _on_interrupt(signum: int, frame: object) -> None:
    """Ctrl-C reaches the whole process group: it interrupts tasks, but not a worker between them.

    A worker interrupted at the wrong instruction would lose a task that it has just taken.
    What happens to the tasks still waiting is for the parent to say.
    """
    if _in_task:
        raise KeyboardInterrupt


# --- between the processes ----------------------------------------------------------------------


class _Lifeline:
    """A pipe that closes when the process that made it dies, however it dies.

    That process alone holds the write end: whatever it forks closes its copy at once. Workers hold
    the read end. (The pipe that multiprocessing gives every child stays open as long as any other
    child has inherited it.)
    """

    def __init__(self, read_end: int, write_end: int = -1) -> None:
        self._read_end = read_end
        self._write_end = write_end
        self._watching = -1

    def hang_on(self) -> None:
        """Have the kernel kill this process when the pipe closes, even in the middle of a task."""
        with contextlib.suppress(OSError):  # no /proc: an idle worker looks now and then
            # The one to be told is a property of the open file, so we need an open file of our own.
            path = f"/proc/self/fd/{self._read_end}"
            fd = self._watching = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
        if self.is_cut():  # before there was a signal to send
            os._exit(1)

    def is_cut(self) -> bool:
        """Whether the process at the other end is dead."""
        poll = select.poll()
        poll.register(self._read_end, 0)  # a file opened after the death would not tell
        return bool(poll.poll(0))

    def disown(self, *, keep_reading: bool) -> None:
        """In a forked child: close what is the parent's."""
        os.close(self._write_end)
        if not keep_reading:
            os.close(self._read_end)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_lifeline, (reduction.DupFd(self._read_end),)


def _rebuild_lifeline(fd: Any) -> _Lifeline:
    return _Lifeline(fd.detach())


class _Board:
    """A page where each worker writes the number of the task it is busy with, 0 if none.

    It answers `Future.running()`, and what a dead worker was doing. Each word has one writer, and
    nothing depends on its being up to date.
    """

    def __init__(self, slots: int, fd: int | None = None) -> None:
        self._nbytes = 8 * slots
        if fd is None:
            fd = os.memfd_create("ipcbuf-executor", os.MFD_CLOEXEC)
            os.ftruncate(fd, self._nbytes)
        self._fd = fd

    def slot(self, index: int) -> memoryview:
        """The word of worker *index*, to be written by it alone."""
        return memoryview(mmap.mmap(self._fd, self._nbytes)).cast("Q")[index : index + 1]

    def read(self) -> memoryview:
        """All words, as they are now."""
        return memoryview(os.pread(self._fd, self._nbytes, 0) if self._fd >= 0 else b"").cast("Q")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_board, (self._nbytes // 8, reduction.DupFd(self._fd))


def _rebuild_board(slots: int, fd: Any) -> _Board:
    return _Board(slots, fd.detach())


# --- in the process that owns the executor ------------------------------------------------------

_exiting = False
_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()  # those with workers
_exit_pid = 0  # the process that _finish_before_children() was called in
_lifeline: _Lifeline | None = None  # from this process to its workers


def _python_exit() -> None:
    """Finish what is pending in all pools, before the interpreter joins its threads."""
    global _exiting
    _exiting = True
    pools = list(_pools)
    for pool in pools:
        pool.close()
    for pool in pools:
        pool.join()


# Runs before the non-daemon threads are joined, as in the standard library.
threading._register_atexit(_python_exit)  # type: ignore[attr-defined]


def _finish_before_children() -> None:
    """Run `_python_exit` in time in a child process too.

    multiprocessing's children join their own children before their threads: among them workers
    that nobody has told to stop.
    """
    global _exit_pid
    if _exit_pid != os.getpid():
        _exit_pid = os.getpid()
        if multiprocessing.parent_process() is not None:
            util.Finalize(None, _python_exit, exitpriority=100)


def _our_lifeline() -> _Lifeline:
    global _lifeline
    if _lifeline is None:
        _lifeline = _Lifeline(*os.pipe())
    return _lifeline


def _after_fork_in_child() -> None:
    global _lifeline
    pools = list(_pools)
    _pools.clear()
    for pool in pools:
        pool.disown()
    if _lifeline is not None:
        _lifeline.disown(keep_reading=any(pool.is_starting for pool in pools))
        _lifeline = None


os.register_at_fork(after_in_child=_after_fork_in_child)


class _TaskFuture(Future[Any]):
    """A future whose `cancel` and `running` ask the task itself.

    Made by `submit` alone.
    """

    _pool: _Pool
    _task_id = 0
    _offset = 0

    def cancel(self) -> bool:
        """Cancel the task unless a worker has taken it. True if it is cancelled."""
        with self._condition:
            if self._state == PENDING and not self._pool.withdraw(self._task_id, self._offset):
                return False
        cancelled = super().cancel()
        self.tell_if_cancelled()
        return cancelled

    def tell_if_cancelled(self) -> None:
        """Do what the standard library does when its executor comes across a cancelled task."""
        with self._condition:
            if self._state == CANCELLED:
                self.set_running_or_notify_cancel()

    def running(self) -> bool:
        """Whether a worker is busy with the task now."""
        return super().running() or (not self.done() and self._pool.is_running(self._task_id))


class _Pool:
    """What the executor, its futures and its two threads share."""

    def __init__(
        self,
        max_workers: int,
        context: BaseContext,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks: int | None,
    ) -> None:
        self.max_workers = max_workers
        self.context = context
        self._worker_args = (initializer, initargs, max_tasks)
        # https://github.com/python/cpython/issues/90622: no fork once our threads run.
        self._forks = context.get_start_method() == "fork"
        self.segment = ipcbuf.default_segment()

        # Guards the decision to take a task, to start a worker and to end.
        # Reentrant, because a destructor that submits may run anywhere.
        self.lock = threading.RLock()
        self.open = not _exiting  # takes tasks
        self.closing = False  # ends when nothing is pending
        self.broken: str | None = None
        self.pending: dict[int, tuple[_TaskFuture, Callable[..., object]]] = {}
        self.task_ids = itertools.count(1)

        self.processes: dict[int, BaseProcess] = {}
        self.can_grow = True
        self._slots: dict[int, int] = {}  # pid: its word on the board
        self._retired: dict[int, BaseProcess] = {}  # said goodbye, not yet dead
        self._causes: dict[int, str] = {}  # pid: the traceback it dies of
        self.is_starting = False
        self._inherited = False  # this is a copy in a forked child

        self.collector: threading.Thread | None = None

    # --- called by any thread ---

    def refuse(self) -> BaseException:
        """Why no task is taken."""
        if self.broken:
            return BrokenProcessPool(self.broken)
        if self.closing and not _exiting:
            return RuntimeError("cannot schedule new futures after shutdown")
        return RuntimeError("cannot schedule new futures after interpreter shutdown")

    def grow(self) -> None:
        """Start a worker, or the first time under fork all of them. With the lock held."""
        first = self.collector is None
        if first:
            self._open_channels()
        try:
            while True:
                self._start_worker()
                self.can_grow = len(self.processes) < self.max_workers
                if not (self._forks and self.can_grow):
                    break
        finally:
            if first and self.processes:
                self._start_threads()
            elif first:
                self._clean_up()

    def forget(self, task_id: int) -> None:
        """Drop a task that was not sent or was cancelled."""
        self.pending.pop(task_id, None)
        if self.closing:
            self._wake()

    def withdraw(self, task_id: int, offset: int) -> bool:
        """Cancel the task in shared memory; False if a worker has taken it."""
        if self._inherited:
            return True  # a copy of the future; the task is the parent's
        if not offset or not self.segment.cancel_task(offset, task_id):
            return False  # (no offset: it is being sent)
        self.forget(task_id)
        return True

    def is_running(self, task_id: int) -> bool:
        if self.collector is None:
            return False
        with self.lock:  # not while it is closed
            return task_id in self._board.read()

    def close(self) -> None:
        """Take no more tasks, and end when nothing is pending."""
        if not self._inherited:
            self.open = False
            self.closing = True
            self._wake()

    def cancel_pending(self) -> None:
        # As many as there are workers count as taken, even if a worker is still starting.
        for future, _ in list(self.pending.values())[len(self.processes) :]:
            future.cancel()

    def join(self) -> None:
        """Wait until the workers and the threads have ended."""
        collector = self.collector
        if collector is not None and collector is not threading.current_thread():
            collector.join()

    def disown(self) -> None:
        """In a forked child: this pool is the parent's."""
        self.lock = threading.RLock()
        self._inherited = True
        self.open = False
        self.broken = "The executor belongs to the process that forked this one; make another."
        self._watcher.disown()
        self._task_sender.close()
        self._result_receiver.close()
        if not self.is_starting:  # else we are a worker of it
            self._task_receiver.close()
            self._result_sender.close()

    def _wake(self) -> None:
        if self.collector is not None:
            # Closed: it has ended. A full heap: there is a message that wakes it.
            with contextlib.suppress(ipcbuf.ClosedError, ipcbuf.HeapExhausted):
                self._result_sender.send_object((0, _WAKE, None))

    # --- workers ---

    def _open_channels(self) -> None:
        self._task_sender, self._task_receiver = self.segment.channel(shared=True)
        self._result_sender, self._result_receiver = self.segment.channel(shared=True)
        self.send_task = self._task_sender.send_task
        self._board = _Board(self.max_workers)
        self._watcher = _Watcher(self._result_sender)
        _pools.add(self)
        _finish_before_children()

    def _start_worker(self) -> None:
        slot = min(set(range(self.max_workers)).difference(self._slots.values()))
        ends = (self._task_receiver, self._result_sender, _our_lifeline(), self._board, slot)
        process: BaseProcess = self.context.Process(  # type: ignore[attr-defined]
            target=_serve, args=ends + self._worker_args
        )
        self.is_starting = True
        try:
            process.start()
        finally:
            self.is_starting = False
        assert process.pid is not None
        self.processes[process.pid] = process
        self._slots[process.pid] = slot
        self._watcher.watch(process)

    def _start_threads(self) -> None:
        # The processes exist already: they are forked from a process without these threads.
        self.collector = threading.Thread(target=self._collect, name="ipcbuf-executor-collector")
        try:
            self._watcher.start()
            self.collector.start()
        except RuntimeError as error:  # no more threads: nobody would tell the workers to stop
            self.broken = f"The executor's threads could not be started: {error}"
            self.open = False
            self.collector = None
            self._end_workers()
            self._clean_up()
            raise BrokenProcessPool(self.broken) from error

    # --- called by the collector thread ---

    def _collect(self) -> None:
        """Complete futures until the pool ends or breaks. The collector's main function."""
        try:
            if self._collect_until_idle():
                for _ in self.processes:
                    self.send_task(None, _STOP)
                self._join_workers()
        except BaseException as error:  # nothing may be left waiting for a thread that is gone
            self._break(f"Results can no longer be collected: {error!r}.", _text_of(error))
        self._clean_up()

    def _collect_until_idle(self) -> bool:
        """Complete futures until the pool is to end; False if it broke before."""
        receive = self._result_receiver.recv_object
        while True:
            try:
                subject, status, value = receive()
            except ipcbuf.IpcbufError:
                raise
            except BaseException as error:
                # Whose result it is cannot be told. As the standard library.
                self._break("A result could not be unpickled.", _text_of(error))
                return False
            if status <= _ERROR:
                self._complete(subject, status, value)
                value = None  # do not keep it while waiting for the next
            elif not self._note(subject, status, value):
                return False
            if self.closing:
                with self.lock:  # a submit that was let in has entered its task
                    if not self.pending:
                        return True

    def _complete(self, task_id: int, status: int, value: Any) -> None:
        entry = self.pending.pop(task_id, None)
        if entry is None:
            return
        try:
            if status == _RESULT:
                entry[0].set_result(value)
            else:
                entry[0].set_exception(value)
        except InvalidStateError:  # someone else has completed it
            entry[0].tell_if_cancelled()
        except BaseException:  # a callback's SystemExit must not end this thread
            LOGGER.exception("exception calling callback for %r", entry[0])

    def _note(self, pid: int, status: int, value: Any) -> bool:
        """Take in what happened to a worker. False when the pool broke of it."""
        if status == _FAILED:
            self._causes[pid] = value
        elif status == _RETIRED:
            return self._replace(pid)
        elif status == _DIED:
            process = self._retired.pop(pid, None)
            if process is None:
                self._break(*self._autopsy(pid))
                return False
            process.join()
        return True

    def _replace(self, pid: int) -> bool:
        try:
            with self.lock:
                self._retired[pid] = self.processes.pop(pid)
                del self._slots[pid]
                self.can_grow = True
                while self.can_grow and len(self.pending) > len(self.processes):
                    self.grow()
        except BaseException as error:
            self._break("A worker could not be replaced.", _text_of(error))
            return False
        return True

    def _autopsy(self, pid: int) -> tuple[str, str]:
        """What to say about a worker that should be alive."""
        process = self.processes[pid]
        process.join()
        code = process.exitcode
        if code is not None and code < 0:
            text = f"Worker process {pid} was killed by {_signal_name(-code)}"
        else:
            text = f"Worker process {pid} ended with exit code {code}"
        task_id = self._board.read()[self._slots[pid]]
        if task_id in self.pending:
            text += f" while running task {task_id}, {_name_of(self.pending[task_id][1])}"
        details = f"Process {pid} terminated abruptly with exit code {code}"
        return text + ".", self._causes.get(pid, details)

    def _break(self, reason: str, cause: str) -> None:
        """Fail everything that is pending, and end the workers."""
        with self.lock:
            self.broken = (
                "A child process terminated abruptly, the process pool is not usable anymore. "
                + reason
            )
            self.open = False
            self.closing = True
        self._drain()
        for task_id in list(self.pending):
            failure = BrokenProcessPool(
                "A process in the process pool was terminated abruptly while the future was "
                "running or pending. " + reason
            )
            text = f"\n'''\n{cause}'''"
            failure.__cause__ = _RemoteTraceback(text)  # type: ignore[arg-type]  # typeshed errs
            self._complete(task_id, _ERROR, failure)
        self._end_workers()

    def _drain(self) -> None:
        """Complete the futures whose results have come."""
        while True:
            try:
                subject, status, value = self._result_receiver.recv_object(0)
            except ipcbuf.IpcbufError:  # usually ChannelEmpty
                return
            except BaseException:
                continue  # one more that does not unpickle
            if status <= _ERROR:
                self._complete(subject, status, value)

    def _end_workers(self) -> None:
        for process in self.processes.values():
            process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for pid, process in self.processes.items():
            if not self._watcher.wait(pid, deadline):
                process.kill()
        self._join_workers()

    def _join_workers(self) -> None:
        for process in [*self.processes.values(), *self._retired.values()]:
            process.join()

    def _clean_up(self) -> None:
        _pools.discard(self)  # first: a fork must not close descriptors that are others' by then
        self._watcher.stop()
        with self.lock:
            self._board.close()
        self._task_sender.close()
        self._task_receiver.close()
        self._result_sender.close()
        self._result_receiver.close()
        if self.broken:
            self.segment.reap()  # what the dead had in their hands


class _Watcher(threading.Thread):
    """Sleeps until a worker dies, and says so on the result channel."""

    def __init__(self, results: ipcbuf.Sender) -> None:
        super().__init__(name="ipcbuf-executor-watcher")
        self._results = results
        self._fds: dict[int, int] = {}  # pid: a descriptor that is readable when it is dead
        self._pids: dict[int, int] = {}  # the other way round, while it lives
        self._pidfds: list[int] = []  # our own among them
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._news, select.POLLIN)
        self._stopping = False

    def watch(self, process: BaseProcess) -> None:
        """Watch *process* too. With the pool's lock held."""
        pid = process.pid
        assert pid is not None
        try:
            # Not the sentinel, a pipe that stays open while the worker's own children live.
            fd = os.pidfd_open(pid)
            self._pidfds.append(fd)
        except OSError:
            fd = process.sentinel
        self._fds[pid] = fd
        self._pids[fd] = pid
        self._poll.register(fd, select.POLLIN)
        os.eventfd_write(self._news, 1)  # a poll() under way has its list already

    def wait(self, pid: int, deadline: float) -> bool:
        """Wait until *pid* is dead; False if it lives at the *deadline*."""
        poll = select.poll()
        poll.register(self._fds[pid], select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def run(self) -> None:
        while not self._stopping:
            for fd, _ in self._poll.poll():
                if fd == self._news:
                    os.eventfd_read(fd)
                else:
                    self._poll.unregister(fd)
                    self._report(self._pids.pop(fd))

    def _report(self, pid: int) -> None:
        while not self._stopping:
            try:
                self._results.send_object((pid, _DIED, None))
            except ipcbuf.HeapExhausted:
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def stop(self) -> None:
        self._stopping = True
        os.eventfd_write(self._news, 1)
        if self.ident is not None:
            self.join()
        self.disown()

    def disown(self) -> None:
        """Close the descriptors of this process."""
        for fd in (self._news, *self._pidfds):
            os.close(fd)


class ProcessPoolExecutor(_StandardExecutor):
    """As `concurrent.futures.ProcessPoolExecutor`, and much faster.

    Differences:
        - A call that cannot be pickled raises in `submit`. Lambdas and closures can be.
        - `Future.cancel` works until a worker takes the task.
        - `BrokenProcessPool` says which worker died, of what, and what it was doing.
        - `map` has `buffersize`, and there are `terminate_workers` and `kill_workers`, on every
          Python.

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
    ) -> None:
        """Make an executor; workers start with the first calls.

        Args:
            max_workers: How many processes at most; None means one for each processor.
            mp_context: How they are started, from `get_context`.
            initializer: Called in each worker before its first task. If it fails, the pool breaks.
            initargs: Its arguments.
            max_tasks_per_child: Replace a worker after so many tasks. Not with fork.

        Raises:
            ValueError: *max_workers* or *max_tasks_per_child* is not positive, or the latter is
                given with fork.
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
        self._max_tasks_per_child = max_tasks_per_child
        self._pool = _Pool(max_workers, mp_context, initializer, initargs, max_tasks_per_child)
        self._is_shut_down = False
        weakref.finalize(self, self._pool.close).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Send `fn(*args, **kwargs)` to a worker and return its future.

        Arguments are encoded before this returns: changing them afterwards does not change the call.

        Raises:
            BrokenProcessPool: A worker has died.
            RuntimeError: The executor was shut down, or the interpreter exits.
            Exception: Whatever pickling the call raises. Nothing was submitted then.
        """
        pool = self._pool
        future = _TaskFuture()
        future._pool = pool
        with pool.lock:
            if not pool.open:
                raise pool.refuse()
            future._task_id = task_id = next(pool.task_ids)
            pool.pending[task_id] = (future, fn)
            try:
                if pool.can_grow and len(pool.pending) > len(pool.processes):
                    pool.grow()
            except BaseException:
                pool.forget(task_id)
                raise
        try:
            future._offset = pool.send_task((fn, args, kwargs), task_id)
        except BaseException:
            pool.forget(task_id)
            if pool.broken:  # while we were sending
                raise BrokenProcessPool(pool.broken) from None
            raise
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Yield `fn(*args)` for the tuples of `zip(*iterables)`, in their order.

        Args:
            fn: What to call.
            *iterables: As many as *fn* takes arguments.
            timeout: Seconds from now in which each result must be there; None waits for ever.
            chunksize: How many calls make one task.
            buffersize: How many tasks may be sent whose results were not yielded.
                The iterables are read on as results are taken. None: all are sent now.

        Raises:
            TimeoutError: A result was not there in time.
            Exception: What `fn(*args)` raised, in its turn.
        """
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        deadline = None if timeout is None else time.monotonic() + timeout
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
            executor = weakref.ref(self)  # the iterator does not keep us alive

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
        return _flatten(results) if chunksize > 1 else results

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
        self._end_workers("terminate")

    def kill_workers(self) -> None:
        """Shut down at once: cancel what is pending and kill the workers."""
        self._end_workers("kill")

    def _end_workers(self, how: str) -> None:
        processes = list(self._pool.processes.values())
        self.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                getattr(process, how)()

    def __getattr__(self, name: str) -> Any:
        """Give what other projects read, as they find it in the standard library's executor."""
        if name not in _READ_BY_OTHERS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        pool = self.__dict__["_pool"]
        if self._is_shut_down and name in _GONE_AFTER_SHUTDOWN:
            return None
        return _READ_BY_OTHERS[name](pool)


_READ_BY_OTHERS: dict[str, Callable[[_Pool], Any]] = {
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


def _text_of(error: BaseException) -> str:
    return "".join(format_exception(error))


def _name_of(fn: Callable[..., object]) -> str:
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else f"a {type(fn).__qualname__} object"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
