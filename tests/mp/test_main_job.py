# SPDX-License-Identifier: Apache-2.0
"""`python -m ipcbuf_mp PROGRAM`: unmodified programs, their children, and the example."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import ipcbuf_mp

if TYPE_CHECKING:
    from collections.abc import Callable

HOME = Path(ipcbuf_mp.__file__).parent.parent  # where the package under test is imported from
EXAMPLE = Path(__file__).parents[2] / "examples" / "index_stdlib.py"
SECONDS = 60.0

PYTHON = ["-X", "faulthandler"]
OURS = [*PYTHON, "-m", "ipcbuf_mp"]


class Result(NamedTuple):
    status: int
    out: str
    err: str


def run(*arguments: str | Path, cwd: Path, **environment: str) -> Result:
    """Run this Python, end everything it started if it takes too long."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(HOME), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # faulthandler shows where everybody is
        out, err = process.communicate()
        pytest.fail(f"no end after {SECONDS} s\n{out}\n{err}")
    return Result(process.returncode, out, err)


def run_to_json(*arguments: str | Path, cwd: Path, **environment: str) -> Any:
    """Run this Python and decode its output; nothing must go wrong."""
    status, out, err = run(*arguments, cwd=cwd, **environment)
    assert (status, err) == (0, ""), out
    return json.loads(out)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


# --- the program itself: the same as under plain Python -------------------------------------------

SHOW_MAIN = '''\
"""A program that shows what it was given."""
import json, sys

def annotated(argument: json) -> None: ...

print(json.dumps({
    "names": sorted(globals()),
    "main": sys.modules["__main__"].__dict__ is globals(),
    "simple": [__name__, __doc__, __package__, globals().get("__cached__")],
    "file": globals().get("__file__"),
    "builtins": repr(__builtins__),
    "loader": [
        getattr(__loader__, "__name__", type(__loader__).__name__),
        getattr(__loader__, "name", None),
        getattr(__loader__, "path", None),
    ],
    "spec": __spec__ and [__spec__.name, __spec__.origin, __spec__.parent],
    "argv": sys.argv,
    "path": sys.path,
    "annotation": repr(annotated.__annotations__["argument"]),
    "code": annotated.__code__.co_filename,
}))
'''


def as_script(folder: Path) -> list[str]:
    return [str(write(folder / "program.py", SHOW_MAIN))]


def as_relative_script(folder: Path) -> list[str]:
    return [str(write(folder / "deep" / "program.py", SHOW_MAIN).relative_to(folder))]


def as_roundabout_script(folder: Path) -> list[str]:
    write(folder / "deep" / "program.py", SHOW_MAIN)
    return ["./deep/../deep//program.py"]


def as_link_to_script(folder: Path) -> list[str]:
    (folder / "link.py").symlink_to(write(folder / "deep" / "program.py", SHOW_MAIN))
    return ["link.py"]


def as_compiled_script(folder: Path) -> list[str]:
    import py_compile

    path = write(folder / "program.py", SHOW_MAIN)
    compiled = py_compile.compile(str(path), cfile=str(folder / "compiled.pyc"), doraise=True)
    return [str(compiled)]


def as_directory(folder: Path) -> list[str]:
    write(folder / "deep" / "__main__.py", SHOW_MAIN)
    return ["./deep/"]


def as_zip_file(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "program.zip", "w") as archive:
        archive.writestr("__main__.py", SHOW_MAIN)
    return ["program.zip"]


def as_module(folder: Path) -> list[str]:
    write(folder / "package" / "__init__.py", "")
    write(folder / "package" / "program.py", SHOW_MAIN)
    return ["-m", "package.program"]


def as_package(folder: Path) -> list[str]:
    write(folder / "package" / "__init__.py", "")
    write(folder / "package" / "__main__.py", SHOW_MAIN)
    return ["-m", "package"]


def as_string(folder: Path) -> list[str]:
    return ["-c", SHOW_MAIN]


