# SPDX-License-Identifier: Apache-2.0
"""Segments with a name: who comes first, who comes last, who dies, and what others do to the file."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    Start = Callable[..., Any]

PATIENCE = 60
MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(script: str, *arguments: str, code: int = 0) -> str:
    """Run a program of its own, which knows nothing of this process but the environment."""
    program = f"import sys; sys.path.append({str(ROOT)!r})\n{script}"
    result = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert result.returncode == code, result.stderr
    return result.stdout


# --- what the child processes do ------------------------------------------------------------------


def hold(name: str, pipe: Connection) -> None:
    segment = ipcbuf.Segment(name, max_size=8 * MIB)
    sender, receiver = segment.channel(shared=True)
    sender.send(b"from the holder")
    pipe.send((segment.uuid, sender.channel_id, receiver.transit()))
    assert pipe.poll(PATIENCE)
    pipe.recv()


def report(segment: ipcbuf.Segment, pipe: Connection) -> None:
    pipe.send((segment.name, segment.uuid, segment.token))


# --- making, opening, leaving ---------------------------------------------------------------------


def test_a_name_leads_to_one_segment(folder: Path) -> None:
    first = ipcbuf.Segment("the handle", max_size=8 * MIB)
    again = ipcbuf.Segment("the handle", max_size=16 * MIB)

    assert (first.name, first.max_size) == ("the handle", 8 * MIB)
    assert (again.uuid, again.max_size, again.token) == (first.uuid, 8 * MIB, first.token)
    assert "the handle" in repr(first)
    assert names(folder) == ["the handle"]
    status = (folder / "the handle").stat()
    assert (status.st_mode & 0o7777, status.st_nlink) == (0o600, 1)


def test_another_program_opens_it(folder: Path) -> None:
    segment = ipcbuf.Segment("x", max_size=8 * MIB)
    sender, receiver = segment.channel(shared=True)
    out = run(
        """
