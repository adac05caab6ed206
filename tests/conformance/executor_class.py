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
import pkgutil
import sys
import unittest

import events  # type: ignore[import-not-found]  # beside this file

PACKAGE = "test.test_concurrent_futures"


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
    events.run(getattr(home, found), without, path)


if __name__ == "__main__":
    main()