@pytest.mark.parametrize(
    "form",
    [
        as_script,
        as_relative_script,
        as_roundabout_script,
        as_link_to_script,
        as_compiled_script,
        as_directory,
        as_zip_file,
        as_module,
        as_package,
        as_string,
    ],
)
@pytest.mark.parametrize("options", [[], ["-P"]], ids=["", "safe-path"])
def test_program_is_given_what_python_gives_it(
    form: Callable[[Path], list[str]], options: list[str], tmp_path: Path
) -> None:
    arguments = [*form(tmp_path), "one", "-m", "--two"]
    path = f"{HOME}:{tmp_path}"  # a safe path alone would not find the modules

    ours = run(*options, *OURS, *arguments, cwd=tmp_path, PYTHONPATH=path)

    assert run(*options, *PYTHON, *arguments, cwd=tmp_path, PYTHONPATH=path) == ours
    assert (ours.status, ours.err) == (0, "")


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(3)",
        "import sys; sys.exit('that is why')",
        "raise SystemExit",
        "def fail():\n    raise KeyError('no such key')\nfail()",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise OSError('second') from None",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise OSError('2') from error",
        "raise ExceptionGroup('both', [ValueError(1), TypeError(2)])",
        "def broken(:\n    pass",
        "import sys\nsys.excepthook = lambda *error: print('mine', error[0])\n1 / 0",
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()",
        "import atexit, threading\natexit.register(print, 'at exit')\n"
        "threading.Timer(0.05, lambda: print(__import__('__main__').late)).start()\nlate = 'late'",
    ],
)
def test_program_ends_as_under_python(source: str, tmp_path: Path) -> None:
    program = write(tmp_path / "program.py", source + "\n")

    assert run(*PYTHON, program, cwd=tmp_path) == run(*OURS, program, cwd=tmp_path)


@pytest.mark.parametrize("arguments", [["missing.py"], ["-m", "missing"], ["-m", "json"], ["."]])
def test_what_cannot_be_run_is_refused_as_by_python(arguments: list[str], tmp_path: Path) -> None:
    ours = run(*OURS, *arguments, cwd=tmp_path)

    plain = run(*PYTHON, *arguments, cwd=tmp_path)
    assert plain == ours
    assert ours.status != 0


@pytest.mark.parametrize("arguments", [[], ["-m"], ["-c"], ["--unknown"], ["-x", "program.py"]])
def test_wrong_usage_is_explained(arguments: list[str], tmp_path: Path) -> None:
    status, out, err = run(*OURS, *arguments, cwd=tmp_path)

    assert (status, out) == (2, "")
    assert err.startswith("usage: python -m ipcbuf_mp PROGRAM")


def test_check_tells_what_is_ours(tmp_path: Path) -> None:
    status, out, err = run(*OURS, "--check", cwd=tmp_path)

    assert (status, err) == (0, "")
    for word in ("memfd", "pidfd", "futex", "membarrier", "Queue", "window", "cgroup"):
        assert word in out


# --- its classes, in its children too -------------------------------------------------------------

# What a module finds when it is imported, by every way to say it.
LOOK = """
    import multiprocessing
    import multiprocessing.connection
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import ProcessPoolExecutor as Same
    from multiprocessing import Pipe, Queue, SimpleQueue, get_context

    def kinds(method=None):
        context = get_context(method)
        queues = [Queue(), SimpleQueue(), multiprocessing.Queue(), multiprocessing.SimpleQueue(),
                  context.Queue(), context.SimpleQueue(), get_context("spawn").Queue()]
        ends = [*Pipe(), *multiprocessing.Pipe(), *context.Pipe(), *multiprocessing.connection.Pipe()]
        assert isinstance(ends[0], multiprocessing.connection.Connection)
        assert Same is ProcessPoolExecutor
        found = {type(thing).__module__.partition(".")[0] for thing in queues + ends}
        for thing in queues + ends:
            thing.close()
        return sorted(found | {ProcessPoolExecutor.__module__.partition(".")[0]})

    AT_IMPORT = [__name__, *kinds()]
"""

# A program that asks itself, its child, and its grandchild.
FAMILY = (
    dedent(LOOK)
    + """
import json, os, sys

class Answer:
    def __init__(self, who, method):
        self.text = [who, AT_IMPORT, kinds(method)]

def grandchild(method, queue):
    queue.put(Answer("grandchild", method))

def child(method, queue):
    queue.put(Answer("child", method))
    process = get_context(method).Process(target=grandchild, args=(method, queue))
    process.start()
    process.join()

def main(method):
    multiprocessing.set_start_method(method, force=True)  # looking has set it already
    queue = multiprocessing.Queue()
    answers = [Answer("parent", method)]
    process = multiprocessing.Process(target=child, args=(method, queue))
    process.start()
    answers += [queue.get(timeout=30), queue.get(timeout=30)]
    process.join()
    with ProcessPoolExecutor(1) as executor:
        answers.append(executor.submit(Answer, "worker", method).result(timeout=30))
    print(json.dumps(sorted(answer.text for answer in answers)))

if __name__ == "__main__":
    main(sys.argv[1])
"""
)


