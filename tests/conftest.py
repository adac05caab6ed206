# SPDX-License-Identifier: Apache-2.0
"""What every test gets: a watchdog, a temporary folder of its own, and a look at what it left.

A test must not leave a process, a thread, a file in /dev/shm or a temporary file behind.
Several xdist workers share the machine, so each judges its own: processes by session (a worker
leads one), temporary files by folder, files in /dev/shm by its processes having them open. A file
in /dev/shm that nobody has open any more tells nothing about its maker; without xdist it is the
test's, with xdist the whole run fails at its end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from multiprocessing import forkserver, process, resource_sharer, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest
import pytest_timeout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

ROOT = Path(__file__).parent.parent
SHM = Path("/dev/shm")

# What ends by itself (a pool's manager thread, a tracker that saw its pipe close) gets so long.
SETTLE_SECONDS = 10.0
# Where not even a signal handler runs any more, the process ends so long after the time-out.
LAST_RESORT_SECONDS = 20.0

IS_XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ

_REPORTS = pytest.StashKey[dict[str, pytest.TestReport]]()
_SHM_BEFORE = pytest.StashKey[frozenset[Path]]()
_STDERR = pytest.StashKey[int]()


# --- the run --------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--twins",
        action="store_true",
        help="run the contract tests on the standard library with every start method, not only fork",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the standard library's half of the contract tests to fork, unless `--twins`.

    It shows that the tests are right, which does not depend on how a process is started.
    """
    if config.getoption("twins"):
        return
    left_out = {item for item in items if _is_slow_twin(item)}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def _is_slow_twin(item: pytest.Item) -> bool:
    kind, call = getattr(item, "cls", None), getattr(item, "callspec", None)
    if kind is None or call is None or "StandardLibrary" not in kind.__name__:
        return False
    return any(value in ("spawn", "forkserver") for value in call.params.values())


def pytest_configure(config: pytest.Config) -> None:
    # Children import test modules by name. At the end: what is installed comes first.
    sys.path.append(str(ROOT))
    os.environ["PYTHONFAULTHANDLER"] = "1"  # spawned children show their stacks, too
    os.environ["PYTHONUNBUFFERED"] = "1"  # and what they print is there however they end
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background by a shell. Children would inherit it, and tests press Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if IS_XDIST_WORKER:
        os.setsid()  # from here on, our processes are those of our session
    with _capture_disabled(config):
        config.stash[_STDERR] = os.dup(2)
    config.stash[_SHM_BEFORE] = frozenset(_files_in_shm())


def pytest_sessionfinish(session: pytest.Session) -> None:
    before = session.config.stash[_SHM_BEFORE]
    left = [path for path in _files_in_shm() if path not in before and _user_of(path) is None]
    if left and not IS_XDIST_WORKER:
        names = ", ".join(map(str, sorted(left)))
        os.write(session.config.stash[_STDERR], f"\nthis run left behind: {names}\n".encode())
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # A short name: it becomes part of the address of a socket, which ends at 108 bytes.
    folder = tmp_path_factory.getbasetemp() / "t"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _light_children() -> None:
    """Let children that import a test module find tests/light/pytest.py instead of pytest.

    Here, in the process that runs tests, pytest is imported already.
    """
    sys.path.insert(0, str(ROOT / "tests" / "light"))


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> str:
    """Each way to start a process, in turn."""
    return cast("str", request.param)


# --- what a test leaves behind --------------------------------------------------------------------


class Running(NamedTuple):
    pid: int
    state: str
    parent: int
    group: int
    session: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.state}, child of {self.parent}): {self.command}"


def _all_processes() -> dict[int, Running]:
    found = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208  # a Path for each costs more than the look
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            stat = Path("/proc", entry, "stat").read_text(errors="replace")
            name, _, rest = stat.partition(" (")[2].rpartition(") ")
            state, *numbers = rest.split()[:4]
            parent, group, session = map(int, numbers)
            line = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode()
            found[int(entry)] = Running(int(entry), state, parent, group, session, line or name)
    return found


_STRANGERS = set(_all_processes())  # who ran before pytest did


def _our_processes() -> dict[int, Running]:
    """The processes that this one or its children started, but for multiprocessing's helpers."""
    own = os.getpid()
    helpers = {
        getattr(forkserver._forkserver, "_forkserver_pid", None),
        getattr(resource_tracker._resource_tracker, "_pid", None),
    }
    everybody = _all_processes()

    def is_ours(seen: Running | None) -> bool:
        if seen is None or seen.pid in _STRANGERS:
            return False
        if IS_XDIST_WORKER:
            return seen.session == own  # `pytest_configure` made it so
        # Pytest shares its process group with whatever its shell starts beside it. What has
        # lost its parent is ours, too: the shell's other children have theirs.
        if seen.parent == own or is_ours(everybody.get(seen.parent)):
            return True
        adopter = everybody.get(seen.parent)
        return seen.group == os.getpgrp() and (adopter is None or adopter.group != seen.group)

    return {
        seen.pid: seen
        for seen in everybody.values()
        if seen.pid != own and seen.pid not in helpers and is_ours(seen)
        # The dead whom somebody else adopted are gone once that one notices.
        if seen.state not in "ZX" or seen.parent == own
    }


