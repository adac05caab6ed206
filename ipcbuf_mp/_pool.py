# SPDX-License-Identifier: Apache-2.0
"""The engine of an executor: what the executor, its futures and its two threads share.

The way of a call through the processes:

|============ the process that owns the executor ============|= workers =====|

 any thread                                                   idle workers pull
+----------+  fn, args, kwargs, encoded     +------------+    +-----------+
| submit() | =============================> | task       | => | serve()   |
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
+-----------+  7, RESULT, value             | result     | <=====+
| collector | <============================ | channel    |
| thread    |                               +------------+
+-----------+                                     ^
                                                  | pid, DIED, None
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
- completes futures as results come, all that are there for one wake-up; plain ones, which nobody
  has looked at yet, without Python code (`ipcbuf.Results`)
- stands aside while calls are made one at a time: who waits for the only one that is pending takes
  its result himself, and anything else that comes is the collector's again
- waits for the result channel alone: whatever else it has to know comes through it too, so the
  death of a worker is read after everything that this worker had sent
- stops the workers and ends when the executor was shut down or collected, or the interpreter
  exits, and no call is pending; if a worker died, it fails what is pending instead, or buries it

Life of a task: pending -> running -> done, or pending -> cancelled. The state is a word in the
task's block in shared memory, changed by compare-and-swap, so `Future.cancel()` works until the
moment when a worker takes the task.

Who holds whom: the futures and both threads hold the `Pool`, only the user holds the `Executor`.
When that is collected, the pool is told to finish.

Why no lock is held while encoding: it runs any code, which may take long or submit again. A task
is in `pending` before it is sent, and the collector does not end before `pending` is empty.

Burial, where the death of a worker does not break the pool:
- The dead is reaped: blocks that it held are freed, so a task whose block is gone was run to its
  end, or was in its hands. A worker frees a task's block after the result is sent; so once the
  collector has read all that was sent before now, a task that is still pending and has no block
  is lost. "Before now" is a message that the collector sends to itself.
- Of the lost, the one that the board names had begun, and is retried or fails. Any other had
  been taken and not begun: it is sent again.
- Others may be dead, and reaped, of whom the collector has not heard. What the board says they
  had begun is left to their own burials.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from concurrent.futures._base import LOGGER, InvalidStateError
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from dataclasses import dataclass
from multiprocessing import util
from types import FunctionType
from typing import TYPE_CHECKING, Any

import ipcbuf

from . import _worker
from ._autopsy import manner_of_death, name_of, oom_kills
from ._board import SINCE, TASK, Board
from ._lifeline import Gate, lifeline_of_a_worker
from ._pickling import ByValue, Late, dumps_main_by_value, first_numbers_of_unread
from ._process import start_with_parcels, terminate, without_main
from ._references import call_of, task_of
from ._watcher import Watcher
from ._worker import (
    DIED,
    ERROR,
    FAILED,
    JUDGED,
    LEAVING,
    RECORD,
    RESULT,
    RETIRED,
    STOP,
    WAKE,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

    from ._futures import TaskFuture

__all__ = ["Pool", "PoolOptions"]

_GRACE_SECONDS = 5.0  # what a worker of a broken pool has from SIGTERM to SIGKILL
# So many deaths before a first task break the pool, if no task was completed meanwhile: first of
# workers that end by themselves, then of those that somebody kills.
_STILLBORN = 3
_STILLBORN_KILLED = 50
_LOOK_AHEAD = 64  # pending calls whose modules a new worker imports

_exiting = False
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()  # those with workers
_exit_pid = 0  # the process that _finish_before_children() was called in


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


def _after_fork_in_child() -> None:
    pools = list(_pools)
    _pools.clear()
    for pool in pools:
        pool.disown()


os.register_at_fork(after_in_child=_after_fork_in_child)


@dataclass(frozen=True)
class PoolOptions:
    """How a pool behaves, apart from what its workers are told."""

    survives: bool = False
    """A dead worker is replaced, and only what it ran is lost."""
    grace: float = 1.0
    """Seconds from the interruption of a task to the kill of its worker."""
    max_queued: int = 0
    """Tasks that may wait for a worker; 0: any number."""
    max_queued_bytes: int = 0
    """Bytes of them; 0: any number."""
    import_main: bool = True
    """Workers run the main module again; else what it defines goes by value."""


class Pool:
    """The workers, the two channels, and what is pending."""

    def __init__(
        self,
        max_workers: int,
        context: BaseContext,
        environment: dict[str, str],
        worker_options: _worker.WorkerOptions,
        options: PoolOptions,
    ) -> None:
        self.max_workers = max_workers
        self.context = context
        self.options = options
        self._environment = _worker.Environment(environment)
        self._worker_options = worker_options
        # https://github.com/python/cpython/issues/90622: no fork once our threads run.
        self._forks = context.get_start_method() == "fork"
        # What a prompt defines may be newer than the workers that were forked.
        self._main_goes_by_value = not options.import_main and not (
            self._forks and hasattr(sys.modules.get("__main__"), "__file__")
        )
        self.segment = ipcbuf.default_segment()

        # Guards the decision to take a task, to start a worker and to end.
        # Reentrant, because a destructor that submits may run anywhere.
        self.lock = threading.RLock()
        self.open = not _exiting  # takes tasks
        self.closing = False  # ends when nothing is pending
        self.forced = False  # its workers are being ended: none is replaced
        self.broken: str | None = None
        self.pending: dict[int, TaskFuture] = {}
        self.task_ids = itertools.count(1)
        self.deaths = 0  # workers that were buried
        # Calls that could not be pickled. A worker is started for each, as the standard library
        # does, and CPython's tests count the workers.
        self.refused = 0

        self.processes: dict[int, BaseProcess] = {}
        self.can_grow = True
        self._slots: dict[int, int] = {}  # pid: its row on the board
        self._retired: dict[int, BaseProcess] = {}  # said goodbye, not yet dead
        # Pids of those who run their last task: nobody waits for their place, or this one does.
        self._leaving: set[int] = set()
        self._spares: dict[int, tuple[BaseProcess, Gate]] = {}
        self._causes: dict[int, str] = {}  # pid: the traceback it dies of
        self._ran: dict[int, _Death] = {}  # task: the worker that died of it
        self._stillborn = 0.0  # 1: too many
        self._oom_kills = oom_kills()
        self.is_starting = False
        self._inherited = False  # this is a copy in a forked child

        self.collector: threading.Thread | None = None
        self.results: ipcbuf.Results | None = None  # while there is a collector
        self._settled = 0  # futures that it had completed when a worker died last

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
        if len(self.processes) == self.max_workers:
            self._start_spare()
            self._see_room()
            return
        first = self.collector is None
        if first:
            self._open_channels()
        try:
            while True:
                self._start_worker()
                self._see_room()
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
        if self.closing or (self.results is not None and self.results.is_awaited):
            self._wake()

    def withdraw(self, task_id: int, offset: int) -> bool:
        """Cancel the task in shared memory; False if a worker has taken it."""
        if self._inherited:
            return True  # a copy of the future; the task is the parent's
        if not offset or not self.segment.cancel_task(offset, task_id):
            return False  # (no offset: it is being sent)
        self.forget(task_id)
        return True

    def interrupt(self, task_id: int) -> None:
        """End a task that runs."""
        self.limit(task_id, 0.0)

    def limit(self, task_id: int, seconds: float) -> None:
        """End a task when it has run for so long."""
        self._watcher.limit(task_id, seconds, lambda: task_id in self.pending)
        if task_id not in self.pending:  # it was quicker
            self._watcher.done(task_id)

    def look_for(self, task_id: int) -> None:
        """Judge a task that was being sent while a worker was buried."""
        future = self.pending.get(task_id)
        if future is None:
            return
        attempt = future._attempt  # first: the collector may send it again at any moment
        if not self.segment.has_task(future._offset, task_id):
            with contextlib.suppress(ipcbuf.ClosedError):
                self._result_sender.send_object((0, JUDGED, [(task_id, attempt)]))

    def is_running(self, task_id: int) -> bool:
        if self.collector is None:
            return False
        with self.lock:  # not while it is closed
            return task_id in self._board.tasks()

    def close(self) -> None:
        """Take no more tasks, and end when nothing is pending."""
        if not self._inherited:
            self.open = False
            self.closing = True
            self._wake()

    def cancel_pending(self) -> None:
        # As many as there are workers count as taken, even if a worker is still starting.
        for future in list(self.pending.values())[len(self.processes) :]:
            if not future._interruptible or not future.running():
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
        self.results = None
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
                self._result_sender.send_object((0, WAKE, None))
                if self.results is not None:
                    self.results.recall()

    # --- workers ---

    def _open_channels(self) -> None:
        options = self.options
        self._task_sender, self._task_receiver = self.segment.channel(
            shared=True, max_items=options.max_queued, max_bytes=options.max_queued_bytes
        )
        self._result_sender, self._result_receiver = self.segment.channel(shared=True)
        self.send_task = self._task_sender.send_task
        if self._main_goes_by_value:
            self.send_task = functools.partial(_send_main_by_value, self.send_task)
        self.results = ipcbuf.Results(self._result_receiver, self.pending)
        spares = self.max_workers if self._worker_options.max_tasks is not None else 0
        self._board = Board(self.max_workers + spares)
        self._watcher = Watcher(self._result_sender, self._board, options.grace)
        _pools.add(self)
        _finish_before_children()

    def _start_worker(self, leaving: int | None = None) -> None:
        """Start a worker, or one that takes the place of *leaving* when that has left."""
        slot = min(set(range(2 * self.max_workers)).difference(self._slots.values()))
        self._board.clear(slot)
        modules = () if self._forks else self._modules()
        gate = None if leaving is None else Gate()
        hears_ctrl_c = signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        options: Any = self._worker_options
        lacks_main = not (self._forks or self.options.import_main)
        if lacks_main and options.initializer is not None:
            options = ByValue(options)
        self.is_starting = True
        try:
            with (
                lifeline_of_a_worker() as lifeline,
                without_main() if lacks_main else contextlib.nullcontext(),
            ):
                ends = (self._task_receiver, self._result_sender, lifeline, self._board, slot)
                # The environment is unpickled first: later ones may import what reads it.
                # The class is that of each context; typeshed's BaseContext lacks it.
                process: BaseProcess = self.context.Process(  # type: ignore[attr-defined]
                    target=_worker.serve,
                    args=(self._environment, *ends, options, hears_ctrl_c, modules, gate),
                )
                with _worker.sigint_blocked(process, self.context.get_start_method()):
                    start_with_parcels(process)
        except BaseException:
            if gate is not None:
                gate.close()
            raise
        finally:
            self.is_starting = False
        assert process.pid is not None
        if leaving is not None and gate is not None:
            self._spares[leaving] = process, gate
        else:
            self.processes[process.pid] = process
        self._slots[process.pid] = slot
        self._watcher.watch(process, slot)

    def _modules(self) -> tuple[str, ...]:
        """Those of functions that wait, which a new worker may as well import at once."""
        names: dict[Any, None] = {
            future._fn.__module__: None
            for future in list(itertools.islice(self.pending.values(), _LOOK_AHEAD))
            if isinstance(future._fn, FunctionType)
        }
        names.pop("__main__", None)  # multiprocessing sees to it, or it goes by value
        return tuple(name for name in names if isinstance(name, str))

    def everybody(self) -> list[BaseProcess]:
        """All workers that have not said goodbye, the spare ones, too."""
        return [*self.processes.values(), *(process for process, _ in self._spares.values())]

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
                with self.lock:
                    self._promote_spares(everyone=True)
                for _ in self.processes:
                    self.send_task(None, STOP)
                self._join_workers()
        except BaseException as error:  # nothing may be left waiting for a thread that is gone
            self._break(f"Results can no longer be collected: {error!r}.", text_of(error))
        self._clean_up()

    def _collect_until_idle(self) -> bool:
        """Complete futures until the pool is to end; False if it broke before."""
        assert self.results is not None
        receive = self.results.receive
        while True:
            try:
                subject, status, value = receive() or (0, WAKE, None)
            except ipcbuf.IpcbufError:
                raise
            except BaseException as error:
                if not self._meet_unreadable(error):
                    return False
                continue
            if status <= ERROR:
                self._complete(subject, status, value)
                value = None  # do not keep it while waiting for the next
            elif not self._note(subject, status, value):
                return False
            if self.closing:
                with self.lock:  # a submit that was let in has entered its task
                    if not self.pending:
                        return True

    def _complete(self, task_id: int, status: int, value: Any) -> None:
        future = self.pending.pop(task_id, None)
        if future is None:
            return
        if task_id in self._watcher.doomed:
            self._watcher.doomed.discard(task_id)
            if status == ERROR:
                value = _overdue(future, value)
        if future._timeout is not None:
            self._watcher.done(task_id)
        future._call = None
        self._stillborn = 0.0
        try:
            if status == RESULT:
                future.set_result(value)
            else:
                future.set_exception(value)
        except InvalidStateError:  # someone else has completed it
            future.tell_if_cancelled()
        except BaseException:  # a callback's SystemExit must not end this thread
            LOGGER.exception("exception calling callback for %r", future)

    def _meet_unreadable(self, error: BaseException) -> bool:
        """Something that came does not unpickle. False when the pool broke of it."""
        subject, status = (*first_numbers_of_unread(error), 0, WAKE)[:2]
        future = self.pending.get(subject) if status <= ERROR else None
        if status == RECORD:
            LOGGER.error("a log record of a worker could not be unpickled", exc_info=error)
            return True
        whose = f": that of task {subject}, {name_of(future._fn)}" if future is not None else ""
        if future is None or not self.options.survives:  # as the standard library
            self._break(f"A result could not be unpickled{whose}.", text_of(error))
            return False
        error.add_note(f"A result could not be unpickled{whose}.")
        self._complete(subject, ERROR, error)
        return True

    def _note(self, pid: int, status: int, value: Any) -> bool:
        """Take in what happened to a worker. False when the pool broke of it."""
        if status == FAILED:
            self._causes[pid] = value
        elif status == LEAVING:
            with self.lock:
                self._leaving.add(pid)
            return self._start_missing()
        elif status == RETIRED:
            return self._replace(pid)
        elif status == DIED:
            process = self._retired.pop(pid, None)
            if process is None:
                return self._meet_death(pid)
            process.join()
            self._watcher.forget(pid)
        elif status == JUDGED:
            self._judge(value)
        elif status == RECORD:
            _handle_record(value)
        return True

    def _replace(self, pid: int) -> bool:
        with self.lock:
            self._retired[pid] = self.processes.pop(pid)
            self._leaving.discard(pid)
            del self._slots[pid]
        if self.forced:
            self._break(f"Worker process {pid} has left, and the others were ended.", "")
            return False
        return self._start_missing()

    def _start_spare(self) -> None:
        """Start who will take the place of a worker that runs its last task. With the lock held."""
        leaving = self._leaving.pop()
        with contextlib.suppress(OSError):  # then one is started when that has left
            self._start_worker(leaving)

    def _see_room(self) -> None:
        self.can_grow = len(self.processes) < self.max_workers or bool(self._leaving)

    def _promote_spares(self, everyone: bool = False) -> None:
        """Let those begin whose places are free, or *everyone*. With the lock held."""
        for leaving, (process, gate) in list(self._spares.items()):
            if everyone or leaving not in self.processes:
                del self._spares[leaving]
                assert process.pid is not None
                self.processes[process.pid] = process
                gate.open()

    def _start_missing(self) -> bool:
        """Start the workers that the pending tasks need; False when the pool broke of it."""
        try:
            with self.lock:
                self._promote_spares()
                self._see_room()
                while self.can_grow and len(self.pending) > len(self.processes) + len(self._spares):
                    self.grow()
        except BaseException as error:
            self._break("A worker could not be replaced.", text_of(error))
            return False
        return True

    # --- deaths ---

    def _meet_death(self, pid: int) -> bool:
        """A worker that should be alive is dead. False when the pool broke of it."""
        process = next(each for each in self.everybody() if each.pid == pid)
        process.join()
        slot = self._slots[pid]
        row = self._board.row(slot)
        code = process.exitcode
        if self.results is not None and self._settled != self.results.settled:
            self._settled = self.results.settled
            self._stillborn = 0.0
        oom = oom_kills() > self._oom_kills
        death = _Death(pid, code, row[TASK], manner_of_death(pid, code, oom))
        death.cause = self._causes.get(pid) or self._board.traceback(slot)
        if row[SINCE] == 0:
            killed = code == -signal.SIGKILL or code == -signal.SIGTERM
            self._stillborn += 1 / _STILLBORN_KILLED if killed else 1 / _STILLBORN
        put_down = pid in self._watcher.put_down
        survives = self.options.survives and not self.forced and pid not in self._causes
        if not put_down and (not survives or self._cannot_begin()):
            self._break(*self._explain(death))
            return False
        self._oom_kills = oom_kills()
        return self._bury(death)

    def _cannot_begin(self) -> bool:
        return self._stillborn > 0.999

    def _explain(self, death: _Death) -> tuple[str, str]:
        text = death.text
        future = self.pending.get(death.task_id)
        if future is not None:
            text += f" while running task {death.task_id}, {name_of(future._fn)}"
        elif self._cannot_begin() and self.options.survives:
            text += ", as those before it did, before its first task"
        details = f"Process {death.pid} terminated abruptly with exit code {death.code}"
        return text + ".", death.cause or details

    def _bury(self, death: _Death) -> bool:
        with self.lock:
            self.processes.pop(death.pid, None)
            self._leaving.discard(death.pid)
            for leaving, (process, gate) in list(self._spares.items()):
                if process.pid == death.pid:
                    del self._spares[leaving]
                    gate.close()
            del self._slots[death.pid]
        self._watcher.forget(death.pid)
        self._watcher.put_down.discard(death.pid)
        if death.task_id in self.pending:
            self._ran[death.task_id] = death
        self.deaths += 1  # before the offsets are read: see submit
        self.segment.reap()
        has_task = self.segment.has_task
        gone = [
            (task_id, future._attempt)
            for task_id, future in list(self.pending.items())
            if future._offset and not has_task(future._offset, task_id)
        ]
        self._result_sender.send_object((death.pid, JUDGED, gone))
        return self._start_missing()

    def _judge(self, gone: list[tuple[int, int]]) -> None:
        """Retry or fail what is lost: all results sent before the judgement have been read."""
        with self.lock:
            begun = {self._board.row(slot)[TASK] for slot in self._slots.values()}
        for task_id, attempt in gone:
            future = self.pending.get(task_id)
            if future is None or future._attempt != attempt or task_id in begun:
                continue
            death = self._ran.pop(task_id, None)
            if future.done() or task_id in self._watcher.doomed:
                self._complete(task_id, ERROR, None)
            elif death is None and future._call is not None:  # it had not begun
                self._send_again(task_id, future)
            elif death is not None and future._retries > 0 and future._call is not None:
                future._retries -= 1
                self._send_again(task_id, future)
            else:
                self._complete(task_id, ERROR, _lost(death, future, task_id))
        # Whoever died after its result was sent.
        self._ran = {task_id: d for task_id, d in self._ran.items() if task_id in self.pending}

    def _send_again(self, task_id: int, future: TaskFuture) -> None:
        try:
            with future._condition:  # not while it is cancelled
                if not future.done():
                    future._attempt += 1
                    future._offset = 0
                    future._offset = self.send_task(task_of(*future._call), task_id)
                    return
        except BaseException as error:
            self._complete(task_id, ERROR, error)
            return
        self._complete(task_id, ERROR, None)

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
            self._complete(task_id, ERROR, failure)
        self._end_workers()
        with contextlib.suppress(ipcbuf.IpcbufError):  # let go who waits for room
            while True:
                self._task_receiver.recv_task(0)

    def _drain(self) -> None:
        """Complete the futures whose results have come."""
        assert self.results is not None
        while True:
            try:
                subject, status, value = self.results.receive(0) or (0, WAKE, None)
            except ipcbuf.IpcbufError:  # normally ChannelEmpty
                return
            except BaseException:
                continue  # one more that does not unpickle
            if status <= ERROR:
                self._complete(subject, status, value)

    def _end_workers(self) -> None:
        workers = self.everybody()
        for process in workers:
            terminate(process)
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in workers:
            assert process.pid is not None
            if not self._watcher.wait(process.pid, deadline):
                process.kill()
        self._join_workers()

    def _join_workers(self) -> None:
        for process in [*self.everybody(), *self._retired.values()]:
            process.join()
        for _, gate in self._spares.values():
            gate.close()

    def _clean_up(self) -> None:
        _pools.discard(self)  # first: a fork must not close descriptors that are others' by then
        self._watcher.stop()
        self.results = None
        with self.lock:
            self._board.close()
        self._task_sender.close()
        self._task_receiver.close()
        self._result_sender.close()
        self._result_receiver.close()
        if self.broken:
            self.segment.reap()  # what the dead had in their hands


@dataclass
class _Death:
    """What is known of a dead worker."""

    pid: int
    code: int | None
    task_id: int
    """What it was running, 0 if nothing."""
    text: str
    cause: str = ""
    """Its last traceback, if it left one."""


def _lost(death: _Death | None, future: TaskFuture, task_id: int) -> BaseException:
    what = f"task {task_id}, {name_of(future._fn)},"
    if death is None:
        return ipcbuf.WorkerLost(0, None, what)
    error = ipcbuf.WorkerLost(death.pid, death.code, what)
    error.add_note(death.text + ".")
    if death.cause:
        text = f"\n'''\n{death.cause}'''"
        error.__cause__ = _RemoteTraceback(text)  # type: ignore[arg-type]  # typeshed errs
    return error


def _overdue(future: TaskFuture, error: BaseException | None) -> BaseException:
    how = "its worker was killed" if error is None else "it was interrupted"
    failure = TimeoutError(
        f"{name_of(future._fn)} ran for longer than {future._timeout} seconds; {how}"
    )
    if error is not None:
        failure.__cause__ = error.__cause__ or error
    return failure


def _handle_record(state: dict[str, Any]) -> None:
    try:
        record = logging.makeLogRecord(state)
        logging.getLogger(record.name).handle(record)
    except Exception:
        LOGGER.exception("a log record of a worker could not be handled")


def _send_main_by_value(send: Callable[..., int], task: Any, task_id: int) -> int:
    """Send a task to workers that have another main module."""
    if task is not None:
        task = Late(*dumps_main_by_value(call_of(task)))
    return send(task, task_id)