def expected_family(method: str, kind: str) -> list[Any]:
    child = "__main__" if method == "fork" else "__mp_main__"
    names = {"child": child, "grandchild": child, "parent": "__main__", "worker": child}
    return [[who, [name, kind], [kind]] for who, name in names.items()]


def test_parent_child_grandchild_and_worker_have_our_classes(
    start_method: str, tmp_path: Path
) -> None:
    program = write(tmp_path / "program.py", FAMILY)

    found = run_to_json(*OURS, program, start_method, cwd=tmp_path)

    assert expected_family(start_method, "ipcbuf_mp") == found


def test_the_family_is_the_standard_librarys_without_us(start_method: str, tmp_path: Path) -> None:
    """Shows that the program above can tell one from the other."""
    program = write(tmp_path / "program.py", FAMILY)
    kinds = ["concurrent", "multiprocessing"]

    found = run_to_json(*PYTHON, program, start_method, cwd=tmp_path)

    assert [answer[2] for answer in found] == [kinds] * 4


def test_program_in_a_package(start_method: str, tmp_path: Path) -> None:
    write(tmp_path / "package" / "__init__.py", "")
    write(tmp_path / "package" / "look.py", LOOK)
    lines = FAMILY.removeprefix(dedent(LOOK))
    program = "from .look import *\nfrom .look import kinds\nAT_IMPORT = [__name__, *kinds()]\n"
    write(tmp_path / "package" / "program.py", program + lines)

    found = run_to_json(*OURS, "-m", "package.program", start_method, cwd=tmp_path)

    assert expected_family(start_method, "ipcbuf_mp") == found


def test_program_by_relative_path_that_changes_directory(start_method: str, tmp_path: Path) -> None:
    text = FAMILY.replace("    queue = multi", "    os.chdir('/')\n    queue = multi")
    write(tmp_path / "deep" / "program.py", text)

    found = run_to_json(*OURS, Path("deep", "program.py"), start_method, cwd=tmp_path)

    assert expected_family(start_method, "ipcbuf_mp") == found


def test_children_import_us_from_where_the_parent_did(start_method: str, tmp_path: Path) -> None:
    """Started in our own folder, which is then not on the program's path."""
    program = write(tmp_path / "program.py", FAMILY)

    found = run_to_json(*OURS, program, start_method, cwd=HOME, PYTHONPATH="")

    assert expected_family(start_method, "ipcbuf_mp") == found


def test_what_the_fork_server_preloads_has_our_classes(tmp_path: Path) -> None:
    write(tmp_path / "preloaded.py", "import os\nPID = os.getpid()\n" + dedent(LOOK))
    program = write(
        tmp_path / "program.py",
        """
        import json, multiprocessing, os

        def child(queue):
            import preloaded
            queue.put([preloaded.PID == os.getppid(), preloaded.AT_IMPORT])

        if __name__ == "__main__":
            multiprocessing.set_forkserver_preload(["__main__", "preloaded"])
            context = multiprocessing.get_context("forkserver")
            queue = context.Queue()
            process = context.Process(target=child, args=(queue,))
            process.start()
            print(json.dumps(queue.get(timeout=30)))
            process.join()
        """,
    )

    in_server, at_import = run_to_json(
        *OURS, program, cwd=tmp_path, PYTHONPATH=f"{HOME}:{tmp_path}"
    )

    assert in_server
    assert at_import == ["preloaded", "ipcbuf_mp"]


def test_main_module_is_preloaded_with_our_classes(tmp_path: Path) -> None:
    """As a fork server does from Python 3.12.9 and 3.13.2 on, where it is told the path."""
    program = write(
        tmp_path / "program.py",
        dedent(LOOK) + "import json, os\nif __name__ != '__main__': print(json.dumps(AT_IMPORT))\n",
    )
    server = f"""
        import multiprocessing.forkserver, multiprocessing.spawn, sys
        import ipcbuf_mp
        ipcbuf_mp.install()
        data = {{"sys_path": multiprocessing.spawn.get_preparation_data("ignore")["sys_path"]}}
        ipcbuf_mp.uninstall()
        sys.path[:] = []
        arguments = "dict(main_path={str(program)!r}, **%r)" % data
        arguments = eval(arguments)
        multiprocessing.spawn.import_main_path(arguments["main_path"])
    """

    found = run_to_json("-c", dedent(server), cwd=tmp_path)

    assert found == ["__mp_main__", "ipcbuf_mp"]


