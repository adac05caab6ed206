# SPDX-License-Identifier: Apache-2.0
"""examples/c/attach.c: a program that knows docs/layout.md alone, at the other end of a channel."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60
SOURCE = Path(__file__).parents[2] / "examples" / "c" / "attach.c"
STRICT = ("-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")


@pytest.fixture(scope="module")
def attach(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = tmp_path_factory.mktemp("c") / "attach"
    subprocess.run([compiler, *STRICT, "-o", program, SOURCE], check=True, timeout=PATIENCE)
    return program


@pytest.fixture
def named(folder: Path) -> Iterator[ipcbuf.Segment]:
    with ipcbuf.Segment("c", max_size=64 << 20) as segment:
        yield segment
        segment.reap()
        assert segment.fsck() == []


def run(
    attach: Path, folder: Path, *words: str, lines: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [attach, folder / "c", *words],
        input=lines,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_it_lists_the_channels(attach: Path, folder: Path, named: ipcbuf.Segment) -> None:
    sender, number = named.sender("text"), named.atomic(7)
    sender.send(b"one")

    result = run(attach, folder)

    assert (result.returncode, result.stderr) == (0, "")
    assert "channel 'text': type 0, 1 messages" in result.stdout
    assert "channel 7: type 2" in result.stdout
    number.close()


@pytest.mark.parametrize("shared", [False, True])
def test_it_receives_what_python_sends(
    attach: Path, folder: Path, named: ipcbuf.Segment, shared: bool
) -> None:
    messages = [b"small", b"", b"x" * 2048, b"y" * 5000, b"z" * 200_000]  # the last two in blocks
    sender = named.sender("down", shared=shared)
    program = subprocess.Popen(
        [attach, folder / "c", "receive", "down"], stdout=subprocess.PIPE, text=True
    )
    for message in messages:
        sender.send(message)
    while sender.receiver_count == 0 and program.poll() is None:
        sender.send(b"waiting for it")
    sender.close()
    output, _ = program.communicate(timeout=PATIENCE)

    assert program.returncode == 0
    assert [message.decode() for message in messages] == output.splitlines()[: len(messages)]
    assert {"waiting for it"} >= set(output.splitlines()[len(messages) :])


def test_it_frees_the_room_of_a_bounded_channel(
    attach: Path, folder: Path, named: ipcbuf.Segment
) -> None:
    sender = named.sender("bounded", max_items=2)
    program = subprocess.Popen(
        [attach, folder / "c", "receive", "bounded", "500"], stdout=subprocess.PIPE, text=True
    )
    for number in range(500):
        sender.send(b"%d" % number, timeout=PATIENCE)
    output, _ = program.communicate(timeout=PATIENCE)

    assert [str(number) for number in range(500)] == output.splitlines()


def test_python_receives_what_it_sends(attach: Path, folder: Path, named: ipcbuf.Segment) -> None:
    receiver = named.receiver("up")
    lines = [f"line {number} {'.' * (number % 1000)}" for number in range(3000)]
    program = subprocess.Popen(
        [attach, folder / "c", "send", "up"], stdin=subprocess.PIPE, text=True
    )
    assert program.stdin is not None
    program.stdin.write("".join(f"{line}\n" for line in lines[:1]))
    program.stdin.flush()
    received = [receiver.recv(timeout=PATIENCE)]
    program.stdin.write("".join(f"{line}\n" for line in lines[1:100]))  # what fits into its ring
    program.stdin.flush()
    received += [receiver.recv(timeout=PATIENCE) for _ in range(99)]
    for line in lines[100:]:
        program.stdin.write(f"{line}\n")
        program.stdin.flush()
        received.append(receiver.recv(timeout=PATIENCE))
    program.stdin.close()
    with pytest.raises(ipcbuf.EndOfChannel):
        receiver.recv(timeout=PATIENCE)

    assert program.wait(PATIENCE) == 0
    assert [line.encode() for line in lines] == received


def test_killed_it_is_buried_as_any_other(
    attach: Path, folder: Path, named: ipcbuf.Segment
) -> None:
    sender = named.sender("killed", max_items=1)
    program = subprocess.Popen(
        [attach, folder / "c", "receive", "killed"], stdout=subprocess.PIPE, text=True
    )
    sender.send(b"one", timeout=PATIENCE)
    sender.send(b"two", timeout=PATIENCE)  # so it has taken one
    program.send_signal(signal.SIGKILL)
    program.communicate(timeout=PATIENCE)

    with pytest.raises(ipcbuf.BrokenChannel):
        send_for_ever(sender)


def send_for_ever(sender: ipcbuf.Sender) -> None:
    while True:
        sender.send(b"more", timeout=PATIENCE)


def test_a_second_user_of_an_exclusive_end_is_refused(
    attach: Path, folder: Path, named: ipcbuf.Segment
) -> None:
    receiver = named.receiver("mine")

    result = run(attach, folder, "receive", "mine")

    assert (result.returncode, result.stderr) == (1, "attach: somebody has this end\n")
    receiver.close()


def test_it_refuses_what_is_no_segment(attach: Path, folder: Path, named: ipcbuf.Segment) -> None:
    (folder / "d").write_bytes(b"x" * 5000)
    (folder / "d").chmod(0o600)

    result = subprocess.run(
        [attach, folder / "d"], capture_output=True, text=True, timeout=PATIENCE
    )

    assert (result.returncode, result.stderr) == (1, "attach: not a segment\n")
