# SPDX-License-Identifier: Apache-2.0
"""Named segments against what others do: cut files, strangers, limits, races, namespaces."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import queue
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf
from tests.unit.test_named import MIB, PATIENCE, ROOT, names, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    Start = Callable[..., Any]

NOBODY = 65534
HEADER = 4096
BRIEF = 0.3  # longer than a slice of a wait
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


def can_unshare(*flags: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(["unshare", *flags, "true"], capture_output=True).returncode == 0
    return False


# --- the file is cut short while it is used -------------------------------------------------------


class World:
    """A segment with something of everything in it."""

    def __init__(self) -> None:
        self.segment = ipcbuf.Segment("x", max_size=64 * MIB)
        self.sender, self.receiver = self.segment.channel(shared=True)
        self.other = self.segment.channel(max_items=1)
        self.queue = ipcbuf.ObjectQueue(*self.segment.channel(shared=True))
        self.sender.send_object(("small", 1))
        self.sender.send(b"l" * 100_000)
        self.queue.put({"a": 1})
        self.other[0].send(b"full")
        self.record = self.segment.allocate(50_000)


CALLS: dict[str, Callable[[World], object]] = {
    "send": lambda w: w.sender.send(b"x"),
    "send large": lambda w: w.sender.send(b"x" * 100_000),
    "send record": lambda w: w.sender.send(w.record),
    "send object": lambda w: w.sender.send_object(("x", 1)),
    "send task": lambda w: w.sender.send_task("x", 1),
    "send to a full channel": lambda w: w.other[0].send(b"x", timeout=BRIEF),
    "recv": lambda w: w.receiver.recv(timeout=BRIEF),
    "recv_view": lambda w: w.receiver.recv_view(timeout=BRIEF),
    "recv_object": lambda w: w.receiver.recv_object(timeout=BRIEF),
    "recv_task": lambda w: w.receiver.recv_task(timeout=BRIEF),
    "next": lambda w: next(iter(w.receiver)),
    "poll": lambda w: w.receiver.poll(BRIEF),
    "pending": lambda w: w.sender.pending(),
    "transit": lambda w: w.receiver.transit(),
    "put": lambda w: w.queue.put(1),
    "get": lambda w: w.queue.get(timeout=BRIEF),
    "qsize": lambda w: w.queue.qsize(),
    "allocate": lambda w: w.segment.allocate(1000),
    "allocate and grow": lambda w: w.segment.allocate(30 * MIB),
    "channel": lambda w: w.segment.channel(),
    "open_sender": lambda w: w.segment.open_sender(w.sender.channel_id),
    "stats": lambda w: w.segment.stats(),
    "fsck": lambda w: w.segment.fsck(),
    "reap": lambda w: w.segment.reap(),
    "processes": lambda w: w.segment.processes(),
    "diagnose": lambda w: w.segment.diagnose(),
    "committed": lambda w: w.segment.committed,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_call_says_that_the_file_was_cut(
    folder: Path, call: Callable[[World], object]
) -> None:
    world = World()
    os.truncate(folder / "x", 0)

    with pytest.raises(ipcbuf.SegmentTruncated, match="it has 0 bytes and needs at least"):
        call(world)
    with pytest.raises(ipcbuf.SegmentTruncated):
        world.sender.send(b"and from then on")
    del world


@pytest.mark.parametrize("size", [HEADER, 300_000, -MIB])
def test_a_cut_anywhere_is_an_exception_or_not_noticed(folder: Path, size: int) -> None:
    for call in CALLS.values():
        world = World()
        os.truncate(folder / "x", size if size > 0 else (folder / "x").stat().st_size + size)
        # Or what the call says to whoever finds the file whole.
        with contextlib.suppress(ipcbuf.SegmentTruncated, ipcbuf.ChannelFull, ValueError):
            call(world)
        del world
        ipcbuf.unlink("x", missing_ok=True)


def test_a_cut_and_mended_file_is_no_segment_any_more(folder: Path) -> None:
    for call in CALLS.values():
        world = World()
        size = (folder / "x").stat().st_size
        os.truncate(folder / "x", 0)
        os.truncate(folder / "x", size)
        with contextlib.suppress(ipcbuf.IpcbufError, ValueError, queue.Empty):
            call(world)
        del world
        ipcbuf.unlink("x", missing_ok=True)


def cut_later(path: Path, pipe: Connection) -> None:
    assert pipe.poll(PATIENCE)
    pipe.recv()
    os.truncate(path, 0)


def test_another_process_cuts_the_file_under_a_blocked_call(folder: Path, start: Start) -> None:
    segment = ipcbuf.Segment("x", max_size=8 * MIB)
    _sender, receiver = segment.channel(shared=True)
    here, there = multiprocessing.Pipe()
    start(multiprocessing.get_context("spawn"), cut_later, folder / "x", there)

    here.send("now")

    with pytest.raises(ipcbuf.SegmentTruncated):
        receiver.recv(timeout=PATIENCE)


def test_views_of_a_cut_file_read_as_zeros(folder: Path) -> None:
    world = World()
    view = memoryview(world.record)
    view[:] = b"x" * len(view)
    os.truncate(folder / "x", 0)

    assert bytes(view) == bytes(len(view))
    view.release()
    with pytest.raises(ipcbuf.SegmentTruncated):
        world.segment.stats()


def test_other_segments_are_not_touched_by_it(folder: Path) -> None:
    whole = ipcbuf.Segment("whole", max_size=4 * MIB)
    sender, receiver = whole.channel()
    world = World()
    os.truncate(folder / "x", 0)
    with pytest.raises(ipcbuf.SegmentTruncated):
        world.segment.stats()

    sender.send(b"1")
    assert receiver.recv(timeout=PATIENCE) == b"1"
    assert whole.fsck() == []


GUARDED = """
import faulthandler, mmap, os, tempfile
import ipcbuf
def ours():
    global segment
    segment = ipcbuf.Segment("x", max_size=4 << 20)
