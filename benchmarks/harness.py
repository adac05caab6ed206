# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: rounds, processes, statistics, and the file with the results.

A benchmark is a list of rows. In each round of a row every contender has its turn, and the next
round begins with another one, so that what else the machine does hits all of them alike. A turn
runs in processes of its own; when it has ended, failed or taken too long, those that are left of
them are killed. After each row the results so far are kept, so that a run can be resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import multiprocessing.connection
import os
import pickle
import platform
import resource
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

try:
    from tqdm import tqdm
except ImportError:  # no bar, then
    tqdm = None
else:
    tqdm.monitor_interval = 0  # no thread beside what is measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

RESULTS = Path(__file__).parent / "results"
TURN_SECONDS = 120.0
MOST_TRIALS = 4  # turns to find the scale
GRACE_SECONDS = 2.0  # for the processes that a turn has left: some clear up after their parent
FORK = multiprocessing.get_context("fork")

Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One thing to measure: `turn(contender, scale)` returns figures, the main one first.

    The scale of a turn (how many messages, say) follows from turns before, so that all take about
    the same time.
    """

    name: str
    needs: str  # the contender's function that it uses
    turn: Callable[[ModuleType, int], Figures]
    unit: str
    scale: int
    most: int = 1 << 62
    smaller_is_better: bool = False
    first_turn: Callable[[ModuleType, int], Figures] | None = None  # which is not counted
    may_hang: bool = False  # at its end, once its result is there: that is no failure


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
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            message = pickle.dumps((function(*args), None))
        except Exception as error:
            message = pickle.dumps((None, "".join(traceback.format_exception(error))))
        with os.fdopen(result, "wb") as file:
            file.write(len(message).to_bytes(8, "little") + message)

    def join(self, seconds: float = TURN_SECONDS, may_hang: bool = False) -> Any:
        """Return the function's result; end the process if there is none in time.

        Of a leader all processes are ended, whatever became of it. What *may hang* once its result
        is there is ended soon after.
        """
        deadline = time.monotonic() + seconds
        value = error = None
        message = ended = None
        try:
            message = self._read(deadline)
            value, error = pickle.loads(message) if message else (None, None)
            at_most = max(1, deadline - time.monotonic()) if message and not error else 0
            at_most = min(at_most, GRACE_SECONDS) if may_hang else at_most
            ended = multiprocessing.connection.wait([self._process.sentinel], at_most) or may_hang
        finally:
            os.close(self._result)
            self._end()
        if error is not None:
            raise RuntimeError(error)
        if not message or not ended:
            raise TimeoutError(f"no {'end' if message else 'result'} in {seconds:g} s")
        return value

    def _read(self, deadline: float) -> bytes | None:
        """Return the message, or None if the process ended or the time is over before.

        The end of the pipe would not tell: whoever the process has started has it, too.
        """
        message = bytearray()
        either = [self._result, self._process.sentinel]
        while (left := deadline - time.monotonic()) > 0:
            ready = multiprocessing.connection.wait(either, left)
            part = os.read(self._result, 1 << 16) if self._result in ready else b""
            if ready and not part:
                return None
            message += part
            if len(message) >= 8 and len(message) == 8 + int.from_bytes(message[:8], "little"):
                return bytes(message[8:])
        return None

    def _end(self) -> None:
        """Kill what is left. Its process group is its own for as long as nobody waited for it."""
        self._process.kill()
        if self._leader and self._process.pid is not None:
            deadline = time.monotonic() + GRACE_SECONDS
            with contextlib.suppress(ProcessLookupError):  # who clears up does not hear it
                os.killpg(self._process.pid, signal.SIGTERM)
            while members(self._process.pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        self._process.close()


def members(group: int) -> list[int]:
    """Return who is alive in a process group."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group, *_ = file.read_text().rpartition(")")[2].split()
            if int(of_group) == group and state not in "ZX":
                found.append(int(file.parent.name))
    return found


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
    parser.add_argument(
        "--patience",
        type=float,
        default=TURN_SECONDS,
        metavar="SECONDS",
        help=f"after which a turn is killed ({TURN_SECONDS:g})",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that an interrupted run has measured"
    )
    parsed = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, too
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

    What is *measured* already, as `describe` returns it, comes first. No file is written with
    `--quick`, nor with `--only` unless `--output` names one.
    """
    players = contenders.load(chosen.rivals) if players is None else players
    rows = [row for row in rows if chosen.only in row.name and taking_part(row, players)]
    writes = (
        not chosen.quick and chosen.output != Path("-") and not (chosen.only and not chosen.output)
    )
    partial = Partial(chosen, players) if writes else None
    kept = partial.load() if partial and chosen.resume else {}
    report = list(measured)
    failed = False
    with progress(rows, players, chosen) as step:
        for row in report:
            print_row(row)
        for row in rows:
            if row.name in kept:
                found = kept[row.name]
                step(len(taking_part(row, players)) * (chosen.rounds + 1))
            else:
                found = describe(row, measure_row(row, players, chosen, step))
            failed |= failed_for_us(found)
            report.append(found)
            print_row(found)
            if partial:
                partial.write(report)
    if report and writes:
        write_results(report, chosen.output)
    return 1 if failed else 0


def taking_part(row: Row, players: list[Any]) -> list[Any]:
    return [player for player in players if hasattr(player, row.needs)]


def take_turn(
    turn: Callable[[ModuleType, int], Figures],
    row: Row,
    player: ModuleType,
    scale: int,
    chosen: argparse.Namespace,
) -> tuple[Figures, float]:
    """Return the figures of a turn in a process of its own, and the seconds that it took."""
    start = time.monotonic()
    figures = Peer(turn, player, scale, leader=True).join(chosen.patience, row.may_hang)
    return figures, figures.pop("seconds", time.monotonic() - start)


def find_scale(row: Row, player: ModuleType, chosen: argparse.Namespace) -> int:
    """Find the scale of turns of about the wanted length, by turns that are not counted.

    One does not do where starting the processes takes longer than what they are to do.
    """
    turn = row.first_turn or row.turn
    scale = row.scale
    for _ in range(MOST_TRIALS):
        _, took = take_turn(turn, row, player, scale, chosen)
        last, wanted = scale, int(scale * chosen.seconds / max(took, 1e-6))
        scale = min(max(wanted, row.scale // 10, 2), row.most)
        if took >= chosen.seconds / 2 or scale <= last:
            break
        turn = row.turn
    return scale


def measure_row(
    row: Row,
    players: list[ModuleType],
    chosen: argparse.Namespace,
    step: Callable[..., object] = lambda *_: None,
) -> dict[str, Outcome]:
    """Give every contender its turns; *step* is told how many are over, and whose is next."""
    in_turn = taking_part(row, players)
    outcomes = {player.NAME: Outcome() for player in in_turn}
    scales = {player.NAME: row.scale for player in in_turn}
    for number in range(-1, chosen.rounds):  # the first round is there to find the scale
        first = number % len(in_turn)
        for player in in_turn[first:] + in_turn[:first]:
            step(0, f"{row.name}, {player.NAME}")
            outcome = outcomes[player.NAME]
            if outcome.failure:
                step(1)
                continue
            try:
                if number < 0:
                    scales[player.NAME] = find_scale(row, player, chosen)
                else:
                    figures, _ = take_turn(row.turn, row, player, scales[player.NAME], chosen)
                    outcome.turns.append(figures)
            except (RuntimeError, TimeoutError) as error:
                outcome.failure = str(error)
                say(f"{row.name}, {player.NAME}: {error}", sys.stderr)
            finally:
                step(1)
    return outcomes


# --- progress ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def progress(
    rows: list[Row], players: list[Any], chosen: argparse.Namespace
) -> Iterator[Callable[..., object]]:
    """Show on a terminal how many turns are over, and whose is running.

    Yields what is to be called with a number of turns, and with a text for what comes next.
    """
    if tqdm is None:
        yield lambda *_: None
        return
    turns = sum(len(taking_part(row, players)) for row in rows) * (chosen.rounds + 1)
    with tqdm(total=turns, unit="turn", leave=False, dynamic_ncols=True, disable=None) as bar:

        def step(turns: int, next_turn: str = "") -> None:
            if next_turn:
                bar.set_description(next_turn)
            bar.update(turns)

        yield step


def say(text: str, file: Any = None) -> None:
    """Print a line above the bar."""
    if tqdm is None:
        print(text, file=file, flush=True)
    else:
        tqdm.write(text, file=file or sys.stdout)
        (file or sys.stdout).flush()


# --- rows -----------------------------------------------------------------------------------------


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


def failed_for_us(row: dict[str, Any]) -> bool:
    """Return whether it is a failure: what a rival cannot do is in the table, and none of ours."""
    ours = [row["contenders"].get(name, {}) for name in contenders.MUST_WORK]
    return any(outcome.get("failure") for outcome in ours)


def print_row(row: dict[str, Any]) -> None:
    """Print one row of results."""
    parts = [f"{row['name']:<44}"]
    for name, outcome in row["contenders"].items():
        figures = ", ".join(
            f"{key} {short(value)}" for key, value in shown(outcome["median"]).items()
        )
        parts.append(f"{name}: {'FAILED' if outcome['failure'] else figures}")
    for name, ratio in row["ratio"].items():
        spread = f"{ratio['lowest']:.3g} to {ratio['highest']:.3g}"
        parts.append(f"{name} {ratio['of_medians']:.3g}x ({spread})")
    say("\n    ".join(parts))


def shown(figures: dict[str, float]) -> dict[str, float]:
    """Return the figures that stand in a table; those with `_` before the name are for pictures."""
    return {name: value for name, value in figures.items() if not name.startswith("_")}


def short(value: float) -> str:
    """Return a number with three digits that mean something."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


