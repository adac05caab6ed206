# SPDX-License-Identifier: Apache-2.0
"""How objects become messages: pickle 5, large buffers beside it, cloudpickle second.

`ipcbuf` encodes None, numbers, strings, bytes, arrays and small containers of these by itself.
Everything else comes here, through `ipcbuf.set_object_codec`, which importing this module calls.

Which reducers apply
  Those of `multiprocessing.reduction.ForkingPickler`, whenever they were registered, then
  those of `copyreg`, so locks, connections, sockets and tensors travel as they always did.
  A plain numpy array has a reducer here, unless somebody registered another one: numpy's
  own takes twice as long, and gives the receiver of a read-only array a read-only one. Where
  nobody did, contiguous arrays of numbers do not come here at all, unless they lie within
  something that does.

  A program that puts a pickler of its own in the place of that class (`context.reducer = …`),
  or gives it a `reducer_override`, is obeyed: its pickler does all that comes here, with nothing
  beside the pickle. Arrays that do not come here are no business of it.

What goes beside the pickle
  A contiguous buffer of at least `LARGE` bytes goes into a heap block of its own, at most
  `MOST_BUFFERS` of them in a message. The receiver's object is a view of that block. So does
  what stands for memory that is moved or shared, which is not copied at all.

What pickle refuses
  Goes to cloudpickle, imported at that moment. If that refuses too, the caller sees the
  error of pickle: it is the one that is documented.

What is unpickled later
  The payload of a `Late` object begins with a zero byte, as no pickle does. It arrives as a
  `Late` object again, whose head can be read whatever its pickle holds.

Why the picklers are kept
  Making a `ForkingPickler` costs several times what pickling a small object costs. An idle
  pickler waits in a list; one that is at work is in no list, so neither another thread nor
  a reducer that itself sends something can meet it.
"""

from __future__ import annotations

import contextlib
import copyreg
import multiprocessing.context
import os
import pickle
import sys
import threading
from collections import ChainMap
from multiprocessing.reduction import ForkingPickler

import ipcbuf

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    import numpy

    Reducer = Callable[[Any], Any]
    Buffer = bytes | bytearray | memoryview

__all__ = [
    "ByValue",
    "Late",
    "dump_bytes",
    "dumps",
    "dumps_by_value",
    "dumps_main_by_value",
    "loads",
]

LARGE = 4096
MOST_BUFFERS = 60

# A pickler remembers how large its memo once was, and clears as much after each message.
_LARGEST_KEPT = 256 * 1024

_PROTOCOL = 5
_REFUSALS = (pickle.PicklingError, AttributeError, TypeError)


class _Reducers:
    """One table of all reducers, remade when one of its sources has changed."""

    def __init__(self) -> None:
        self._forking: dict[type, Reducer] = {}
        self._copyreg: dict[type, Reducer] = {}
        self._knows_numpy = False
        self._table: dict[type, Reducer] = {}

    def current(self) -> dict[type, Reducer]:
        """Return the table as it is to be at this moment.

        Comparing two small dictionaries costs less than one failed look-up through a
        chain of them, and unlike a count it notices that a reducer was replaced.
        """
        if (
            self._forking != _forking_reducers()
            or self._copyreg != copyreg.dispatch_table
            or (not self._knows_numpy and "numpy" in sys.modules)
        ):
            self._remake()
        return self._table

    def _remake(self) -> None:
        self._forking = dict(_forking_reducers())
        self._copyreg = dict(copyreg.dispatch_table)
        table: dict[type, Reducer] = {}
        array_type = getattr(sys.modules.get("numpy"), "ndarray", None)
        if array_type is not None:  # None also while numpy is being imported
            self._knows_numpy = True
            table[array_type] = _reduce_array
        self._table = table | self._copyreg | self._forking


def _forking_reducers() -> dict[type, Reducer]:
    reducers: dict[type, Reducer] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    return reducers


_reducers = _Reducers()


