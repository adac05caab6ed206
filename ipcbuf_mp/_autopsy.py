# SPDX-License-Identifier: Apache-2.0
"""What a worker died of, in words."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["manner_of_death", "name_of", "oom_kills"]

_CGROUPS = "/sys/fs/cgroup"


def manner_of_death(pid: int, code: int | None, oom: bool) -> str:
    """A sentence without its end: who died, and how."""
    if code is None or code >= 0:
        return f"Worker process {pid} ended with exit code {code}"
    text = f"Worker process {pid} was killed by {_signal_name(-code)}"
    if oom and code == -signal.SIGKILL:
        text += " (by the kernel, for lack of memory: its memory cgroup counted an OOM kill)"
    return text


def oom_kills() -> int:
    """How many processes the kernel has killed in our memory cgroup; 0 where it does not say."""
    for path in _memory_events():
        try:
            text = _read(path)
        except OSError:
            continue
        found = re.search(rb"^oom_kill (\d+)$", text, re.MULTILINE)
        if found:
            return int(found[1])
    return 0


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # an executor is made in less time than a Path
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _memory_events() -> list[str]:
    try:
        lines = os.fsdecode(_read("/proc/self/cgroup")).splitlines()
    except OSError:
        return []
    paths = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            paths.append(f"{_CGROUPS}{path}/memory.events")
        elif "memory" in controllers.split(","):
            paths.append(f"{_CGROUPS}/memory{path}/memory.oom_control")
    # In a container the path is often that of the host, and the mount the container's.
    return [*paths, f"{_CGROUPS}/memory.events", f"{_CGROUPS}/memory/memory.oom_control"]


def name_of(fn: Callable[..., object]) -> str:
    """What to call a task's function."""
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else f"a {type(fn).__qualname__} object"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
