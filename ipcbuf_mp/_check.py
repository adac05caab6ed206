# SPDX-License-Identifier: Apache-2.0
"""`python -m ipcbuf_mp --check`: what is ours on this machine, and what limits it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import ipcbuf

OURS = ("Queue", "JoinableQueue", "SimpleQueue", "Pipe", "Pool", "ProcessPoolExecutor")

# Numbers of system calls that Python has no function for.
MEMBARRIER = {"x86_64": 324, "aarch64": 283}
FUTEX = {"x86_64": 202, "aarch64": 98}
FUTEX_WAKE = 1
MEMBARRIER_CMD_QUERY = 0
MEMBARRIER_CMD_GLOBAL_EXPEDITED = 1 << 1


def check() -> None:
    """Print the whole report."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        segment = find_segment()

    print(f"ipcbuf {installed('ipcbuf') or '(not installed)'}", end=", ")
    print(f"Python {platform.python_version()}", end=", ")
    print(f"{platform.system()} {platform.release()} {platform.machine()}")
    if segment is None:
        print("Nothing is ours here, all classes are the standard library's:")
        for warning in said:
            print(f"  {warning.message}")
    else:
        print(f"Ours: {', '.join(OURS)}.")
        print("The standard library's: everything else.")

    print_section("Kernel", kernel_features())
    if segment is not None:
        print_section("Segment", segment_numbers(segment))
    print_section("Limits", limits())
    print_section("Fallbacks", fallbacks())


def print_section(title: str, lines: Iterator[tuple[str, str]]) -> None:
    """Print *lines* under *title*."""
    print(f"\n{title}")
    for name, value in lines:
        print(f"  {name:<22} {value}")


def find_segment() -> ipcbuf.Segment | None:
    """Return the segment that queues would use, None if there can be none."""
    from .context import engine_works

    if not engine_works():
        return None
    import ipcbuf

    return ipcbuf.default_segment()


# --- the kernel -----------------------------------------------------------------------------------


def kernel_features() -> Iterator[tuple[str, str]]:
    """Say which of the system calls that ipcbuf lives on are there."""
    yield "memfd", outcome(lambda: os.close(os.memfd_create("check", os.MFD_ALLOW_SEALING)))
    yield "pidfd", outcome(open_pidfd)
    yield "futex", outcome(wake_nobody)
    yield "eventfd", outcome(lambda: os.close(os.eventfd(0)))
    yield "membarrier", "yes" if has_membarrier() else "no"


def open_pidfd() -> None:
    """Get hold of a process, which is this one."""
    os.close(os.pidfd_open(os.getpid()))


def outcome(attempt: Callable[[], object]) -> str:
    """Say "yes" if *attempt* works, else why not."""
    try:
        attempt()
    except (OSError, AttributeError) as error:
        return f"no ({error})"
    return "yes"


def system_call(numbers: dict[str, int], *arguments: object) -> int:
    """Make the system call that has one of *numbers* on this machine."""
    number = numbers.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"not known on {platform.machine()}")
    result: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def wake_nobody() -> None:
    """Wake those who sleep on a word that nobody else knows."""
    word = ctypes.c_uint32(0)
    system_call(FUTEX, ctypes.byref(word), FUTEX_WAKE, 1, None, None, 0)


def has_membarrier() -> bool:
    """Say whether the kernel has the barrier that makes publishing cheap."""
    try:
        commands = system_call(MEMBARRIER, MEMBARRIER_CMD_QUERY, 0, 0)
    except OSError:
        return False
    return bool(commands & MEMBARRIER_CMD_GLOBAL_EXPEDITED)


# --- memory ---------------------------------------------------------------------------------------


def segment_numbers(segment: ipcbuf.Segment) -> Iterator[tuple[str, str]]:
    """Tell how large the segment may become, and how large it is."""
    yield "address window", size(mapped_bytes(segment.fd))
    yield "max_size", size(segment.max_size)
    yield "committed now", size(segment.committed)
    for name, value in segment.stats().items():
        if isinstance(value, int) and name not in ("max_size", "committed_bytes"):
            yield name.replace("_", " "), f"{value:,}"


def mapped_bytes(descriptor: int) -> int:
    """Return how many bytes of address space this process maps to the file."""
    inode = os.fstat(descriptor).st_ino
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, mapped_inode, *_ = line.split()
        if int(mapped_inode) == inode:
            first, last = (int(address, 16) for address in addresses.split("-"))
            total += last - first
    return total


def limits() -> Iterator[tuple[str, str]]:
    """Tell what bounds the memory and the descriptors of this process."""
    yield "physical memory", size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            yield "available now", size(int(line.split()[1]) * 1024)
    cgroup = list(cgroup_limits())
    yield "cgroup", "; ".join(cgroup) if cgroup else "no memory limit"
    yield "address space", soft_limit(resource.RLIMIT_AS, size)
    yield "open files", soft_limit(resource.RLIMIT_NOFILE, str)
    try:
        shm = os.statvfs("/dev/shm")
        yield "/dev/shm", f"{size(shm.f_blocks * shm.f_frsize)} (not used)"
    except OSError:
        yield "/dev/shm", "none (not used)"


def cgroup_limits() -> Iterator[str]:
    """Yield the memory limit of every control group above this process that has one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, file = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, file = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for level in (group, *group.parents):
            try:
                text = (root / level / file).read_text().strip()
            except OSError:
                continue
            if text != "max" and int(text) < 1 << 60:  # version 1 writes a huge number for none
                yield f"{size(int(text))} at /{'' if str(level) == '.' else level}"


def soft_limit(kind: int, form: Callable[[int], str]) -> str:
    """Return the soft limit of a resource as text."""
    value = resource.getrlimit(kind)[0]
    return "no limit" if value == resource.RLIM_INFINITY else form(value)


# --- the rest -------------------------------------------------------------------------------------


def fallbacks() -> Iterator[tuple[str, str]]:
    """Say what is done in another way because something is missing."""
    if not has_membarrier():
        yield "membarrier", "missing: every message costs its sender an exchange (some ns)"
    if outcome(open_pidfd) != "yes":
        yield "pidfd", "missing: start time and life byte alone prove a death"
    for package, use in (("numpy", "arrays"), ("cloudpickle", "what pickle refuses")):
        found = installed(package)
        yield package, f"{found} for {use}" if found else f"missing: no {use}"
    if sys.implementation.name != "cpython":
        yield "interpreter", f"{sys.implementation.name}; only CPython is tested"


def installed(package: str) -> str:
    """Return the version of a package, without importing it; "" if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def size(nbytes: int) -> str:
    """Return a number of bytes as text."""
    value = float(nbytes)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"
