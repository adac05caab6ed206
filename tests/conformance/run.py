# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests of multiprocessing, on the standard library's classes and on ours.

    python tests/conformance/run.py                               this Python, all start methods
    python tests/conformance/run.py --python P --method spawn     another one, one start method
    python tests/conformance/run.py --only 'Test(Simple)?Queue'   some classes
    python tests/conformance/run.py --part 5                      every 5th class, other ones each day
    python tests/conformance/run.py --imported                    without `install()`

Nothing of CPython is copied: the running interpreter's package `test` is imported, all of
`test._test_multiprocessing` and what else needs queues and pools (`cases.py`). Before that,
`ipcbuf_mp.install()` puts ours in place; with `--imported` nothing is installed, and the tests say
`import ipcbuf_mp as multiprocessing` instead of `import multiprocessing`.

Each class runs in a process of its own, with each library, and has a time-out; a test that hangs is
killed with all that it started, counts as `hung`, and the class goes on without it. What passes
with the standard library and not with ours is run a second time with both: CPython's tests fail now
and then on a busy machine. What differs on purpose (`ON_PURPOSE`) is in the results, but is no
failure. The exit status says whether anything passes there and not here.

`--json docs/conformance.json` keeps the results of the classes that were run, with commit and
command, beside those that the file has; `--table` writes the table for people.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LIBRARIES = "multiprocessing", "ipcbuf_mp"
METHODS = "fork", "spawn", "forkserver"

# What differs on purpose: docs/differences.md says why, line by line.
ON_PURPOSE = {
    "WithProcessesTestQueue.test_queue_feeder_donot_stop_onexc",
    "TestIgnoreEINTR.test_ignore",
    "TestStartMethod.test_mixed_startmethod",
}
# Not run with --imported: it looks for the standard library's files in the folder of the module.
OF_ITS_FILES = "_TestImportStar"


@dataclasses.dataclass
class Result:
    """What became of the tests of one class, by name."""

    python: str
    method: str
    name: str
    library: str
    way: str
    outcomes: dict[str, str] = dataclasses.field(default_factory=dict)
    log: str = ""
    runs: int = 1

    @property
    def key(self) -> tuple[str, ...]:
        return self.python, self.method, self.way, self.name, self.library

    def named(self, what: str) -> list[str]:
        return sorted(test for test, outcome in self.outcomes.items() if outcome == what)

    def as_dict(self, commit: str, command: str) -> dict[str, Any]:
        return {
            "python": self.python,
            "method": self.method,
            "way": self.way,
            "class": self.name,
            "library": self.library,
            "passed": len(self.named("passed")),
            "failed": self.named("failed"),
            "skipped": self.named("skipped"),
            "hung": self.named("hung"),
            "runs": self.runs,
            "commit": commit,
            "command": command,
        }