class _Sink:
    """What a pickler writes to: a list of pieces, usually of one piece."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write


class _Encoder:
    """A pickler that is used again and again, for one message at a time."""

    __slots__ = ("_buffers", "_pickler", "_pieces", "_table", "_tickets_beside")

    def __init__(self) -> None:
        self._tickets_beside = True
        self._pieces: list[bytes] = []
        self._buffers: list[memoryview] = []
        self._table: dict[type, Reducer] | None = None
        self._pickler = pickle.Pickler(
            _Sink(self._pieces.append), _PROTOCOL, buffer_callback=self._goes_in_band
        )

    def encode(
        self, obj: object, tickets_beside: bool = True
    ) -> tuple[bytes, list[memoryview] | None]:
        """Return the pickle of *obj* and the buffers that belong beside it."""
        self._tickets_beside = tickets_beside
        table = _reducers.current()
        if table is not self._table:
            self._pickler.dispatch_table = self._table = table
        self._pickler.dump(obj)
        self._pickler.clear_memo()
        pieces = self._pieces
        payload = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if not self._buffers:
            return payload, None
        buffers, self._buffers = self._buffers, []
        return payload, buffers

    def _goes_in_band(self, buffer: pickle.PickleBuffer) -> bool:
        return _goes_in_band(buffer, self._buffers, self._tickets_beside)


def _goes_in_band(
    buffer: pickle.PickleBuffer, beside: list[memoryview], tickets_beside: bool = True
) -> bool:
    """Say whether *buffer* goes into the pickle; if not, append it to *beside*."""
    view = buffer.raw()
    if view.nbytes < LARGE or len(beside) >= MOST_BUFFERS:
        ticket = view.obj if tickets_beside and isinstance(view.obj, ipcbuf.Ticket) else None
        if ticket is None or len(beside) >= MOST_BUFFERS:
            return True
        ticket.beside = True
    beside.append(view)
    return False


def _pickler_of_program() -> Any:
    """Return the class that the program has put in the place of the standard library's, or None."""
    pickler: Any = multiprocessing.context.reduction.ForkingPickler  # type: ignore[attr-defined]
    if pickler is ForkingPickler and "reducer_override" not in ForkingPickler.__dict__:
        return None
    return pickler


_idle: list[_Encoder] = []

# Python resets the locks of modules that are being imported in no child: one that is forked while
# another thread imports cloudpickle could never import it. So no fork happens meanwhile.
_importing = threading.RLock()
os.register_at_fork(
    before=_importing.acquire,
    after_in_parent=_importing.release,
    after_in_child=_importing.release,
)


def dumps(obj: object) -> tuple[bytes, list[memoryview] | None]:
    """Return the pickle of *obj* and the large buffers that belong beside it, None if none.

    Raises:
        Exception: What pickle, or a reducer of *obj*, raised. Nothing was sent.
    """
    if type(obj) is Late:
        return obj.payload, obj.buffers
    try:
        return _dumps_by_pickle(obj)
    except _REFUSALS:
        try:
            return _dumps_by_cloudpickle(obj)
        except Exception:  # the refusal of pickle is what the caller is to see
            pass
        raise


def _dumps_by_pickle(
    obj: object, tickets_beside: bool = True
) -> tuple[bytes, list[memoryview] | None]:
    pickler = _pickler_of_program()
    if pickler is not None:
        return bytes(pickler.dumps(obj)), None
    try:
        encoder = _idle.pop()
    except IndexError:
        encoder = _Encoder()
    message = encoder.encode(obj, tickets_beside)
    # An encoder that raised is dropped: its memo holds half of an object.
    if len(message[0]) <= _LARGEST_KEPT:
        _idle.append(encoder)
    return message


def _dumps_by_cloudpickle(
    obj: object, tickets_beside: bool = True
) -> tuple[bytes, list[memoryview] | None]:
    with _importing:
        import cloudpickle  # slow to import, and few programs need it

    pieces: list[bytes] = []
    buffers: list[memoryview] = []
    pickler = cloudpickle.CloudPickler(
        _Sink(pieces.append),
        _PROTOCOL,
        lambda buffer: _goes_in_band(buffer, buffers, tickets_beside),
    )
    pickler.dispatch_table = ChainMap(_reducers.current(), pickler.dispatch_table)
    pickler.dump(obj)
    return b"".join(pieces), buffers or None


def dumps_main_by_value(obj: object) -> tuple[bytes, list[memoryview] | None]:
    """As `dumps`, for a receiver that has another `__main__`."""
    try:
        message = _dumps_by_pickle(obj)
    except _REFUSALS:
        return dumps(obj)
    return _dumps_by_cloudpickle(obj) if _MAIN in message[0] else message


_MAIN = b"\x08__main__"  # as pickle writes it, with its length


class ByValue:
    """Is unpickled as *obj*, of which nothing went by the name of a main module."""

    def __init__(self, obj: object) -> None:
        self._obj = obj

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (dumps_by_value(self._obj),)


def dumps_by_value(obj: object) -> bytes:
    """Return the pickle of *obj* by cloudpickle, with nothing beside it."""
    with _importing:
        import cloudpickle

    pieces: list[bytes] = []
    pickler = cloudpickle.CloudPickler(_Sink(pieces.append), _PROTOCOL)
    pickler.dispatch_table = ChainMap(dict(_forking_reducers()), pickler.dispatch_table)
    pickler.dump(obj)
    return b"".join(pieces)


def loads(payload: Buffer, buffers: Sequence[Any]) -> Any:
    """Return the object of a message. Its large buffers are the memory of *buffers*."""
    if not (payload[0] if type(payload) is bytes else memoryview(payload)[0]):
        return Late(payload, buffers)
    try:
        return _loads(payload, buffers)
    except BaseException as error:
        _unread.of = id(error), bytes(memoryview(payload)[:_BEGINNING])
        raise


