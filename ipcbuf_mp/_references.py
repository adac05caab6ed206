# SPDX-License-Identifier: Apache-2.0
"""What a call is in a message: functions by name where pickle would send their name, too.

A call of a function that goes by name, with plain arguments, needs no pickling at all: that takes
a fifth of the time. The rules are pickle's. The name is looked up when it is sent, and must lead
to that very function; the receiver imports the module if need be and looks the name up each time,
so a function that was replaced there is the new one. Nothing is cached, so nothing can be stale.
"""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

    Call = tuple[Any, tuple[Any, ...], dict[str, Any]]

__all__ = ["call_of", "task_of"]


def task_of(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return what to send: module, name, args, kwargs; or fn, args, kwargs, to be pickled."""
    if type(fn) is FunctionType or type(fn) is BuiltinFunctionType:
        module = fn.__module__
        name = fn.__qualname__
        try:
            if _look_up(sys.modules[module], name) is fn:
                return module, name, args, kwargs
        except (KeyError, AttributeError, TypeError):  # TypeError: these are no strings
            pass
    return fn, args, kwargs


def call_of(task: tuple[Any, ...]) -> Call:
    """Return function, args and kwargs. Raises what unpickling the function would."""
    if len(task) == 3:
        return task
    module, name, args, kwargs = task
    if module not in sys.modules:
        __import__(module)
    return _look_up(sys.modules[module], name), args, kwargs


def _look_up(module: Any, name: str) -> Any:
    if "." not in name:
        return getattr(module, name)
    found = module
    for part in name.split("."):  # a local function has a part <locals>
        found = getattr(found, part)
    return found
