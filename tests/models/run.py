# SPDX-License-Identifier: Apache-2.0
"""Checks the protocol models with Spin, and that each model notices each of its faults.

Usage: ``python tests/models/run.py [--crashes N] [--processes N] [MODEL ...]``

Every model is run once as it is, which must find no error, and once with each fault of the list
below, which must find one. The defaults are 3 processes and 2 crashes, for every push; 4 processes
and 3 crashes are for a release (minutes, and some gigabytes).
"""

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
LIVING = ("UNSLICED", "MAXC=0")  # nobody dies, so no slice is needed
AGAIN = ("AGAIN", "SEATS=3", "MAXC=1")

# model -> (variants that must be sound, variants that must not be); a variant is its -D switches
MODELS: dict[str, tuple[list[tuple[str, ...]], list[tuple[str, ...]]]] = {
    "lock": (
        [(), LIVING],
        [("NO_TAKEOVER",), ("NO_RECOVER",), ("ROBS",), ("UNSLICED",), (*LIVING, "DROPS_FLAG")],
    ),
    "heap": (
        [()],
        [("NO_RECOVER",), ("HEAD_FIRST",), ("GROW_FIRST",), ("NO_BURIAL",)],
    ),
    "lane": (
        [(), LIVING, (*LIVING, "STAYS_OPEN")],
        [
            (*LIVING, "LOOK_FIRST"),
            (*LIVING, "STAYS_OPEN", "NO_D2"),
            ("RING_FIRST",),
            ("UNSLICED",),
            ("POP_FIRST",),
        ],
    ),
    "holder": (
        [()],
        [
            ("POP_FIRST",),
            ("NEXT_FIRST",),
            ("NO_CREATOR",),
            ("FREE_FIRST",),
            ("PLAIN_STORE",),
        ],
    ),
    "slots": (
        [(), AGAIN],
        [(*AGAIN, "NO_GENERATION"), (*AGAIN, "NO_LOOK"), ("SEAT_FIRST",), ("NO_BYTE",)],
    ),
}


def check(model: str, switches: tuple[str, ...], seconds: int) -> tuple[bool, str]:
    """Whether the variant is free of errors, and what Spin said."""
    with tempfile.TemporaryDirectory(prefix="spin-") as folder:
        source = HERE / f"{model}.pml"

        def call(*command: str) -> str:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=seconds
            )
            if done.returncode != 0:
                raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")
            return done.stdout

        call("spin", "-a", *(f"-D{switch}" for switch in switches), str(source))
        call("gcc", "-w", "-O1", "-DSAFETY", "-DMEMLIM=6000", "-o", "pan", "pan.c")
        said = call("./pan", "-m1000000")
    errors = re.search(r"errors: (\d+)", said)
    states = re.search(r"(\d+) states, stored", said)
    if errors is None or states is None or "max search depth" in said or "out of memory" in said:
        raise RuntimeError(said)
    what = re.search(r"pan:1: (.{1,60})", said)
    return errors[1] == "0", f"{int(states[1]):>9,} states" + (f"; {what[1]}" if what else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="these only")
    parser.add_argument("--crashes", type=int, default=2)
    parser.add_argument("--processes", type=int, default=3, choices=(3, 4))
    parser.add_argument("--seconds", type=int, default=600, help="at most, for each variant")
    arguments = parser.parse_args()
    sizes = (f"N={arguments.processes}", f"MAXC={arguments.crashes}")
    jobs = [
        (model, switches, expected)
        for model in arguments.models or MODELS
        for expected, variants in zip((True, False), MODELS[model], strict=True)
        for switches in variants
    ]
    wrong = 0
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        running = []
        for model, switches, _ in jobs:
            names = {switch.partition("=")[0] for switch in switches}
            own = [size for size in sizes if size.partition("=")[0] not in names]
            running.append(pool.submit(check, model, (*own, *switches), arguments.seconds))
        for (model, switches, expected), job in zip(jobs, running, strict=True):
            try:
                sound, what = job.result()
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                sound, what = not expected, f"not run: {str(error)[:300]}"
            good = sound == expected
            wrong += not good
            kind = "sound" if expected else "fault"
            result = "ok" if good else "FAIL"
            print(f"{result:4} {model:7} {kind} {' '.join(switches):28} {what}", flush=True)
    print(
        f"{len(jobs)} variants in {time.monotonic() - start:.0f} s, {wrong} not as they should be"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
