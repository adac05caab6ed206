# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Handles on their way to a process that is being started (core/include/ipcbuf/parcels.hpp).

Whoever starts a process and pickles for it does so under `Parcels`, and says who it is as soon as
that is known. If it is killed before it has unpickled a handle, that goes with it.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from ._native import Atomic, Receiver, Sender, Static

__all__ = ["Parcels"]

_starting = threading.local()


class Parcels:
    """While it is entered, what this thread pickles is for one new process.

    Used as a context manager around whatever starts the process; then `address` says who it is.
    After an exception nothing was started; without an `address` what was pickled stays until this
    process ends.
    """

    def __init__(self) -> None:
        self._seats: list[tuple[Any, int]] = []  # a segment, and the seat there
        self._outer: Parcels | None = None

    @staticmethod
    def transit(handle: Sender | Receiver | Static | Atomic) -> int:
        """Keep what *handle* is of alive until it is opened elsewhere; return what opens it."""
        parcels: Parcels | None = getattr(_starting, "parcels", None)
        return handle.transit(0 if parcels is None else parcels.of(handle.segment))

    def of(self, segment: Any) -> int:
        """Return the seat in *segment*; 0 if there is none left, and they are of this process."""
        for known, known_seat in self._seats:
            if known is segment:
                return known_seat
        seat: int = segment.reserve_parcels()
        self._seats.append((segment, seat))
        return seat

    def address(self, pid: int) -> None:
        """Say which process it is: it was started."""
        for segment, seat in self._seats:
            if seat:
                segment.address_parcels(seat, pid)

    def __enter__(self) -> Self:
        self._outer = getattr(_starting, "parcels", None)
        _starting.parcels = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _starting.parcels = self._outer
        if kind is not None:
            for segment, seat in self._seats:
                if seat:
                    segment.drop_parcels(seat)
