# SPDX-License-Identifier: Apache-2.0
"""Measure everything, and make the tables and pictures from it.

python -m benchmarks run [--cases latency,sizes] [--rivals none] [--rounds 5] …
python -m benchmarks run --resume
python -m benchmarks report [--check]

`run` hands on to every benchmark what it does not know itself, and writes results/*.json; one
that fails does not keep the others from running. With --resume, what an interrupted run with the
same arguments has measured is not measured again.
`report` makes everything else from these (report.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CASES = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}


def run(cases: list[str], arguments: list[str]) -> int:
    """Run the benchmarks one after another; return 0 if all went well."""
    failed = []
    for number, case in enumerate(cases, 1):
        print(f"\n{case} ({number} of {len(cases)})", flush=True)
        if subprocess.run([sys.executable, CASES[case], *arguments], check=False).returncode:
            failed.append(case)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    elif "--quick" not in arguments:
        for partial in (HERE / "results").glob("*.part"):  # nothing is left to be resumed
            if partial.stem in cases:
                partial.unlink()
    return int(bool(failed))


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    chosen, arguments = parser.parse_known_args()
    if chosen.command == "report":
        return subprocess.run(
            [sys.executable, HERE / "report.py", *arguments], check=False
        ).returncode
    cases = chosen.cases.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    try:
        return run(cases, arguments)
    except KeyboardInterrupt:
        print("\ninterrupted; with --resume the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
