# SPDX-License-Identifier: Apache-2.0
"""Run one of CPython's executor test classes here and write a line for each thing that happens.

    python tests/conformance/executor_class.py LIBRARY MODULE:CLASS EVENTS [TEST ...]

`executor.py` calls it. LIBRARY is `ipcbuf_mp`, whose executor then stands in the place of
`concurrent.futures.ProcessPoolExecutor`, or `concurrent.futures`. EVENTS gets lines of JSON: a
test, and what became of it. The TESTs named are left out. CLASS `?` writes the names of all
classes that test a process pool.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import importlib
import json
import os
import pkgutil
import sys
import unittest
from typing import Any

PACKAGE = "test.test_concurrent_futures"


class Events(unittest.TextTestResult):
    """Writes what happens to a file, besides what unittest prints."""

    path = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        self._pid = os.getpid()

    def _write(self, test: object, what: str) -> None:
        if os.getpid() == self._pid:  # not from a child that a test forked
            line = json.dumps([str(test).split()[0], what]) + "\n"
            os.write(self._descriptor, line.encode())

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._write(test, "begun")

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addSuccess(test)
        self._write(test, "passed")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self._write(test, "failed")

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        self._write(test, "failed")

    def addSubTest(self, test: unittest.TestCase, subtest: Any, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._write(test, "failed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._write(test, "skipped")


def modules() -> list[str]:
    """Return the modules with the cases: one up to Python 3.11, a package of them since."""
    package = importlib.import_module(PACKAGE)
    if not hasattr(package, "__path__"):
        return [PACKAGE]
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return [f"{PACKAGE}.{name}" for name in found if name.startswith("test_")]


def main() -> None:
    library, name, path, *without = sys.argv[1:]
    if library == "ipcbuf_mp":
        from ipcbuf_mp.executor import ProcessPoolExecutor

        concurrent.futures.ProcessPoolExecutor = ProcessPoolExecutor  # type: ignore[misc]
        concurrent.futures.process.ProcessPoolExecutor = ProcessPoolExecutor  # type: ignore[misc]
    Events.path = path
    if name == "?":
        with open(path, "a") as file:  # noqa: PTH123
            for module in modules():
                for found, value in sorted(vars(importlib.import_module(module)).items()):
                    if isinstance(value, type) and issubclass(value, unittest.TestCase):
                        uses = issubclass(
                            getattr(value, "executor_type", object), concurrent.futures.Executor
                        ) and not hasattr(value.executor_type, "_idle_semaphore")  # type: ignore[attr-defined]
                        if uses and "ProcessPool" in found:
                            file.write(json.dumps([f"{module}:{found}", "class"]) + "\n")
        return
    module, _, found = name.partition(":")
    home = importlib.import_module(module)
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(getattr(home, found))
    suite = unittest.TestSuite(test for test in tests if str(test).split()[0] not in without)
    unittest.TextTestRunner(resultclass=Events, verbosity=2).run(suite)


if __name__ == "__main__":
    main()
