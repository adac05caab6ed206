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

import events  # type: ignore[import-not-found]  # beside this file


def main() -> None:
    library, name, path, *without = sys.argv[1:]
    if library == "ipcbuf_mp":
        from ipcbuf_mp.context import engine_works

        assert engine_works(), "the standard library would be compared with itself"
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
    events.run(getattr(cases, name), without[1:], path)


if __name__ == "__main__":
    main()
