# SPDX-License-Identifier: Apache-2.0
"""Run the long proofs, keep what they print, and write the table of docs/proof.md from that.

    python tests/stress/report.py run ci                        # what `just stress` runs
    python tests/stress/report.py run release                   # a night; goes on where it stopped
    python tests/stress/report.py run release --minutes-each 5  # less of each part
    python tests/stress/report.py write                         # docs/proof.md from what was obtained

A part is one command. The figures that it printed, its exit code, the commit and the date are kept
in docs/proof.json; `run release` leaves out what this commit has already. With `--minutes-each`, no
chunk of a part is begun after so many minutes, and what is given in minutes is given no more; the
figures are those obtained, and the next run goes on. What cannot be divided runs whole. The commit is the last one
that changed what is tested, so that a word in the documents does not void a night. Nothing in the
table is typed by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import kept  # type: ignore[import-not-found]  # beside this file

if TYPE_CHECKING:
    from pathlib import Path

ROOT: Path = kept.ROOT
KEPT = ROOT / "docs" / "proof.json"
PAGE = ROOT / "docs" / "proof.md"
BEGIN, END = "<!-- begin: written by report.py -->", "<!-- end -->"
SEED = 20261123


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    test: str  # of the list in docs/proof.md
    # {core}, {address}: the folders of the core's programs, plain and with Address Sanitizer;
    # {pytest}: with what a long test needs
    command: str
    release: bool = True
    ci: bool = False
    pressure: bool = False  # with stress-ng beside it
    chunks: int = 1  # runs with one seed after another, {seed}, whose figures are added up
    minutes: float = 0  # {minutes} of the command
    size: int = 0  # {size} of the command, for what has no seed to go on with: all in one run


def kills(number: int, more: str = "") -> str:
    return f"{{core}}/random_kills --kills {number} --seed {{seed}} --patience 300 {more}".strip()


def test(path: str, *settings: str) -> str:
    """One test; its settings are variables of the environment, NAME=VALUE."""
    return " ".join([*(("env", *settings) if settings else ()), "{pytest}", path])


SOAK = "{core}/random_kills --soak --minutes {minutes} --pause-us 200000 --seed {seed}"
STOPS = "{core}/random_kills --stop --minutes {minutes} --patience 600 --seed {seed}"
HEAP_MACHINE = test(
    "tests/unit/test_heap_machine.py --hypothesis-seed={seed}", "IPCBUF_EXAMPLES=2000"
)
FUZZ = "{address}/fuzz_attach tests/fuzz/corpus --runs 2000000 --seed {seed}"
FORKS = test("-m stress tests/unit/test_fork.py -k many_forks", "IPCBUF_FORKS=2000")
CLONES = test("-m stress tests/unit/test_fork.py -k many_raw_clones", "IPCBUF_FORKS=2000")
NAMESPACES = test("-m stress tests/unit/test_named_faults.py -k two_hundred", "IPCBUF_SEED={seed}")
STORM = test("-m stress tests/unit/test_signals.py -k longer_storm", "IPCBUF_STORM_SECONDS=30")
INTERRUPTS = test("-m stress tests/unit/test_signals.py -k many_times", "IPCBUF_INTERRUPTS=10000")
RELACY = ("ring", "doorbell", "owner_word", "hand_over", "remote_free", "sole_user")

PARTS = (
    Part("every instruction", "T1", "{core}/test_single_step", release=False, ci=True),
    Part("every instruction, two-deep from every state", "T1", "{core}/test_single_step --full"),
    Part("random kills, short", "T2", kills(10_000), release=False, ci=True),
    Part("random kills, heap full", "T2", kills(1000, "--size 4 --workers 8"), ci=True),
    Part("random kills", "T2", kills(1000), chunks=1000),
    Part(
        "busy queue",
        "T2",
        "{python} tests/stress/kill_rounds.py --rounds 100 --seed {seed}",
        chunks=10,
    ),
    Part(
        "everything at once",
        "T2",
        "{python} tests/stress/chaos.py --kills 100 --seed {seed}",
        chunks=10,
    ),
    Part(
        "busy queue of the standard library",
        "T3",
        "{python} tests/stress/kill_rounds.py --library multiprocessing --rounds 60 "
        "--seed {seed} --patience 5",
    ),
    Part("every store", "T4", "{core}/test_crash_points", ci=True),
    Part("models", "T5", "{python} tests/models/run.py", ci=True),
    Part(
        "models, 4 processes, 3 crashes",
        "T5",
        "{python} tests/models/run.py --processes 4 --crashes 3",
    ),
    *(
        Part(f"orders, {model}", "T6", f"{{core}}/relacy_{model}_sound 5000000", False, True)
        for model in RELACY
    ),
    *(
        Part(
            f"orders, {model}, long",
            "T6",
            f"{{core}}/relacy_{model}_sound {{size}}",
            size=200 * 10**6,
        )
        for model in RELACY
    ),
    Part(
        "time until a death is noticed",
        "T7",
        "{python} tests/stress/detection.py --rounds 300 --seed {seed}",
        ci=True,
    ),
    Part("attaching to damage", "T8", FUZZ, release=False, ci=True),
    Part("attaching to damage, long", "T8", FUZZ, chunks=50),
    Part("storm of signals", "T11", STORM, release=False, ci=True),
    Part("storm of signals, long", "T11", STORM, chunks=20),
    Part("Ctrl-C", "T11", INTERRUPTS, ci=True),
    Part("forks beside busy threads", "T13", FORKS, release=False, ci=True),
    Part("forks beside busy threads, long", "T13", FORKS, chunks=5),
    Part("raw clones beside busy threads", "T13", CLONES, release=False, ci=True),
    Part("raw clones beside busy threads, long", "T13", CLONES, chunks=5),
    Part("bombs, 64 workers", "T14", kills(3000, "--bomb --workers 64"), release=False, ci=True),
    Part("bombs, 256 workers", "T14", kills(1000, "--bomb --workers 256"), chunks=10),
    Part("many processes", "T14", "{core}/many_processes", ci=True),
    Part(
        "many channels",
        "T15",
        "{python} tests/stress/many_channels.py --channels 10000 --blocked 1000",
        ci=True,
    ),
    Part("soak", "T16", SOAK, release=False, ci=True, minutes=5),
    Part("soak, long", "T16", SOAK, minutes=120),
    Part("stopped, under load", "T17", STOPS, False, True, pressure=True, minutes=2),
    Part("stopped, under load, long", "T17", STOPS, pressure=True, minutes=60),
    Part("two pid namespaces", "T18", NAMESPACES, release=False, ci=True),
    Part("two pid namespaces, long", "T18", NAMESPACES, chunks=50),
    Part("heap against its model", "T22", HEAP_MACHINE, release=False, ci=True),
    Part("heap against its model, long", "T22", HEAP_MACHINE, chunks=100),
    Part("seeded faults", "T23", "{python} tests/stress/mutants.py"),
)


def commit() -> str:
    seen: str = kept.commit(
        *("ipcbuf", "ipcbuf_mp", "tests/core", "tests/stress", ":!tests/stress/report.py")
    )
    return seen


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {platform.machine()}, Linux {platform.release()}"


def load() -> list[dict[str, Any]]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else []


def keep(record: dict[str, Any]) -> None:
    known = {part.name for part in PARTS} - {record["name"]}
    others = [r for r in load() if r["name"] in known]
    KEPT.write_text(json.dumps([*others, record], indent=1) + "\n")


# What programs say in words, in their order of preference; found several times, it is added up.
SAID = tuple(
    map(
        re.compile,
        (
            r"^total +(?P<boundaries>\d+) +(?P<changes>\d+) +(?P<states>\d+) +(?P<bad>\d+)",
            r": (?P<executions>\d+) executions, sound",
            r"^(?P<inputs>\d+) inputs, (?P<attached>\d+) of them attached",
            r"^(?P<variants>\d+) variants in .*, (?P<failed>\d+) not as",
            r"^(?P<tests>ok) |^(?P<failed>FAIL) ",
            r"(?P<tests>\d+) passed",
        ),
    )
)


def figures_of(output: str) -> dict[str, Any] | str:
    """As a program printed them: lines of JSON, in words that are known, or its last line."""
    lines = [line for line in output.splitlines() if line.strip()]
    sums: dict[str, Any] = {}
    for line in lines:
        if line.startswith("{"):
            sums = add(sums, json.loads(line))
    if sums:
        return sums
    for pattern in SAID:
        for found in filter(None, map(pattern.search, lines)):
            said = {k: int(v) if v.isdigit() else 1 for k, v in found.groupdict().items() if v}
            sums = add(sums, said)
        if sums:
            return sums
    return lines[-1] if lines else ""


def run_once(part: Part, places: dict[str, str], **values: object) -> tuple[int, Any, float]:
    words = part.command.format(**places, **values).split()
    begin = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, figures_of(done.stdout), time.monotonic() - begin


def add(sum_: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The figures of two runs of one kind."""
    out = dict(sum_)
    for key, value in more.items():
        if key in ("slots", "reuse_of_a_slot", "committed_mib"):
            out[key] = max(value, sum_.get(key, 0))
        elif isinstance(value, dict):
            out[key] = add(sum_.get(key, {}), value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            out[key] = value + sum_.get(key, 0) if key not in ("seed", "workers") else value
        else:
            out[key] = value
    return out


SHOWN = {
    "core": "build/core-plain",
    "address": "build/core-address",
    "python": "python",
    "pytest": "pytest -s",
}
TRIAL = 1_000_000  # the size of the run that shows how long the whole takes


def size_of(part: Part, places: dict[str, str], most: float) -> int:
    """As much as goes into so many minutes."""
    if part.size == 0 or most == math.inf:
        return part.size
    _, _, seconds = run_once(part, places, size=TRIAL, seed=SEED)
    return min(part.size, max(TRIAL, int(TRIAL * 60 * most / max(seconds, 0.1))))


def run_part(part: Part, places: dict[str, str], keeps: bool, most: float) -> dict[str, Any]:
    """Run what is left of it, for so many minutes; every chunk is kept at once."""
    last_seed = f"{SEED}" if part.chunks == 1 else f"{SEED}...{SEED + part.chunks - 1}"
    minutes = min(part.minutes, most)
    values = {"minutes": f"{minutes:g}", "size": size_of(part, places, most)}
    shown = part.command.format(**SHOWN, **values, seed=last_seed)
    if part.pressure:
        shown += "   (beside stress-ng: cpu, vm, fork, switch)"
    print(f"{part.test} {part.name}: {shown}", file=sys.stderr, flush=True)
    record: dict[str, Any] = {
        "name": part.name,
        "test": part.test,
        "command": shown,
        "exit_code": 0,
        "seconds": 0.0,
        "commit": commit(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": machine(),
        "minutes": minutes,
        "size": values["size"],
        "chunks": part.chunks,
        "chunks_done": 0,
        "figures": {},
    }
    if keeps:
        record = next((r for r in load() if goes_on(r, record)), record)
    begin = time.monotonic()
    while record["chunks_done"] < part.chunks and record["exit_code"] == 0:
        if time.monotonic() - begin >= 60 * most:
            break
        seed = SEED + record["chunks_done"]
        code, figures, seconds = run_once(part, places, **values, seed=seed)
        record["exit_code"] = code
        record["seconds"] = round(record["seconds"] + seconds, 1)
        record["chunks_done"] += 1
        if isinstance(figures, dict) and isinstance(record["figures"], dict):
            figures = add(record["figures"], figures)
        record["figures"] = figures
        if keeps:
            keep(record)
            write()
    return record


def goes_on(old: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether what is kept is a part, or all, of what is wanted now."""
    same = ("name", "commit", "exit_code", "chunks")
    if any(old[key] != wanted[key] for key in same):
        return False
    return all(old.get(key, 0) >= wanted[key] for key in ("minutes", "size"))


def run_with_pressure(
    part: Part, places: dict[str, str], keeps: bool, most: float
) -> dict[str, Any]:
    if not part.pressure:
        return run_part(part, places, keeps, most)
    if shutil.which("stress-ng") is None:
        raise SystemExit("stress-ng is missing: apt-get install stress-ng")
    load_makers = subprocess.Popen(
        [
            *("stress-ng", "--quiet", "--cpu", "1", "--vm", "1", "--vm-bytes", "128M"),
            *("--fork", "1", "--switch", "1"),
        ],
        start_new_session=True,
    )
    try:
        return run_part(part, places, keeps, most)
    finally:
        os.killpg(load_makers.pid, signal.SIGKILL)
        load_makers.wait()


def run(level: str, places: dict[str, str], only: str, most: float) -> int:
    failed = []
    for part in PARTS:
        chosen = part.ci if level == "ci" else part.release
        if not chosen or only not in f"{part.test} {part.name}":
            continue
        record = run_with_pressure(part, places, level == "release", most)
        if level == "ci":
            keep(record)
            write()
        print(f"    {record['seconds']} s, exit {record['exit_code']}", file=sys.stderr)
        if record["exit_code"] != 0:
            print(record["figures"], file=sys.stderr)
            failed.append(part.name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


# ---- the page ----

WRONG = (
    *("lost", "doubled", "reordered", "torn", "impossible", "crashed", "stuck", "leaked", "fsck"),
    *("hung", "bad", "failed", "unnoticed"),
)
# In the command already, or in a column of its own.
NOT_SHOWN = {"test", "seed", "workers", "seconds", "stop", "bomb", "killed_while", "epochs"}


def show_value(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {show_value(part)}" for key, part in value.items()) + ")"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def show(figures: dict[str, Any] | str) -> str:
    if isinstance(figures, str):
        return figures
    wrong = {key: figures[key] for key in WRONG if key in figures}
    texts = [
        f"{key.replace('_', ' ')} {show_value(value)}"
        for key, value in figures.items()
        if key not in NOT_SHOWN and key not in wrong and value
    ]
    if wrong and not any(wrong.values()):
        texts.append("**0** " + ", ".join(wrong))
    else:
        texts += [f"**{key} {value}**" for key, value in wrong.items() if value]
    return "; ".join(texts)


def progress(record: dict[str, Any]) -> str:
    done, all_ = record["chunks_done"], record["chunks"]
    return "" if done == all_ else f" ({done} of {all_} seeds so far)"


def table(records: list[dict[str, Any]]) -> str:
    lines = [
        "| test | command | figures | s | exit | commit, date, machine |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    lines += [
        f"| {r['test']} {r['name']}{progress(r)} | `{r['command']}` | {show(r['figures'])} "
        f"| {r['seconds']:,} | {r['exit_code']} | {r['commit']}, {r['date']}, {r['machine']} |"
        for r in sorted(records, key=lambda r: (int(r["test"][1:]), r["name"]))
    ]
    total = sum(
        r["figures"].get("kills", 0)
        for r in records
        if "random_kills" in r["command"] and r["exit_code"] == 0
    )
    lines += ["", f"Kills of the runs above by `random_kills`: {total:,}."]
    return "\n".join(lines)


def write() -> None:
    kept.write_between(BEGIN, END, PAGE, table(load()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="what", required=True)
    running = commands.add_parser("run")
    running.add_argument("level", choices=("ci", "release"))
    running.add_argument("--core", default=str(ROOT / "build" / "core-plain"))
    running.add_argument("--address", default=str(ROOT / "build" / "core-address"))
    running.add_argument("--only", default="", help="parts whose test and name contain this")
    running.add_argument(
        "--minutes-each", type=float, default=math.inf, help="of each part, at most"
    )
    commands.add_parser("write")
    options = parser.parse_args()
    if options.what == "write":
        write()
        return 0
    places = {
        "core": options.core,
        "address": options.address,
        "python": sys.executable,
        "pytest": f"{sys.executable} -m pytest -q -s --timeout 36000",
    }
    return 1 if run(options.level, places, options.only, options.minutes_each) else 0


if __name__ == "__main__":
    sys.exit(main())