def theirs():
    faulthandler.enable()
order = sys.argv[1]
for which in order:
    ours() if which == "s" else theirs()
os.truncate(os.path.join(os.environ["IPCBUF_DIR"], "x"), 0)
try:
    segment.stats()
except ipcbuf.SegmentTruncated:
    print("truncated", flush=True)
if sys.argv[2] == "elsewhere":
    file = tempfile.TemporaryFile(dir="/dev/shm")
    file.truncate(4096)
    area = mmap.mmap(file.fileno(), 4096)
    file.truncate(0)
    area[0]
os._exit(7)
"""


def run_guarded(order: str, then: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.append({str(ROOT)!r})\n{GUARDED}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONFAULTHANDLER"}
    return subprocess.run(
        [sys.executable, "-P", "-c", program, order, then],
        env=environment,
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )


@pytest.mark.parametrize("order", ["s", "fs", "sf"])
def test_faults_of_others_stay_theirs(folder: Path, order: str) -> None:
    result = run_guarded(order, "elsewhere")

    assert result.stdout == "truncated\n"
    assert result.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in result.stderr) == ("f" in order)


@pytest.mark.parametrize("order", ["s", "fs", "sf"])
def test_our_faults_end_nobody(folder: Path, order: str) -> None:
    result = run_guarded(order, "nothing")

    assert (result.stdout, result.returncode) == ("truncated\n", 7)


def test_the_guard_can_be_turned_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPCBUF_SIGBUS", "0")

    assert run_guarded("s", "nothing").returncode == -signal.SIGBUS


# --- who else is there (T19) ----------------------------------------------------------------------


def as_nobody(work: Callable[..., object], pipe: Connection, *arguments: object) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        pipe.send(work(*arguments))
    except Exception as error:
        pipe.send((type(error).__name__, str(error)))


def ask_nobody(start: Start, work: Callable[..., object], *arguments: object) -> Any:
    here, there = multiprocessing.Pipe()
    process = start(multiprocessing.get_context("fork"), as_nobody, work, there, *arguments)
    assert here.poll(PATIENCE)
    answer = here.recv()
    process.join(PATIENCE)
    return answer


def open_it(name: str) -> str:
    return repr(ipcbuf.Segment(name, max_size=4 * MIB))


def squat(path: Path, kind: str) -> str:
    if kind == "directory":
        path.mkdir(mode=0o777)
        path.chmod(0o777)
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to("/tmp")
    return "done"


@needs_root
def test_another_user_gets_nowhere(folder: Path, start: Start) -> None:
    segment = ipcbuf.Segment("x", max_size=4 * MIB)
    file = folder / "x"

    kind, text = ask_nobody(start, open_it, "x")
    assert kind == "SegmentPermission"
    assert f"it belongs to user 0, we are user {NOBODY}" in text
    assert str(folder) in text
    for work, *arguments in (
        (Path.read_bytes, file),
        (Path.write_bytes, file, b"x"),
        (Path.unlink, file),
        (Path.symlink_to, folder / "y", "/etc/passwd"),
        (os.link, file, folder / "z"),
        (os.rename, folder, folder.with_name("mine")),
        (os.truncate, file, 0),
        (os.open, f"/proc/{os.getpid()}/fd/{segment.fd}", os.O_RDWR),
    ):
        kind, _ = ask_nobody(start, work, *arguments)
        assert kind == "PermissionError"
    assert segment.fsck() == []
    assert names(folder) == ["x"]


@needs_root
@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_a_squatted_directory_is_noticed(
    folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder.chmod(0o1777)  # as /dev/shm is
    path = folder / "ipcbuf-0"
    monkeypatch.setenv("IPCBUF_DIR", str(path))
    assert ask_nobody(start, squat, path, kind) == "done"

    for use in (lambda: ipcbuf.Segment("x"), ipcbuf.list_segments, ipcbuf.gc):
        with pytest.raises(ipcbuf.SegmentPermission) as caught:
            use()
        assert caught.value.filename == str(path)
        assert f"it belongs to user {NOBODY}" in str(caught.value)
        assert "IPCBUF_DIR" in str(caught.value)


def test_a_directory_that_others_may_enter_or_replace_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.chmod(0o755)
    with pytest.raises(ipcbuf.SegmentPermission, match="mode 0755 lets others in; chmod 700"):
        ipcbuf.Segment("x")
    inner = folder / "inner"
    inner.mkdir(mode=0o700)
    folder.chmod(0o777)
    monkeypatch.setenv("IPCBUF_DIR", str(inner))
    with pytest.raises(ipcbuf.SegmentPermission, match="mode 0777 lets others replace"):
        ipcbuf.Segment("x")
    folder.chmod(0o1777)
    ipcbuf.Segment("x", max_size=4 * MIB).close()
    inner.rmdir()
    inner.symlink_to("/tmp")
    with pytest.raises(ipcbuf.SegmentPermission, match="not a directory"):
        ipcbuf.Segment("x")
    inner.unlink()
    ipcbuf.Segment("x", max_size=4 * MIB).close()  # made, with the right mode
    assert inner.stat().st_mode & 0o7777 == 0o700
    monkeypatch.setenv("IPCBUF_DIR", "relative/path")
    with pytest.raises(ValueError, match="must be an absolute path"):
        ipcbuf.Segment("x")


def test_a_disk_has_to_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (
        subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True).stdout
        == b"tmpfs\n"
    ):
        pytest.skip("the temporary folder lies in memory")
    disk = tmp_path / "d"
    disk.mkdir(mode=0o700)
    monkeypatch.setenv("IPCBUF_DIR", str(disk))
    with pytest.raises(ipcbuf.SegmentError, match="allow_disk=True") as caught:
        ipcbuf.Segment("x")
    assert caught.value.errno == errno.EOPNOTSUPP

    with ipcbuf.Segment("x", max_size=4 * MIB, allow_disk=True) as segment:
        sender, receiver = segment.channel()
        sender.send(b"1")
        assert receiver.recv(timeout=PATIENCE) == b"1"
    assert names(disk) == []


def refusal(name: str = "x") -> tuple[type[BaseException], str]:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the caller looks closer
        ipcbuf.Segment(name, max_size=4 * MIB)
    return caught.type, str(caught.value)


@needs_root
def test_a_file_of_somebody_else_is_refused(folder: Path) -> None:
    (folder / "x").touch(0o600)
    os.chown(folder / "x", NOBODY, NOBODY)

    kind, text = refusal()

    assert kind is ipcbuf.SegmentPermission
    assert f"it belongs to user {NOBODY}, we are user 0" in text


def test_a_file_with_the_wrong_mode_or_names_is_refused(folder: Path) -> None:
    segment = ipcbuf.Segment("x", max_size=4 * MIB)
    del segment
    stale = make_stale(folder)
    stale.chmod(0o640)
    assert refusal() == (
        ipcbuf.SegmentPermission,
        f"[Errno {errno.EACCES}] its mode 0640 lets others in; remove it, or chmod 600 it once "
        f"you know who did that: '{stale}'",
    )
    stale.chmod(0o600)
    os.link(stale, folder / "second")
    kind, text = refusal()
    assert kind is ipcbuf.SegmentPermission
    assert "it has 2 names (hard links)" in text
    stale.unlink()
    stale.symlink_to(folder / "second")
    kind, text = refusal()
    assert kind is ipcbuf.SegmentPermission
    assert "symbolic link" in text
    ipcbuf.unlink("x")
    assert names(folder) == ["second"]


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "empty", "text", "short"])
def test_what_is_no_segment_is_refused_by_name(folder: Path, kind: str) -> None:
    path = folder / "x"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "socket":
        os.mknod(path, 0o140600)
    else:
        path.touch(0o600)
        path.write_bytes({"empty": b"", "text": b"x" * 9000, "short": b"IpcBuF"}[kind])
        path.chmod(0o600)

    assert refusal()[0] is ipcbuf.NotASegment
    (info,) = ipcbuf.list_segments()
    assert info.problem == "NotASegment"


def make_stale(folder: Path) -> Path:
    """A sound segment that nobody uses, as a kill of its only user leaves it."""
    run("import ipcbuf, os; s = ipcbuf.Segment('x', max_size=4 << 20); os._exit(0)")
    assert names(folder) == ["x"]
    return folder / "x"


def test_each_fault_of_a_file_has_its_own_exception(folder: Path) -> None:
    path = make_stale(folder)
    whole = path.read_bytes()
    header = whole[:HEADER]
    # As the other byte order writes it: 2 in the highest byte of the ABI word says so.
    swapped = header[7::-1] + struct.pack(">II", 1, 0x02084000 | header[12]) + header[16:]

    def with_words(at: int, value: int) -> bytes:
        return header[:at] + struct.pack("<I", value) + header[at + 4 :]

    rows: list[tuple[bytes, int, type[BaseException], str]] = [
        (header, 20, ipcbuf.SegmentTruncated, "it has 20 bytes and needs at least"),
        (header, HEADER, ipcbuf.SegmentTruncated, "it has 4096 bytes and needs at least"),
        (header, len(whole) - 1, ipcbuf.SegmentTruncated, f"it has {len(whole) - 1} bytes"),
        (with_words(8, 0), len(whole), ipcbuf.VersionMismatch, "layout version 0, this ipcbuf has"),
        (with_words(8, 99), len(whole), ipcbuf.VersionMismatch, "version 99, this ipcbuf has"),
        (swapped, len(whole), ipcbuf.AbiMismatch, "big-endian"),
        (with_words(12, 0x01044010), len(whole), ipcbuf.AbiMismatch, "pointers of 4 bytes"),
        (with_words(40, 5), len(whole), ipcbuf.SegmentCorrupted, "checksum of the header"),
        (with_words(256 - 64 + 4, 1 << 31), len(whole), ipcbuf.SegmentCorrupted, "committed pages"),
    ]
    for content, size, kind, text in rows:
        with path.open("r+b") as file:
            file.write(content)
            file.truncate(size)
        assert refusal()[0] is kind
        assert text in refusal()[1]
        (info,) = ipcbuf.list_segments()
        assert info.problem == kind.__name__
        with path.open("r+b") as file:
            file.write(whole)
    fresh = ipcbuf.Segment("x", max_size=4 * MIB, exist_ok=False)  # whole again, and stale
    assert fresh.fsck() == []


# --- who comes first ------------------------------------------------------------------------------


def open_and_exchange(rounds: int, barrier: Any, index: int, pipe: Connection) -> None:
    for number in range(rounds):
        barrier.wait(PATIENCE)
        segment = ipcbuf.Segment(f"x{number}", max_size=4 * MIB)
        sender, receiver = segment.channel(shared=True)
        pipe.send((segment.uuid, sender.channel_id, sender.transit()))
        assert pipe.poll(PATIENCE)
        neighbour = segment.open_sender(*pipe.recv())
        neighbour.send(b"%d" % index)
        pipe.send(receiver.recv(timeout=PATIENCE))
        barrier.wait(PATIENCE)
        segment.close()


def test_eight_come_at_the_same_moment(folder: Path, start: Start) -> None:
    rounds, crowd = 50, 8
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(crowd)
    pipes = []
    for index in range(crowd):
        here, there = context.Pipe()
        start(context, open_and_exchange, rounds, barrier, index, there)
        pipes.append(here)

    for _ in range(rounds):
        rows = []
        for pipe in pipes:
            assert pipe.poll(PATIENCE)
            rows.append(pipe.recv())
        assert len({uuid for uuid, _, _ in rows}) == 1
        for index, pipe in enumerate(pipes):
            pipe.send(rows[(index + 1) % crowd][1:])
        answers = []
        for pipe in pipes:
            assert pipe.poll(PATIENCE)
            answers.append(int(pipe.recv()))
        assert answers == [(index - 1) % crowd for index in range(crowd)]


def open_and_leave(rounds: int, seed: int, pipe: Connection) -> None:
    chance = random.Random(seed)
    for _ in range(rounds):
        with contextlib.suppress(ipcbuf.SegmentNotFound):
            segment = ipcbuf.Segment("x", max_size=2 * MIB, create=chance.random() < 0.7)
            sender, receiver = segment.channel()
            sender.send(b"1")
            assert receiver.recv(timeout=PATIENCE) == b"1"
            what = chance.randrange(4)
            if what == 0:
                segment.unlink(missing_ok=True)
            elif what == 1:
                ipcbuf.gc()
            elif what == 2:
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
            segment.close()
    pipe.send("done")


def test_coming_leaving_removing_and_collecting_at_once(folder: Path, start: Start) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    context = multiprocessing.get_context("fork")
    pipes = []
    processes = []
    for index in range(4):
        here, there = context.Pipe()
        processes.append(start(context, open_and_leave, 50, seed + index, there))
        pipes.append(here)

    for pipe in pipes:
        assert pipe.poll(PATIENCE)
        assert pipe.recv() == "done"
    for process in processes:
        process.join(PATIENCE)
    ipcbuf.gc()
    assert names(folder) == []


def test_threads_open_one_segment_once(folder: Path) -> None:
    found = []
    barrier = threading.Barrier(6)

    def work() -> None:
        barrier.wait(PATIENCE)
        found.append(ipcbuf.Segment("x", max_size=4 * MIB))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert len({(segment.uuid, segment.token) for segment in found}) == 1
    assert found[0].stats()["processes"] == 1


# --- limits (T10) ---------------------------------------------------------------------------------

FILL = """
import errno, os
import ipcbuf
try:
    segment = ipcbuf.Segment("x", max_size=64 << 20)
