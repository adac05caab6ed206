# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Objects through what passes bytes in shared memory: pickle, with large buffers beside the stream.

A message is the count of its parts, their sizes, and the parts: the stream and its buffers.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any


def parts_of(message: object) -> list[memoryview]:
    """Return what has to be written, in this order."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    index = struct.pack(f"<{len(parts) + 1}Q", len(parts), *(part.nbytes for part in parts))
    return [memoryview(index), *parts]


def size_of(parts: list[memoryview]) -> int:
    """Return the bytes that they take."""
    return sum(part.nbytes for part in parts)


def write(parts: list[memoryview], memory: memoryview) -> None:
    """Copy them to the beginning of *memory*."""
    at = 0
    for part in parts:
        memory[at : at + part.nbytes] = part
        at += part.nbytes


def read(memory: memoryview) -> Any:
    """Return the message, of which nothing stays in *memory*."""
    (count,) = struct.unpack_from("<Q", memory)
    sizes = struct.unpack_from(f"<{count}Q", memory, 8)
    at = 8 * (count + 1)
    parts = []
    for size in sizes:
        parts.append(memory[at : at + size])
        at += size
    return pickle.loads(parts[0], buffers=[bytearray(part) for part in parts[1:]])
