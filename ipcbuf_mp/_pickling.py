# SPDX-License-Identifier: Apache-2.0
"""How objects become messages: pickle 5, large buffers beside it, cloudpickle second.

`ipcbuf` encodes None, numbers, strings, bytes and small containers of these by itself.
Everything else comes here, through `ipcbuf.set_object_codec`, which importing this module calls.

Which reducers apply
  Those of `multiprocessing.reduction.ForkingPickler`, whenever they were registered, then
  those of `copyreg`, so locks, connections, sockets and tensors travel as they always did.
  A plain numpy array has a reducer here, unless somebody registered another one: numpy's
  own takes twice as long, and gives the receiver of a read-only array a read-only one.

What goes beside the pickle
  A contiguous buffer of at least `LARGE` bytes goes into a heap block of its own, at most
  `MOST_BUFFERS` of them in a message. The receiver's object is a view of that block. So does
  what stands for memory that is moved or shared, which is not copied at all.

What pickle refuses
  Goes to cloudpickle, imported at that moment. If that refuses too, the caller sees the
  error of pickle: it is the one that is documented.

Why the picklers are kept
  Making a `ForkingPickler` costs several times what pickling a small object costs. An idle
  pickler waits in a list; one that is at work is in no list, so neither another thread nor
  a reducer that itself sends something can meet it.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections import ChainMap
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy

    Reducer = Callable[[Any], Any]
    Buffer = bytes | bytearray | memoryview

__all__ = ["dump_bytes", "dumps", "loads"]

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

    __slots__ = ("_buffers", "_pickler", "_pieces", "_table")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._buffers: list[memoryview] = []
        self._table: dict[type, Reducer] | None = None
        self._pickler = pickle.Pickler(
            _Sink(self._pieces.append), _PROTOCOL, buffer_callback=self._goes_in_band
        )

    def encode(self, obj: object) -> tuple[bytes, list[memoryview] | None]:
        """Return the pickle of *obj* and the buffers that belong beside it."""
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
        return _goes_in_band(buffer, self._buffers)


def _goes_in_band(buffer: pickle.PickleBuffer, beside: list[memoryview]) -> bool:
    """Say whether *buffer* goes into the pickle; if not, append it to *beside*."""
    view = buffer.raw()
    if view.nbytes < LARGE or len(beside) >= MOST_BUFFERS:
        if not isinstance(view.obj, ipcbuf.Ticket) or len(beside) >= MOST_BUFFERS:
            return True
        view.obj.beside = True
    beside.append(view)
    return False


_idle: list[_Encoder] = []


def dumps(obj: object) -> tuple[bytes, list[memoryview] | None]:
    """Return the pickle of *obj* and the large buffers that belong beside it, None if none.

    Raises:
        Exception: What pickle, or a reducer of *obj*, raised. Nothing was sent.
    """
    try:
        encoder = _idle.pop()
    except IndexError:
        encoder = _Encoder()
    try:
        message = encoder.encode(obj)
    except _REFUSALS:
        try:
            return _dumps_by_cloudpickle(obj)
        except Exception:  # the refusal of pickle is what the caller is to see
            pass
        raise
    # An encoder that raised is dropped: its memo holds half of an object.
    if len(message[0]) <= _LARGEST_KEPT:
        _idle.append(encoder)
    return message


def _dumps_by_cloudpickle(obj: object) -> tuple[bytes, list[memoryview] | None]:
    import cloudpickle  # slow to import, and few programs need it

    pieces: list[bytes] = []
    buffers: list[memoryview] = []
    pickler = cloudpickle.CloudPickler(
        _Sink(pieces.append), _PROTOCOL, lambda buffer: _goes_in_band(buffer, buffers)
    )
    pickler.dispatch_table = ChainMap(_reducers.current(), pickler.dispatch_table)
    pickler.dump(obj)
    return b"".join(pieces), buffers or None


def loads(payload: Buffer, buffers: Sequence[Any]) -> Any:
    """Return the object of a message. Its large buffers are the memory of *buffers*."""
    if buffers:
        return pickle.loads(payload, buffers=buffers)
    return pickle.loads(payload)


def dump_bytes(obj: object) -> bytes:
    """Return the pickle that `multiprocessing` would have sent for *obj*."""
    return bytes(ForkingPickler.dumps(obj))


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


ipcbuf.set_object_codec(dumps, loads, dump_bytes)