import ipcbuf
segment = ipcbuf.Segment("x", create=False)
sender = segment.open_sender(int(sys.argv[1]), int(sys.argv[2]))
sender.send(b"hello")
print(segment.uuid.hex(), segment.name)
""",
        str(sender.channel_id),
        str(sender.transit()),
    )

    assert out.split() == [segment.uuid.hex(), "x"]
    assert receiver.recv(timeout=PATIENCE) == b"hello"
    assert segment.reap() + 0 in (0, 1)
    assert segment.fsck() == []


def test_exclusive_creation_and_plain_opening(folder: Path) -> None:
    with pytest.raises(ipcbuf.SegmentNotFound) as missing:
        ipcbuf.Segment("x", create=False)
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, str(folder / "x"))

    with ipcbuf.Segment("x", exist_ok=False, max_size=4 * MIB):
        with pytest.raises(ipcbuf.SegmentExists) as taken:
            ipcbuf.Segment("x", exist_ok=False)
        assert (taken.value.errno, taken.value.filename) == (errno.EEXIST, str(folder / "x"))
        assert isinstance(taken.value, FileExistsError)
    with pytest.raises(ValueError, match="about a name"):
        ipcbuf.Segment(create=False)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a/b", "'/'"),
        (".", "dot"),
        ("..", "dot"),
        (".tmp-0", "dot"),
        ("a\n", "printable"),
        ("a\0b", "printable"),
        ("\udc80", "printable"),
        ("x" * 201, "at most 200 bytes"),
        ("\u00fc" * 101, "has 202"),
    ],
)
def test_a_name_that_is_none_is_refused(folder: Path, name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ipcbuf.Segment(name)
    with pytest.raises(ValueError, match=why):
        ipcbuf.unlink(name)
    assert names(folder) == []


def test_a_name_is_text(folder: Path) -> None:
    with pytest.raises(TypeError):
        ipcbuf.Segment(8 * MIB)  # type: ignore[arg-type]
    with ipcbuf.Segment("\u00fc" * 100, max_size=4 * MIB) as segment:
        assert [info.name for info in ipcbuf.list_segments()] == [segment.name]


def test_who_closes_last_takes_the_name_along(folder: Path) -> None:
    first = ipcbuf.Segment("x", max_size=4 * MIB)
    second = ipcbuf.Segment("x")

    first.close()
    assert names(folder) == ["x"]
    assert second.stats()["processes"] == 1
    second.close()
    second.close()

    assert names(folder) == []


def test_a_name_stays_while_another_process_uses_it(folder: Path, start: Start) -> None:
    here, there = multiprocessing.Pipe()
    start(multiprocessing.get_context("spawn"), hold, "x", there)
    assert here.poll(PATIENCE)
    uuid, _, _ = here.recv()

    with ipcbuf.Segment("x", create=False) as segment:
        assert segment.uuid == uuid
    gc.collect()

    assert names(folder) == ["x"]
    (info,) = ipcbuf.list_segments()
    assert (info.name, info.max_size, info.stale, info.problem) == ("x", 8 * MIB, False, None)
    assert len(info.pids) == 1
    assert info.memory > MIB
    here.send("end")


def test_the_last_to_exit_takes_the_name_along(folder: Path) -> None:
    run("import ipcbuf; s = ipcbuf.Segment('x', max_size=4 << 20); ends = s.channel()")

    assert names(folder) == []


def test_a_closed_segment_says_so(folder: Path) -> None:
    segment = ipcbuf.Segment("x", max_size=4 * MIB)
    sender, receiver = segment.channel()
    sender.send(b"1")

    segment.close()

    assert segment.closed
    assert repr(segment) == "<Segment, closed>"
    for use in (
        segment.stats,
        segment.fsck,
        segment.reap,
        segment.channel,
        segment.unlink,
        lambda: segment.allocate(1),
        lambda: segment.name,
        lambda: segment.uuid,
        lambda: pickle.dumps(segment),
        lambda: sender.send(b"2"),
        lambda: receiver.recv(timeout=0),
    ):
        with pytest.raises(ipcbuf.ClosedError):
            use()
    assert ipcbuf.Segment("x", max_size=4 * MIB).stats()["channels"] == 0


def test_records_outlive_the_close(folder: Path) -> None:
    segment = ipcbuf.Segment("x", max_size=4 * MIB)
    array = np.asarray(memoryview(segment.allocate(1000)))
    array[:] = 7

    segment.close()
    ipcbuf.Segment("x", max_size=4 * MIB).allocate(2 * MIB)

    assert names(folder) == []
    assert set(array) == {7}


def test_an_anonymous_segment_closes_too() -> None:
    with ipcbuf.Segment(max_size=4 * MIB) as segment:
        uuid = segment.uuid
        assert segment.name is None
        with pytest.raises(ValueError, match="not opened by a name"):
            segment.unlink()

    assert ipcbuf.find_segment(uuid) is None


def test_unlink_takes_the_name_and_leaves_the_segment(folder: Path) -> None:
    first = ipcbuf.Segment("x", max_size=4 * MIB)
    sender, receiver = first.channel()

    first.unlink()

    assert names(folder) == []
    sender.send(b"goes on")
    assert receiver.recv(timeout=PATIENCE) == b"goes on"
    assert len(first.allocate(3 * MIB)) == 3 * MIB  # it grows without a name, too
    with pytest.raises(ipcbuf.SegmentNotFound):
        first.unlink()
    first.unlink(missing_ok=True)
    second = ipcbuf.Segment("x", max_size=4 * MIB)
    assert second.uuid != first.uuid
    with pytest.raises(ipcbuf.SegmentNotFound, match="another segment"):
        first.unlink()
    assert names(folder) == ["x"]
    ipcbuf.unlink("x")
    assert names(folder) == []
    with pytest.raises(ipcbuf.SegmentNotFound):
        ipcbuf.unlink("x")
    ipcbuf.unlink("x", missing_ok=True)


# --- the dead -------------------------------------------------------------------------------------


def leave_stale(name: str, start: Start) -> bytes:
    """A segment whose only user was killed."""
    here, there = multiprocessing.Pipe()
    process = start(multiprocessing.get_context("fork"), hold, name, there)
    assert here.poll(PATIENCE)
    uuid: bytes = here.recv()[0]
    process.kill()
    process.join(PATIENCE)
    return uuid


def test_what_the_dead_left_is_not_used_again(folder: Path, start: Start) -> None:
    uuid = leave_stale("x", start)
    assert [(info.stale, info.pids) for info in ipcbuf.list_segments()] == [(True, ())]

    with ipcbuf.Segment("x", exist_ok=False, max_size=4 * MIB) as segment:
        assert segment.uuid != uuid
        assert segment.stats()["channels"] == 0


def test_what_the_dead_left_is_not_found(folder: Path, start: Start) -> None:
    leave_stale("x", start)

    with pytest.raises(ipcbuf.SegmentNotFound):
        ipcbuf.Segment("x", create=False)
    assert names(folder) == []


def test_gc_removes_what_nobody_uses_and_nothing_else(folder: Path, start: Start) -> None:
    leave_stale("dead", start)
    kept = ipcbuf.Segment("alive", max_size=4 * MIB)
    (folder / ".tmp-0123").write_bytes(b"half")
    (folder / "empty").touch(0o600)
    (folder / "foreign").write_bytes(b"something else")
    leave_stale("cut", start)
    os.truncate(folder / "cut", 4096)

    assert ipcbuf.gc() == [".tmp-0123", "cut", "dead", "empty"]
    assert names(folder) == ["alive", "foreign"]
    assert kept.fsck() == []


# --- travelling -----------------------------------------------------------------------------------


def test_a_named_segment_travels(folder: Path, start_method: str, start: Start) -> None:
    segment = ipcbuf.Segment("x", max_size=4 * MIB)
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()

    process = start(context, report, segment, there)

    assert here.poll(PATIENCE)
    name, uuid, token = here.recv()
    assert (name, uuid) == ("x", segment.uuid)
    assert token != segment.token
    process.join(PATIENCE)
    assert pickle.loads(pickle.dumps(segment)) is segment


def test_a_pickle_names_it_to_any_program(folder: Path) -> None:
    segment = ipcbuf.Segment("x", max_size=4 * MIB)
    script = (
        "import pickle; s = pickle.loads(bytes.fromhex(sys.argv[1])); print(s.uuid.hex(), s.name)"
    )

    assert run(script, pickle.dumps(segment).hex()).split() == [segment.uuid.hex(), "x"]
    unlinked = pickle.dumps(segment).hex()
    segment.unlink()
    assert run(script, unlinked).split() == [segment.uuid.hex(), "None"]
