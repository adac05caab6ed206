# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""The ends of channels in asyncio: `arecv`, `asend`, `async for`.

An attempt never waits; between attempts the task sleeps until the event loop finds the end's
descriptor readable. A message is taken in the very step in which the task returns it, so a
cancelled task has taken none.

Tasks of one loop that wait at the same end form a line: first come, first served. Different
loops, in threads one after another or at once, are different users of the end.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ChannelEmpty, ChannelFull, EndOfChannel

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._native import Receiver, Sender

    Future = asyncio.Future[None]
    Lines = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, "_Line"]

T = TypeVar("T")


class _Line:
    """The tasks of one loop that wait at one end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: deque[Future] = deque()  # the first one is whose turn it is

    def is_empty(self) -> bool:
        return not self._waiting

    async def wait_for_turn(
        self,
        attempt: Callable[[], T],
        nothing: type[Exception],
        timeout: float | None,
    ) -> T:
        """Call *attempt* when the end is ready until it does not raise *nothing*."""
        loop = asyncio.get_running_loop()
        turn: Future = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _wake, turn)
        deadline = None if timeout is None else loop.time() + timeout
        if not self._waiting:
            loop.add_reader(self._fd, self._on_ready)
        self._waiting.append(turn)
        try:
            while True:
                await turn
                late = deadline is not None and loop.time() >= deadline
                if self._waiting[0] is turn or late:
                    try:
                        return attempt()
                    except nothing:
                        if late:
                            raise
                # Too early, or another user of the end was faster: the same place in the line.
                fresh: Future = loop.create_future()
                self._waiting[self._waiting.index(turn)] = fresh
                turn = fresh
                if timer is not None and deadline is not None:
                    timer.cancel()
                    timer = loop.call_at(deadline, _wake, turn)
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting.remove(turn)
            if not self._waiting:
                loop.remove_reader(self._fd)

    def _on_ready(self) -> None:
        # Level-triggered: called again and again until the task whose turn it is has run.
        _wake(self._waiting[0])


def _wake(turn: Future) -> None:
    if not turn.done():
        turn.set_result(None)


_lines: weakref.WeakKeyDictionary[Receiver | Sender, Lines] = weakref.WeakKeyDictionary()


def _line_at(end: Receiver | Sender) -> _Line:
    loops = _lines.get(end)
    if loops is None:
        loops = _lines[end] = weakref.WeakKeyDictionary()
    loop = asyncio.get_running_loop()
    line = loops.get(loop)
    if line is None:
        line = loops[loop] = _Line(end.fileno())
    return line


async def _call(
    end: Receiver | Sender,
    attempt: Callable[[], T],
    nothing: type[Exception],
    timeout: float | None,
) -> T:
    loops = _lines.get(end)
    known = None if loops is None else loops.get(asyncio.get_running_loop())
    if known is None or known.is_empty():  # nobody is passed by
        try:
            return attempt()
        except nothing:
            if timeout is not None and timeout <= 0:
                raise
    return await _line_at(end).wait_for_turn(attempt, nothing, timeout)


def arecv(receiver: Receiver, timeout: float | None) -> Any:
    """As `Receiver.recv`."""
    return _call(receiver, partial(receiver.recv, 0), ChannelEmpty, timeout)


def arecv_view(receiver: Receiver, timeout: float | None) -> Any:
    """As `Receiver.recv_view`."""
    return _call(receiver, partial(receiver.recv_view, 0), ChannelEmpty, timeout)


def arecv_object(receiver: Receiver, timeout: float | None) -> Any:
    """As `Receiver.recv_object`."""
    return _call(receiver, partial(receiver.recv_object, 0), ChannelEmpty, timeout)


def arecv_leased(receiver: Receiver, timeout: float | None) -> Any:
    """As `Receiver.recv_leased`."""
    return _call(receiver, partial(receiver.recv_leased, 0), ChannelEmpty, timeout)


def asend(sender: Sender, data: Any, timeout: float | None) -> Any:
    """As `Sender.send`."""
    return _call(sender, partial(sender.send, data, timeout=0), ChannelFull, timeout)


def asend_object(sender: Sender, obj: object, timeout: float | None) -> Any:
    """As `Sender.send_object`."""
    return _call(sender, partial(sender.send_object, obj, timeout=0), ChannelFull, timeout)


async def anext_message(receiver: Receiver) -> bytes:
    """Return the next message for `async for`."""
    try:
        message: bytes = await arecv(receiver, None)
    except EndOfChannel:
        raise StopAsyncIteration from None
    return message
