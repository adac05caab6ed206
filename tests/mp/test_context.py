# SPDX-License-Identifier: Apache-2.0
"""The contexts and the package itself: real contexts of multiprocessing, with our queues."""

from __future__ import annotations

import concurrent.futures
import importlib
import multiprocessing
import multiprocessing.context
import multiprocessing.pool
import os
import pickle
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import ipcbuf_mp
import ipcbuf_mp.connection
import ipcbuf_mp.queues

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from types import ModuleType

    Start = Callable[..., Any]

PATIENCE = 60


# --- what the child processes do --------------------------------------------------------------------


def report_context(library: str, answers: Any) -> None:
    module = sys.modules[library]
    process = module.current_process()
    parent = module.parent_process()
    answers.put(
        (
            module.get_start_method(),
            module.get_context().get_start_method(),
            process.name,
            parent.pid,
            bytes(process.authkey),
        )
    )


def square(number: int) -> int:
    return number * number


def fail_at(number: int) -> int:
    if number == 7:
        raise ZeroDivisionError(number)
    return number


def worker_name(_number: int) -> str:
    time.sleep(0.001)
    return str(os.getpid())


_shared: Any = None


def keep(queue: Any) -> None:
    global _shared
    _shared = queue


def put_into_kept(number: int) -> None:
    _shared.put(number)


# --- the contract -----------------------------------------------------------------------------------


class ContextContract:
    """What any context of multiprocessing does."""

    library: ClassVar[ModuleType]

    @pytest.fixture
    def context(self, start_method: str) -> Any:
        return self.library.get_context(start_method)

    def test_is_a_context_of_its_start_method(self, context: Any, start_method: str) -> None:
        assert isinstance(context, multiprocessing.context.BaseContext)
        assert context.get_start_method() == start_method
        assert context.get_context() is context
        assert context.get_context(start_method) is context
        assert self.library.get_context(start_method) is context

    def test_its_processes_are_those_of_the_standard_library(
        self, context: Any, start_method: str
    ) -> None:
        stdlib: Any = multiprocessing.get_context(start_method)
        assert issubclass(context.Process, stdlib.Process)
        assert issubclass(self.library.Process, multiprocessing.Process)
        assert context.Process.__name__ == stdlib.Process.__name__

    def test_leads_to_the_other_contexts(self, context: Any) -> None:
        for method in ("fork", "spawn", "forkserver"):
            other = context.get_context(method)
            assert other is self.library.get_context(method)
            assert type(other) is not multiprocessing.context.BaseContext

    def test_refuses_an_unknown_method(self, context: Any) -> None:
        for owner in (context, self.library):
            with pytest.raises(ValueError, match="cannot find context for 'knife'"):
                owner.get_context("knife")
        with pytest.raises(ValueError, match="cannot set start method of concrete context"):
            context.set_start_method("fork")

    def test_checks_what_to_preload(self, context: Any) -> None:
        with pytest.raises(TypeError):
            context.set_forkserver_preload([1, 2, 3])

    def test_a_child_knows_where_it_is(self, context: Any, start: Start, start_method: str) -> None:
        answers = context.Queue()
        process = start(context, report_context, self.library.__name__, answers)

        assert answers.get(timeout=PATIENCE) == (
            start_method,
            start_method,
            process.name,
            os.getpid(),
            bytes(multiprocessing.current_process().authkey),
        )

    def test_pool(self, context: Any) -> None:
        with context.Pool(2) as pool:
            assert isinstance(pool, multiprocessing.pool.Pool)
            assert pool.map(square, range(200)) == [n * n for n in range(200)]
            assert pool.apply(square, (12,)) == 144
            assert list(pool.imap(square, range(50), 7)) == [n * n for n in range(50)]
            assert sorted(pool.imap_unordered(square, range(50))) == [n * n for n in range(50)]
            with pytest.raises(ZeroDivisionError) as caught:
                pool.map(fail_at, range(10))
            assert type(caught.value.__cause__).__name__ == "RemoteTraceback"
            pool.close()
            pool.join()

    def test_a_pool_with_many_tasks_is_terminated_at_once(self, context: Any) -> None:
        pool = context.Pool(2)
        result = pool.map_async(worker_name, range(10_000), chunksize=1)
        result.wait(0.05)
        pool.terminate()
        pool.join()

    def test_a_queue_can_be_an_initializer_argument(self, context: Any) -> None:
        q = context.Queue()
        with context.Pool(2, initializer=keep, initargs=(q,)) as pool:
            pool.map(put_into_kept, range(20))

            assert sorted(q.get(timeout=PATIENCE) for _ in range(20)) == list(range(20))
            pool.close()
            pool.join()
        q.close()
        q.join_thread()

    def test_serves_the_executor_of_the_standard_library(self, context: Any) -> None:
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
            assert list(executor.map(square, range(50), chunksize=3)) == [n * n for n in range(50)]
            assert executor.submit(square, 9).result(PATIENCE) == 81
            with pytest.raises(ZeroDivisionError):
                executor.submit(fail_at, 7).result(PATIENCE)

    def test_serves_a_manager(self, context: Any) -> None:
        with context.Manager() as manager:
            proxy = manager.list([1, 2])
            proxy.append(3)
            assert list(proxy) == [1, 2, 3]

    def test_can_be_pickled(self, context: Any) -> None:
        copy = pickle.loads(pickle.dumps(context))

        assert type(copy) is type(context)
        assert copy.get_start_method() == context.get_start_method()


