# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Ordinary numpy arrays in shared memory: making them, moving them, sharing them.

An array made here is a block of the segment's heap, freed with the last view of it. Sending it
copies it, as for any array, so that the receiver gets what was there at the time. Two ways go
without a copy, and say so: `move` gives the memory away, `share` lets any number of readers look.
"""

from __future__ import annotations

import math
import pickle

from ._native import Moving, Record, Ticket, open_ticket
from .segment import default_segment

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, SupportsIndex, TypeAlias

    import numpy
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from .segment import Segment

    Shape: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...] | list[SupportsIndex]
    Meta: TypeAlias = tuple[tuple[int, ...], "numpy.dtype[Any] | str", str]

__all__ = ["Moved", "Shared", "empty", "from_array", "move", "share", "zeros"]


def empty(
    shape: Shape, dtype: DTypeLike = float, order: str = "C", *, segment: Segment | None = None
) -> NDArray[Any]:
    """Return a new array in shared memory, its contents arbitrary, as `numpy.empty`.

    Args:
        shape: Length of each dimension.
        dtype: Any type that is plain memory; not one with Python objects in it.
        order: "C" or "F".
        segment: Where to make it. None: `default_segment()`, which our queues use.

    Raises:
        TypeError: The type holds Python objects, or references to memory of its own.
        HeapExhausted: No room, with the numbers.
        RecordTooLarge: It could never fit.
    """
    import numpy

    kind = numpy.dtype(dtype)
    _require_plain(kind)
    lengths = _lengths(shape)
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    where = default_segment() if segment is None else segment
    return _array_over(where.allocate(math.prod(lengths) * kind.itemsize), (lengths, kind, order))


def zeros(
    shape: Shape, dtype: DTypeLike = float, order: str = "C", *, segment: Segment | None = None
) -> NDArray[Any]:
    """Return a new array of zeros in shared memory, as `numpy.zeros`. See `empty`."""
    import numpy

    array = empty(shape, dtype, order, segment=segment)
    if array.nbytes:
        memory: Any = _whole(array, "cleared")[0]
        numpy.frombuffer(memory, "u1").fill(0)
    return array


def from_array(array: ArrayLike, *, segment: Segment | None = None) -> NDArray[Any]:
    """Return a copy of *array* in shared memory, of the same shape, type and order.

    Raises:
        TypeError: Its type holds Python objects, or references to memory of its own.
        HeapExhausted: No room, with the numbers.
        RecordTooLarge: It could never fit.
    """
    import numpy

    source = numpy.asarray(array)
    order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
    copy = empty(source.shape, source.dtype, order, segment=segment)
    copy[...] = source
    return copy


class Moved(Moving):
    """An array on its way to another process without a copy. `move` makes it."""

    def __init__(self, record: Record, meta: Meta) -> None:
        super().__init__(record)
        self._meta = meta

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _open_moved, (self.record.segment, _ticket(self.record, protocol), self._meta)


def move(array: NDArray[Any]) -> Moved:
    """Mark an array for sending without a copy: `queue.put(move(a))`, `sender.send(move(a))`.

    Its memory must be a whole block of a segment: an array that `empty`, `zeros` or `from_array`
    made, or one that was received. The receiver gets it writable; here it becomes read-only at
    once, and goes on showing the memory, with what the receiver writes. The memory lives until
    both sides' views are gone. If the message is never received, the memory is freed with the
    channel. Other views of the memory that are writable here stay so: do not use them.

    A pickle that is no message of ours (an argument of a spawned process) can be opened once; if
    it never is, the memory lives until this process ends.

    Raises:
        ValueError: The array is not the whole of a block, or is read-only; `from_array` makes a
            copy that can be moved.
        TypeError: It is no plain `numpy.ndarray`.
    """
    record, meta = _whole(array, "moved")
    if not array.flags.writeable:
        raise ValueError(
            "the array is read-only: it was moved or shared before, or is a view of what was; "
            "move ipcbuf.from_array(array), a copy"
        )
    moved = Moved(record, meta)
    array.flags.writeable = False
    return moved


class Shared:
    """One block of shared memory that any number of processes read. `share` makes it.

    It travels by fork, as an argument of a new process, and through queues, pipes and executors;
    every process that has it keeps the memory alive, and so does a message on its way. The memory
    is freed with the last of them; the share of a process that was killed is dropped.
    """

    def __init__(self, record: Record, meta: Meta | None) -> None:
        self._record = record
        self._meta = meta

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._record.nbytes

    @property
    def view(self) -> memoryview:
        """A read-only view of the bytes. It keeps the memory alive by itself."""
        return memoryview(self._record).toreadonly()

    @property
    def array(self) -> NDArray[Any]:
        """The array, read-only for good; of bytes, an array of `uint8`."""
        meta = self._meta or ((self.nbytes,), "|u1", "C")
        return _array_over(self.view, meta)

    def __len__(self) -> int:
        """Length in bytes, so that empty bytes are false."""
        return self.nbytes

    def __repr__(self) -> str:
        what = "bytes" if self._meta is None else f"bytes, shape {self._meta[0]}"
        return f"<Shared {self.nbytes} {what}>"

    def __copy__(self) -> Shared:
        return self

    def __deepcopy__(self, memo: object) -> Shared:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        segment = self._record.segment
        return _open_shared, (segment, _ticket(self._record, protocol), self._meta)


def share(
    data: NDArray[Any] | bytes | bytearray | memoryview, *, segment: Segment | None = None
) -> Shared:
    """Return a handle through which any number of processes read one copy of *data*.

    An array that is the whole of a block (see `move`) is shared where it is and becomes
    read-only here; anything else is copied once.

    Args:
        data: An array, or anything bytes-like.
        segment: Where a copy is made. None: `default_segment()`.

    Raises:
        TypeError: An array of Python objects, or neither an array nor bytes-like.
        HeapExhausted: No room for the copy, with the numbers.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        where = default_segment() if segment is None else segment
        with memoryview(data) as view:
            flat = view.tobytes() if not view.c_contiguous else view.cast("B")
            record = where.allocate(view.nbytes)
            memoryview(record)[:] = flat
        return Shared(record, None)
    import numpy

    if not isinstance(data, numpy.ndarray):
        raise TypeError(f"share takes an array or bytes, not {type(data).__name__}")
    try:
        record, meta = _whole(data, "shared")
    except (ValueError, TypeError):
        data = from_array(data, segment=segment)
        record, meta = _whole(data, "shared")
    data.flags.writeable = False
    return Shared(record, meta)


