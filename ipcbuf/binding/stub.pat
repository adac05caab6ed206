# What `just stub` adds to ipcbuf/_native.pyi: what only the text of a signature names, and what C
# slots do.

ipcbuf._native.__prefix__:
    \from collections.abc import Callable
    \from typing import Any
    \from collections.abc import Coroutine, Iterable
    \from typing_extensions import Buffer
    \from .info import ChannelInfo

ipcbuf._native.Record.__suffix__:
    def __buffer__(self, flags: int, /) -> memoryview: ...

ipcbuf._native.Static.__suffix__:
    def __buffer__(self, flags: int, /) -> memoryview: ...

ipcbuf._native.Ticket.__suffix__:
    def __buffer__(self, flags: int, /) -> memoryview: ...
