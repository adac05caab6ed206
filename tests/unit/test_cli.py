# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf
from ipcbuf import cli
from ipcbuf.discovery import find_segments
from ipcbuf.doctor import examine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30.0


def run(*arguments: str) -> int:
    return cli.main(arguments)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    cli.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def short(segment: ipcbuf.Segment) -> str:
    return segment.uuid.hex()[:8]


@pytest.fixture
def child() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Fork children that run a function and then sleep until they are killed."""
    pids: list[int] = []

    def fork(work: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work()
                signal.pause()
            finally:
                os._exit(1)
        pids.append(pid)
        return pid

    yield fork
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- ls, info, fsck, gc ---------------------------------------------------------------------------


def test_ls_finds_an_anonymous_segment_and_its_processes(
    segment: ipcbuf.Segment, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row["uuid"]: row for row in run_json(capsys, "ls")}

    row = rows[segment.uuid.hex()]
    assert row["name"] is None
    assert os.getpid() in row["pids"]
    assert row["memory"] >= 1 << 20
    assert row["max_size"] == segment.max_size


def test_ls_prints_a_table(segment: ipcbuf.Segment, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls") == cli.OK

    assert short(segment) in capsys.readouterr().out


def test_info_is_found_by_uuid_and_by_process(
    segment: ipcbuf.Segment, capsys: pytest.CaptureFixture[str]
) -> None:
    sender, receiver = segment.channel()
    sender.send(b"one")

    by_uuid = run_json(capsys, "info", short(segment))
    by_pid = run_json(capsys, "info", str(os.getpid()))

    assert by_uuid[0]["uuid"] == segment.uuid.hex()
    assert by_uuid[0]["stats"]["messages"] == 1
    assert by_uuid[0]["channels"][0]["messages"] == 1
    assert segment.uuid.hex() in [facts["uuid"] for facts in by_pid]
    assert receiver.recv(timeout=0) == b"one"


def test_info_prints_tables(segment: ipcbuf.Segment, capsys: pytest.CaptureFixture[str]) -> None:
    ends = segment.channel()

    assert run("info", short(segment)) == cli.OK

    out = capsys.readouterr().out
    assert "max_size" in out
    assert str(os.getpid()) in out
    del ends


def test_fsck_of_a_sound_segment(
    segment: ipcbuf.Segment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fsck", short(segment)) == cli.OK

    assert f"{short(segment)}: sound" in capsys.readouterr().out


def test_no_such_segment_has_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "there-is-none-of-this-name") == cli.NO_SEGMENT

    assert "SegmentNotFound" in capsys.readouterr().err


def test_wrong_arguments_have_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("frobnicate")

    assert ended.value.code == cli.USAGE
    assert "frobnicate" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_gc_says_what_it_removed(capsys: pytest.CaptureFixture[str]) -> None:
    name = "left by the dead"
    pid = os.fork()
    if pid == 0:
        kept = ipcbuf.Segment(name, max_size=8 << 20)
        assert kept.name
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)

    stale = [item for item in find_segments() if item.name == name]
    assert [item.stale for item in stale] == [True]
    assert name in run_json(capsys, "doctor")["stale"]
    assert name in run_json(capsys, "gc")
    assert name not in [item.name for item in find_segments()]


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ipcbuf", "ls", "--json"],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
        text=True,
    )

    assert isinstance(json.loads(done.stdout), list)


def test_selftest_says_that_it_passed(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "selftest", "--kills", "20", "--seed", "1")

    assert result["kills"] == 20
    assert result["lost"] == result["leaked"] == 0
    assert run("selftest", "--kills", "5") == cli.OK


def test_selftest_shows_how_far_it_is_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    assert run("selftest", "--kills", "101", "--seed", "1") == cli.OK

    first, last = capsys.readouterr().err.split("\r")[1:]
    assert first.startswith("100 of 101 kills, ")
    assert last.startswith("101 of 101 kills, ")
    assert last.endswith(" messages\n")


# --- top ------------------------------------------------------------------------------------------


def test_top_shows_rates(segment: ipcbuf.Segment, capsys: pytest.CaptureFixture[str]) -> None:
    sender, receiver = segment.channel()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            sender.send(b"x")
            receiver.recv(timeout=PATIENCE)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        options = ["top", short(segment), "--interval", "0.05", "--count", "2", "--json"]
        assert cli.main(options) == cli.OK
    finally:
        stop.set()
        worker.join(PATIENCE)

    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first[0]["sent_per_second"] is None
    assert second[0]["sent_per_second"] > 0
    assert second[0]["received_per_second"] > 0


def test_top_prints_who_waits(segment: ipcbuf.Segment, capsys: pytest.CaptureFixture[str]) -> None:
    sender, receiver = segment.channel()
    waiter = threading.Thread(target=receiver.recv)
    waiter.start()
    eventually(lambda: segment.diagnose()[0]["receiver"]["sleeper"])

    assert run("top", short(segment), "--count", "1") == cli.OK

    assert f"{os.getpid()} for a message" in capsys.readouterr().out
    sender.send(b"end")
    waiter.join(PATIENCE)


# --- doctor ---------------------------------------------------------------------------------------


def test_doctor_has_nothing_to_say(
    segment: ipcbuf.Segment, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = segment.channel()

    assert run("doctor", short(segment)) == cli.OK

    assert "nothing is wrong" in capsys.readouterr().out
    del ends


def test_doctor_names_the_dead_that_nobody_buried(
    segment: ipcbuf.Segment, child: Callable[[Callable[[], object]], int]
) -> None:
    pid = child(lambda: None)
    eventually(lambda: pid in [row["pid"] for row in segment.processes()])
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    findings = examine(segment)

    assert [(item.kind, item.pids) for item in findings] == [("unburied", (pid,))]


def test_doctor_names_who_waits_in_vain(
    segment: ipcbuf.Segment, child: Callable[[Callable[[], object]], int]
) -> None:
    """As with the standard library's queue, who has both ends may wait for itself for ever."""
    sender, receiver = segment.channel(shared=True)
    producer = child(lambda: sender.send(b"last words"))
    eventually(receiver.pending)
    os.kill(producer, signal.SIGKILL)
    os.waitpid(producer, 0)
    segment.reap()
    waiter = threading.Thread(target=receive_until_end, args=(receiver,))
    waiter.start()
    eventually(lambda: segment.diagnose()[0]["receiver"]["sleeper"] == os.getpid())

    (finding,) = [item for item in examine(segment) if item.kind == "waits-in-vain"]

    assert finding.pids == (os.getpid(),)
    assert f"process {os.getpid()} has waited" in finding.text
    assert "for a message on channel #" in finding.text
    sender.send(b"end")
    waiter.join(PATIENCE)