# -- memory and arrays ------------------------------------------------------------------------


def _lengths(shape: Shape) -> tuple[int, ...]:
    lengths = tuple(n.__index__() for n in (shape if isinstance(shape, (tuple, list)) else [shape]))
    if any(n < 0 for n in lengths):
        raise ValueError(f"negative dimensions are not allowed: {lengths}")
    return lengths


def _require_plain(dtype: numpy.dtype[Any]) -> None:
    # "T" is the type of strings of any length: their text is elsewhere.
    if dtype.hasobject or dtype.kind == "T":
        raise TypeError(
            f"arrays of {dtype} cannot be in shared memory: they hold references to memory of "
            "one process; send such an array as it is, it is pickled then"
        )


def _array_over(memory: Any, meta: Meta) -> NDArray[Any]:
    import numpy

    shape, dtype, order = meta
    # An array of bytes in between, because it counts as a view of the record; the buffer of
    # `ndarray` itself does not, and the record could be released under it.
    raw = numpy.frombuffer(memory, "u1") if len(memory) else memoryview(memory)
    return numpy.ndarray(shape, dtype, raw, 0, None, order)  # type: ignore[arg-type]


def _record_of(array: NDArray[Any]) -> tuple[Record | None, bool]:
    """Return the record below an array, and whether the way to it is writable."""
    import numpy

    base: Any = array
    while isinstance(base, numpy.ndarray):
        base = base.base
    writable = True
    while isinstance(base, memoryview):
        writable = writable and not base.readonly
        base = base.obj
    return (base, writable) if isinstance(base, Record) else (None, False)


def _whole(array: NDArray[Any], verb: str) -> tuple[Record, Meta]:
    """Return the record that an array is the whole of, and what makes it an array."""
    import numpy

    if type(array) is not numpy.ndarray:
        raise TypeError(f"only a numpy.ndarray can be {verb}, not {type(array).__name__}")
    record, writable = _record_of(array)
    remedy = f"{verb} without a copy; use ipcbuf.from_array(array), a copy that can"
    if record is None or not record.shareable:
        raise ValueError(f"the array's memory is not in a segment, so it cannot be {remedy}")
    if not writable:
        raise ValueError(f"the array is a reader's view of a Shared, so it cannot be {remedy}")
    flags = array.flags
    if not flags.forc:
        raise ValueError(f"the array is not contiguous, so it cannot be {remedy}")
    begins = array.nbytes == 0 or array.__array_interface__["data"][0] == record.address
    if array.nbytes != record.nbytes or not begins:
        raise ValueError(
            f"the array is {array.nbytes} bytes of a block of {record.nbytes}, so it cannot be "
            f"{remedy}"
        )
    dtype = array.dtype
    code = dtype.str if dtype.isbuiltin == 1 else dtype
    order = "C" if flags.c_contiguous else "F"
    return record, (array.shape, code, order)


# -- on the way -------------------------------------------------------------------------------


def _ticket(record: Record, protocol: SupportsIndex) -> Any:
    """What stands for a record in a pickle: goes beside a message, or is its bytes."""
    ticket = Ticket(record)
    return pickle.PickleBuffer(ticket) if protocol.__index__() >= 5 else bytes(ticket)


def _open_moved(segment: Segment, ticket: Any, meta: Meta) -> NDArray[Any]:
    return _array_over(open_ticket(segment, ticket), meta)


def _open_shared(segment: Segment, ticket: Any, meta: Meta | None) -> Shared:
    return Shared(open_ticket(segment, ticket), meta)


def _dumps(obj: object) -> tuple[bytes, list[memoryview] | None]:
    """Pickle *obj* for a message, until somebody names another codec. Tickets go beside it."""
    beside: list[memoryview] = []

    def goes_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if not isinstance(view.obj, Ticket) or len(beside) >= 60:
            return True
        view.obj.beside = True
        beside.append(view)
        return False

    return pickle.dumps(obj, 5, buffer_callback=goes_in_band), beside or None


def _loads(payload: bytes | memoryview, buffers: Any) -> Any:
    return pickle.loads(payload, buffers=buffers)
