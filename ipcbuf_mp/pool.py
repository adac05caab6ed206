# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing.pool`, with workers that may be killed.

A pool is the standard library's, with its results, iterators and threads. What is ours is the way
of a task to a worker and back, and what happens when a worker dies.

How no task is lost
  Tasks go through a channel with leases: a worker has its task until it says that it is done,
  which it does once the result was sent. If it dies before, the task is delivered again, to
  whichever worker comes first. That one does not run it. It tells the parent, behind all that the
  dead one has sent. If the parent has the result by then, that is all; else the task is over with
  `WorkerLost`, or is sent anew if the pool was made with `retries`.

Who had it
  Each worker has a word in a page that all share (`_Board`), where it writes the number of the
  task that it runs. The parent reads the words of the dead, for the message only.

Numbers
  Every task that is sent gets a number of its own, also one that is sent anew. It stands in front
  of the pickle, so that a pickle that cannot be read fails its own task and no other. Number 0
  tells a worker to end.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import struct
import threading
import time
import warnings
from multiprocessing import pool as _stdlib
from multiprocessing import reduction, util
from multiprocessing.connection import wait
from multiprocessing.pool import INIT, RUN, TERMINATE, ThreadPool
from typing import TYPE_CHECKING, Any, NamedTuple

import ipcbuf

from ._lifeline import Lifeline, lifeline_of_a_worker
from ._pickling import Late
from ._process import let_go_on, start_with_parcels, terminate
from .connection import CAPACITY, End
from .context import default_context
from .queues import SimpleQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

__all__ = ["Pool", "ThreadPool"]

_NUMBER = struct.Struct("<Q")
_OUTCOME = struct.Struct("<Q?")  # number of the task, whether it succeeded

# Results of these types need no pickle that could fail to load.
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})

_AUTOPSY = 10.0  # seconds to wait for the end of a worker whose lease has ended already
_BURIAL = 1.0  # seconds to wait until somebody has been buried, if nobody is known to be dead
_PAUSE = 0.1  # seconds after a worker could not be started


# --- in the workers -------------------------------------------------------------------------------


def worker(
    tasks: _TaskChannel,
    results: Any,
    lifeline: Lifeline,
    board: _Board,
    slot: int,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    maxtasks: int | None = None,
    wrap_exception: bool = False,
) -> None:
    """Work off tasks until told to end. It is killed when the parent is gone."""
    lifeline.hang_on()
    tasks.sender.close()
    results._reader.close()
    if initializer is not None:
        initializer(*initargs)
    busy_with = board.slot(slot)
    completed = 0
    while maxtasks is None or completed < maxtasks:
        try:
            lease = tasks.receiver.recv_leased()
        except (EOFError, OSError):
            util.debug("worker's parent is gone -- exiting")
            break
        message: Late = lease.load()
        (number,) = _NUMBER.unpack(message.head(_NUMBER.size))
        if number == 0:
            lease.done()
            util.debug("worker got sentinel -- exiting")
            break
        try:
            if lease.redelivered:
                results.put((number, None, None))
                lease.done()
                continue
            busy_with[0] = number
            _run(number, message, results, wrap_exception)
        except BrokenPipeError:
            util.debug("nobody receives the worker's results -- exiting")
            break
        lease.done()
        busy_with[0] = 0
        del lease, message
        completed += 1
    util.debug(f"worker exiting after {completed} tasks")


def _run(number: int, message: Late, results: Any, wrap_exception: bool) -> None:
    """Run a task and send its result, or why there is none."""
    func: Any = None
    try:
        func, args, kwds = message.load(_NUMBER.size)
        success, value = True, func(*args, **kwds)
    except Exception as error:
        if wrap_exception and func is not _stdlib._helper_reraises_exception:  # type: ignore[attr-defined]
            trace = error.__traceback__
            value = _stdlib.ExceptionWithTraceback(error, trace)  # type: ignore[attr-defined]
        else:
            value = error
        success = False
    try:
        if type(value) in _PLAIN:
            results.put((number, success, value))
        else:
            results.put(Late.of_result(_OUTCOME.pack(number, success), value))
    except Exception as error:
        wrapped = _stdlib.MaybeEncodingError(error, value)  # type: ignore[attr-defined]
        util.debug(f"possible encoding error while sending result: {wrapped}")
        results.put(Late.of_result(_OUTCOME.pack(number, False), wrapped))


