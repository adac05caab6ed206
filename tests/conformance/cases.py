# SPDX-License-Identifier: Apache-2.0
"""CPython's test cases of multiprocessing as classes of this module, for one start method.

Children of the start methods other than fork unpickle methods of these classes, so they import
this module by name. What is to be tested comes in the environment, which they inherit: the start
method, and whether the tests are to say `import ipcbuf_mp as multiprocessing`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

METHOD = os.environ["IPCBUF_CONFORMANCE_METHOD"]
IMPORTED = os.environ.get("IPCBUF_CONFORMANCE_IMPORTED") == "yes"

# Of other modules: what starts whole programs, and what gives logging a queue.
COMMAND_LINE = {"fork": "Fork", "spawn": "Spawn", "forkserver": "ForkServer"}[
    METHOD
] + "CmdLineTest"
LOGGING = "QueueHandlerTest", "QueueListenerTest", "ConfigDictTest", "LogRecordTest"


@functools.cache
def tests(name: str) -> Any:
    """Return a module of tests, with another import in it if it is to be so."""
    if not IMPORTED:
        return importlib.import_module(name)
    spec = importlib.util.find_spec(name)
    assert spec is not None
    loader: Any = spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    package, _, own_name = name.rpartition(".")
    setattr(importlib.import_module(package), own_name, module)
    exec(
        compile(with_our_import(loader.get_source(name)), spec.origin or name, "exec"), vars(module)
    )
    return module


def with_our_import(source: str) -> str:
    """Return *source* as somebody would change it who wants to use ipcbuf_mp."""
    ours = r"\1import ipcbuf_mp as multiprocessing"
    source = re.sub(r"(?m)^( *)import multiprocessing$", ours, source)
    source = re.sub(r"(?m)^( *)import multiprocessing([.]\w+)$", rf"{ours}, ipcbuf_mp\2", source)
    return re.sub(r"(?m)^( *)(from|import) multiprocessing\b", r"\1\2 ipcbuf_mp", source)


tests("test._test_multiprocessing").install_tests_in_module_dict(globals(), METHOD)
_others = [("test.test_multiprocessing_main_handling", COMMAND_LINE)]
_others += [("test.test_logging", name) for name in LOGGING]
for _module, _name in _others:
    _base = getattr(tests(_module), _name)
    globals()[_name] = type(_name, (_base,), {"__module__": __name__})
if IMPORTED:
    del globals()["_TestImportStar"]  # looks for the files of the standard library's own package