def _loads(payload: Buffer, buffers: Sequence[Any]) -> Any:
    if buffers:
        return pickle.loads(payload, buffers=buffers)
    pickler = _pickler_of_program()
    return pickle.loads(payload) if pickler is None else pickler.loads(payload)


_unread = threading.local()
_BEGINNING = 64  # bytes


def first_numbers_of_unread(error: BaseException) -> tuple[int, ...]:
    """Return the integers with which a tuple began that this thread could not unpickle.

    Empty if *error* was not raised by the last unpickling that failed here. The pickle of a
    tuple begins with its items, one after the other.
    """
    with _importing:
        import pickletools  # slow to import

    of, beginning = _unread.__dict__.pop("of", (0, b""))
    numbers: list[int] = []
    if of == id(error):
        with contextlib.suppress(ValueError):  # where the beginning ends
            for opcode, number, _ in pickletools.genops(beginning):
                if type(number) is int and opcode.name not in ("PROTO", "FRAME"):
                    numbers.append(number)
                elif opcode.name not in ("PROTO", "FRAME", "MARK"):
                    break
    return tuple(numbers)


class Late:
    """A message with a head, whose object is unpickled when its receiver says so."""

    __slots__ = ("buffers", "payload")

    def __init__(self, payload: Buffer, buffers: Any) -> None:
        self.payload: Any = payload
        self.buffers = buffers

    @staticmethod
    def of_task(head: bytes, obj: object) -> Late:
        """Pickle *obj* for a channel with leases, by cloudpickle if need be.

        Shared memory in it goes as the bytes of its ticket: a lease carries copies.
        """
        try:
            payload, buffers = _dumps_by_pickle(obj, tickets_beside=False)
        except _REFUSALS:
            try:
                payload, buffers = _dumps_by_cloudpickle(obj, tickets_beside=False)
            except Exception:  # as in `dumps`
                payload = b""
            if not payload:
                raise
        return Late(b"\0" + head + payload, buffers)

    @staticmethod
    def of_result(head: bytes, obj: object) -> Late:
        """Pickle *obj* by pickle alone."""
        payload, buffers = _dumps_by_pickle(obj)
        return Late(b"\0" + head + payload, buffers)

    def head(self, size: int) -> bytes:
        """Return the first *size* bytes of what the sender put before the pickle."""
        return bytes(memoryview(self.payload)[1 : 1 + size])

    def load(self, size: int) -> Any:
        """Return the object behind a head of *size* bytes. What unpickling raises is raised."""
        return _loads(memoryview(self.payload)[1 + size :], self.buffers or ())


def dump_bytes(obj: object) -> bytes:
    """Return the pickle that `multiprocessing` would have sent for *obj*."""
    return bytes((_pickler_of_program() or ForkingPickler).dumps(obj))


# -- numpy arrays -----------------------------------------------------------------------------


def _reduce_array(array: numpy.ndarray[Any, Any]) -> Any:
    """Reduce an array to a buffer, so that its bytes are copied once, into the heap."""
    dtype = array.dtype
    if dtype.hasobject:
        return array.__reduce__()
    flags = array.flags
    order = "C"
    if not flags.c_contiguous:
        if flags.f_contiguous:
            order = "F"
        else:
            array = array.copy()
    code = _dtype_codes().get(id(dtype), dtype)
    try:
        # Times have no letter in the buffer protocol; their bytes travel as integers.
        exported: Any = array.view("i8") if dtype.kind in "mM" else array
        buffer = pickle.PickleBuffer(exported)
    except (ValueError, BufferError):  # the same, within a structure
        return array.__reduce__()
    return _rebuild_array, (array.shape, code, buffer, order)


def _rebuild_array(
    shape: tuple[int, ...], dtype: Any, buffer: Any, order: Any
) -> numpy.ndarray[Any, Any]:
    """Make the array again, writable as unpickled arrays always are."""
    with _importing:
        import numpy

    if isinstance(buffer, bytes):  # a small read-only array
        buffer = bytearray(buffer)
    elif isinstance(buffer, memoryview):  # a large one: the block below the read-only view
        buffer = buffer.obj
    return numpy.ndarray(shape, dtype, buffer, 0, None, order)


_codes: dict[int, str] = {}


def _dtype_codes() -> dict[int, str]:
    """Return the codes of numpy's own types by identity: there is one object of each."""
    if not _codes:
        import numpy

        dtypes = [numpy.dtype(char) for char in "?bBhHiIlLqQefdgFDG"]
        _codes.update((id(dtype), dtype.str) for dtype in dtypes)
    return _codes


ipcbuf.set_object_codec(dumps, loads, dump_bytes, (copyreg.dispatch_table, _forking_reducers()))