class TestContextOfTheStandardLibrary(ContextContract):
    library: ClassVar[ModuleType] = multiprocessing


class TestContext(ContextContract):
    library: ClassVar[ModuleType] = ipcbuf_mp

    def test_its_class_is_named_as_in_the_standard_library(
        self, context: Any, start_method: str
    ) -> None:
        theirs = multiprocessing.get_context(start_method)

        assert type(context).__name__ == type(theirs).__name__

    def test_its_queues_and_pipes_are_ours(self, context: Any) -> None:
        for owner in (context, ipcbuf_mp):
            assert type(owner.Queue(3)) is ipcbuf_mp.queues.Queue
            assert type(owner.JoinableQueue()) is ipcbuf_mp.queues.JoinableQueue
            assert type(owner.SimpleQueue()) is ipcbuf_mp.queues.SimpleQueue
            for duplex in (True, False):
                for end in owner.Pipe(duplex):
                    assert type(end) is ipcbuf_mp.connection.ChannelConnection

    def test_a_pool_uses_our_queues(self, context: Any) -> None:
        with context.Pool(1) as pool:
            assert type(pool) is ipcbuf_mp.pool.Pool
            assert type(pool._outqueue) is ipcbuf_mp.queues.SimpleQueue
            assert type(pool._outqueue) is ipcbuf_mp.queues.SimpleQueue
            pool.close()
            pool.join()

    def test_multiprocessing_itself_stays_as_it_is(self, context: Any) -> None:
        context.Queue()

        assert type(multiprocessing.get_context("fork")) is multiprocessing.context.ForkContext
        q: Any = multiprocessing.Queue()
        assert type(q) is multiprocessing.queues.Queue
        q.close()