# --- the file -------------------------------------------------------------------------------------


def this_benchmark() -> str:
    return Path(sys.argv[0]).stem.removeprefix("bench_")


class Partial:
    """What an unfinished run has measured, beside its results. Another run's is not believed."""

    def __init__(self, chosen: argparse.Namespace, players: list[Any]) -> None:
        where = chosen.output or RESULTS / f"{this_benchmark()}.json"
        self.path = where.with_suffix(".part")
        self._of = {
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
            "only": chosen.only,
            "contenders": [player.NAME for player in players],
            "cpu": cpu_model(),
        }
        if not chosen.resume:
            self.path.unlink(missing_ok=True)

    def load(self) -> dict[str, dict[str, Any]]:
        """Return the rows by name, but for those in which we failed: they get another chance."""
        if not self.path.exists():
            return {}
        found = json.loads(self.path.read_text())
        if found["of"] != self._of:
            say(
                f"{self.path.name} is of a run with other arguments: all is measured anew",
                sys.stderr,
            )
            return {}
        return {row["name"]: row for row in found["rows"] if not failed_for_us(row)}

    def write(self, report: list[dict[str, Any]]) -> None:
        """Replace the file, so that whoever is interrupted leaves the old one or the new one."""
        self.path.parent.mkdir(exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"of": self._of, "rows": report}))
        new.replace(self.path)


def write_results(report: list[dict[str, Any]], output: Path | None) -> None:
    """Write the results, and the machine that they come from."""
    path = output or RESULTS / f"{this_benchmark()}.json"
    path.parent.mkdir(exist_ok=True)
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    result = {
        "benchmark": this_benchmark(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "machine": machine(),
        "rows": report,
    }
    path.write_text(json.dumps(rounded(result), indent=1, ensure_ascii=False) + "\n")
    say(f"written to {path}")


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
