# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""What a segment takes from the system and gives back, and what stops it from growing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

import ipcbuf

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
TIMEOUT = 60


def in_memory(segment: ipcbuf.Segment) -> int:
    return os.fstat(segment.fd).st_blocks * 512


def test_a_burst_that_was_drained_is_given_back() -> None:
    segment = ipcbuf.Segment(max_size=1 << 30)
    sender, receiver = segment.channel()
    message = bytes(4 * MIB)
    for _ in range(125):
        sender.send(message)
    full = in_memory(segment)
    assert full >= 500 * MIB
    for _ in range(125):
        receiver.recv(TIMEOUT)

    given = segment.trim()

    stats = segment.stats()
    assert given >= 480 * MIB
    assert stats["given_back_bytes"] == given
    assert stats["returned_bytes"] == given
    assert in_memory(segment) <= full - given
    assert segment.fsck() == []
    # It goes on, and takes only what it needs.
    for _ in range(50):
        sender.send(message)
        assert receiver.recv(TIMEOUT) == message
    assert in_memory(segment) <= full - given + 3 * len(message)
    assert segment.fsck() == []


def test_a_burst_of_small_messages_is_given_back_while_others_go_on() -> None:
    segment = ipcbuf.Segment(max_size=1 << 30)
    sender, receiver = segment.channel()
    message = bytes(5000)
    for _ in range(40_000):
        sender.send(message)
    full = in_memory(segment)
    assert full >= 200 * MIB
    for _ in range(40_000):
        receiver.recv(TIMEOUT)

    deadline = time.monotonic() + TIMEOUT
    while in_memory(segment) > full - 100 * MIB:
        assert time.monotonic() < deadline, f"{in_memory(segment)} of {full} bytes are still there"
        sender.send(message)
        assert receiver.recv(TIMEOUT) == message
        sender.send(bytes(100_000))
        receiver.recv(TIMEOUT)
        time.sleep(0.02)  # nothing is given back before it was not needed for a second

    assert segment.fsck() == []


def test_a_steady_flow_keeps_its_memory() -> None:
    """What is used again and again is neither given back nor reserved anew."""
    segment = ipcbuf.Segment(max_size=256 * MIB)
    sender, receiver = segment.channel()
    message = bytes(16 * MIB)
    for _ in range(20):
        sender.send(message)
        receiver.recv(TIMEOUT)

    stats = segment.stats()
    assert stats["given_back_bytes"] == 0
    assert stats["committed_bytes"] <= 4 * len(message)


def test_trim_of_a_busy_segment_keeps_what_is_in_use() -> None:
    segment = ipcbuf.Segment(max_size=256 * MIB)
    sender, receiver = segment.channel()
    records = [segment.allocate(3 * MIB) for _ in range(20)]
    for number, record in enumerate(records):
        memoryview(record)[:] = bytes([number]) * record.nbytes
    del records[::2]
    sender.send(b"y" * MIB)

    segment.trim()

    for number, record in zip(range(1, 20, 2), records, strict=True):
        assert bytes(memoryview(record)[-3:]) == bytes([number]) * 3
    assert receiver.recv(TIMEOUT) == b"y" * MIB
    assert segment.fsck() == []


def test_the_default_max_size_is_half_of_the_least_limit() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    size = ipcbuf.Segment().max_size

    assert 0 < size <= physical // 2
    assert size % (16 << 10) == 0


# -- limits of the machine, in a mount namespace where they are files of ours ------------------

PREPARE = """
    import ctypes, os, sys
    libc = ctypes.CDLL(None, use_errno=True)
    def call(number):
        if number != 0:
            print(os.strerror(ctypes.get_errno()))
            sys.exit(77)
    def mount(source, target, kind=None, flags=0, data=None):
        coded = [None if s is None else s.encode() for s in (source, target, kind)]
        call(libc.mount(*coded, flags, None if data is None else data.encode()))
    call(libc.unshare(0x20000))  # CLONE_NEWNS
    mount(None, "/", None, 0x44000)  # private, recursive
    def put(path, text):
        with open(os.path.join(FOLDER, path.replace("/", "_")), "w") as file:
            file.write(text)
        mount(file.name, path, None, 0x1000)  # bind
    def cgroups(own, **groups):
        put("/proc/self/cgroup", own)
        mount("tmpfs", "/sys/fs/cgroup", "tmpfs")
        for name, text in groups.items():
            path = os.path.join("/sys/fs/cgroup", name.replace("__", "/").replace("_dot_", "."))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(text)
    import ipcbuf
    MIB = 1 << 20
"""


