# SPDX-License-Identifier: Apache-2.0
"""Write the tables of both README.md, and the pictures, from the files in results/.

python benchmarks/report.py          write
python benchmarks/report.py --check  exit with status 1 if that would change a table

The exit status is 1, too, where ours is not first in a row and notes.py does not say why.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import notes
import plots
from harness import RESULTS, short, shown

HERE = Path(__file__).parent
PAGES = (HERE / "README.md", HERE.parent / "README.md")
TABLE = re.compile(r"(<!-- results (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# The first screen: benchmark, row, what it is called there, the row's unit
SUMMARY = [
    ("throughput", "Queue, small int", "`Queue`, small int", "messages/s"),
    ("throughput", "Queue, 1 KiB bytes", "`Queue`, 1 KiB bytes", "messages/s"),
    ("throughput", "Queue, 1 MiB bytes", "`Queue`, 1 MiB bytes", "messages/s"),
    (
        "throughput",
        "Queue, 1 MiB array, block recycled",
        "`Queue`, 1 MiB array",
        "messages/s",
    ),
    (
        "throughput",
        "Queue, 1 MiB array, 64 held, every page written",
        "the same, 64 kept and written to",
        "messages/s",
    ),
    (
        "throughput",
        "Queue, small int, 4 to 4",
        "`Queue`, small int, 4 to 4 processes",
        "messages/s",
    ),
    ("latency", "Queue round trip, on two cores", "`Queue`, round trip between two cores", "µs"),
    ("latency", "Pipe round trip, on two cores", "`Pipe`, round trip between two cores", "µs"),
    ("executor", "Executor, submit no-op", "`ProcessPoolExecutor`, no-op tasks", "tasks/s"),
    ("executor", "Executor, submit().result()", "the same, one at a time", "µs"),
    (
        "executor",
        "Executor, 1 MiB array in and out",
        "`ProcessPoolExecutor`, 1 MiB array in and out",
        "tasks/s",
    ),
    (
        "kills",
        "Queue, one of four is killed",
        "`Queue`, `kill -9` of one of four: others go on",
        "%",
    ),
]
BASELINE, OURS = "multiprocessing", "ipcbuf_mp"


# Pictures of the first screen, with what they show; those whose benchmark was run
SUMMARY_PICTURES = ("kills", "scaling", "latency-distribution")


def main() -> int:
    """Write the pages, or compare; return the exit status."""
    check = "--check" in sys.argv[1:]
    if not check:
        plots.write(load)
    differ = False
    for page in PAGES:
        old = page.read_text()
        new = TABLE.sub(lambda match: match[1] + section(match[2]) + match[3], old)
        differ |= old != new
        if not check:
            page.write_text(new)
    unexplained = rows_without_a_note()
    print("".join(f"{line}\n" for line in unexplained), end="", file=sys.stderr)
    return int(bool(unexplained) or (check and differ))


def rows_without_a_note() -> list[str]:
    """Return where ours is not first and nothing says why."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        for row in json.loads(path.read_text())["rows"]:
            try:
                notes.note(path.stem, row)
            except LookupError as error:
                found.append(error.args[0])
    return found


def load(benchmark: str) -> dict[str, Any] | None:
    """Return the results of one benchmark, if it was run."""
    path = RESULTS / f"{benchmark}.json"
    return json.loads(path.read_text()) if path.exists() else None


def section(benchmark: str) -> str:
    """Return what stands between the marks of one benchmark."""
    if benchmark == "summary":
        return summary()
    result = load(benchmark)
    if result is None:
        return "\nNot measured yet.\n\n"
    machine = result["machine"]
    date, before = machine.pop("date"), machine.pop("load")
    where = "; ".join(machine.values())
    head = f"`{result['command']}`, {date}, load before: {before}\n{where}"
    pictures = "".join(
        f"![{shows}](results/{name}.svg)\n\n"
        for name, (of, _, shows) in plots.PICTURES.items()
        if of == benchmark and (RESULTS / f"{name}.svg").exists()
    )
    return f"\n{head}\n\n{pictures}{table(benchmark, result['rows'])}\n"


