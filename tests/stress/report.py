# SPDX-License-Identifier: Apache-2.0
"""Run the long proofs, keep what they print, and write the table of docs/proof.md from that.

    python tests/stress/report.py run ci          # what `just stress` runs: about a minute
    python tests/stress/report.py run release     # hours; goes on where it was interrupted
    python tests/stress/report.py write           # docs/proof.md from what was obtained

A part is one command. What it printed last, its exit code, the commit and the date are kept in
docs/proof.json; `run release` leaves out what this commit has already. The commit is the last one
that changed what is tested, so that a word in the documents does not void a night. Nothing in the
table is typed by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "proof.json"
PAGE = ROOT / "docs" / "proof.md"
BEGIN, END = "<!-- begin: written by report.py -->", "<!-- end -->"
SEED = 20261123


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    test: str  # of the list in docs/proof.md
    command: str  # {core}: the folder of the core's programs
    release: bool = True
    ci: bool = False
    pressure: bool = False  # with stress-ng beside it
    chunks: int = 1  # runs with one seed after another, {seed}, whose figures are added up


def kills(number: int, more: str = "") -> str:
    return f"{{core}}/random_kills --kills {number} --seed {{seed}} --patience 300 {more}".strip()


PARTS = (
    Part("random kills, short", "T2", kills(10_000), release=False, ci=True),
    Part("random kills, heap full", "T2", kills(1000, "--size 4 --workers 8"), ci=True),
    Part("random kills", "T2", kills(1000), chunks=1000),
    Part(
        "busy queue",
        "T2",
        "{python} tests/stress/kill_rounds.py --rounds 1000 --seed {seed}",
    ),
    Part("everything at once", "T2", "{python} tests/stress/chaos.py --kills 1000 --seed {seed}"),
    Part(
        "busy queue of the standard library",
        "T3",
        "{python} tests/stress/kill_rounds.py --library multiprocessing --rounds 60 "
        "--seed {seed} --patience 5",
    ),
    Part("every instruction", "T1", "{core}/test_single_step --full"),
    Part("every store", "T4", "{core}/test_crash_points", ci=True),
    Part("bombs, 64 workers", "T14", kills(3000, "--bomb --workers 64"), ci=True),
    Part("bombs, 256 workers", "T14", kills(10_000, "--bomb --workers 256")),
    Part("many processes", "T14", "{core}/many_processes", ci=True),
    Part(
        "soak, 2 hours",
        "T16",
        "{core}/random_kills --soak --minutes 120 --pause-us 200000 --seed {seed}",
    ),
    Part("stopped and continued", "T17", kills(1000, "--stop"), release=False, ci=True),
    Part(
        "stopped and continued, an hour under load",
        "T17",
        "{core}/random_kills --stop --minutes 60 --patience 600 --seed {seed}",
        pressure=True,
    ),
)


def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    tested = ("ipcbuf", "ipcbuf_mp", "tests/core", "tests/stress", ":!tests/stress/report.py")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *tested)
    last = git("log", "-1", "--format=%h", "--abbrev=12", "--", *tested)
    return last + (" and changes" if changed else "")


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {platform.machine()}, Linux {platform.release()}"


def load() -> list[dict[str, Any]]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else []


def keep(record: dict[str, Any]) -> None:
    others = [r for r in load() if r["name"] != record["name"]]
    KEPT.write_text(json.dumps([*others, record], indent=1) + "\n")


def last_line(output: str) -> dict[str, Any] | str:
    """The figures as a program printed them: one line of JSON, how many tests, or its last line."""
    lines = [line for line in output.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith("{"):
            figures: dict[str, Any] = json.loads(line)
            return figures
    if passed := sum(line.startswith("ok ") for line in lines):
        return f"{passed} of {passed + sum(line.startswith('FAIL') for line in lines)} tests passed"
    return lines[-1] if lines else ""


def run_once(command: str, core: str, seed: int) -> tuple[int, dict[str, Any] | str]:
    words = command.format(core=core, python=sys.executable, seed=seed).split()
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, last_line(done.stdout)


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


def run_part(part: Part, core: str, keeps: bool) -> dict[str, Any]:
    """Run what is left of it; every chunk is kept at once."""
    last_seed = f"{SEED}" if part.chunks == 1 else f"{SEED}...{SEED + part.chunks - 1}"
    shown = part.command.format(core="build/core-plain", python="python", seed=last_seed)
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
        "chunks": part.chunks,
        "chunks_done": 0,
        "figures": {},
    }
    if keeps:
        record = next((r for r in load() if is_same(r, part)), record)
    while record["chunks_done"] < part.chunks and record["exit_code"] == 0:
        begin = time.monotonic()
        code, figures = run_once(part.command, core, SEED + record["chunks_done"])
        record["exit_code"] = code
        record["seconds"] = round(record["seconds"] + time.monotonic() - begin, 1)
        record["chunks_done"] += 1
        if isinstance(figures, dict) and isinstance(record["figures"], dict):
            figures = add(record["figures"], figures)
        record["figures"] = figures
        if keeps:
            keep(record)
            write()
    return record


def is_same(record: dict[str, Any], part: Part) -> bool:
    mine = (part.name, commit(), 0)
    return mine == (record["name"], record["commit"], record["exit_code"])


def run_with_pressure(part: Part, core: str, keeps: bool) -> dict[str, Any]:
    if not part.pressure:
        return run_part(part, core, keeps)
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
        return run_part(part, core, keeps)
    finally:
        os.killpg(load_makers.pid, signal.SIGKILL)
        load_makers.wait()


def run(level: str, core: str, only: str) -> int:
    failed = []
    for part in PARTS:
        if not (part.ci if level == "ci" else part.release) or only not in part.name:
            continue
        record = run_with_pressure(part, core, level == "release")
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

WRONG = ("lost", "doubled", "reordered", "torn", "impossible", "crashed", "stuck", "leaked", "fsck")
# In the command already, or in a column of its own.
NOT_SHOWN = {"test", "seed", "workers", "seconds", "stop", "bomb", "killed_while", "epochs"}


def show(figures: dict[str, Any] | str) -> str:
    if isinstance(figures, str):
        return figures
    wrong = {key: figures[key] for key in WRONG if key in figures}
    texts = [
        f"{key.replace('_', ' ')} {value:,}"
        if isinstance(value, (int, float))
        else f"{key} {value}"
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
        if isinstance(r["figures"], dict) and r["exit_code"] == 0
    )
    lines += ["", f"Kills of the runs above by `random_kills`: {total:,}."]
    return "\n".join(lines)


def write() -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(load())}\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="what", required=True)
    running = commands.add_parser("run")
    running.add_argument("level", choices=("ci", "release"))
    running.add_argument("--core", default=str(ROOT / "build" / "core-plain"))
    running.add_argument("--only", default="", help="parts whose name contains this")
    commands.add_parser("write")
    options = parser.parse_args()
    if options.what == "write":
        write()
        return 0
    return 1 if run(options.level, options.core, options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
