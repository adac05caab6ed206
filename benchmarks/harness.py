# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: rounds, processes, statistics, and the file with the results.

A benchmark is a list of rows. In each round of a row every contender has its turn, and the next
round begins with another one, so that what else the machine does hits all of them alike. A turn
runs in processes of its own, which are killed if they take too long.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import pickle
import platform
import resource
import select
import signal
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import contenders

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

RESULTS = Path(__file__).parent / "results"
TURN_SECONDS = 120.0
FORK = multiprocessing.get_context("fork")

Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One thing to measure: `turn(contender, scale)` returns figures, the main one first.

    The scale of a turn (how many messages, say) follows from the first turn, so that all take
    about the same time.
    """

    name: str
    needs: str  # the contender's function that it uses
    turn: Callable[[ModuleType, int], Figures]
    unit: str
    scale: int
    most: int = 1 << 62
    smaller_is_better: bool = False
    first_turn: Callable[[ModuleType, int], Figures] | None = None  # which is not counted


def already_had(player: ModuleType, scale: int) -> Figures:
    """Stand for the turn of a row that another program has measured: nobody calls it."""
    raise AssertionError(f"{player} has had its turn, at scale {scale}")


@dataclass
class Outcome:
    """All turns of one contender in one row."""

    turns: list[Figures] = field(default_factory=list)
    failure: str | None = None

    def median(self, figure: str) -> float | None:
        values = [turn[figure] for turn in self.turns if figure in turn]
        return statistics.median(values) if values else None


# --- processes ------------------------------------------------------------------------------------


class Peer:
    """A forked process that runs a function; its result, or its error, comes back through a pipe.

    The process is one of multiprocessing's, as every contender's is; the pipe is nobody's.
    """

    def __init__(
        self, function: Callable[..., object], *args: object, leader: bool = False
    ) -> None:
        self._leader = leader
        self._result, result = os.pipe()
        self._process = FORK.Process(target=self._run, args=(result, function, args))
        self._process.start()
        os.close(result)

    def _run(self, result: int, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self._leader:
            os.setpgid(0, 0)
        try:
            message = pickle.dumps((function(*args), None))
        except Exception as error:
            message = pickle.dumps((None, "".join(traceback.format_exception(error))))
        with os.fdopen(result, "wb") as file:
            file.write(message)

    def join(self, seconds: float = TURN_SECONDS) -> Any:
        """Return the function's result; end the process if there is none in time."""
        deadline = time.monotonic() + seconds
        message = bytearray()
        while select.select([self._result], [], [], max(0, deadline - time.monotonic()))[0]:
            part = os.read(self._result, 1 << 16)
            if not part:
                break
            message += part
        os.close(self._result)
        if message:
            self._process.join(max(1, deadline - time.monotonic()))
        hangs = self._process.exitcode is None
        if hangs and self._leader and self._process.pid is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # and whom it has started
        elif hangs:
            self._process.kill()
        self._process.join()
        self._process.close()
        if hangs or not message:
            raise TimeoutError(f"no {'end' if message else 'result'} in {seconds} s")
        value, error = pickle.loads(message)
        if error is not None:
            raise RuntimeError(error)
        return value


class Gate:
    """Lets processes wait for each other, by way of a pipe."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def open(self) -> None:
        os.write(self._write, b".")

    def wait(self) -> None:
        os.read(self._read, 1)


def cores() -> list[int]:
    """Return the cores that we may use."""
    return sorted(os.sched_getaffinity(0))


def pin(core: int | None) -> None:
    """Stay on one core, this thread and those that it starts."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def cpu_seconds() -> float:
    """Return the CPU time of this process, all threads, and of its children that have ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that *share* of all are below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- rounds ---------------------------------------------------------------------------------------


def options(description: str, rounds: int = 7) -> argparse.Namespace:
    """Read the command line, the same for every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"turns per contender ({rounds})"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="aimed at per turn (0.5)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with TEXT in their name")
    parser.add_argument("--rivals", default="all", help="their names with commas, all, or none")
    parser.add_argument("--output", type=Path, help="the file for the results, - for none")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.rounds, parsed.seconds = 1, 0.02
    return parsed