def run(program: str) -> str:
    """Run *program* in a new interpreter and return what it printed; it must not complain."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


class TestStartMethod:
    """It is one fact: setting it here or in multiprocessing is the same."""

    @pytest.mark.parametrize("setter", ["multiprocessing", "ipcbuf_mp"])
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_is_shared_with_multiprocessing(self, setter: str, method: str) -> None:
        assert (
            run(
                f"""if True:
            import ipcbuf_mp, multiprocessing
            assert ipcbuf_mp.get_start_method(allow_none=True) is None
            {setter}.set_start_method({method!r})
            for module in (ipcbuf_mp, multiprocessing):
                assert module.get_start_method() == {method!r}
                assert module.get_context().get_start_method() == {method!r}
                try:
                    module.set_start_method("fork")
                except RuntimeError as error:
                    print(error)
            assert ipcbuf_mp.get_context() is ipcbuf_mp.get_context({method!r})
            assert type(multiprocessing.get_context()).__module__ == "multiprocessing.context"
            """
            )
            == 2 * "context has already been set\n"
        )

    def test_default_is_that_of_multiprocessing(self) -> None:
        assert ipcbuf_mp.get_all_start_methods() == multiprocessing.get_all_start_methods()
        default = multiprocessing.get_all_start_methods()[0]
        printed = run("import ipcbuf_mp; print(ipcbuf_mp.get_context().get_start_method())")

        assert printed == f"{default}\n"

    def test_none_can_be_forced(self) -> None:
        run(
            """if True:
            import ipcbuf_mp as multiprocessing
            multiprocessing.set_start_method("spawn")
            multiprocessing.set_start_method(None, force=True)
            assert multiprocessing.get_start_method(allow_none=True) is None
            """
        )


class TestPackage:
    """`import ipcbuf_mp as multiprocessing` works."""

    def test_exports_all_that_multiprocessing_does(self) -> None:
        assert set(multiprocessing.__all__) <= set(ipcbuf_mp.__all__)
        for name in ipcbuf_mp.__all__:
            assert hasattr(ipcbuf_mp, name)

    def test_the_rest_is_the_same(self) -> None:
        ours = {
            "JoinableQueue",
            "Manager",
            "Pipe",
            "Pool",
            "Process",
            "Queue",
            "SimpleQueue",
            "get_all_start_methods",
            "get_context",
            "get_start_method",
            "set_start_method",
        }
        for name in set(multiprocessing.__all__) - ours:
            assert getattr(ipcbuf_mp, name) == getattr(multiprocessing, name), name

    def test_modules_without_a_replacement_are_found(self) -> None:
        import multiprocessing.shared_memory
        import multiprocessing.util

        assert ipcbuf_mp.shared_memory is multiprocessing.shared_memory
        assert ipcbuf_mp.util is multiprocessing.util
        assert ipcbuf_mp.SUBDEBUG == multiprocessing.SUBDEBUG  # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match="'ipcbuf_mp' has no attribute 'Hatstand'"):
            ipcbuf_mp.Hatstand  # noqa: B018

    def test_modules_can_be_imported_by_name(self) -> None:
        for name in ("managers", "dummy", "synchronize", "sharedctypes", "resource_tracker"):
            theirs = importlib.import_module(f"multiprocessing.{name}")
            spec = theirs.__spec__

            assert importlib.import_module(f"ipcbuf_mp.{name}") is theirs
            assert theirs.__spec__ is spec
        with pytest.raises(ModuleNotFoundError, match=r"ipcbuf_mp\.hatstand"):
            importlib.import_module("ipcbuf_mp.hatstand")

    @pytest.mark.parametrize("name", ["connection", "context", "pool", "queues"])
    def test_modules_that_are_ours_have_all_names(self, name: str) -> None:
        theirs = importlib.import_module(f"multiprocessing.{name}")
        ours = importlib.import_module(f"ipcbuf_mp.{name}")

        assert not {each for each in vars(theirs) if not hasattr(ours, each)}

    def test_a_connection_can_be_made_on_a_descriptor(self) -> None:
        read_end, write_end = os.pipe()
        with (
            ipcbuf_mp.connection.Connection(read_end, writable=False) as reader,
            ipcbuf_mp.connection.Connection(write_end, readable=False) as writer,
        ):
            writer.send([1])

            assert reader.recv() == [1]

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_a_program_with_one_changed_import(self, method: str, tmp_path: Any) -> None:
        program = tmp_path / "program.py"
        program.write_text(
            """if True:
            import sys
            import ipcbuf_mp as multiprocessing

            def work(tasks, results):
                for task in iter(tasks.get, None):
                    results.put(task * 2)

            if __name__ == "__main__":
                multiprocessing.set_start_method(sys.argv[1])
                tasks, results = multiprocessing.Queue(), multiprocessing.Queue()
                process = multiprocessing.Process(target=work, args=(tasks, results))
                process.start()
                for number in range(10):
                    tasks.put(number)
                tasks.put(None)
                print([results.get(timeout=60) for _ in range(10)])
                process.join()
            """
        )
        done = subprocess.run(
            [sys.executable, str(program), method],
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            text=True,
        )

        assert (done.stdout, done.stderr) == (f"{list(range(0, 20, 2))}\n", "")

    def test_a_fork_server_has_imported_what_its_children_need(self) -> None:
        run(
            """if True:
            import ipcbuf_mp, os, pathlib
            with ipcbuf_mp.get_context("forkserver").Pool(1) as pool:
                server = pool.apply(os.getppid)
                maps = pathlib.Path(f"/proc/{server}/maps").read_text()
            assert "/_native." in maps
            """
        )

    def test_the_first_context_makes_the_segment(self) -> None:
        run(
            """if True:
            import ipcbuf_mp, os
            descriptors = lambda: [os.readlink(f"/proc/self/fd/{n}")
                                   for n in os.listdir("/proc/self/fd")
                                   if os.path.lexists(f"/proc/self/fd/{n}")]
            memory = lambda: sum("memfd:" in name for name in descriptors())
            assert memory() == 0
            ipcbuf_mp.get_context("fork")
            assert memory() == 1
            queues = [ipcbuf_mp.Queue() for _ in range(10)], ipcbuf_mp.Pipe()
            assert memory() == 1
            """
        )


class TestFallback:
    """Where the kernel lacks something, the standard library's objects are handed out."""

    WITHOUT = """if True:
        import sys, types, warnings
        fake = types.ModuleType("ipcbuf")
        def default_segment():
            raise OSError(38, "no memfd_create here")
        fake.default_segment = default_segment
        sys.modules["ipcbuf"] = fake
        import ipcbuf_mp, multiprocessing.queues, multiprocessing.connection
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for owner in (ipcbuf_mp, ipcbuf_mp.get_context("spawn")):
                assert type(owner.Queue(3)) is multiprocessing.queues.Queue
                assert type(owner.JoinableQueue()) is multiprocessing.queues.JoinableQueue
                assert type(owner.SimpleQueue()) is multiprocessing.queues.SimpleQueue
                for end in owner.Pipe(False):
                    assert type(end) is multiprocessing.connection.Connection
        for warning in caught:
            print(warning.category.__name__, warning.message)
        """

    def test_is_said_once(self) -> None:
        assert re.fullmatch(
            "RuntimeWarning ipcbuf cannot work here, .*: .*no memfd_create here\n",
            run(self.WITHOUT),
        )

    def test_a_shortage_is_no_reason(self) -> None:
        run(
            """if True:
            import sys, types
            fake = types.ModuleType("ipcbuf")
            def default_segment():
                raise OSError(24, "too many open files")
            fake.default_segment = default_segment
            sys.modules["ipcbuf"] = fake
            import ipcbuf_mp
            try:
                ipcbuf_mp.Queue()
            except OSError as error:
                assert error.errno == 24
            else:
                raise AssertionError
            """
        )