except OSError as error:
    print(type(error).__name__, errno.errorcode[error.errno], error.strerror)
    os._exit(0)
kept = []
try:
    while True:
        kept.append(segment.allocate(100_000))
except ipcbuf.HeapExhausted as error:
    print(type(error).__name__, error.reason)
kept.pop()
kept.append(segment.allocate(100_000))
for record in kept:
    memoryview(record)[:] = b"x" * 100_000  # what was handed out is really there
kept.clear()
print(len(segment.fsck()), flush=True)
"""


FILL_TABLES = """
import os
import ipcbuf
segment = ipcbuf.Segment("x", max_size=64 << 20)
records = [segment.allocate(100_000) for _ in range(20)]
fd = os.open("{folder}/ballast", os.O_CREAT | os.O_WRONLY)
try:
    for page in range(5_000):
        os.posix_fallocate(fd, page * 4096, 4096)
except OSError:
    pass
kept = []
def several(make):
    try:
        for number in range(5_000):
            kept.append(make(number))
    except ipcbuf.HeapExhausted as error:
        print(type(error).__name__, error.requested, error.committed, error.reason, flush=True)
several(lambda number: segment.allocate(1_000_000))
records.clear()  # room in the heap, so that a table is what is short
several(lambda number: segment.atomic(f"key {{number}}"))
several(lambda number: segment.channel())
kept.clear()
print(len(segment.fsck()), flush=True)
"""


def in_mount_namespace(setup: str, script: str) -> list[str]:
    program = f"import sys; sys.path.append({str(ROOT)!r})\n{script}"
    result = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            f'{setup} && exec "$@"',
            "sh",
            sys.executable,
            "-P",
            "-c",
            program,
        ],
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, (result.returncode, result.stderr)
    return result.stdout.splitlines()


needs_mounts = pytest.mark.skipif(not can_unshare("-m"), reason="needs a mount namespace")


@needs_mounts
def test_a_file_system_that_is_too_small_to_begin(folder: Path) -> None:
    setup = f"mount -t tmpfs -o size=1m,mode=0700 none {folder}"

    (line,) = in_mount_namespace(setup, FILL)

    assert line.startswith("SegmentError ENOSPC no room in its file system: ")
    assert "of 1048576 bytes are free" in line


@needs_mounts
def test_a_file_system_that_fills_up(folder: Path) -> None:
    setup = f"mount -t tmpfs -o size=6m,mode=0700 none {folder}"

    exhausted, sound = in_mount_namespace(setup, FILL)

    assert exhausted.startswith("HeapExhausted the file system that the segment is in is full")
    assert sound == "0"


@needs_mounts
def test_every_refusal_of_a_full_file_system_has_the_numbers(folder: Path) -> None:
    """Not only of a record: of the tables of channels, of keys and of shared ends too."""
    setup = f"mount -t tmpfs -o size=16m,mode=0700 none {folder}"
    *lines, sound = in_mount_namespace(setup, FILL_TABLES.format(folder=str(folder)))

    assert len(lines) == 3
    assert sound == "0"
    for line in lines:
        kind, requested, committed, reason = line.split(" ", 3)
        assert kind == "HeapExhausted"
        assert int(requested) > 0
        assert int(committed) > 0
        assert "file system" in reason


@needs_mounts
def test_without_proc(folder: Path) -> None:
    exhausted, sound = in_mount_namespace("mount -t tmpfs none /proc", FILL)

    assert exhausted.startswith("HeapExhausted max_size reached")
    assert sound == "0"
    assert names(folder) == []


@pytest.mark.parametrize(
    ("limit", "value", "expected"),
    [
        ("RLIMIT_NOFILE", 4, "SegmentError EMFILE"),
        ("RLIMIT_FSIZE", 1 << 20, "SegmentError EFBIG"),
        ("RLIMIT_FSIZE", 1 << 29, "HeapExhausted"),
        ("RLIMIT_AS", 1 << 29, "HeapExhausted"),
    ],
)
def test_limits_of_the_process(folder: Path, limit: str, value: int, expected: str) -> None:
    prefix = f"""
