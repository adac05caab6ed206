# SPDX-License-Identifier: Apache-2.0
"""Who dies of what: a kill -9 of helpers, holders of locks, new workers and parents.

Each test runs a program of its own, which prints a line when it has come through.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 60

PROGRAM = """
import os, signal, sys, threading, time, warnings
sys.path.append(sys.argv[3])
import ipcbuf, ipcbuf_mp
from multiprocessing import forkserver, resource_tracker

LARGE = b"x" * 200_000

def say(line):
    os.write(1, line.encode() + b"\\n")  # whole, whoever else says something

def kill(pid):
    os.kill(pid, signal.SIGKILL)

def hold_locks(queue, answers):
    queue._rlock.acquire()
    queue._wlock.acquire()
    answers.put(os.getpid())
    time.sleep(100)

def echo(queue, answers):
    while (item := queue.get()) is not None:
        answers.put(item)

def works(context, queue):
    answers = context.Queue()
    process = context.Process(target=echo, args=(queue, answers))
    process.start()
    queue.put(LARGE)
    assert answers.get(timeout=50) == LARGE
    queue.put(None)
    process.join(50)
    assert process.exitcode == 0

def holder_of_a_queues_locks(context):
    queue, answers = context.Queue(), context.Queue()
    process = context.Process(target=hold_locks, args=(queue, answers))
    process.start()
    kill(answers.get(timeout=50))
    process.join()
    works(context, queue)

def manager(context):
    queue = context.Queue()
    manager = context.Manager()
    proxy = manager.Queue()
    kill(manager._process.pid)
    works(context, queue)
    try:
        proxy.put(1)
    except (EOFError, OSError):
        return
    raise AssertionError("a dead manager answered")

def resource_tracker_process(context):
    warnings.simplefilter("ignore")  # the standard library says that it starts another one
    queue = context.Queue()
    resource_tracker.ensure_running()
    kill(resource_tracker._resource_tracker._pid)
    works(context, queue)

def fork_server(context):
    queue = context.Queue()
    forkserver.ensure_running()
    kill(forkserver._forkserver._forkserver_pid)
    os.waitpid(forkserver._forkserver._forkserver_pid, 0)
    forkserver._forkserver._forkserver_pid = None  # as it says itself once it has seen that
    works(context, queue)
    with context.Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]

def die(path):
    with open(path, "a") as file:
        file.write("x")
    kill(os.getpid())

def every_new_worker_of_a_pool(context):
    path = "deaths"
    pool = context.Pool(2, die, (path,))
    result = pool.map_async(abs, range(5))
    while not os.path.exists(path) or os.path.getsize(path) < 4:
        time.sleep(0.01)
    assert not result.ready()
    pool.terminate()
    pool.join()

def ends(receiver):
    try:
        got = receiver.recv(50)
    except ipcbuf.EndOfChannel:
        return True
    raise AssertionError(f"received {got!r}")

def process_before_it_begins(context):
    sender, receiver = ipcbuf.Segment().channel(shared=True)
    queue = context.Queue(orphan="raise")
    process = context.Process(target=echo, args=(sender, queue))
    process.start()
    kill(process.pid)
    sender.close()
    assert ends(receiver)
    try:
        queue.get(timeout=50)
    except EOFError:
        return
    raise AssertionError("a queue without others was waited for")

def process_that_is_not_started(context):
    sender, receiver = ipcbuf.Segment().channel(shared=True)
    if context.get_start_method() != "fork":
        try:
            context.Process(target=echo, args=(sender, threading.Lock())).start()
        except TypeError:
            pass
        else:
            raise AssertionError("a lock was pickled")
    sender.close()
    assert ends(receiver)

def call(argument, function):
    function(argument)

def process_by_value_that_closes_what_it_has(context):
    sender, receiver = ipcbuf.Segment().channel(shared=True)
    process = context.Process(
        target=call,  # the lambda is refused behind the sender, which has been pickled then
        args=(sender, lambda sender: (sender.close(), time.sleep(100))),
    )
    process.start()
    sender.close()
    assert ends(receiver)
    kill(process.pid)

def receive(connection, others, line):
    for other in others:
        other.close()
    say("begun")
    try:
        connection.recv()
    except EOFError:
        say(line)

def get(queue, line):
    say("begun")
    try:
        queue.get()
    except EOFError:
        say(line)

def send(connection, others, line):
    for other in others:
        other.close()
    say("begun")
    try:
        while True:
            connection.send(LARGE)
    except BrokenPipeError:
        say(line)

def parent(context):
    # A forked child closes what it has inherited, as it must with the standard library.
    is_forked = context.get_start_method() == "fork"
    (reader, far_writer), (far_reader, writer) = context.Pipe(False), context.Pipe(False)
    queue = context.Queue(orphan="raise")
    far = (far_writer, far_reader)
    begun = [
        (receive, (reader, (*far, writer) if is_forked else (), "receiver ended")),
        (send, (writer, (*far, reader) if is_forked else (), "sender ended")),
    ]
    if len(sys.argv) > 4:  # its own program: the children above would be other holders
        begun = [(get, (queue, "getter ended"))]
    for target, arguments in begun:
        context.Process(target=target, args=arguments).start()
    time.sleep(100)

if __name__ == "__main__":
    globals()[sys.argv[1]](ipcbuf_mp.get_context(sys.argv[2]))
    print("came through")
"""


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    victim, method, *more = arguments
    return subprocess.Popen(
        [sys.executable, "-P", str(script), victim, method, str(ROOT), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )


@pytest.mark.parametrize(
    "victim",
    [
        "holder_of_a_queues_locks",
        "manager",
        "resource_tracker_process",
        "every_new_worker_of_a_pool",
        "process_before_it_begins",
        "process_that_is_not_started",
        "process_by_value_that_closes_what_it_has",
    ],
)
def test_a_kill_of_somebody_else_harms_nobody(
    tmp_path: Path, start_method: str, victim: str
) -> None:
    out, err = start(tmp_path, victim, start_method).communicate(timeout=PATIENCE)

    assert out == "came through\n", err


def test_a_killed_fork_server_is_replaced(tmp_path: Path) -> None:
    out, err = start(tmp_path, "fork_server", "forkserver").communicate(timeout=PATIENCE)

    assert out == "came through\n", err


@pytest.mark.parametrize(
    ("more", "expected"),
    [((), ["receiver ended", "sender ended"]), (("queue",), ["getter ended"])],
)
def test_children_that_wait_for_a_killed_parent_end(
    tmp_path: Path, start_method: str, more: tuple[str, ...], expected: list[str]
) -> None:
    process = start(tmp_path, "parent", start_method, *more)
    assert process.stdout is not None
    for _ in expected:
        assert process.stdout.readline() == "begun\n"

    process.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)  # until the last child has closed them

    assert sorted(out.splitlines()) == expected, err
