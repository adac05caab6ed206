# SPDX-License-Identifier: Apache-2.0
"""Nothing is left after the end, whichever end it is: no process, no file, no warning.

Each test runs a program of its own, which leads a session: all processes with that session are
its own, however often they forked. What the tests compare is what was there before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PATIENCE = 40
SETTLE = 10  # seconds for helpers that end when their pipe closes

# A busy program: queues, pipes, an executor, arrays, children and a grandchild. It is busy when all
# of these have begun: a Ctrl-C is lost on a process that the fork server is just starting, and one
# whose parent is interrupted in `start` is nobody's; both also in the standard library.
PROGRAM = """
import os, signal, sys, threading, time
sys.path.append(sys.argv[2])
import numpy as np
import ipcbuf_mp

def pump(source, target, begun):
    begun.put(None)
    while (item := source.get()) is not None:
        target.put(item)

def nest(context, *queues):
    child = context.Process(target=pump, args=queues)
    child.start()
    child.join()

def square(number):
    return number * number

def main(context):
    a, b, undrained, begun = (context.Queue() for _ in range(4))
    reader, writer = context.Pipe()
    children = [context.Process(target=pump, args=(a, b, begun)) for _ in range(2)]
    children.append(context.Process(target=nest, args=(context, a, b, begun)))
    for child in children:
        child.start()
    pool = ipcbuf_mp.ProcessPoolExecutor(2, mp_context=context)
    assert list(pool.map(square, range(20))) == [n * n for n in range(20)]
    kept = []
    for number in range(60):
        a.put(np.full(50_000, number))
        undrained.put(np.full(50_000, number))
        writer.send(number)
        assert reader.poll() or True
        kept.append(b.get())
    for _ in children:
        begun.get()
    finish(locals())

def release(found):
    for _ in found["children"]:
        found["a"].put(None)

def end_well(found):
    release(found)
    for child in found["children"]:
        child.join()
    found["pool"].shutdown()
    print("end")

def end_without_joining(found):
    release(found)
    print("end")

def end_by_exception(found):
    found["children"][0].kill()
    release(found)
    raise ZeroDivisionError("on purpose")

def end_by_system_exit(found):
    found["children"][0].terminate()
    release(found)
    sys.exit("on purpose")

def end_by_os_exit(found):
    release(found)
    found["pool"].shutdown()
    print("end", flush=True)
    os._exit(0)

def wait_for_the_end(found):
    print("busy", flush=True)
    while True:
        found["a"].put(np.zeros(50_000))
        found["b"].get()

def only_workers(context):
    with ipcbuf_mp.ProcessPoolExecutor(3, mp_context=context) as pool:
        assert sum(pool.map(square, range(100))) == 328350
        print("busy", flush=True)
        while True:
            sum(pool.map(square, range(100)))

if __name__ == "__main__":
    finish = globals()[sys.argv[3]]
    context = ipcbuf_mp.get_context(sys.argv[1])
    only_workers(context) if finish is only_workers else main(context)
