# SPDX-License-Identifier: Apache-2.0
"""Write the tables of README.md from the files in results/.

python benchmarks/render.py          write
python benchmarks/render.py --check  exit with status 1 if that would change the page
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from harness import RESULTS, short

PAGE = Path(__file__).parent / "README.md"
TABLE = re.compile(r"(<!-- results (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Write the page, or compare; return the exit status."""
    old = PAGE.read_text()
    new = TABLE.sub(lambda match: match[1] + section(match[2]) + match[3], old)
    if "--check" in sys.argv[1:]:
        return int(old != new)
    PAGE.write_text(new)
    return 0


def section(benchmark: str) -> str:
    """Return what stands between the marks of one benchmark."""
    path = RESULTS / f"{benchmark}.json"
    if not path.exists():
        return "\nNot measured yet.\n\n"
    result = json.loads(path.read_text())
    machine = result["machine"]
    date, load = machine.pop("date"), machine.pop("load")
    where = "; ".join(machine.values())
    return f"\n`{result['command']}`, {date}, load before: {load}\n{where}\n\n{table(result['rows'])}\n"


def table(rows: list[dict[str, Any]]) -> str:
    """Return a table: for each contender its figures, for all but the first the ratio."""
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    head = ["work", "figures"]
    for number, name in enumerate(names):
        head += [name] if number == 0 else [name, "ratio"]
    lines = [head, ["---", "---"] + ["---:"] * (len(head) - 2)]
    for row in rows:
        figures = next(
            (list(found["median"]) for found in row["contenders"].values() if found["median"]), []
        )
        line = [row["name"], ", ".join(figures)]
        for number, name in enumerate(names):
            line.append(cell(row["contenders"].get(name)))
            if number:
                line.append(ratio(row["ratio"].get(name)))
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(found: dict[str, Any] | None) -> str:
    """Return the medians of a contender in one row."""
    if found is None:
        return ""
    if found["failure"]:
        return "failed"
    return ", ".join(short(value) for value in found["median"].values())


def ratio(found: dict[str, float] | None) -> str:
    """Return the ratio of medians, and between which ratios the single rounds were."""
    if found is None:
        return ""
    spread = f"{found['lowest']:.3g} to {found['highest']:.3g}"
    return f"**{found['of_medians']:.3g}×** ({spread})"  # noqa: RUF001


if __name__ == "__main__":
    sys.exit(main())
