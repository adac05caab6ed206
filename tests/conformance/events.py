# SPDX-License-Identifier: Apache-2.0
"""Run tests and write a line of JSON for each thing that happens: a test, and what became of it."""

from __future__ import annotations

import json
import os
import unittest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    Error = (
        tuple[type[BaseException], BaseException, TracebackType]
        | tuple[None, None, None]
    )  # fmt: skip


class Events(unittest.TextTestResult):
    """Writes what happens to a file, besides what unittest prints."""

    def __init__(self, *args: Any, path: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        self._pid = os.getpid()

    def _write(self, test: object, what: str) -> None:
        if os.getpid() == self._pid:  # not from a child that a test forked
            name = str(test).split()[0]
            os.write(self._descriptor, (json.dumps([name, what]) + "\n").encode())

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._write(test, "begun")

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addSuccess(test)
        self._write(test, "passed")

    def addFailure(self, test: unittest.TestCase, err: Error) -> None:  # noqa: N802
        super().addFailure(test, err)
        self._write(test, "failed")

    def addError(self, test: unittest.TestCase, err: Error) -> None:  # noqa: N802
        super().addError(test, err)  # the test may also stand for a class or a module
        self._write(test, "failed")

    def addSubTest(  # noqa: N802
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: Error | None
    ) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._write(test, "failed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._write(test, "skipped")

    def addExpectedFailure(self, test: unittest.TestCase, err: Error) -> None:  # noqa: N802
        super().addExpectedFailure(test, err)
        self._write(test, "passed")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        self._write(test, "failed")


def run(case: type[unittest.TestCase], without: list[str], path: str) -> None:
    """Run the tests of *case* but those named in *without*; append what happens to *path*."""
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    suite = unittest.TestSuite(test for test in tests if str(test).split()[0] not in without)
    runner = unittest.TextTestRunner(
        resultclass=lambda *args, **kwargs: Events(*args, path=path, **kwargs), verbosity=2
    )
    runner.run(suite)
