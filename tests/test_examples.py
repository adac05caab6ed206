# SPDX-License-Identifier: Apache-2.0
"""The examples run, each with little to do. Those of the seed and of C have tests of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
TESTED_ELSEWHERE = {"index_stdlib.py", "seed_two_channels.py"}


def run_example(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=110
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_frames_arrive_in_order() -> None:
    said = run_example("frames.py", "--frames", "40", "--size", "320x200")

    assert said.startswith("40 frames of 0.2 MB in order, ")


def test_frames_of_a_spawned_camera() -> None:
    said = run_example("frames.py", "--frames", "5", "--size", "64x48", "--method", "spawn")

    assert said.startswith("5 frames of 0.0 MB in order, ")


def test_ours_goes_on_when_workers_are_killed() -> None:
    said = run_example("kill_me.py", "--kills", "6", "--pause", "0.02", "--seed", "1")

    assert len(re.findall(r"^kill +\d+, a (?:producer|consumer)", said, re.MULTILINE)) == 6
    assert said.endswith("Ours goes on after 6 kills.\n")


def test_the_pipeline_counts_what_is_there() -> None:
    said = run_example("pipeline_asyncio.py", "--files", "30")

    assert said.startswith("30 files, ")
    assert said.endswith("the same as one after the other\n")


def test_a_grid_search_finds_the_same_on_our_workers() -> None:
    said = run_example("grid_search.py", "--samples", "90")

    assert re.match(r"9 candidates, best {'C'|nothing to show: No module named", said)


def test_a_data_loader_gets_the_same_on_our_queues() -> None:
    said = run_example("data_loader.py", "--batches", "4")

    assert re.match(r"4 batches of 3.5 MB, the same with both|nothing to show: No module", said)


def test_every_example_is_tested() -> None:
    tested = set(re.findall(r'run_example\("([\w.]+)"', Path(__file__).read_text()))

    assert {path.name for path in EXAMPLES.glob("*.py")} == tested | TESTED_ELSEWHERE