def in_namespace(folder: Path, code: str) -> str:
    script = f"FOLDER = {str(folder)!r}\n" + textwrap.dedent(PREPARE) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT
    )
    if done.returncode == 77:
        pytest.skip(f"no mount namespace here: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_growth_stops_before_the_machine_is_out_of_memory(tmp_path: Path) -> None:
    text = in_namespace(
        tmp_path,
        """
        segment = ipcbuf.Segment(max_size=512 * MIB)
        put("/proc/meminfo", "MemTotal: 1024000 kB\\nMemFree: 1 kB\\nMemAvailable: 102400 kB\\n")
        record = segment.allocate(40 * MIB)
        try:
            segment.allocate(100 * MIB)
        except ipcbuf.HeapExhausted as error:
            print(error)
        del record
        segment.trim()
        assert segment.fsck() == []
        try:
            segment.allocate(60 * MIB)
        except ipcbuf.HeapExhausted as error:
            print(error)
        assert segment.fsck() == []
        """,
    )

    assert text.count("the machine can spare 52428800 bytes (5 % are kept)") == 2


def test_growth_stops_before_a_cgroup_kills(tmp_path: Path) -> None:
    text = in_namespace(
        tmp_path,
        """
        cgroups("0::/a/b\\n",
            a__b__memory_dot_max="max\\n", a__b__memory_dot_current="7\\n",
            a__memory_dot_max=f"{400 * MIB}\\n", a__memory_dot_current=f"{300 * MIB}\\n",
            a__memory_dot_stat=f"anon 5\\ninactive_file {20 * MIB}\\n")
        segment = ipcbuf.Segment()
        print("max_size", segment.max_size // MIB)
        try:
            segment.allocate(150 * MIB)
        except ipcbuf.HeapExhausted as error:
            print(error)
        """,
    )

    assert "max_size 200" in text
    assert f"the memory cgroup has {100 * MIB} bytes left (5 % are kept); raise its" in text


def test_the_limit_of_a_cgroup_of_version_1(tmp_path: Path) -> None:
    text = in_namespace(
        tmp_path,
        """
        cgroups("3:cpuset:/\\n4:memory:/box\\n",
            memory__box__memory_dot_limit_in_bytes=f"{100 * MIB}\\n",
            memory__box__memory_dot_usage_in_bytes=f"{90 * MIB}\\n",
            memory__box__memory_dot_stat=f"cache 1\\ntotal_inactive_file {MIB}\\n",
            memory__memory_dot_limit_in_bytes="9223372036854771712\\n")
        segment = ipcbuf.Segment()
        print("max_size", segment.max_size // MIB)
        try:
            segment.allocate(20 * MIB)
        except ipcbuf.HeapExhausted as error:
            print(error)
        """,
    )

    assert "max_size 50" in text
    assert f"the memory cgroup has {6 * MIB} bytes left" in text


@pytest.mark.parametrize("name", [None, "x"], ids=["anonymous", "named"])
def test_a_real_cgroup_refuses_before_it_kills(folder: Path, name: str | None) -> None:
    """The kernel's own group: growth ends with an exception, not with a kill."""
    code = """
        import ipcbuf, os, sys
        MIB = 1 << 20
        name = sys.argv[1] or None
        try:
            os.mkdir(group := f"/sys/fs/cgroup/memory/ipcbuf-test-{os.getpid()}")
        except OSError as error:
            print(error)
            sys.exit(77)
        home = open("/proc/self/cgroup").read().split(":memory:")[1].split()[0]
        try:
            with open(group + "/memory.limit_in_bytes", "w") as file:
                file.write(str(100 * MIB))
            with open(group + "/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
            segment = ipcbuf.Segment(name)
            print("max_size", segment.max_size // MIB)
            segment.close()
            segment = ipcbuf.Segment(name, max_size=1 << 30)
            held = []
            try:
                while True:
                    held.append(segment.allocate(8 * MIB))
            except ipcbuf.HeapExhausted as error:
                print(error)
            assert segment.fsck() == []
            held.clear()
            segment.close()
        finally:
            with open("/sys/fs/cgroup/memory" + home + "/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
            with open(group + "/memory.force_empty", "w") as file:
                file.write("0")
            os.rmdir(group)
    """
    if not os.access("/sys/fs/cgroup/memory/memory.limit_in_bytes", os.R_OK):
        pytest.skip("no memory cgroup of version 1 here")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), name or ""],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    if done.returncode == 77:
        pytest.skip(f"no cgroup can be made here: {done.stdout.strip()}")

    assert done.returncode == 0, done.stderr
    assert "max_size 50" in done.stdout
    assert "the memory cgroup has" in done.stdout
    assert list(folder.iterdir()) == []


def test_a_limit_on_the_size_of_files_is_named() -> None:
    code = """
        import ipcbuf, resource
        segment = ipcbuf.Segment(max_size=256 << 20)
        now = segment.committed
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
        try:
            segment.allocate(128 << 20)
        except ipcbuf.HeapExhausted as error:
            print(error)
        assert segment.committed == now and segment.fsck() == []
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )

    assert done.returncode == 0, done.stderr
    assert "67108864 bytes (RLIMIT_FSIZE); raise that with ulimit -f" in done.stdout


def test_max_size_is_named_with_the_numbers() -> None:
    segment = ipcbuf.Segment(max_size=8 * MIB)
    record = segment.allocate(5 * MIB)
    with pytest.raises(ipcbuf.HeapExhausted, match="larger max_size") as error:
        segment.allocate(4 * MIB)

    assert error.value.requested == 4 * MIB
    assert error.value.max_size == 8 * MIB
    assert record.nbytes == 5 * MIB