def test_objects_of_the_main_module_cross_in_both_directions(
    start_method: str, tmp_path: Path
) -> None:
    program = write(
        tmp_path / "program.py",
        """
        import dataclasses, sys
        from multiprocessing import Process, Queue, set_start_method

        @dataclasses.dataclass
        class Point:
            x: int

        def mirror(inbox, outbox):
            point = inbox.get()
            assert type(point) is Point, type(point)
            outbox.put(Point(-point.x))

        if __name__ == "__main__":
            set_start_method(sys.argv[1])
            inbox, outbox = Queue(), Queue()
            process = Process(target=mirror, args=(inbox, outbox))
            process.start()
            inbox.put(Point(3))
            point = outbox.get(timeout=30)
            process.join()
            assert type(point) is Point, type(point)
            print(point.x)
        """,
    )

    assert run_to_json(*OURS, program, start_method, cwd=tmp_path) == -3


def test_a_child_that_fails_shows_its_own_traceback(start_method: str, tmp_path: Path) -> None:
    program = write(
        tmp_path / "program.py",
        """
        import multiprocessing, sys

        def fail():
            raise KeyError("no such key")

        if __name__ == "__main__":
            process = multiprocessing.get_context(sys.argv[1]).Process(target=fail)
            process.start()
            process.join()
            sys.exit(process.exitcode)
        """,
    )

    ours = run(*OURS, program, start_method, cwd=tmp_path)

    assert run(*PYTHON, program, start_method, cwd=tmp_path) == ours
    assert ours.status == 1


def test_other_processes_are_left_alone(tmp_path: Path) -> None:
    program = write(
        tmp_path / "program.py",
        """
        import subprocess, sys
        code = "import multiprocessing as m, sys; print(type(m.Queue()).__module__, 'ipcbuf_mp' in sys.modules)"
        print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
        """,
    )

    status, out, err = run(*OURS, program, cwd=tmp_path)

    assert (status, out.strip(), err) == (0, "multiprocessing.queues False", "")


def test_the_rest_of_multiprocessing_works_beside_ours(start_method: str, tmp_path: Path) -> None:
    program = """
        import multiprocessing as mp
        import sys

        def square(number):
            return number * number

        def work(lock, value, event, results, tasks):
            with lock:
                value.value += 1
            event.wait(30)
            results.put(mp.current_process().name)
            tasks.get()
            tasks.task_done()

        def main(method):
            mp.set_start_method(method)
            with mp.Pool(2) as pool:
                assert pool.map(square, range(50)) == [number * number for number in range(50)]
                assert sum(pool.imap_unordered(square, range(20), 3)) == 2470
                assert pool.apply_async(square, (5,)).get(30) == 25
            with mp.Manager() as manager:
                shared = manager.dict(a=1)
                queue = manager.Queue()
                queue.put(shared.copy())
                assert queue.get() == {"a": 1}

            lock, value, event = mp.Lock(), mp.Value("i", 0), mp.Event()
            results, tasks = mp.Queue(), mp.JoinableQueue()
            arguments = lock, value, event, results, tasks
            processes = [mp.Process(target=work, args=arguments) for _ in range(3)]
            for process in processes:
                process.start()
                tasks.put("go")
            event.set()
            tasks.join()
            names = {results.get(timeout=30) for _ in processes}
            for process in processes:
                process.join()
            assert names == {process.name for process in processes}
            assert value.value == 3
            print("good")

        if __name__ == "__main__":
            main(sys.argv[1])
    """
    program = str(write(tmp_path / "program.py", program))

    ours = run(*OURS, program, start_method, cwd=tmp_path)

    assert ours == (0, "good\n", "")


# --- install() and uninstall() --------------------------------------------------------------------


def test_uninstall_restores_every_name(tmp_path: Path) -> None:
    program = """
        import multiprocessing, multiprocessing.context, multiprocessing.spawn, sys
        import ipcbuf_mp

        LATE = ["multiprocessing.queues", "multiprocessing.connection", "concurrent.futures.process"]

        def everything():
            owners = [multiprocessing.context.BaseContext]
            owners += [module for name, module in sys.modules.items()
                       if name.startswith(("multiprocessing", "concurrent.futures"))]
            return {owner: dict(vars(owner)) for owner in owners}

        if "early" in sys.argv:
            for name in LATE:
                __import__(name)
        finders = list(sys.meta_path)
        before = everything()

        ipcbuf_mp.install()
        ipcbuf_mp.install()
        for name in LATE:
            __import__(name)
        futures = sys.modules["concurrent.futures"]
        assert futures.ProcessPoolExecutor is ipcbuf_mp.ProcessPoolExecutor
        assert isinstance(multiprocessing.Queue(), ipcbuf_mp.queues.Queue)
        ipcbuf_mp.uninstall()
        ipcbuf_mp.uninstall()

        assert sys.meta_path == finders
        for owner, names in everything().items():
            for name, value in before.get(owner, {}).items():
                lazy = type(names[name]).__name__ == "lazy_import"  # since Python 3.15
                assert lazy or names[name] is value, (owner, name)
        for name in LATE:
            for value in vars(sys.modules[name]).values():
                if isinstance(value, type) and value.__module__ != name:
                    continue  # what a module imported in between it keeps
                assert "ipcbuf" not in str(getattr(value, "__module__", "")), (name, value)
        assert futures.ProcessPoolExecutor.__module__ == "concurrent.futures.process"
        assert type(multiprocessing.Queue()).__module__ == "multiprocessing.queues"
    """

    for argument in ("early", "late"):
        assert run("-c", dedent(program), argument, cwd=tmp_path) == (0, "", "")