def test_doctor_names_processes_that_wait_for_each_other(
    segment: ipcbuf.Segment, child: Callable[[Callable[[], object]], int]
) -> None:
    to_first, first = segment.channel()
    to_second, second = segment.channel()
    pids = []
    for mine, theirs in ((first, to_second), (second, to_first)):
        pids.append(child(functools.partial(exchange_and_wait, mine, theirs)))
    del to_first, first, to_second, second

    eventually(lambda: [item for item in examine(segment) if item.kind == "deadlock"])

    (finding,) = [item for item in examine(segment) if item.kind == "deadlock"]
    assert finding.pids == tuple(sorted(pids))


def exchange_and_wait(receiver: ipcbuf.Receiver, sender: ipcbuf.Sender) -> None:
    sender.send(b"so that both ends have their user")
    receiver.recv(timeout=PATIENCE)
    receiver.recv(timeout=PATIENCE)


def receive_until_end(receiver: ipcbuf.Receiver) -> None:
    with contextlib.suppress(ipcbuf.PeerError):
        while receiver.recv(timeout=PATIENCE) != b"end":
            pass


def test_doctor_names_the_stopped(
    segment: ipcbuf.Segment, child: Callable[[Callable[[], object]], int]
) -> None:
    sender, receiver = segment.channel()

    def produce() -> None:
        sender.send(b"mine now")

    producer = child(produce)
    assert receiver.recv(timeout=PATIENCE) == b"mine now"
    waiter = threading.Thread(target=receive_until_end, args=(receiver,))
    os.kill(producer, signal.SIGSTOP)
    try:
        waiter.start()
        eventually(lambda: [item for item in examine(segment) if item.kind == "stopped"])
        (finding,) = [item for item in examine(segment) if item.kind == "stopped"]
    finally:
        os.kill(producer, signal.SIGKILL)
        os.waitpid(producer, 0)

    assert producer in finding.pids
    waiter.join(PATIENCE)