class Interpreter:
    """A Python that has ipcbuf installed, and what its test package offers."""

    def __init__(self, path: str, timeout: float, way: str) -> None:
        self.path = path
        self.timeout = timeout
        self.way = way
        code = "import platform; print(platform.python_version())"
        self.version = subprocess.run(
            [path, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()

    def classes(self, method: str) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            events = Path(folder, "events")
            _, log = self._run("multiprocessing", method, "?", events, [], folder)
            if not events.exists():
                raise SystemExit(f"{self.path} has no package test\n{log}")
            return [name for name, _ in _read(events)]

    def run(self, library: str, method: str, name: str) -> Result:
        """Run a class until each of its tests has an outcome."""
        result = Result(self.version, method, name, library, self.way)
        while True:
            with tempfile.TemporaryDirectory() as folder:
                events = Path(folder, "events")
                done = list(result.outcomes)
                status, log = self._run(library, method, name, events, done, folder)
                result.log += log
                begun: dict[str, str] = {}
                for test, what in _read(events):
                    if begun.get(test) != "failed":  # a failed subtest stays
                        begun[test] = what
            hung = [test for test, what in begun.items() if what == "begun"]
            result.outcomes |= {**begun, **dict.fromkeys(hung, "hung")}
            if status is not None and not hung:
                return result
            if not hung:  # before the first test, or behind the last one
                result.outcomes["(module)"] = "hung"
                return result

    def _run(
        self, library: str, method: str, name: str, events: Path, without: list[str], folder: str
    ) -> tuple[int | None, str]:
        script = str(HERE / "one_class.py")
        command = [self.path, script, library, name, str(events), "--without", *without]
        environment = {
            **os.environ,
            "IPCBUF_CONFORMANCE_METHOD": method,
            "IPCBUF_CONFORMANCE_IMPORTED": (
                "yes" if (library, self.way) == ("ipcbuf_mp", "imported") else "no"
            ),
            "TMPDIR": folder,
            "PYTHONFAULTHANDLER": "1",
        }
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                status = None
            _kill_session(process.pid)
            process.wait()
        return status, log.read_text(errors="replace")


def _kill_session(leader: int) -> None:
    """Kill what a run has left, but for the tracker that removes its semaphores and then ends."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                numbers = (entry / "stat").read_text(errors="replace").rpartition(") ")[2].split()
                command = (entry / "cmdline").read_bytes()
                if int(numbers[3]) == leader and b"resource_tracker" not in command:
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue  # it has ended meanwhile


def _read(events: Path) -> list[tuple[str, str]]:
    if not events.exists():
        return []
    return [(name, what) for name, what in map(json.loads, events.read_text().splitlines())]


def differences(theirs: Result, ours: Result) -> list[str]:
    """Return the tests that pass there and not here."""
    return [
        test
        for test in theirs.named("passed")
        if ours.outcomes.get(test) != "passed" and f"{ours.name}.{test}" not in ON_PURPOSE
    ]


def compare(interpreter: Interpreter, method: str, name: str) -> tuple[Result, Result]:
    """Run a class on both, once more if they differ."""
    theirs, ours = (interpreter.run(library, method, name) for library in LIBRARIES)
    if differences(theirs, ours):
        first = ours
        theirs, ours = (interpreter.run(library, method, name) for library in LIBRARIES)
        theirs.runs = ours.runs = 2
        ours.log = first.log + ours.log
    return theirs, ours


# --- what is kept ---------------------------------------------------------------------------------


def commit() -> str:
    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], check=True, capture_output=True, text=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "ipcbuf", "ipcbuf_mp")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def keep(path: Path, results: list[Result], of_commit: str) -> None:
    rows = json.loads(path.read_text()) if path.exists() else []
    arguments = sys.argv[1:]
    for of_this_machine in ("--log", "--python"):  # paths
        if of_this_machine in arguments:
            at = arguments.index(of_this_machine)
            del arguments[at : at + 2]
    command = shlex.join(["python", "tests/conformance/run.py", *arguments])
    new = {result.key: result.as_dict(of_commit, command) for result in results}
    parts = "python", "method", "way", "class", "library"
    old = {tuple(row[part] for part in parts): row for row in rows}
    both = old | new
    lines = [json.dumps(both[key]) for key in sorted(both)]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


HEAD = """# Conformance

CPython's own tests of multiprocessing, run on the standard library's classes and on ours:
what `python tests/conformance/run.py --json docs/conformance.json --table docs/conformance.md`
wrote, one Python after the other. The file beside this one has each class, with the commit and
the command. A test counts as passed, failed, skipped (by itself) or hung (killed at a time-out).

With "installed" the tests are as CPython has them, behind `ipcbuf_mp.install()`; with "imported"
they say `import ipcbuf_mp as multiprocessing`.

| Python | start method | ours | classes | passed there | passed here | passed there only | passed here only |
| --- | --- | --- | ---: | ---: | ---: | --- | --- |
"""


def table(rows: list[dict[str, Any]]) -> str:
    """Return a row for each Python and start method."""
    pairs: dict[tuple[str, str, str], dict[str, dict[str, dict[str, Any]]]] = {}
    for row in rows:
        of_class = pairs.setdefault((row["python"], row["method"], row["way"]), {})
        of_class.setdefault(row["class"], {})[row["library"]] = row
    text = HEAD
    for (python, method, way), classes in sorted(pairs.items()):
        sums = [sum(pair[lib]["passed"] for pair in classes.values()) for lib in LIBRARIES]
        only: list[list[str]] = [[], []]
        for name, pair in sorted(classes.items()):
            bad = [{*pair[lib]["failed"], *pair[lib]["hung"]} for lib in LIBRARIES]
            only[0] += [f"`{name}.{test}`" for test in sorted(bad[1] - bad[0])]
            only[1] += [f"`{name}.{test}`" for test in sorted(bad[0] - bad[1])]
        cells = [", ".join(names) or "none" for names in only]
        row_cells = [python, method, way, str(len(classes)), *map(str, sums), *cells]
        text += "| " + " | ".join(row_cells) + " |\n"
    return text


# --- the command ----------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter with ipcbuf")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all three")
    parser.add_argument(
        "--imported",
        dest="way",
        action="store_const",
        const="imported",
        default="installed",
        help="the tests import ours by name; nothing is installed",
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="classes whose name matches")
    parser.add_argument("--part", type=int, default=1, metavar="N", help="every Nth class")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for a class")
    parser.add_argument("--jobs", type=int, default=2, help="classes at a time")
    parser.add_argument("--json", type=Path, help="keep the results there")
    parser.add_argument("--table", type=Path, help="write the table of --json there")
    parser.add_argument("--log", type=Path, help="write what unittest printed there")
    arguments = parser.parse_args()

    interpreter = Interpreter(arguments.python, arguments.timeout, arguments.way)
    pairs = [
        (method, name)
        for method in arguments.method or METHODS
        for name in interpreter.classes(method)
        if re.search(arguments.only, name) and (arguments.way, name) != ("imported", OF_ITS_FILES)
    ]
    today = datetime.datetime.now(datetime.UTC).date().toordinal()
    pairs = pairs[today % arguments.part :: arguments.part]
    at_start = commit()
    results: list[Result] = []
    worse = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = [pool.submit(compare, interpreter, *pair) for pair in pairs]
        for future in futures:
            theirs, ours = future.result()
            results += [theirs, ours]
            only = differences(theirs, ours)
            worse += len(only)
            sums = [len(result.named("passed")) for result in (theirs, ours)]
            print(
                f"{ours.python} {ours.method:10} {ours.name:40} {sums[0]:3} {sums[1]:3}",
                *(f"{test}: {ours.outcomes.get(test, 'not run')}" for test in only),
                flush=True,
            )
            if arguments.log:
                with arguments.log.open("a") as file:
                    file.write(f"\n##### {ours.method} {ours.name}\n{ours.log}")
            if arguments.json:
                keep(arguments.json, results, at_start)
    if arguments.json and arguments.table:
        arguments.table.write_text(table(json.loads(arguments.json.read_text())))
    print(f"{worse} tests pass with the standard library and not with ours")
    return bool(worse)


if __name__ == "__main__":
    raise SystemExit(main())