def test_what_was_imported_before_install_goes_on_working(tmp_path: Path) -> None:
    program = """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing.queues import JoinableQueue, Queue, SimpleQueue
        import ipcbuf_mp

        def square(number):
            return number * number

        if __name__ == "__main__":
            ipcbuf_mp.install()
            for method in "fork", "spawn", "forkserver":
                context = multiprocessing.get_context(method)
                with ProcessPoolExecutor(2, mp_context=context) as executor:
                    assert list(executor.map(square, range(5))) == [0, 1, 4, 9, 16]
                for kind in JoinableQueue, Queue, SimpleQueue:
                    queue = kind(ctx=context)
                    queue.put(7)
                    assert queue.get() == 7
    """
    program = str(write(tmp_path / "program.py", program))

    assert run(program, cwd=tmp_path) == (0, "", "")


@pytest.mark.parametrize(
    "first",
    [
        "import concurrent.futures.process",
        "from concurrent.futures import ProcessPoolExecutor",
        "from ipcbuf_mp import ProcessPoolExecutor",
        "import ipcbuf_mp.executor",
        "pass",
    ],
)
@pytest.mark.parametrize("before_install", [True, False])
def test_executor_is_ours_whatever_is_imported_first(
    first: str, before_install: bool, tmp_path: Path
) -> None:
    program = f"""
        import ipcbuf_mp
        if {before_install}: {first}
        ipcbuf_mp.install()
        {first}
        import concurrent.futures, concurrent.futures.process as process
        assert concurrent.futures.ProcessPoolExecutor is ipcbuf_mp.ProcessPoolExecutor
        assert process.ProcessPoolExecutor is ipcbuf_mp.ProcessPoolExecutor
        assert "exec_module" not in vars(process.__loader__)
    """

    assert run("-c", dedent(program), cwd=tmp_path) == (0, "", "")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_executor_of_a_main_module_that_does_not_import_it(method: str, tmp_path: Path) -> None:
    """The first thing that its workers import is what they run."""
    program = f"""
        if __name__ == "__main__":
            import concurrent.futures, multiprocessing
            context = multiprocessing.get_context("{method}")
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
                print(executor.submit(abs, -1).result())
                print(type(executor.submit(abs, "").exception().__cause__).__name__)
    """
    program = str(write(tmp_path / "program.py", program))

    assert run(*OURS, program, cwd=tmp_path) == (0, "1\n_RemoteTraceback\n", "")


def test_install_leaves_the_executor_for_later(tmp_path: Path) -> None:
    """It would be half of what a spawned child imports, and few children need it."""
    program = """
        import sys
        import ipcbuf_mp
        ipcbuf_mp.install()
        assert "concurrent.futures" not in sys.modules
    """

    assert run("-c", dedent(program), cwd=tmp_path) == (0, "", "")


# --- the example ----------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", [PYTHON, OURS], ids=["stdlib", "ipcbuf"])
def test_example_gives_the_sequential_result(
    runner: list[str], start_method: str, tmp_path: Path
) -> None:
    options = ["--method", start_method, "--workers", "3", "--files", "12"]

    status, out, err = run(*runner, EXAMPLE, *options, cwd=tmp_path)

    assert (status, err) == (0, ""), out
    assert out.endswith("the three indexes are equal\n")
    assert ("ipcbuf_mp" in out) == (runner is OURS)


def test_example_notices_a_difference(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("results.put(index_source(source))", "results.put(Index(1))")
    program = write(tmp_path / "program.py", text)

    status, _, err = run(*PYTHON, program, "--files", "3", cwd=tmp_path)

    assert status == 1
    assert "MISMATCH" in err
