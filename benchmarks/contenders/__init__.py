# SPDX-License-Identifier: Apache-2.0
"""Who is measured: one module each, all with the same functions.

A contender has `NAME` and

    queue(maxsize=0)    -> an object with put and get, for processes that are forked later
    shared_queue()      -> the same, if several processes may put and get
    pipe()              -> two ends with send and recv
    executor(workers)   -> an executor with submit, map and shutdown

A function that it has nothing for is left out, and the rows that need it are empty.
To add a rival, put a module here; where it cannot be imported, it is skipped with a line saying so.
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

BASELINE = "mp_stdlib"
OURS = "ipcbuf_mp_"


MUST_WORK = ("multiprocessing", "ipcbuf_mp")  # their NAME


def load(rivals: str = "all") -> list[ModuleType]:
    """Return the contenders that can be imported here, the standard library first.

    Besides the standard library and us: *rivals*, by NAME with commas between; "all" or "none".
    """
    wanted = {*MUST_WORK, *rivals.split(",")}
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = []
    for name in sorted(names, key=[BASELINE, OURS, *names].index):
        if rivals == "none" and name not in (BASELINE, OURS):
            continue
        try:
            player = import_module(f"{__name__}.{name}")
        except ImportError as error:
            print(f"{name} is skipped: {error}", file=sys.stderr)
            continue
        if rivals == "all" or player.NAME in wanted:
            found.append(player)
    return found
