# What `just stub` adds to ipcbuf/_native.pyi: what only the text of a signature names, and what C
# slots do. From Python 3.12 on these have names, and no types; they are said here for all.

ipcbuf._native.__prefix__:
    \from collections.abc import Callable
    \from typing import Any
    \from collections.abc import Coroutine, Iterable
    \from typing_extensions import Buffer
    \from .info import ChannelInfo

ipcbuf._native.[A-Za-z]+.__(release_)?buffer__:

ipcbuf._native.Record.__suffix__:
    def __buffer__(self, flags: int, /) -> memoryview: ...

ipcbuf._native.Static.__suffix__:
    def __buffer__(self, flags: int, /) -> memoryview: ...

ipcbuf._native.Ticket.__suffix__:
    def __buffer__(self, flags: int, /) -> memoryview: ...
