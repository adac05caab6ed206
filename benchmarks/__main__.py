# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark, with the arguments given, and write the tables: `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Return 0 if all went well."""
    failed = 0
    for benchmark in sorted(HERE.glob("bench_*.py")):
        print(f"\n{benchmark.stem}", flush=True)
        failed |= subprocess.run([sys.executable, benchmark, *sys.argv[1:]], check=False).returncode
    failed |= subprocess.run([sys.executable, HERE / "render.py"], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
