# SPDX-License-Identifier: Apache-2.0
"""Who is measured: one module each, all with the same functions.

A contender has `NAME` and

    IMPORTS                     what a program says that imports it
    queue(maxsize=0)            -> an object with put and get, for processes that are forked later
    shared_queue()              -> the same, if several processes may put and get
    pipe()                      -> two ends with send and recv
    executor(workers)           -> an executor with submit and map; its workers are forked
    executor_by_spawn(workers)  -> the same, with workers that are spawned
    lasting_executor(workers)   -> the same, asked to go on when a worker dies
    pool(workers)               -> the same by `multiprocessing.Pool` or its equal
    end(executor)               -> ends one whose worker was killed, if it would leave files

What it has nothing for is left out, and the rows that need it are empty.
To add a rival, put a module here; where it cannot be imported, it is skipped with a line saying so.
A module with `_` before its name is no rival, but what several of them use.
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
    names = sorted(name for _, name, _ in pkgutil.iter_modules(__path__) if name[0] != "_")
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