# --- processes ------------------------------------------------------------------------------------


def run_call(call: Any, answers: Any) -> None:
    answers.put(call())


class TestProcess:
    @pytest.fixture
    def context(self, start_method: str) -> Any:
        return ipcbuf_mp.get_context(start_method)

    def test_its_target_may_be_a_lambda(self, context: Any, start: Any) -> None:
        answers, number = context.Queue(), 7
        start(context, lambda: answers.put(number * 2))
        assert answers.get(timeout=60) == 14

    def test_its_arguments_may_be_lambdas(self, context: Any, start: Any) -> None:
        answers = context.Queue()
        start(context, run_call, lambda: 5, answers)
        assert answers.get(timeout=60) == 5

    def test_its_class_may_be_made_in_a_function(self, context: Any) -> None:
        answers = context.Queue()

        class Local(context.Process):  # type: ignore[misc]
            def run(self) -> None:
                answers.put(self.name)

        process = Local(name="local")
        process.start()
        process.join(60)
        assert answers.get(timeout=60) == "local"
        assert process.exitcode == 0

    def test_what_nobody_can_pickle_is_refused_as_by_pickle(self, context: Any) -> None:
        if context.get_start_method() == "fork":
            pytest.skip("nothing is pickled")
        process = context.Process(target=print, args=((number for number in range(3)),))
        with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
            process.start()

    def test_a_daemon_may_have_children(self, context: Any) -> None:
        answers = context.Queue()
        process = context.Process(target=start_grandchild, args=(context, answers), daemon=True)
        process.start()
        assert answers.get(timeout=60) == (True, True)  # both are daemons
        process.join(60)
        assert process.exitcode == 0


def start_grandchild(context: Any, answers: Any) -> None:
    me = multiprocessing.current_process()
    child = context.Process(target=say_daemon, args=(answers, me.daemon))
    child.start()
    child.join(60)
    assert me.daemon


def say_daemon(answers: Any, parent: bool) -> None:
    answers.put((parent, multiprocessing.current_process().daemon))


def have_a_grandchild(queue: Any) -> None:
    child = ipcbuf_mp.get_context("forkserver").Process(target=queue.put, args=("there",))
    child.start()
    child.join()


def test_a_forked_process_may_use_a_fork_server_if_its_parent_has_one(
    start: Callable[..., BaseProcess],
) -> None:
    start(ipcbuf_mp.get_context("forkserver"), abs, 1)
    context = ipcbuf_mp.get_context("fork")
    queue = context.SimpleQueue()

    start(context, have_a_grandchild, queue)

    assert queue.get() == "there"
