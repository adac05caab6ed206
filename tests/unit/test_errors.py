# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import errno
import pickle
import queue
import signal
import sys

import pytest

from ipcbuf import errors

VALUED = [
    errors.RecordTooLarge(70_000, 65_536),
    errors.BrokenChannel(),
    errors.BrokenChannel("the receiver died"),
    errors.PeerDied(3),
    errors.WorkerLost(4711, -signal.SIGKILL, "task 17"),
    errors.HeapExhausted(1 << 30, 1 << 20, 1 << 24, 5000, 4096, "no memory left in the cgroup"),
    errors.TooManyProcesses(4096),
    errors.SegmentNotFound(errno.ENOENT, "no such segment", "thehandle"),
]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (errors.ClosedError, ValueError),
        (errors.BusyError, RuntimeError),
        (errors.RecordTooLarge, ValueError),
        (errors.ChannelEmpty, queue.Empty),
        (errors.ChannelFull, queue.Full),
        (errors.EndOfChannel, EOFError),
        (errors.BrokenChannel, EOFError),
        (errors.BrokenChannel, BrokenPipeError),
        (errors.PeerDied, RuntimeError),
        (errors.WorkerLost, RuntimeError),
        (errors.HeapExhausted, MemoryError),
        (errors.HeapExhausted, OSError),
        (errors.TooManyProcesses, OSError),
        (errors.SegmentError, OSError),
        (errors.SegmentExists, FileExistsError),
        (errors.SegmentNotFound, FileNotFoundError),
        (errors.SegmentPermission, PermissionError),
    ],
)
def test_code_written_for_the_standard_library_catches_ours(
    ours: type[errors.IpcbufError], theirs: type[Exception]
) -> None:
    assert issubclass(ours, theirs)
    assert issubclass(ours, errors.IpcbufError)


def test_what_the_other_side_did_is_a_peer_error() -> None:
    names = [name for name in errors.__all__ if issubclass(getattr(errors, name), errors.PeerError)]

    assert names == ["BrokenChannel", "EndOfChannel", "PeerDied", "PeerError", "WorkerLost"]


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    words = errors.__doc__.replace("(", " ").split()
    drawn = [word for word in words if word in errors.__all__]

    assert errors.__all__ == sorted(drawn)


@pytest.mark.parametrize("error", VALUED, ids=lambda error: type(error).__name__)
def test_an_error_that_carries_values_survives_pickling_and_copying(
    error: errors.IpcbufError,
) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)


def test_messages_carry_the_numbers() -> None:
    assert [str(error) for error in VALUED] == [
        "record of 70000 bytes; this segment takes at most 65536",
        "[Errno 32] the other end of the channel is gone",
        "[Errno 32] the receiver died",
        "3 items were taken by processes that died before task_done()",
        "worker process 4711 was killed by SIGKILL with task 17 in hand",
        "[Errno 12] no room for 1073741824 bytes: 1048576 of at most 16777216 bytes committed, "
        "5000 free, longest free run 4096; cannot grow: no memory left in the cgroup",
        "[Errno 87] 4096 processes use this segment; it takes no more",
        "[Errno 2] no such segment: 'thehandle'",
    ]


@pytest.mark.parametrize(
    ("exitcode", "manner"),
    [
        (None, "died"),
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-(signal.SIGRTMIN + 3), f"was killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_a_lost_worker_says_how_it_ended(exitcode: int | None, manner: str) -> None:
    message = str(errors.WorkerLost(1, exitcode))

    assert message == f"worker process 1 {manner} with a task in hand"


def test_exhaustion_is_told_by_errno_too() -> None:
    assert errors.HeapExhausted(1).errno == errno.ENOMEM
    assert errors.BrokenChannel().errno == errno.EPIPE


def test_raising_errors_of_two_layouts_leaks_nothing() -> None:
    """MemoryError and EOFError are laid out differently from OSError, their other base."""
    for error in (errors.HeapExhausted, errors.BrokenChannel):
        error(1)  # type: ignore[arg-type]
        before = sys.getallocatedblocks()
        for _ in range(1000):
            error(1)  # type: ignore[arg-type]

        assert sys.getallocatedblocks() - before < 100
