# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""The harness of the benchmarks, with contenders that misbehave; and what the report owes."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its modules find each other as in a script of theirs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", ["bench_test.py"])
    return importlib.import_module("harness")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("notes")


def chosen(**changes: Any) -> argparse.Namespace:
    given = {"rounds": 1, "seconds": 0.01, "patience": 60.0, "only": "", "quick": False}
    return argparse.Namespace(**{**given, "output": Path("-"), "resume": False, **changes})


def player(name: str) -> Any:
    return SimpleNamespace(NAME=name, queue=None)


def turn(contender: Any, scale: int) -> dict[str, float]:
    return {"messages/s": float(scale)}


def is_alive(pid: int) -> bool:
    """Return whether it runs: an orphan that was killed stays until somebody takes note of it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


# --- contenders that misbehave ----------------------------------------------------------------------


def test_who_hangs_or_fails_costs_its_cell_and_leaves_no_process(
    harness: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / "left"

    def misbehave(contender: Any, scale: int) -> dict[str, float]:
        if contender.NAME == "good":
            return turn(contender, scale)
        left_behind = harness.FORK.Process(target=time.sleep, args=(1000,))
        left_behind.start()
        with left.open("a") as file:
            file.write(f"{left_behind.pid}\n")
        if contender.NAME == "hangs":
            time.sleep(1000)
        raise ValueError("it failed")

    row = harness.Row("a row", "queue", misbehave, "messages/s", 10)
    players = [player(name) for name in ("hangs", "fails", "good")]
    outcomes = harness.measure_row(row, players, chosen(patience=0.3))

    assert outcomes["hangs"].failure == "no result in 0.3 s"
    assert "it failed" in outcomes["fails"].failure
    assert len(outcomes["good"].turns) == 1
    for pid in map(int, left.read_text().split()):
        while is_alive(pid):  # for a moment only
            time.sleep(0.001)
    assert "a row, fails" in capsys.readouterr().err


def test_what_may_hang_at_its_end_is_ended_without_loss(
    harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "GRACE_SECONDS", 0.1)

    def turn_that_cannot_end(contender: Any, scale: int) -> dict[str, float]:
        harness.FORK.Process(target=time.sleep, args=(1000,)).start()  # joined at exit
        return turn(contender, scale)

    row = harness.Row("a row", "queue", turn_that_cannot_end, "messages/s", 10, may_hang=True)
    outcomes = harness.measure_row(row, [player("good")], chosen())

    assert outcomes["good"].failure is None


# --- resuming ---------------------------------------------------------------------------------------


def test_an_interrupted_run_is_resumed(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [harness.Row(name, "queue", turn, "messages/s", 10) for name in ("one", "two")]
    output = tmp_path / "test.json"
    measured: list[str] = []
    interrupted = True

    def measure_row(row: Any, *_: object) -> Any:
        if row.name == "two" and interrupted:
            raise KeyboardInterrupt
        measured.append(row.name)
        return {"us": harness.Outcome([{"messages/s": 1.0}])}

    monkeypatch.setattr(harness, "measure_row", measure_row)
    players = [player("us")]
    with pytest.raises(KeyboardInterrupt):
        harness.measure(rows, chosen(output=output), players)
    assert not output.exists()

    interrupted = False
    harness.measure(rows, chosen(output=output, resume=True), players)

    assert measured == ["one", "two"]
    assert [row["name"] for row in json.loads(output.read_text())["rows"]] == ["one", "two"]

    harness.measure(rows, chosen(output=output, resume=True, rounds=3), players)

    assert measured == ["one", "two", "one", "two"]  # that was another run


# --- the report -------------------------------------------------------------------------------------


def described(**figures: float) -> dict[str, Any]:
    contenders = {
        name: {"failure": None, "median": {"figure": figure}} for name, figure in figures.items()
    }
    return {"name": "a row", "smaller_is_better": False, "contenders": contenders}


def test_a_row_needs_a_note_only_where_ours_is_not_first(notes: Any) -> None:
    assert notes.note("throughput", described(multiprocessing=1, ipcbuf_mp=2)) is None
    assert notes.note("throughput", described(multiprocessing=1, rival=2)) is None  # not in it
    with pytest.raises(LookupError, match="rival is first"):
        notes.note("throughput", described(multiprocessing=1, ipcbuf_mp=2, rival=3))


def test_ours_is_first_in_every_row_or_the_row_says_why_not() -> None:
    report = BENCHMARKS / "report.py"
    done = subprocess.run([sys.executable, report, "--check"], capture_output=True, text=True)

    assert done.stderr == ""


def test_every_note_is_of_a_row_that_exists(notes: Any) -> None:
    """Where the benchmark was run; a row that was renamed takes its note along."""
    for benchmark, row in notes.NOTES:
        results = BENCHMARKS / "results" / f"{benchmark}.json"
        bench = benchmark.partition("_")[0]  # what follows names another machine
        program = (BENCHMARKS / f"bench_{bench}.py").read_text()
        names = (
            [found["name"] for found in json.loads(results.read_text())["rows"]]
            if results.exists()
            else []
        )
        assert row in names or row.split(",")[0] in program, row


def test_every_benchmark_has_its_table() -> None:
    page = (BENCHMARKS / "README.md").read_text()

    for path in BENCHMARKS.glob("bench_*.py"):
        assert f"`{path.name}`" in page
        assert f"<!-- results {path.stem.removeprefix('bench_')} -->" in page
