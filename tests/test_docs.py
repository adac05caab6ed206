# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/: their Python runs, and prints what stands beside it; the site is complete.

All Python of a page is one program, with each line where it is on the page, so that a traceback
names the page's lines. What is marked `py` instead of `python` is a fragment, and is not run.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

import ipcbuf
import ipcbuf_mp

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SITE = (ROOT / "mkdocs.yml").read_text()


def program_of(text: str) -> str:
    """Return the page with every line empty that is not Python."""
    lines = [""] * text.count("\n")
    for block in FENCE.finditer(text):
        if block[1] == "python":
            first = text.count("\n", 0, block.start(2))
            code = block[2].splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines)


PROGRAMS = {page.name: program_of(page.read_text()) for page in PAGES}
WITH_PYTHON = [name for name, program in PROGRAMS.items() if program.strip()]


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_the_python_of_a_page_runs_and_prints_what_it_says(name: str, tmp_path: Path) -> None:
    program = tmp_path / f"{name}.py"
    # A page is shown as one program whose parts need no `if`: its workers do not run it again.
    fork = "import multiprocessing; multiprocessing.set_start_method('fork')"
    before = "" if multiprocessing.get_start_method() == "fork" else fork
    program.write_text(before + PROGRAMS[name])

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # named segments are in memory
        done = subprocess.run(
            [sys.executable, program],
            cwd=tmp_path,
            env={**os.environ, "IPCBUF_DIR": folder},
            capture_output=True,
            text=True,
            timeout=100,
        )

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    said = re.findall(r"^ *print\(.*\)  # (.*)$", PROGRAMS[name], re.MULTILINE)
    assert done.stdout.splitlines() == said


def test_many_pages_have_python() -> None:
    assert len(WITH_PYTHON) >= 11


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    """A picture has no language; code has, so that what is Python is run."""
    for block in FENCE.finditer(page.read_text()):
        if not block[1]:
            assert not re.search(r"^(import|from|def|class|with) ", block[2], re.MULTILINE)


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"^ +- .*: ([\w-]+\.md)$", SITE, re.MULTILINE)

    assert sorted(named) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_that_a_page_names_exists(page: Path) -> None:
    for path in re.findall(r"\b(?:examples|tests|benchmarks)/[\w/]+\.\w+", page.read_text()):
        assert (ROOT / path).is_file(), path


def test_the_reference_has_every_public_name() -> None:
    reference = (ROOT / "docs" / "api.md").read_text()

    assert set(ipcbuf.__all__) <= set(re.findall(r"^::: ipcbuf\.(\w+)$", reference, re.MULTILINE))


def test_the_reference_of_the_drop_in_has_what_multiprocessing_lacks_or_is_ours() -> None:
    reference = (ROOT / "docs" / "api-mp.md").read_text()
    ours = {name for name in multiprocessing.__all__ if "ipcbuf" in _module_of(name)}

    for name in ours | (set(ipcbuf_mp.__all__) - set(multiprocessing.__all__)):
        assert re.search(rf"(^::: ipcbuf_mp\.\w+\.|`){name}\b", reference, re.MULTILINE), name


def _module_of(name: str) -> str:
    return str(getattr(getattr(ipcbuf_mp, name), "__module__", ""))


def test_every_figure_in_a_table_comes_from_the_results() -> None:
    subprocess.run([sys.executable, ROOT / "benchmarks" / "report.py", "--check"], check=True)


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert ipcbuf.__version__ == ipcbuf_mp.__version__ == project["version"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()
