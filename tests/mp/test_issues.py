# SPDX-License-Identifier: Apache-2.0
"""Programs from CPython's issue tracker: what hangs or loses there works here.

Each program says `ok` if all is well. It runs on ours in the default run, and on the standard
library, where it does not, in the long one (`pytest -m stress tests/mp/test_issues.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 60
HANGS_AFTER = 8  # seconds in which every program here ends, if it ends


class Issue(NamedTuple):
    number: str
    there: str  # what it does with the standard library
    program: str


ISSUES = [
    Issue(
        "128186: a child with 64 KiB in a queue cannot be joined",
        "hangs",
        """
def child(q):
    q.put(b"x" * 65_516)
def main():
    q = mp.Queue()
    p = mp.Process(target=child, args=(q,))
    p.start()
    p.join()
    assert len(q.get()) == 65_516
""",
    ),
    Issue(
        "91594: a program with an undrained queue cannot exit",
        "hangs",
        """
def main():
    q = mp.Queue()
    for _ in range(100):
        q.put(b"x" * 10_000)
""",
    ),
    Issue(
        "66587, bpo-22393: a pool whose worker is killed never gives the result",
        "hangs",
        """
def die(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
def main():
    with mp.Pool(2) as pool:
        results = [pool.apply_async(die, (number,)) for number in range(10)]
        for number, result in enumerate(results):
            try:
                assert result.get() == number
            except RuntimeError:
                assert number == 5
        assert pool.map(abs, [-1, -2]) == [1, 2]
""",
    ),
    Issue(
        "66587: an item larger than what a pipe holds waits for its reader",
        "hangs",
        """
def main():
    q = mp.SimpleQueue()
    q.put(b"x" * 10_000_000)
    assert len(q.get()) == 10_000_000
""",
    ),
    Issue(
        "84376: what cannot be pickled vanishes in put",
        "loses it",
        """
class Refuses:
    def __reduce__(self):
        raise ValueError("not to be pickled")
def main():
    q = mp.Queue()
    try:
        q.put(Refuses())
    except ValueError:
        pass
    else:
        raise AssertionError("nobody knows that it is lost")
    q.put(1)
    assert q.get() == 1
""",
    ),
    Issue(
        "96062: killing a process in get leaves the queue locked",
        "hangs",
        """
def wait(q, ready):
    ready.set()
    q.get()
def main():
    q, ready = mp.Queue(), mp.Event()
    p = mp.Process(target=wait, args=(q, ready))
    p.start()
    ready.wait()
    time.sleep(0.5)  # now it is in get
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    q.put("for the living")
    assert q.get() == "for the living"
""",
    ),
    Issue(
        "96062: killing a consumer leaves join waiting for what it had",
        "hangs",
        """
def take(q, ready):
    q.get()
    ready.set()
    time.sleep(100)
def main():
    q, ready = mp.JoinableQueue(), mp.Event()
    q.put(1)
    p = mp.Process(target=take, args=(q, ready))
    p.start()
    ready.wait()
    p.kill()
    try:
        q.join()
    except RuntimeError as error:
        assert error.open_tasks == 1
""",
    ),
    Issue(
        "114390: full memory is a signal, or no end of memory, instead of an error",
        "goes on taking memory",
        """
def main():
    q = mp.Queue()
    q.put(b"before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000_000, 100_000_000))
    try:
        for _ in range(30):
            q.put(b"x" * 8_000_000)
    except MemoryError:
        pass
    else:
        raise AssertionError("there was no end")
    q.put(b"small")
    assert q.get() == b"before"
    while q.get() != b"small":
        pass
""",
    ),
    Issue(
        "138828: a queue cannot be shut down",
        "has no such method",
        """
def work(q, results):
    done = 0
    try:
        while True:
            q.get()
            done += 1
    except Exception as error:
        results.put((type(error).__name__, done))
def main():
    q, results = mp.Queue(), mp.Queue()
    workers = [mp.Process(target=work, args=(q, results)) for _ in range(3)]
    for p in workers:
        p.start()
    for number in range(100):
        q.put(number)
    q.shutdown()
    got = [results.get() for _ in workers]
    assert {name for name, _ in got} == {"ShutDown"}
    assert sum(done for _, done in got) == 100
    for p in workers:
        p.join()
""",
    ),
    Issue(
        "108520: a child of a child cannot have a queue that was made before",
        "works again today",
        """
def grandchild(q):
    q.put("from below")
def child(q):
    p = mp.get_context("fork").Process(target=grandchild, args=(q,))
    p.start()
    p.join()
def main():
    for method in ("fork", "forkserver"):
        context = mp.get_context(method)
        q = context.Queue()
        q.put("used before")
        assert q.get() == "used before"
        p = context.Process(target=child, args=(q,))
        p.start()
        assert q.get() == "from below"
        p.join()
""",
    ),
]

HEAD = "import os, resource, signal, time\nimport {library} as mp\n"
TAIL = "\nif __name__ == '__main__':\n    main()\n    print('ok', flush=True)\n"


def run(issue: Issue, library: str, folder: Path, seconds: float) -> str:
    """Return what the program prints; what it did instead of ending well."""
    script = folder / "program.py"
    script.write_text(HEAD.format(library=library) + issue.program + TAIL)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return "hangs"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children, too
        process.communicate()
    return f"{output}{errors}".strip() if process.returncode == 0 else errors or "died"


@pytest.mark.parametrize("issue", ISSUES, ids=lambda issue: issue.number.partition(":")[0])
def test_is_mended(issue: Issue, tmp_path: Path) -> None:
    assert run(issue, "ipcbuf_mp", tmp_path, PATIENCE) == "ok"


@pytest.mark.stress
@pytest.mark.parametrize("issue", ISSUES, ids=lambda issue: issue.number.partition(":")[0])
def test_is_as_described_in_the_standard_library(issue: Issue, tmp_path: Path) -> None:
    got = run(issue, "multiprocessing", tmp_path, HANGS_AFTER)
    if issue.there == "hangs":
        assert got == "hangs"
    elif issue.there == "works again today":
        assert got == "ok"
    else:
        assert got != "ok"
