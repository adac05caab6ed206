# SPDX-License-Identifier: Apache-2.0
"""Run an unmodified program with ipcbuf's classes in place of multiprocessing's.

    python -m ipcbuf_mp PROGRAM [ARGS]      a file, a directory or a zip file
    python -m ipcbuf_mp -m MODULE [ARGS]
    python -m ipcbuf_mp -c CODE [ARGS]
    python -m ipcbuf_mp --check             what is ours on this machine, and its limits

The program finds what plain `python` would have given it: a `__main__` module of its own that
stays until the interpreter ends, `sys.argv`, `sys.path[0]`, and tracebacks that begin with it.
Its child processes use ipcbuf too, whatever their start method; `_install.py` says how.
"""

from __future__ import annotations

import builtins
import io
import os
import pkgutil
import runpy
import sys
from functools import partial
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ipcbuf_mp._install import install

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, TracebackType

USAGE = """\
usage: python -m ipcbuf_mp PROGRAM [ARGS]
       python -m ipcbuf_mp -m MODULE [ARGS]
       python -m ipcbuf_mp -c CODE [ARGS]
       python -m ipcbuf_mp --check
"""


def main() -> None:
    """Do what the command line says."""
    match sys.argv[1:]:
        case ["-h" | "--help"]:
            print(USAGE, end="")
        case ["--check"]:
            from ipcbuf_mp._check import check

            check()
        case ["-m", module, *arguments]:
            sys.argv[:] = ["-m", *arguments]  # runpy puts the file name there, as for Python's -m
            run(partial(runpy._run_module_as_main, module))  # type: ignore[attr-defined]
        case ["-c", code, *arguments]:
            sys.argv[:] = ["-c", *arguments]
            run(partial(run_string, code))
        case [program, *arguments] if not program.startswith("-"):
            sys.argv[:] = [program, *arguments]
            run(partial(run_path, program))
        case _:
            sys.stderr.write(USAGE)
            sys.exit(2)


def run(program: Callable[[], None]) -> None:
    """Call *program* with a new main module and ipcbuf installed; leave no trace in tracebacks."""
    install()
    module = ModuleType("__main__")
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module  # the children's name for it
    vars(module).update(__builtins__=builtins)
    if sys.version_info < (3, 14):
        vars(module).update(__annotations__={})
    try:
        program()
    except SystemExit:
        raise
    except BaseException as error:
        hide_our_frames(error)
        raise


def run_path(path: str) -> None:
    """Do what `python PATH` does."""
    # Not `Path.absolute`: Python changes nothing else in the path that it was given.
    path = os.getcwd() if path == "." else os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118
    if pkgutil.get_importer(path) is not None:  # a directory or a zip file
        set_first_path(path)
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
        return

    if not sys.flags.safe_path:
        set_first_path(str(Path(path).resolve().parent))
    try:
        with io.open_code(path) as file:
            compiled = pkgutil.read_code(file)
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        sys.stderr.write(f"{sys.executable}: can't open file {path!r}: {reason}\n")
        sys.exit(2)

    kind = SourceFileLoader if compiled is None else SourcelessFileLoader
    code = compiled or compile(source, path, "exec", dont_inherit=True)
    cached = {"__cached__": None} if sys.version_info < (3, 15) else {}
    execute(code, __file__=path, __loader__=kind("__main__", path), **cached)


def run_string(source: str) -> None:
    """Do what `python -c SOURCE` does."""
    if not sys.flags.safe_path:
        set_first_path("")
    execute(compile(source, "<string>", "exec", dont_inherit=True), __loader__=BuiltinImporter)


def set_first_path(directory: str) -> None:
    """Put *directory* in front of `sys.path`, in place of what `-m ipcbuf_mp` had put there."""
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, directory)


def execute(code: CodeType, **attributes: object) -> None:
    """Execute *code* in the main module, which gets *attributes* first."""
    namespace = vars(sys.modules["__main__"])
    namespace.update(attributes)
    exec(code, namespace)


def hide_our_frames(error: BaseException) -> None:
    """Let the traceback that Python prints for *error*, when it ends, begin in the program."""
    traceback = error.__traceback__
    while traceback and traceback.tb_frame.f_code.co_filename == main.__code__.co_filename:
        traceback = traceback.tb_next
    print_exception = sys.excepthook

    def print_program_exception(
        kind: type[BaseException], value: BaseException, whole: TracebackType | None
    ) -> None:
        if value is error:
            value, whole = error.with_traceback(traceback), traceback
        print_exception(kind, value, whole)

    sys.excepthook = print_program_exception


if __name__ == "__main__":
    main()