def summary() -> str:
    """Return the table of the first screen, and where it was measured."""
    lines = ["| | standard library | ipcbuf | ratio |", "| --- | ---: | ---: | ---: |"]
    machines = set()
    for benchmark, name, title, unit in SUMMARY:
        result = load(benchmark)
        found = [row for row in result["rows"] if row["name"] == name] if result else []
        if not result or not found or OURS not in found[0]["ratio"]:
            continue
        machine = result["machine"]
        machines.add(
            f"{machine['cpu']}, {machine['kernel'].partition('-')[0]}, {machine['python']},"
            f" {machine['date']}"
        )
        contenders = found[0]["contenders"]
        theirs, ours = (main_figure(contenders[who], unit) for who in (BASELINE, OURS))
        factor = found[0]["ratio"][OURS]["of_medians"]
        digits = f"{factor:.0f}" if factor >= 10 else f"{factor:.2g}"
        lines.append(f"| {title} | {theirs} | {ours} | {digits}× |")  # noqa: RUF001
    pictures = "".join(
        f"\n![{plots.PICTURES[name][2]}](benchmarks/results/{name}.svg)\n"
        for name in SUMMARY_PICTURES
        if (RESULTS / f"{name}.svg").exists()
    )
    table = "\n".join(lines)
    return f"\n{table}\n\nMeasured on {'; '.join(sorted(machines))}.\n{pictures}"


def main_figure(contender: dict[str, Any], unit: str) -> str:
    """Return the first figure with its unit, as a person writes it."""
    value = short(next(iter(contender["median"].values())))
    number, scale = (value[:-1], value[-1]) if value[-1] in "kM" else (value, "")
    return " ".join(filter(None, (number, scale, unit)))


def table(benchmark: str, rows: list[dict[str, Any]]) -> str:
    """Return a table: for each contender its figures, for all but the first the ratio.

    Below it stands for each row in which ours is not first why that is so.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    head = ["work", "figures"]
    for number, name in enumerate(names):
        head += [name] if number == 0 else [name, "ratio"]
    lines = [head, ["---", "---"] + ["---:"] * (len(head) - 2)]
    for row in rows:
        figures = next(
            (
                list(shown(found["median"]))
                for found in row["contenders"].values()
                if found["median"]
            ),
            [],
        )
        line = [row["name"], ", ".join(figures)]
        for number, name in enumerate(names):
            line.append(cell(row["contenders"].get(name)))
            if number:
                line.append(ratio(row["ratio"].get(name)))
        lines.append(line)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    reasons = "".join(reason(benchmark, row) for row in rows)
    return f"{text}\nWhere ours is not first:\n\n{reasons}" if reasons else text


def reason(benchmark: str, row: dict[str, Any]) -> str:
    """Return why ours is not first in a row, as an item of a list; nothing, if it is."""
    try:
        why = notes.note(benchmark, row)
    except LookupError:
        why = "not explained yet."  # which `main` reports
    return f"- *{row['name']}* ({notes.first(benchmark, row)}): {why}\n" if why else ""


def cell(found: dict[str, Any] | None) -> str:
    """Return the medians of a contender in one row."""
    if found is None:
        return ""
    if found["failure"]:
        return "failed"
    figures = shown(found["median"]).values()
    return ", ".join("—" if value is None else short(value) for value in figures)


def ratio(found: dict[str, float] | None) -> str:
    """Return the ratio of medians, and between which ratios the single rounds were."""
    if found is None:
        return ""
    spread = f"{found['lowest']:.3g} to {found['highest']:.3g}"
    return f"**{found['of_medians']:.3g}×** ({spread})"  # noqa: RUF001


if __name__ == "__main__":
    sys.exit(main())
