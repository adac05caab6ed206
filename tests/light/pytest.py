# SPDX-License-Identifier: Apache-2.0
"""Stands in for pytest in the processes that tests start.

A child imports the module of its function, and with it pytest, which takes longer than all the
rest of a child's start. It runs no tests, so decorators may do nothing there; whoever uses
anything else gets the real one. `tests/conftest.py` puts this folder on the children's path.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any


class _Inert:
    """A decorator, or what makes one, that leaves its function as it is."""

    def __getattr__(self, name: str) -> _Inert:
        return self

    def __call__(self, *args: Any, **_kwargs: Any) -> Any:
        is_function = len(args) == 1 and callable(args[0]) and not isinstance(args[0], _Inert)
        return args[0] if is_function else self


mark = fixture = param = _Inert()


def importorskip(name: str, *_args: object, **_kwargs: object) -> Any:
    """Import what the test would have been skipped without."""
    return import_module(name)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(_the_real_one(), name)


def _the_real_one() -> Any:
    here = os.path.dirname(__file__)  # noqa: PTH120  # pathlib takes its time, too
    sys.path[:] = [path for path in sys.path if path != here]
    del sys.modules["pytest"]
    return import_module("pytest")
