# SPDX-License-Identifier: Apache-2.0
"""What a user can import and read: names, stub, types, README, and the time an import takes."""

from __future__ import annotations

import ast
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ipcbuf
import ipcbuf_mp
from ipcbuf import errors

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON_EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run_python(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [ipcbuf, ipcbuf_mp, errors])
def test_all_is_sorted_and_exists(module: ModuleType) -> None:
    assert list(module.__all__) == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("module", [ipcbuf, ipcbuf_mp])
def test_all_is_complete(module: ModuleType) -> None:
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert public - {"annotations", "TYPE_CHECKING"} <= set(module.__all__)


def test_every_error_can_be_had_from_the_package() -> None:
    assert set(errors.__all__) <= set(ipcbuf.__all__)


def test_the_drop_in_has_every_name_of_multiprocessing() -> None:
    assert set(multiprocessing.__all__) <= set(ipcbuf_mp.__all__)


# --- layers ---------------------------------------------------------------------------------------


def test_the_drop_in_uses_public_names_of_ipcbuf_only() -> None:
    used = set()
    for path in (ROOT / "ipcbuf_mp").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id="ipcbuf"), attr=name):
                    used.add(name)
                case ast.ImportFrom(module="ipcbuf", names=names):
                    used.update(alias.name for alias in names)
                case ast.ImportFrom(module=str(module)) if module.startswith("ipcbuf."):
                    used.add(module)
                case ast.Import(names=names):
                    used.update(n.name for n in names if n.name.startswith("ipcbuf."))

    assert used <= set(ipcbuf.__all__)


def test_the_core_knows_no_python() -> None:
    for path in (ROOT / "ipcbuf/core").rglob("*.?pp"):
        assert not re.search(r"#include.*(Python\.h|nanobind)", path.read_text()), path


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [ipcbuf, ipcbuf_mp])
def test_the_package_says_it_is_typed(module: ModuleType) -> None:
    assert module.__file__ is not None
    assert (Path(module.__file__).parent / "py.typed").is_file()


def test_the_committed_stub_is_current(tmp_path: Path) -> None:
    """If not: `just stub` writes it anew."""
    patterns = ROOT / "ipcbuf/binding/stub.pat"
    stub = tmp_path / "_native.pyi"
    command = ["-m", "nanobind.stubgen", "-q", "-m", "ipcbuf._native"]
    run_python(*command, "-p", patterns, "-o", stub, cwd=tmp_path)

    assert stub.read_text() == (ROOT / "ipcbuf/_native.pyi").read_text()


# --- README ---------------------------------------------------------------------------------------


def test_the_readme_has_examples() -> None:
    assert len(PYTHON_EXAMPLES) >= 2


@pytest.mark.parametrize("code", PYTHON_EXAMPLES, ids=range(len(PYTHON_EXAMPLES)))
def test_examples_of_the_readme_run(code: str, tmp_path: Path) -> None:
    """Where an example prints something, the comment beside it says what."""
    program = tmp_path / "example.py"
    program.write_text(code)

    printed = run_python(program, cwd=tmp_path)

    assert printed.splitlines() == re.findall(r"print\(.*\)  # (.*)$", code, re.MULTILINE)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name
)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


# --- imports --------------------------------------------------------------------------------------


def modules_imported_by(statement: str, tmp_path: Path) -> set[str]:
    # An editable install has a finder of its own, which imports what it needs at its first use.
    looked = "for finder in sys.meta_path: finder.find_spec('ipcbuf', None)"
    program = f"import sys\n{looked}\n{statement}\nprint(*sys.modules)"
    return set(run_python("-c", program, cwd=tmp_path).split())


def test_importing_the_drop_in_costs_little_more_than_importing_multiprocessing(
    tmp_path: Path,
) -> None:
    """No clock: what takes time is other modules, so these are counted."""
    theirs = modules_imported_by("import multiprocessing", tmp_path)
    ours = modules_imported_by("import ipcbuf_mp", tmp_path)

    assert ours - theirs <= {
        "__future__",
        "ipcbuf_mp",
        "ipcbuf_mp._process",
        "ipcbuf_mp.context",
    }


def test_an_executor_is_imported_without_asyncio(tmp_path: Path) -> None:
    """It takes longer to import than all the rest, and only `asubmit` and `amap` need it."""
    assert "asyncio" not in modules_imported_by("import ipcbuf_mp.executor", tmp_path)


def test_a_worker_that_starts_imports_little(tmp_path: Path) -> None:
    """What it imports it does before its first task."""
    start = "import multiprocessing.spawn, multiprocessing.reduction, "
    theirs = modules_imported_by(f"{start}concurrent.futures.process", tmp_path)
    ours = modules_imported_by(f"{start}ipcbuf_mp._worker", tmp_path)

    others = {name for name in ours - theirs if not name.startswith(("ipcbuf", "_editable"))}
    assert others <= {"__future__", "faulthandler", "mmap"}
    assert "typing" not in ours
    assert "dataclasses" not in ours
    assert "logging" not in ours


def test_numpy_and_cloudpickle_are_imported_only_when_needed(tmp_path: Path) -> None:
    use = """
import ipcbuf, ipcbuf_mp
from ipcbuf_mp import Executor
queue = ipcbuf_mp.Queue()
queue.put([1, "two", {3: 4.0}])
queue.put({5, 6})  # through pickle
queue.get(timeout=60), queue.get(timeout=60)
"""
    imported = modules_imported_by(use, tmp_path)

    assert imported.isdisjoint({"numpy", "cloudpickle"})