def measure(
    rows: list[Row],
    chosen: argparse.Namespace,
    players: list[Any] | None = None,
    measured: Sequence[dict[str, Any]] = (),
) -> int:
    """Measure *rows*, print them and write them to a file; return an exit status.

    What is *measured* already, as `describe` returns it, comes first.
    """
    players = contenders.load(chosen.rivals) if players is None else players
    report = list(measured)
    failed = False
    for row in report:
        print_row(row)
    for row in rows:
        if chosen.only not in row.name or not players:
            continue
        outcomes = measure_row(row, players, chosen)
        # What a rival cannot do is in the table, and is not our failure.
        failed |= any(outcomes[name].failure for name in contenders.MUST_WORK if name in outcomes)
        report.append(describe(row, outcomes))
        print_row(report[-1])
    if report and not chosen.quick and chosen.output != Path("-"):
        write_results(report, chosen.output)
    return 1 if failed else 0


def measure_row(
    row: Row, players: list[ModuleType], chosen: argparse.Namespace
) -> dict[str, Outcome]:
    """Give every contender its turns."""
    taking_part = [player for player in players if hasattr(player, row.needs)]
    outcomes = {player.NAME: Outcome() for player in taking_part}
    scales = {player.NAME: row.scale for player in taking_part}
    for number in range(-1, chosen.rounds):  # the first round is there to find the scale
        first = number % len(taking_part)
        for player in taking_part[first:] + taking_part[:first]:
            outcome = outcomes[player.NAME]
            if outcome.failure:
                continue
            turn = row.first_turn if number < 0 and row.first_turn else row.turn
            start = time.monotonic()
            try:
                figures = Peer(turn, player, scales[player.NAME], leader=True).join()
            except (RuntimeError, TimeoutError) as error:
                outcome.failure = str(error)
                print(f"{row.name}, {player.NAME}: {error}", file=sys.stderr)
                continue
            took = figures.pop("seconds", time.monotonic() - start)
            if number >= 0:
                outcome.turns.append(figures)
            else:
                wanted = int(row.scale * chosen.seconds / max(took, 1e-6))
                scales[player.NAME] = min(max(wanted, row.scale // 10, 2), row.most)
    return outcomes


def describe(row: Row, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Return the row as it is written to the file."""
    main = {}
    described = {}
    for name, outcome in outcomes.items():
        figures = list(outcome.turns[0]) if outcome.turns else []
        described[name] = {
            "failure": outcome.failure,
            "median": {figure: outcome.median(figure) for figure in figures},
            "turns": outcome.turns,
        }
        if figures and not outcome.failure:
            main[name] = [turn[figures[0]] for turn in outcome.turns]

    baseline = next(iter(outcomes))
    ratios = {}
    for name, values in main.items():
        if name == baseline or baseline not in main:
            continue
        over, under = (
            (main[baseline], values) if row.smaller_is_better else (values, main[baseline])
        )
        paired = sorted(a / b for a, b in zip(over, under, strict=False) if b)
        if paired:
            ratios[name] = {
                "of_medians": statistics.median(over) / (statistics.median(under) or 1e-9),
                "lowest": paired[0],
                "highest": paired[-1],
            }
    return {
        "name": row.name,
        "unit": row.unit,
        "smaller_is_better": row.smaller_is_better,
        "contenders": described,
        "ratio": ratios,
    }


def print_row(row: dict[str, Any]) -> None:
    """Print one row of results."""
    parts = [f"{row['name']:<44}"]
    for name, outcome in row["contenders"].items():
        figures = ", ".join(f"{key} {short(value)}" for key, value in outcome["median"].items())
        parts.append(f"{name}: {'FAILED' if outcome['failure'] else figures}")
    for name, ratio in row["ratio"].items():
        spread = f"{ratio['lowest']:.3g} to {ratio['highest']:.3g}"
        parts.append(f"{name} {ratio['of_medians']:.3g}x ({spread})")
    print("\n    ".join(parts), flush=True)


def short(value: float) -> str:
    """Return a number with three digits that mean something."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


# --- the file -------------------------------------------------------------------------------------


def write_results(report: list[dict[str, Any]], output: Path | None) -> None:
    """Write the results, and the machine that they come from."""
    benchmark = Path(sys.argv[0]).stem.removeprefix("bench_")
    path = output or RESULTS / f"{benchmark}.json"
    path.parent.mkdir(exist_ok=True)
    result = {
        "benchmark": benchmark,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine(),
        "rows": report,
    }
    path.write_text(json.dumps(rounded(result), indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}")


def rounded(value: Any) -> Any:
    """Return *value* with four digits of every number in it."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def machine() -> dict[str, str]:
    """Return what the numbers depend on."""
    return {
        "cpu": f"{cpu_model()}, {len(cores())} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": first_line("c++", "--version"),
        "libc": " ".join(platform.libc_ver()),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def first_line(*command: str) -> str:
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.splitlines()[0]
