# SPDX-License-Identifier: Apache-2.0
"""How long it takes until a blocked call notices that its peer was killed.

    python tests/stress/detection.py --rounds 300

Kinds of waits: a native receive younger than a second, an older one, `ipcbuf.wait` at many ends,
`arecv` in an event loop, a pipe of the drop-in, and a lock whose holder was killed inside it.
Each round kills one process with SIGKILL and takes the time from just before the kill until the
call has returned. Exits with 1 if a 99th percentile is beyond its bound; on a machine with more
running processes than processors three times the bound counts. Not a benchmark.

What the kernel itself takes to hang up is shown beside the pipe: as many processes that hold a bare
socket pair are killed and timed, eight of these and eight of those in turn. (A killed process is not
gone at once: it has to be scheduled and gives back its memory before its files.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

import ipcbuf
import ipcbuf_mp

if TYPE_CHECKING:
    from collections.abc import Callable

    # makes a peer; returns its pid and the call that is to notice its death
    Scene = Callable[[random.Random], tuple[int, Callable[[], object]]]

PATIENCE = 60
AT_ONCE = 8  # waits that overlap, so that the long ones end in time

segment = ipcbuf.Segment(max_size=64 << 20)


def child_that(body: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            body()
            while True:
                signal.pause()
        finally:
            os._exit(1)
    return pid


def expecting(error: type[Exception], call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        try:
            call()
        except error:
            return
        raise AssertionError(f"{error.__name__} did not come")

    return run


def peer_of_a_receiver() -> tuple[int, ipcbuf.Receiver]:
    sender, receiver = segment.channel()
    pid = child_that(lambda: sender.send(b"I use it"))
    receiver.recv(PATIENCE)
    sender.close()
    return pid, receiver


def native(_dice: random.Random) -> tuple[int, Callable[[], object]]:
    pid, receiver = peer_of_a_receiver()
    return pid, expecting(ipcbuf.BrokenChannel, lambda: receiver.recv(PATIENCE))


def many(_dice: random.Random) -> tuple[int, Callable[[], object]]:
    pid, receiver = peer_of_a_receiver()
    quiet = [segment.channel() for _ in range(20)]

    def call() -> None:
        assert ipcbuf.wait([*(end for _, end in quiet), receiver], PATIENCE) == [receiver]

    return pid, call


def in_a_loop(_dice: random.Random) -> tuple[int, Callable[[], object]]:
    pid, receiver = peer_of_a_receiver()
    return pid, expecting(
        ipcbuf.BrokenChannel,
        lambda: asyncio.run(receiver.arecv(PATIENCE)),
    )


def pipe(_dice: random.Random) -> tuple[int, Callable[[], object]]:
    ours, theirs = ipcbuf_mp.Pipe()
    pid = child_that(ours.close)
    theirs.close()
    return pid, expecting(EOFError, ours.recv)


def bare_socket(_dice: random.Random) -> tuple[int, Callable[[], object]]:
    ours, theirs = socket.socketpair()
    pid = child_that(ours.close)
    theirs.close()

    def call() -> None:
        with ours:
            assert ours.recv(1) == b""

    return pid, call


def lock(dice: random.Random) -> tuple[int, Callable[[], object]]:
    """Stop a sender again and again until it is inside the lock of the shared end."""
    sender, receiver = segment.channel(shared=True, max_items=50)

    def fill() -> None:
        while True:
            sender.send(bytes(2000))
            receiver.recv()

    pid = child_that(fill)
    while True:
        time.sleep(dice.random() / 1000)
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        states = [c for c in segment.diagnose() if c["id"] == sender.channel_id]
        if states[0]["sender"]["inside"] == pid:
            break
        os.kill(pid, signal.SIGCONT)
    return pid, lambda: sender.send(b"", PATIENCE)


def measure(
    scenes: list[Scene], rounds: int, after: tuple[float, float], dice: random.Random
) -> list[list[float]]:
    """Return the seconds from each kill to the return of the call, sorted, for each scene."""
    all_taken: list[list[float]] = [[] for _ in scenes]
    failed: list[BaseException] = []
    while len(all_taken[-1]) < rounds:
        turn = min(range(len(scenes)), key=lambda n: len(all_taken[n]))
        scene, taken = scenes[turn], all_taken[turn]
        kills = []
        for _ in range(min(AT_ONCE, rounds - len(taken))):
            pid, call = scene(dice)
            times = [0.0, 0.0]

            def wait(call: Callable[[], object] = call, times: list[float] = times) -> None:
                try:
                    call()
                    times[1] = time.monotonic()
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=wait)
            thread.start()
            kills.append((time.monotonic() + dice.uniform(*after), pid, thread, times))
        for moment, pid, _thread, times in sorted(kills, key=lambda kill: kill[0]):
            time.sleep(max(0.0, moment - time.monotonic()))
            times[0] = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for _, _, thread, times in kills:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a call did not return"
            taken.append(times[1] - times[0])
        if failed:
            raise failed[0]
    return [sorted(taken) for taken in all_taken]


CONTROLS: dict[str, Scene] = {"pipe": bare_socket}

# name: scene, when to kill (seconds after the call), bound of the 99th percentile in seconds
KINDS: dict[str, tuple[Scene, tuple[float, float], float]] = {
    "native receive, young": (native, (0.01, 0.7), 0.050),
    "native receive, older": (native, (1.1, 1.5), 0.250),
    "wait at 21 ends, young": (many, (0.01, 0.7), 0.050),
    "arecv, young": (in_a_loop, (0.01, 0.7), 0.050),
    "pipe": (pipe, (0.01, 0.3), 0.005),
    "lock": (lock, (0.01, 0.05), 0.010),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300, help="kills per kind of wait")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    dice = random.Random(arguments.seed)
    failed = False
    shown: dict[str, dict[str, float]] = {}
    print(f"{'milliseconds':24}    p50    p99    max  bound")
    for name, (scene, after, bound) in KINDS.items():
        if arguments.only not in name:
            continue
        before = os.getloadavg()[0]
        scenes = [scene, CONTROLS[name]] if name in CONTROLS else [scene]
        taken, *control = measure(scenes, arguments.rounds, after, dice)
        (p50, p99), *bare = (
            [times[int(len(times) * part)] for part in (0.5, 0.99)] for times in (taken, *control)
        )
        loaded = max(before, os.getloadavg()[0]) > (os.cpu_count() or 1)
        limit = bound * (3 if loaded else 1)
        failed = failed or p99 > limit
        figures = "".join(f"{1000 * value:7.2f}" for value in (p50, p99, taken[-1], limit))
        shown[name] = {
            "kills": len(taken),
            "p50_ms": round(1000 * p50, 2),
            "p99_ms": round(1000 * p99, 2),
            "max_ms": round(1000 * taken[-1], 2),
            "bound_ms": round(1000 * limit, 2),
        }
        print(f"{name:24}{figures}{'  under load' if loaded else ''}{'  MISSED' * (p99 > limit)}")
        for middle, kernel in bare:
            shown[name]["bare_socket_p99_ms"] = round(1000 * kernel, 2)
            print(f"{'  a bare socket pair':24}{1000 * middle:7.2f}{1000 * kernel:7.2f}")
    segment.reap()
    problems = segment.fsck()
    print(*problems, sep="\n")
    print(json.dumps({**shown, "fsck": len(problems)}))
    return 1 if failed or problems else 0


if __name__ == "__main__":
    sys.exit(main())
