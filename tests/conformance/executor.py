# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests of process pools, on the standard library's executor and on ours.

    python tests/conformance/executor.py                           this Python
    python tests/conformance/executor.py --python P --tests DIR    another one
    python tests/conformance/executor.py --only Spawn              some classes

Nothing of CPython is copied: the running interpreter's package `test` is imported, with our
executor in the place of `concurrent.futures.ProcessPoolExecutor` and the standard library's
contexts. Each class runs in a process of its own, once with each library, and has a time-out; a
test that hangs is killed with all that it started, counts as `hung`, and the class goes on
without it. What passes there and not here is run once more with both, for CPython's tests fail
now and then on a busy machine.

Some distributions leave test modules out. `--tests` names a folder `test` of the same Python
that has them; modules that the interpreter has are its own.

`--json docs/conformance-executor.json` keeps the results beside those that the file has. The exit
status says whether anything passes there and not here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIBRARIES = "concurrent.futures", "ipcbuf_mp"

Outcomes = dict[str, str]


class Interpreter:
    """A Python that has ipcbuf installed, and the tests it has."""

    def __init__(self, path: str, timeout: float, tests: Path | None, overlay: Path) -> None:
        self.path = path
        self.timeout = timeout
        self.environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        code = "import platform, test; print(platform.python_version(), test.__path__[0])"
        output = subprocess.run([path, "-c", code], check=True, capture_output=True, text=True)
        self.version, own = output.stdout.split()
        if tests is not None:
            _lay_over(overlay / "test", Path(own), tests)
            self.environment["PYTHONPATH"] = str(overlay)

    def classes(self) -> list[str]:
        events, _, log = self._run("concurrent.futures", "?", [])
        if not events:
            raise SystemExit(f"{self.path} lacks the tests\n{log}")
        return [name for name, _ in events]

    def run(self, library: str, name: str) -> tuple[Outcomes, str]:
        """Run a class until each of its tests has an outcome."""
        outcomes: Outcomes = {}
        text = ""
        while True:
            events, ended, log = self._run(library, name, list(outcomes))
            text += log
            seen: Outcomes = {}
            for test, what in events:
                if seen.get(test) != "failed":  # a failed subtest stays
                    seen[test] = what
            hung = dict.fromkeys((test for test in seen if seen[test] == "begun"), "hung")
            outcomes |= seen | hung
            if ended and not hung:
                return outcomes, text
            if not hung:  # before the first test, or after the last one
                outcomes["(module)"] = "hung"
                return outcomes, text

    def _run(
        self, library: str, name: str, without: list[str]
    ) -> tuple[list[tuple[str, str]], bool, str]:
        with tempfile.TemporaryDirectory() as folder:
            events = Path(folder, "events")
            log = Path(folder, "log")
            script = str(HERE / "executor_class.py")
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [self.path, script, library, name, str(events), *without],
                    cwd=folder,
                    env={**self.environment, "TMPDIR": folder},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                try:
                    process.wait(self.timeout)
                    ended = True
                except subprocess.TimeoutExpired:
                    ended = False
                _kill_session(process.pid)
                process.wait()
            lines = events.read_text().splitlines() if events.exists() else []
            found = [(test, what) for test, what in map(json.loads, lines)]
            return found, ended, log.read_text(errors="replace")


def _lay_over(folder: Path, own: Path, more: Path) -> None:
    folder.mkdir()
    for entry in [*own.iterdir(), *more.iterdir()]:
        if not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry.resolve())


def _kill_session(leader: int) -> None:
    """Kill what a run has left, whatever process group it is in."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                numbers = (entry / "stat").read_text(errors="replace").rpartition(") ")[2].split()
                if int(numbers[3]) == leader:
                    os.kill(int(entry.name), signal.SIGKILL)


def worse(theirs: Outcomes, ours: Outcomes) -> list[str]:
    """Return the tests that pass there and not here."""
    return sorted(
        test for test, what in theirs.items() if what == "passed" and ours.get(test) != "passed"
    )


def row(version: str, name: str, library: str, outcomes: Outcomes) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    named = {
        what: sorted(test for test in outcomes if outcomes[test] == what)
        for what in ("failed", "skipped", "hung")
    }
    return {
        "python": version,
        "class": name.rpartition(":")[2],
        "library": library,
        "passed": sum(what == "passed" for what in outcomes.values()),
        **named,
        "commit": commit,
        "command": shlex.join(["python", "tests/conformance/executor.py", *sys.argv[1:]]),
    }


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    old = json.loads(path.read_text()) if path.exists() else []
    both = {(each["python"], each["class"], each["library"]): each for each in [*old, *rows]}
    lines = [json.dumps(both[key]) for key in sorted(both)]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter with ipcbuf")
    parser.add_argument("--tests", type=Path, help="a folder `test` with modules it lacks")
    parser.add_argument("--only", default="", metavar="REGEX", help="classes whose name matches")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for a class")
    parser.add_argument("--json", type=Path, help="keep the results there")
    parser.add_argument("--log", type=Path, help="write what unittest printed there")
    arguments = parser.parse_args()

    count = 0
    with tempfile.TemporaryDirectory() as overlay:
        python = Interpreter(arguments.python, arguments.timeout, arguments.tests, Path(overlay))
        for name in python.classes():
            if not re.search(arguments.only, name):
                continue
            for _ in range(2):
                results = [python.run(library, name) for library in LIBRARIES]
                only = worse(results[0][0], results[1][0])
                if arguments.log:
                    with arguments.log.open("a") as file:
                        file.write(f"\n##### {name}\n{results[1][1]}")
                if not only:
                    break
            count += len(only)
            sums = [sum(w == "passed" for w in outcomes.values()) for outcomes, _ in results]
            ours = results[1][0]
            print(
                f"{python.version} {name.rpartition(':')[2]:45} {sums[0]:3} {sums[1]:3}",
                *(f"{test}: {ours.get(test, 'not run')}" for test in only),
                flush=True,
            )
            if arguments.json:
                rows = [
                    row(python.version, name, library, outcomes)
                    for library, (outcomes, _) in zip(LIBRARIES, results, strict=True)
                ]
                keep(arguments.json, rows)
    print(f"{count} tests pass with the standard library and not with ours")
    return bool(count)


if __name__ == "__main__":
    raise SystemExit(main())
