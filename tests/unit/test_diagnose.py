# SPDX-License-Identifier: Apache-2.0
"""`Segment.diagnose`: who holds and who waits, in words for people."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import ipcbuf

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

PATIENCE = 60


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_channel_and_its_users_are_described(segment: ipcbuf.Segment) -> None:
    sender, receiver = segment.channel(max_items=3)
    sender.send(b"message")

    (channel,) = segment.diagnose()

    assert channel["id"] == sender.channel_id == receiver.channel_id
    assert channel["key"] is None
    assert (channel["type"], channel["shared"], channel["bell"]) == ("record", False, "futex")
    assert (channel["messages"], channel["max_items"], channel["max_bytes"]) == (1, 3, 0)
    assert channel["bytes"] > 0
    assert channel["sender"] == {
        "state": "open",
        "owner": os.getpid(),
        "inside": None,
        "holders": [{"kind": "process", "pid": os.getpid(), "count": 1}],
        "sleeper": None,
        "sleeps_for": None,
        "last_pid": None,
        "left_ago": None,
    }
    assert channel["receiver"]["owner"] is None


def test_a_closed_end_names_who_closed_it(segment: ipcbuf.Segment) -> None:
    sender, _receiver = segment.channel()
    sender.send(b"")
    sender.close()

    (channel,) = segment.diagnose()

    assert channel["sender"]["state"] == "closed"
    assert channel["sender"]["last_pid"] == os.getpid()
    assert 0 <= channel["sender"]["left_ago"] < PATIENCE


def test_who_waits_is_named_with_how_long(segment: ipcbuf.Segment) -> None:
    _sender, receiver = segment.channel()
    thread = threading.Thread(target=lambda: receiver.poll(0.2))
    thread.start()

    def look() -> dict[str, Any]:
        end: dict[str, Any] = segment.diagnose()[0]["receiver"]
        return end

    wait_until(lambda: look()["sleeper"] == os.getpid())

    wait_until(lambda: (look()["sleeps_for"] or 1) > 0.05)

    thread.join(PATIENCE)
    assert look()["sleeper"] is None


def send_and_pause(sender: ipcbuf.Sender, pipe: Connection) -> None:
    sender.send(b"last words")
    pipe.send(os.getpid())
    signal.pause()


@pytest.mark.parametrize("shared", [False, True])
def test_who_died_is_named_after_it_is_gone(
    segment: ipcbuf.Segment, start: Any, shared: bool
) -> None:
    sender, receiver = segment.channel(shared=shared)
    context = multiprocessing.get_context("fork")
    pipe, theirs = context.Pipe()
    child = start(context, send_and_pause, sender, theirs)
    pid = pipe.recv()
    sender.close()
    child.kill()
    child.join(PATIENCE)
    assert receiver.recv(PATIENCE) == b"last words"
    with pytest.raises(ipcbuf.PeerError):
        receiver.recv(PATIENCE)

    end = segment.diagnose()[0]["sender"]

    assert end["state"] in {"dead", "closed"}
    assert end["last_pid"] == pid
    assert end["owner"] is None
    assert 0 < end["left_ago"] < PATIENCE