def _files_in_shm() -> set[Path]:
    return set(SHM.iterdir()) if SHM.is_dir() else set()


def _user_of(path: Path) -> int | None:
    """The id of a process that has the file open or mapped."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours to look at
            if str(path) in (entry / "maps").read_text(errors="replace"):
                return int(entry.name)
            for descriptor in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if descriptor.readlink() == path:
                        return int(entry.name)
    return None


def _temporary_files(folder: Path) -> set[Path]:
    kept = process.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    return {path for path in folder.iterdir() if str(path) != kept}


class Leftovers:
    """What is there now that was not there when this object was made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes = set(_our_processes())
        self._threads = set(threading.enumerate())
        self._shm = _files_in_shm()
        self._temporary = _temporary_files(folder)

    def processes(self) -> list[Running]:
        multiprocessing.active_children()  # reaps what has ended
        return [seen for pid, seen in _our_processes().items() if pid not in self._processes]

    def files(self) -> list[Path]:
        left = sorted(_temporary_files(self._folder) - self._temporary)
        for path in sorted(_files_in_shm() - self._shm):
            user = _user_of(path)
            ours = not IS_XDIST_WORKER if user is None else user in {os.getpid(), *_our_processes()}
            if ours:
                left.append(path)
        return left

    def look(self) -> list[str]:
        threads = [thread for thread in threading.enumerate() if thread not in self._threads]
        return [
            *map(str, self.processes()),
            *(f"thread {thread.name}" for thread in threads),
            *(f"file {path}" for path in self.files()),
        ]

    def look_once_settled(self) -> list[str]:
        """As `look`, but what is about to go by itself may do so first."""
        gc.collect()
        if resource_sharer._resource_sharer._listener is not None:  # type: ignore[attr-defined]
            resource_sharer.stop(timeout=SETTLE_SECONDS)
        deadline = time.monotonic() + SETTLE_SECONDS
        pause = 0.001
        while (left := self.look()) and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        return left

    def remove(self) -> None:
        """End the processes and remove the files, so that the next test starts clean."""
        for seen in self.processes():
            with contextlib.suppress(OSError):
                os.kill(seen.pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(seen.pid, 0)
        for path in self.files():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = cast("pytest.TestReport", (yield))
    item.stash.setdefault(_REPORTS, {})[report.when or ""] = report
    return report  # type: ignore[return-value]  # pytest takes it as the hook's result


@pytest.fixture(autouse=True)
def _nothing_left_behind(
    request: pytest.FixtureRequest, _own_temporary_folder: Path
) -> Iterator[None]:
    before = Leftovers(_own_temporary_folder)

    yield

    call = request.node.stash.get(_REPORTS, {}).get("call")
    if call is None or not call.passed:
        before.remove()  # a test that failed half-way owes no tidiness
    elif left := before.look_once_settled():
        before.remove()
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


# --- the watchdog ---------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Take the place of pytest-timeout's alarm: ours shows the children's stacks, too."""

    def on_alarm(_signum: int, _frame: FrameType | None) -> None:
        if not pytest_timeout.is_debugging():
            _show_everything(item)
            pytest.fail(f"Timeout (>{settings.timeout}s)")

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.cancel_dump_traceback_later()

    item.cancel_timeout = cancel  # type: ignore[attr-defined]  # where pytest-timeout looks for it
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    if not pytest_timeout.is_debugging():
        stderr = item.config.stash[_STDERR]
        seconds = settings.timeout + LAST_RESORT_SECONDS
        faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)
    return True


def _show_everything(item: pytest.Item) -> None:
    """Print the stacks of this process and its children, and what the segments say."""
    stderr = item.config.stash[_STDERR]
    os.write(stderr, f"\n\n{item.nodeid} hangs; process {os.getpid()}:\n".encode())
    faulthandler.dump_traceback(stderr, all_threads=True)
    for seen in _our_processes().values():
        # A forked child writes to our stderr, a spawned one to its own, which pytest may capture.
        os.write(stderr, f"\n{seen}\n".encode())
        with contextlib.suppress(OSError):
            os.kill(seen.pid, signal.SIGABRT)
    for segment in _segments():
        os.write(stderr, f"\n{segment!r}: {segment.stats()}\n".encode())


def _segments() -> Iterable[Any]:
    module = sys.modules.get("ipcbuf")
    if module is None:
        return []
    return [thing for thing in gc.get_objects() if isinstance(thing, module.Segment)]


@contextlib.contextmanager
def _capture_disabled(config: pytest.Config) -> Iterator[None]:
    manager = config.pluginmanager.getplugin("capturemanager")
    with manager.global_and_fixture_disabled() if manager else contextlib.nullcontext():
        yield