# --- what parent and workers share ----------------------------------------------------------------


class _Board:
    """A word for each worker, written by it alone: the number of the task that it runs, or 0."""

    def __init__(self, slots: int, fd: int | None = None) -> None:
        if fd is None:
            fd = os.memfd_create("ipcbuf-pool", os.MFD_CLOEXEC)
            os.ftruncate(fd, slots * _NUMBER.size)
        self.slots = slots
        self._words = mmap.mmap(fd, slots * _NUMBER.size)
        self._fd = fd

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "_fd"):
            _close(self._fd)

    def slot(self, index: int) -> memoryview:
        return memoryview(self._words).cast("Q")[index : index + 1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_board, (self.slots, reduction.DupFd(self._fd))


def _rebuild_board(slots: int, fd: Any) -> _Board:
    return _Board(slots, fd.detach())


class _TaskChannel:
    """Both ends of the channel for tasks. Its capacity is that of the standard library's pipe."""

    def __init__(self) -> None:
        self.sender, self.receiver = ipcbuf.default_segment().channel(
            max_bytes=CAPACITY, shared=True, lease=True
        )

    def __getstate__(self) -> tuple[End, End]:
        return End.pack(self.sender), End.pack(self.receiver)

    def __setstate__(self, ends: tuple[End, End]) -> None:
        self.sender, self.receiver = ends[0].sender(), ends[1].receiver()

    def drain_until_ended(self, thread: threading.Thread) -> None:
        """Wait for the end of a thread that may be waiting for room."""
        while thread.is_alive():
            if not self.drain():
                thread.join(0.001)

    def drain(self) -> bool:
        """Take one message out; False if there is none."""
        try:
            self.receiver.recv_leased(0).done()
        except (ipcbuf.ChannelEmpty, EOFError):
            return False
        return True


# --- in the parent --------------------------------------------------------------------------------


class _Flight(NamedTuple):
    """A task that was sent and has no result yet."""

    job: int
    place: int  # in the job
    name: str
    message: Late | None  # kept if it may be sent anew
    retries: int


class _Staff:
    """The workers of a pool and the tasks in their hands. Threads share it; the pool owns it."""

    def __init__(
        self, start: Callable[..., BaseProcess], size: int, tasks: _TaskChannel, retries: int
    ) -> None:
        self.size = size
        self.workers: list[BaseProcess] = []
        self._start = start
        self._tasks = tasks
        self._retries = retries
        self._board = _Board(max(512, 2 * size))
        self._slots: dict[BaseProcess, int] = {}
        self._lock = threading.Lock()  # for the books below
        self._number = 0
        self._flights: dict[int, _Flight] = {}
        self._deaths: dict[int, tuple[int, int | None]] = {}  # by number of the task, if known
        self._silent: list[tuple[int, int | None]] = []  # of workers that had written no number
        self.senders: list[threading.Thread] = []  # that send tasks anew, or have done so

    def fill(self) -> None:
        """Start as many workers as are missing."""
        for _ in range(self.size - len(self.workers)):
            taken = set(self._slots.values())
            slot = next(index for index in range(self._board.slots) if index not in taken)
            self._board.slot(slot)[0] = 0
            process = self._start(self._board, slot)
            with self._lock:
                self._slots[process] = slot
                self.workers.append(process)
            util.debug("added worker")

    def bury(self) -> bool:
        """Take the workers that have ended off the list; say whether there were any."""
        ended = [process for process in self.workers if process.exitcode is not None]
        for process in ended:
            process.join()
            with self._lock:
                self.workers.remove(process)
                slot = self._slots.pop(process, None)
                if slot is None or process.exitcode == 0:
                    continue
                death = process.pid or 0, process.exitcode
                number = self._board.slot(slot)[0]
                if number in self._flights:
                    self._deaths[number] = death
                else:
                    self._silent = [*self._silent[-16:], death]
        if ended:
            ipcbuf.default_segment().reap()  # their leases end
        return bool(ended)

    def sentinels(self) -> list[int]:
        return [process.sentinel for process in self.workers]

    def put(self, task: tuple[Any, ...] | None) -> None:
        """Send a task to whichever worker comes first, waiting for room."""
        if task is None:
            self._tasks.sender.send_object(Late(b"\0" + _NUMBER.pack(0), None))
            return
        job, index, func, args, kwds = task
        with self._lock:
            self._number += 1
            number = self._number
        message = Late.of_task(_NUMBER.pack(number), (func, args, kwds))
        kept = message if self._retries else None
        self._flights[number] = _Flight(job, index, _name_of(func, args), kept, self._retries)
        try:
            self._tasks.sender.send_object(message)
        except BaseException:
            self._flights.pop(number, None)
            raise

    def outcome(self, message: Any) -> tuple[int, int, tuple[bool, Any]] | None:
        """Return job, index and result that a worker's message is about; None if it is stale."""
        late = message if type(message) is Late else None
        if late is not None:
            number, success = _OUTCOME.unpack(late.head(_OUTCOME.size))
            value: Any = None
        else:
            number, success, value = message
        flight = self._flights.pop(number, None)
        if flight is None:
            return None
        if success is not None:
            self._deaths.pop(number, None)  # it died behind its result
        else:
            pid, exitcode = self._who_had(number)
            if flight.retries:
                self._send_anew(flight)
                return None
            lost = ipcbuf.WorkerLost(pid, exitcode, flight.name)
            return flight.job, flight.place, (False, lost)
        if late is not None:
            try:
                value = late.load(_OUTCOME.size)
            except Exception as error:
                success, value = False, error
        return flight.job, flight.place, (success, value)

    def _send_anew(self, flight: _Flight) -> None:
        assert flight.message is not None
        with self._lock:
            self._number += 1
            number = self._number
        old = flight.message
        size = 1 + _NUMBER.size
        message = Late(b"\0" + _NUMBER.pack(number) + old.payload[size:], old.buffers)
        self._flights[number] = flight._replace(message=message, retries=flight.retries - 1)
        # In a thread: whoever takes results must not wait until somebody takes tasks.
        send = self._tasks.sender.send_object
        sender = threading.Thread(target=_send_or_end, args=(send, message), daemon=True)
        self.senders = [*(thread for thread in self.senders if thread.is_alive()), sender]
        sender.start()

    def _who_had(self, number: int) -> tuple[int, int | None]:
        """Return process id and exit code of the worker that died with a task."""
        begin = time.monotonic()
        while True:
            with self._lock:
                if number in self._deaths:
                    return self._deaths.pop(number)
                everybody = list(self._slots)
                suspects = [
                    process
                    for process, slot in self._slots.items()
                    if self._board.slot(slot)[0] == number
                ]
            if suspects:
                wait(
                    [process.sentinel for process in suspects], begin + _AUTOPSY - time.monotonic()
                )
            # Not buried yet; where nobody has written the number, it is one of the ended.
            for process in suspects or everybody:
                if process.exitcode:
                    return process.pid or 0, process.exitcode
            with self._lock:
                if not suspects and self._silent:
                    return self._silent.pop()
            # The thread that buries may be just about to say so; `exitcode` is None meanwhile.
            if time.monotonic() - begin > (_AUTOPSY if suspects else _BURIAL):
                return (suspects[0].pid or 0 if suspects else 0), None
            time.sleep(0.001)


def _send_or_end(send: Callable[[Late], None], message: Late) -> None:
    try:
        send(message)
    except (OSError, ValueError, EOFError) as error:
        util.debug(f"the pool was terminated before a task was sent anew: {error}")


def _name_of(func: Any, args: Any) -> str:
    if func in (_stdlib.mapstar, _stdlib.starmapstar):  # type: ignore[attr-defined]
        return f"{len(args[0][1])} calls of {_name_of(args[0][0], ())}"
    return getattr(func, "__qualname__", None) or type(func).__qualname__


def _look_after_workers(staff: _Staff, cache: Any, taskqueue: Any, notifier: Any) -> None:
    """Replace workers that have ended, until the pool has."""
    thread: Any = threading.current_thread()
    is_short = False
    while thread._state == RUN or (cache and thread._state != TERMINATE):
        if staff.bury() or is_short:
            try:
                staff.fill()
                is_short = False
            except Exception as error:  # no memory, no process to be had: later, perhaps
                util.debug(f"no worker could be started: {error}")
                is_short = True
        wait([*staff.sentinels(), notifier._reader], _PAUSE if is_short else None)
        while not notifier.empty():
            notifier.get()
    taskqueue.put(None)
    util.debug("worker handler exiting")


class Pool(_stdlib.Pool):
    """A pool of workers, as `multiprocessing.pool.Pool`.

    A worker that is killed, or exits in a task, fails the task that it had, and nothing else.

    Args:
        processes: Number of workers; that of the processors if None.
        initializer: Called in each worker first, with *initargs*.
        initargs: Its arguments.
        maxtasksperchild: Tasks after which a worker is replaced; never if None.
        context: Where processes come from; the current start method's if None.
        retries: How often a task is run anew because its worker was lost. Then its result is
            `WorkerLost`.
    """

    _state: str
    _wrap_exception: bool

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: Any = None,
        context: BaseContext | None = None,
        *,
        retries: int = 0,
    ) -> None:
        # First, for `__del__` if what follows raises.
        self._pool: list[BaseProcess] = []
        self._state = INIT
        self._ctx: Any = context or default_context.get_context()
        if processes is None:
            processes = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if retries < 0:
            raise ValueError("retries must not be negative")

        self._setup_queues()
        self._taskqueue: Any = queue.SimpleQueue()
        self._change_notifier: Any = SimpleQueue(ctx=self._ctx)
        self._cache: Any = _stdlib._PoolCache(notifier=self._change_notifier)  # type: ignore[attr-defined]
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        start = _Starter(
            self.Process,
            self._ctx,
            (self._inqueue, self._outqueue),
            (initializer, initargs, maxtasksperchild, self._wrap_exception),
        )
        self._staff = _Staff(start, processes, self._inqueue, retries)
        self._pool = self._staff.workers
        try:
            self._repopulate_pool()
        except Exception:
            for process in self._pool:
                if process.exitcode is None:
                    terminate(process)
            for process in self._pool:
                process.join()
            raise
        self._start_threads()
        self._terminate: Any = util.Finalize(
            self,
            _terminate,
            args=(
                self._staff,
                self._taskqueue,
                self._inqueue,
                self._outqueue,
                self._change_notifier,
                (self._worker_handler, self._task_handler, self._result_handler),
                self._cache,
            ),
            exitpriority=15,
        )
        self._state = RUN

    def __del__(self, _warn: Any = warnings.warn, _running: str = RUN) -> None:
        if self._state == _running:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
            if getattr(self, "_change_notifier", None) is not None:
                self._change_notifier.put(None)

    @property
    def _processes(self) -> int:
        return self._staff.size

    @_processes.setter
    def _processes(self, number: int) -> None:
        self._staff.size = number

    def _setup_queues(self) -> None:
        self._inqueue: Any = _TaskChannel()
        self._outqueue: Any = SimpleQueue(ctx=self._ctx)

    def _start_threads(self) -> None:
        def start(target: Callable[..., None], *args: object) -> Any:
            thread: Any = threading.Thread(target=target, args=args, daemon=True)
            thread._state = RUN
            thread.start()
            return thread

        staff, cache = self._staff, self._cache
        self._worker_handler = start(
            _look_after_workers, staff, cache, self._taskqueue, self._change_notifier
        )
        handle_tasks = _stdlib.Pool._handle_tasks  # type: ignore[attr-defined]
        put = staff.put
        self._task_handler = start(
            handle_tasks, self._taskqueue, put, self._outqueue, self._pool, cache
        )
        handle_results = _stdlib.Pool._handle_results  # type: ignore[attr-defined]
        get = _ResultGetter(staff, self._outqueue)
        self._result_handler = start(handle_results, self._outqueue, get, cache)

    def _repopulate_pool(self) -> None:
        self._staff.fill()

    def _map_async(
        self,
        func: Any,
        iterable: Any,
        mapper: Any,
        chunksize: int | None = None,
        *callbacks: Any,
        **named_callbacks: Any,
    ) -> Any:
        """Choose the size of chunks by the workers that there should be.

        The standard library counts those that there are. That may be none, while one that was
        killed is being replaced.
        """
        self._check_running()  # type: ignore[attr-defined]  # private: typeshed lacks it
        if chunksize is None:
            if not hasattr(iterable, "__len__"):
                iterable = list(iterable)
            chunksize = -(-len(iterable) // (4 * self._staff.size))
        mapping = super()._map_async  # type: ignore[misc]  # as above
        return mapping(func, iterable, mapper, chunksize, *callbacks, **named_callbacks)


class _Starter:
    """Starts the workers of a pool. It keeps no pool alive."""

    def __init__(
        self,
        make: Callable[..., BaseProcess],
        context: BaseContext,
        queues: tuple[_TaskChannel, Any],
        options: tuple[Any, ...],
    ) -> None:
        self._make = make
        self._context = context
        self._queues = queues
        self._options = options

    def __call__(self, board: _Board, slot: int) -> BaseProcess:
        with lifeline_of_a_worker() as lifeline:
            arguments = (*self._queues, lifeline, board, slot, *self._options)
            process = self._make(self._context, target=worker, args=arguments)
            process.name = process.name.replace("Process", "PoolWorker")
            process.daemon = True
            start_with_parcels(process)
        return process


class _ResultGetter:
    """What the thread that handles results calls for each. It keeps none."""

    def __init__(self, staff: _Staff, results: Any) -> None:
        self._staff = staff
        self._recv = results._reader.recv

    def __call__(self) -> tuple[int, int, tuple[bool, Any]] | None:
        while True:
            message = self._recv()
            if message is None:
                return None
            outcome = self._staff.outcome(message)
            if outcome is not None:
                return outcome
            del message


def _terminate(
    staff: _Staff,
    taskqueue: Any,
    tasks: _TaskChannel,
    results: Any,
    notifier: Any,
    threads: tuple[Any, Any, Any],
    cache: Any,
) -> None:
    """End everything that belongs to a pool: called once, also at exit and by the collector."""
    worker_handler, task_handler, result_handler = threads
    this = threading.current_thread()
    util.debug("finalizing pool")
    worker_handler._state = TERMINATE
    task_handler._state = TERMINATE
    notifier.put(None)
    taskqueue.put(None)
    for process in [*staff.workers]:
        let_go_on(process)
    if task_handler is not this:
        tasks.drain_until_ended(task_handler)
    if not result_handler.is_alive() and len(cache) != 0:
        raise AssertionError("Cannot have cache with result_handler not alive")
    result_handler._state = TERMINATE
    notifier.put(None)
    # No worker must be started behind our back.
    if worker_handler is not this:
        worker_handler.join()
    for process in staff.workers:
        if process.exitcode is None:
            terminate(process)
    if result_handler is not this:
        while result_handler.is_alive():  # it may be reading, or have read its last
            with contextlib.suppress(ipcbuf.ChannelFull):
                results._writer._sender.send_object(None, 0)
            result_handler.join(0.01)
    for sender in staff.senders:  # of whom there are no more without the result handler
        tasks.drain_until_ended(sender)
    for process in staff.workers:
        if process.is_alive():
            util.debug(f"cleaning up worker {process.pid}")
            process.join()


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        return getattr(_stdlib, name)