"""


class Seen(NamedTuple):
    pid: int
    state: str
    command: str


def of_session(session: int) -> list[Seen]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, _, number = (entry / "stat").read_text().rpartition(") ")[2].split()[:4]
            if int(number) == session and state not in "ZX":
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(Seen(int(entry.name), state, command[:200]))
    return found


def once_settled(look: Callable[[], list[Seen]]) -> list[Seen]:
    deadline = time.monotonic() + SETTLE
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Start the program in a session of its own, with a folder of its own for its files."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    temporary = tmp_path / "t"
    temporary.mkdir()
    running: list[subprocess.Popen[str]] = []

    def start(method: str, end: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", str(script), method, str(ROOT), end],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        running.append(process)
        return process

    yield start

    left = []
    for process in running:
        left += once_settled(lambda session=process.pid: of_session(session))  # type: ignore[misc]
    for seen in left:
        with contextlib.suppress(OSError):
            os.kill(seen.pid, signal.SIGKILL)
    for process in running:
        process.communicate()
    assert left == []
    # What a killed tree of the standard library leaves there is its own: an empty folder with
    # the socket of the forkserver. Ours would be a file of any other kind.
    files = [path for path in temporary.rglob("*") if not path.is_dir() and not path.is_socket()]
    assert files == []


def outcome(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    out, err = process.communicate(timeout=PATIENCE)
    return out, err, process.returncode


@pytest.mark.parametrize("end", ["end_well", "end_without_joining", "end_by_os_exit"])
def test_nothing_is_left_after_the_end(
    program: Callable[[str, str], subprocess.Popen[str]], start_method: str, end: str
) -> None:
    assert outcome(program(start_method, end)) == ("end\n", "", 0)


def test_nothing_is_left_after_an_exception(
    program: Callable[[str, str], subprocess.Popen[str]], start_method: str
) -> None:
    out, err, code = outcome(program(start_method, "end_by_exception"))

    assert (out, code) == ("", 1)
    assert err.startswith("Traceback")
    assert err.endswith("ZeroDivisionError: on purpose\n")
    assert "resource_tracker" not in err
    assert err.count("Traceback") == 1


def test_nothing_is_left_after_sys_exit(
    program: Callable[[str, str], subprocess.Popen[str]], start_method: str
) -> None:
    assert outcome(program(start_method, "end_by_system_exit")) == ("", "on purpose\n", 1)


def test_nothing_is_left_after_ctrl_c(
    program: Callable[[str, str], subprocess.Popen[str]], start_method: str
) -> None:
    process = program(start_method, "wait_for_the_end")
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
    out, err = process.communicate(timeout=PATIENCE)

    assert out == ""
    assert "KeyboardInterrupt" in err
    assert "resource_tracker" not in err


def test_nothing_is_left_after_all_were_killed(
    program: Callable[[str, str], subprocess.Popen[str]], start_method: str
) -> None:
    process = program(start_method, "wait_for_the_end")
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    assert len(of_session(process.pid)) >= 5
    segments = memory_of(process.pid)
    assert segments

    os.killpg(process.pid, signal.SIGKILL)
    out, err, code = outcome(process)

    assert (out, err, code) == ("", "", -signal.SIGKILL)
    assert once_settled(lambda: of_session(process.pid)) == []
    assert holders_of(segments) == []


def test_workers_end_with_a_killed_parent(
    program: Callable[[str, str], subprocess.Popen[str]], start_method: str
) -> None:
    process = program(start_method, "only_workers")
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    segments = memory_of(process.pid)

    process.kill()
    process.wait(PATIENCE)

    assert once_settled(lambda: of_session(process.pid)) == []
    assert holders_of(segments) == []


# Both modules stay to the end of all, as if some C code had them, and lose their names before.
OUTLIVES = """
import colorsys, ctypes, sys
import ipcbuf_mp, ipcbuf_mp.pool
if __name__ == "__main__":
    queue, simple, pipe = ipcbuf_mp.Queue(), ipcbuf_mp.SimpleQueue(), ipcbuf_mp.Pipe()
    pool = ipcbuf_mp.Pool(1)
    pool.terminate()
    colorsys.kept = queue, queue._reader, queue._writer, simple, pipe, pool
    for name, module in list(sys.modules.items()):
        if name.startswith("ipcbuf_mp") or name == "colorsys":
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))
"""


def test_what_outlives_its_module_ends_silently() -> None:
    result = subprocess.run(
        [sys.executable, "-c", OUTLIVES],
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def memory_of(pid: int) -> set[str]:
    """The inodes of the segments that the process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "/memfd:ipcbuf" in line}


def holders_of(inodes: set[str]) -> list[int]:
    """The processes that still have one of the segments mapped."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and memory_of(int(entry.name)) & inodes:
                found.append(int(entry.name))
    return found