import ipcbuf, resource
soft = {value}
if {limit!r} == "RLIMIT_NOFILE":
    import os
    soft = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.{limit}, (soft, soft))
"""
    out = run(prefix + FILL)

    assert out.startswith(expected)


EXECUTES = """
import os, signal
sender = ipcbuf.Segment("x", create=False).sender("key")
ready, done = os.pipe()
child = os.fork()
if child == 0:
    sender.close()
    os.write(done, b"x")
    signal.pause()
os.read(ready, 1)
print(child, flush=True)
os.execv("/bin/sleep", ["sleep", "100"])
"""


def test_who_called_exec_is_dead_although_his_child_lives(folder: Path) -> None:
    """The child uses the segment on: its mapping must not keep its parent's life byte."""
    segment = ipcbuf.Segment("x", max_size=64 * MIB)
    receiver = segment.receiver("key")
    program = f"import sys; sys.path.append({str(ROOT)!r})\nimport ipcbuf\n{EXECUTES}"
    command = [sys.executable, "-P", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(ipcbuf.PeerError):
                receiver.recv(PATIENCE)
            segment.reap()
            assert {seat["pid"] for seat in segment.processes()} == {os.getpid(), child}
            assert parent.poll() is None
        finally:
            os.kill(child, signal.SIGKILL)
            parent.kill()


# --- namespaces (T18) -----------------------------------------------------------------------------

SERVER = """
import os, signal, struct
import ipcbuf

def send(name, channel, transit):
    sender = ipcbuf.Segment(name, create=False).open_sender(channel, transit)
    number = 0
    while True:
        sender.send(struct.pack("<q", number) + bytes(number % 5000))
        number += 1

def receive(name, channel, transit):
    receiver = ipcbuf.Segment(name, create=False).open_receiver(channel, transit)
    expected = 0
    try:
        while True:
            message = receiver.recv(timeout=30)
            assert struct.unpack_from("<q", message)[0] == expected, "order"
            assert len(message) == 8 + expected % 5000, "half a message"
            expected += 1
            if expected == 1:
                print("receives", flush=True)
    except ipcbuf.PeerError as error:
        print(type(error).__name__, flush=True)
    os._exit(0)

for line in sys.stdin:
    what, *rest = line.split()
    if what == "kill":
        os.kill(int(rest[0]), signal.SIGKILL)
        os.waitpid(int(rest[0]), 0)
        print("killed", flush=True)
    elif what == "wait":
        os.waitpid(int(rest[0]), 0)
        print("waited", flush=True)
    else:
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(ready, 1)  # until our number was told
            try:
                globals()[what](rest[0], int(rest[1]), int(rest[2]))
            except BaseException as error:
                print(repr(error), flush=True)
            os._exit(1)
        print(pid, flush=True)
        os.close(ready)
        os.close(go)
"""


class Namespace:
    """Processes in a pid namespace of their own, on request."""

    def __init__(self) -> None:
        program = f"import sys; sys.path.append({str(ROOT)!r})\n{SERVER}"
        self.process = subprocess.Popen(
            ["unshare", "-p", "-f", "--kill-child", sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


def kill_across_namespaces(kills: int) -> None:
    seed = int(os.environ.get("IPCBUF_SEED", random.randrange(1 << 30)))
    print("seed", seed)
    chance = random.Random(seed)
    segment = ipcbuf.Segment("x", max_size=64 * MIB)
    left, right = Namespace(), Namespace()
    try:
        for _ in range(kills):
            sides = [left, right]
            chance.shuffle(sides)
            sending, receiving = sides
            sender, receiver = segment.channel(max_items=100)
            tx = sending.ask("send", "x", sender.channel_id, sender.transit())
            rx = receiving.ask("receive", "x", receiver.channel_id, receiver.transit())
            # The ends travel with holds of ours, which end with these objects once they arrived.
            assert receiving.hear() == "receives"
            sender.close()
            receiver.close()
            time.sleep(chance.random() * 0.02)
            assert sending.ask("kill", tx) == "killed"
            assert receiving.hear() in ("BrokenChannel", "EndOfChannel")
            assert receiving.ask("wait", rx) == "waited"
        # Whoever reads the /proc entry of a dying process, as `ps` and the fixture that looks for
        # leftovers do, keeps its memory for that time, the mapping with it, and so its life byte.
        deadline = time.monotonic() + PATIENCE
        while segment.reap() >= 0 and segment.stats()["processes"] > 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert segment.fsck() == []
        stats = segment.stats()
        assert (stats["channels"], stats["process_blocks"]) == (0, 0)
    finally:
        left.close()
        right.close()


needs_pids = pytest.mark.skipif(not can_unshare("-p", "-f"), reason="needs a pid namespace")


@needs_pids
def test_a_death_in_another_pid_namespace_is_noticed(folder: Path) -> None:
    kill_across_namespaces(10)


@needs_pids
@pytest.mark.stress
@pytest.mark.timeout(900)
def test_two_hundred_deaths_in_other_pid_namespaces(folder: Path) -> None:
    kill_across_namespaces(200)
    print("\n" + json.dumps({"kills": 200, "stuck": 0, "leaked": 0, "fsck": 0}))
