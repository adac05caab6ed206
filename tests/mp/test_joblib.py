# SPDX-License-Identifier: Apache-2.0
"""joblib and scikit-learn on our executor."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest

joblib = pytest.importorskip("joblib")
import ipcbuf_mp.joblib as backend  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG = 60.0


@pytest.fixture(params=["fork", "forkserver"])
def parallel(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`joblib.Parallel`, with two jobs on us."""
    with joblib.parallel_config("ipcbuf", n_jobs=2, mp_context=request.param):
        yield joblib.Parallel
    backend.shutdown()


def square(x: int) -> int:
    return x * x


def fail(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x


def initialize(value: str) -> None:
    os.environ["IPCBUF_TEST_JOBLIB"] = value


def die() -> None:
    os._exit(1)


def nested(x: int) -> tuple[str, list[int]]:
    inner = joblib.Parallel(n_jobs=2)
    result = inner(joblib.delayed(square)(i) for i in range(x))
    return type(inner._backend).__name__, result


def test_workers_know_the_backend_by_name(parallel: Any) -> None:
    def nested(x: int) -> Any:  # sent by value, so the workers do not import this module
        jobs = joblib.Parallel(n_jobs=2, backend="ipcbuf")
        return jobs(joblib.delayed(abs)(-i) for i in range(x))

    assert parallel()(joblib.delayed(nested)(x) for x in (2, 3)) == [[0, 1], [0, 1, 2]]


def test_a_loop_that_cannot_be_nested_warns_as_joblibs_do() -> None:
    def nested() -> Any:
        return joblib.Parallel(n_jobs=2, backend="ipcbuf")(joblib.delayed(abs)(-i) for i in (1, 2))

    with pytest.warns(match="-backed parallel loops cannot be nested below threads, .* n_jobs=1"):
        results = joblib.Parallel(n_jobs=2, backend="threading")([joblib.delayed(nested)()] * 2)
    assert results == [[1, 2], [1, 2]]


def test_workers_are_kept_for_equal_arguments(parallel: Any) -> None:
    arguments = [1, 2]
    pids = set()
    for _ in range(3):
        initargs = (arguments,)  # not the same tuple
        jobs = parallel(initializer=len, initargs=initargs)
        pids |= set(jobs(joblib.delayed(os.getpid)() for _ in range(4)))

    assert len(pids) <= 2


def test_arguments_that_do_not_compare_are_others(parallel: Any) -> None:
    np = pytest.importorskip("numpy")
    for _ in range(2):
        jobs = parallel(initializer=len, initargs=(np.zeros(3),))
        assert jobs(joblib.delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_results_come_in_order(parallel: Any) -> None:
    calls = (joblib.delayed(square)(i) for i in range(100))

    assert parallel()(calls) == [i * i for i in range(100)]


def test_results_as_a_generator(parallel: Any) -> None:
    results = parallel(return_as="generator")(joblib.delayed(square)(i) for i in range(50))

    assert list(results) == [i * i for i in range(50)]


def test_work_is_done_by_workers_that_are_kept(parallel: Any) -> None:
    pids = [set(parallel()(joblib.delayed(os.getpid)() for _ in range(20))) for _ in range(2)]

    assert os.getpid() not in pids[0] | pids[1]
    assert len(pids[0] | pids[1]) <= 2


def test_lambdas(parallel: Any) -> None:
    assert parallel()(joblib.delayed(lambda x: x + 1)(i) for i in range(5)) == [1, 2, 3, 4, 5]


UNGUARDED = """
import joblib, os, sys, ipcbuf_mp.joblib
class Point:
    def __init__(self, x): self.x = x
class PointError(Exception): pass
def double(point): return Point(2 * point.x)
def fail(point): raise PointError(point.x)
def begin(point): os.environ["BEGUN"] = str(point.x)
print("begun")
with joblib.parallel_config("ipcbuf", n_jobs=2, mp_context=sys.argv[1]):
    points = joblib.Parallel()(joblib.delayed(double)(Point(x)) for x in range(3))
    print([point.x for point in points], {type(point) for point in points} == {Point})
    try:
        joblib.Parallel()([joblib.delayed(fail)(Point(7))] * 2)
    except PointError as error:
        print(error)
    jobs = joblib.Parallel(initializer=begin, initargs=(Point(5),))
    print(jobs([joblib.delayed(os.getenv)("BEGUN")] * 2))
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("where", ["in a script", "at a prompt"])
def test_what_the_main_module_defines(where: str, method: str, tmp_path: Path) -> None:
    """No worker runs it again. What one returns is of the class that is here."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    program = [str(script)] if where == "in a script" else ["-c", UNGUARDED]
    result = subprocess.run(
        [sys.executable, *program, method],
        timeout=LONG,
        capture_output=True,
        text=True,
        check=False,
    )

    expected = "begun\n[0, 2, 4] True\n7\n['5', '5']\n"
    assert (result.stdout, result.stderr) == (expected, "")


def test_a_task_that_cannot_be_pickled_fails_as_with_loky(parallel: Any) -> None:
    class Unpicklable:
        def __reduce__(self) -> Any:
            raise RuntimeError("123")

    with pytest.raises(pickle.PicklingError, match="the task to send") as caught:
        parallel()(joblib.delayed(id)(Unpicklable()) for _ in range(2))
    assert str(caught.value.__cause__) == "123"


def test_processes_of_joblib_within_a_task_warn(parallel: Any) -> None:
    def nested() -> tuple[Any, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jobs = joblib.Parallel(n_jobs=2, backend="multiprocessing")
            results = jobs(joblib.delayed(abs)(-i) for i in (1, 2))
        return results, [str(each.message) for each in caught]

    [(results, messages)] = parallel()([joblib.delayed(nested)()])
    assert results == [1, 2]
    assert len(messages) == 1
    assert "backed parallel loops cannot be nested" in messages[0]


IN_LOKY = """
import joblib
def nested():
    import ipcbuf_mp.joblib
    with joblib.parallel_config("ipcbuf", n_jobs=2):
        return joblib.Parallel()(joblib.delayed(abs)(-i) for i in (1, 2))
print(joblib.Parallel(2, "loky")([joblib.delayed(nested)()] * 2))
"""


def test_in_a_worker_of_loky() -> None:
    """Its start method has a name that our workers do not know."""
    result = subprocess.run(
        [sys.executable, "-c", IN_LOKY], timeout=LONG, capture_output=True, text=True, check=False
    )

    assert (result.stdout, result.stderr) == ("[[1, 2], [1, 2]]\n", "")


def test_the_time_after_which_idle_workers_of_loky_end_is_ignored() -> None:
    with joblib.parallel_config("ipcbuf", n_jobs=2, mp_context="fork", idle_worker_timeout=1):
        assert joblib.Parallel()(joblib.delayed(square)(i) for i in range(3)) == [0, 1, 4]
    backend.shutdown()


def test_an_error_ends_the_call_and_not_the_next_one(parallel: Any) -> None:
    with pytest.raises(ValueError, match="three"):
        parallel()(joblib.delayed(fail)(i) for i in range(50))

    assert parallel()(joblib.delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_a_dead_worker_ends_the_call_and_not_the_next_one(parallel: Any) -> None:
    with pytest.raises(backend.BrokenProcessPool, match="exit code 1"):
        parallel()(joblib.delayed(die)() for _ in range(2))

    assert parallel()(joblib.delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_a_time_out(parallel: Any) -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        parallel(timeout=0.2)(joblib.delayed(time.sleep)(LONG) for _ in range(2))

    assert parallel()(joblib.delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_parallel_within_a_task_uses_threads(parallel: Any) -> None:
    for name, result in parallel()(joblib.delayed(nested)(5) for _ in range(4)):
        assert name == "ThreadingBackend"
        assert result == [0, 1, 4, 9, 16]


def test_workers_are_initialized_and_their_threads_limited() -> None:
    context = joblib.parallel_config(
        "ipcbuf",
        n_jobs=2,
        mp_context="fork",
        inner_max_num_threads=3,
        initializer=initialize,
        initargs=("yes",),
    )
    names = ["OMP_NUM_THREADS", "IPCBUF_TEST_JOBLIB"]
    with context:
        values = joblib.Parallel()(joblib.delayed(os.getenv)(name) for name in names)
    backend.shutdown()

    assert values == ["3", "yes"]


GRID_SEARCH = """
import joblib, sys, warnings
warnings.simplefilter("ignore")
import ipcbuf_mp.joblib
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

if __name__ == "__main__":
    x, y = make_classification(n_samples=300, random_state=1)
    grid = {"C": [0.1, 1.0, 10.0], "gamma": [0.01, 0.1], "kernel": ["rbf", "linear"]}
    with joblib.parallel_config(sys.argv[1]):
        search = GridSearchCV(SVC(random_state=0), grid, n_jobs=2, cv=3).fit(x, y)
    print(search.best_params_, search.cv_results_["mean_test_score"].tolist())
"""


@pytest.mark.stress
def test_grid_search_finds_the_same_as_with_loky(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    script = tmp_path / "search.py"
    script.write_text(GRID_SEARCH)

    loky, ours = (
        subprocess.run(
            [sys.executable, script, name], check=True, capture_output=True, text=True, timeout=LONG
        ).stdout
        for name in ("loky", "ipcbuf")
    )

    assert ours == loky != ""
