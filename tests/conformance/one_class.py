# SPDX-License-Identifier: Apache-2.0
"""Run one of CPython's test classes in this process and write a line for each thing that happens.

    python tests/conformance/one_class.py LIBRARY CLASS EVENTS [--without TEST ...]

`run.py` calls it. LIBRARY is `ipcbuf_mp`, which is installed under the class unless the class
imports it by name, or `multiprocessing`. EVENTS gets lines of JSON, each a test and what became of it, so that the
caller sees which test it was that hangs. CLASS `?` writes the names of all classes.
"""

from __future__ import annotations

import json
import os
import sys
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


def main() -> None:
    library, name, path, *without = sys.argv[1:]
    if library == "ipcbuf_mp" and os.environ.get("IPCBUF_CONFORMANCE_IMPORTED") != "yes":
        import ipcbuf_mp

        ipcbuf_mp.install()
        if name.endswith("CmdLineTest"):  # the programs that it starts install it as well
            folder = os.path.dirname(path)  # noqa: PTH120
            with open(os.path.join(folder, "sitecustomize.py"), "x") as file:  # noqa: PTH118, PTH123
                file.write("import ipcbuf_mp\nipcbuf_mp.install()\n")
                file.write("import os\ndel os.environ['PYTHONPATH']  # not their children\n")
            os.environ["PYTHONPATH"] = folder
    import cases  # type: ignore[import-not-found]  # beside this file

    if name == "?":
        for found, value in vars(cases).items():
            if isinstance(value, type) and issubclass(value, unittest.TestCase):
                with open(path, "a") as file:  # noqa: PTH123
                    file.write(json.dumps([found, "class"]) + "\n")
        return
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(getattr(cases, name))
    suite = unittest.TestSuite(
        test for test in tests if str(test).split()[0] not in without[1:]
    )  # fmt: skip
    runner = unittest.TextTestRunner(
        resultclass=lambda *args, **kwargs: Events(*args, path=path, **kwargs), verbosity=2
    )
    runner.run(suite)


if __name__ == "__main__":
    main()
