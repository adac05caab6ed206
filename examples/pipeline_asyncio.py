# SPDX-License-Identifier: Apache-2.0
"""A pipeline: an asyncio program at both ends, worker processes in the middle.

    python examples/pipeline_asyncio.py
    python examples/pipeline_asyncio.py --folder /usr/share/doc --pattern '*' --workers 4

The event loop hands out paths of text files and takes in what the workers counted, while it goes
on with other things (here: a tick, which shows that it is never blocked). At most 16 paths are
under way, so it works with any number of files. A worker that is killed loses no file: jobs are
leased, and are delivered again.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import ipcbuf
import ipcbuf_mp

WORD = re.compile(r"[^\W\d_]{3,}")
UNDER_WAY = 16


def count_words(path: Path) -> Counter[str]:
    """Return the words of a file."""
    return Counter(WORD.findall(path.read_text(errors="replace").lower()))


def work(jobs: ipcbuf.Receiver, results: ipcbuf.Sender) -> None:
    """Count the words of file after file, until there are no more jobs."""
    with jobs, results:
        while True:
            try:
                job = jobs.recv_leased()
            except ipcbuf.EndOfChannel:
                return
            with job:  # done when the result was sent; else it is delivered again
                path = job.load()
                results.send_object((path, count_words(path)))


async def hand_out(paths: list[Path], jobs: ipcbuf.Sender) -> None:
    """Send every path; waits while 16 are under way."""
    with jobs:
        for path in paths:
            await jobs.asend_object(path)


async def take_in(results: ipcbuf.Receiver) -> dict[Path, Counter[str]]:
    """Collect until all workers are gone. A job that was delivered twice counts once."""
    counted: dict[Path, Counter[str]] = {}
    try:
        while True:
            path, words = await results.arecv_object()
            counted[path] = words
    except ipcbuf.EndOfChannel:
        return counted


async def tick() -> int:
    """Count tenths of a second until cancelled."""
    ticks = 0
    try:
        while True:
            await asyncio.sleep(0.1)
            ticks += 1
    except asyncio.CancelledError:
        return ticks


async def run(paths: list[Path], workers: int) -> tuple[dict[Path, Counter[str]], int]:
    """Start workers, and be at both ends of them."""
    segment = ipcbuf.default_segment()
    jobs, jobs_end = segment.channel(lease=True, max_items=UNDER_WAY)
    results_end, results = segment.channel(shared=True)
    context = ipcbuf_mp.get_context("spawn")
    processes = [context.Process(target=work, args=(jobs_end, results_end)) for _ in range(workers)]
    for process in processes:
        process.start()
    jobs_end.close()  # the workers have theirs
    results_end.close()

    ticker = asyncio.create_task(tick())
    _, counted = await asyncio.gather(hand_out(paths, jobs), take_in(results))
    ticker.cancel()
    ticks = await ticker
    for process in processes:
        process.join()
    return counted, ticks


def main() -> int:
    """Count, and compare with counting one file after the other."""
    parser = argparse.ArgumentParser(description="an asyncio program with worker processes")
    parser.add_argument("--folder", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--pattern", default="*.py")
    parser.add_argument("--files", type=int, default=500, help="at most so many")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    paths = sorted(path for path in chosen.folder.rglob(chosen.pattern) if path.is_file())
    paths = paths[: chosen.files]

    counted, ticks = asyncio.run(run(paths, chosen.workers))

    total: Counter[str] = Counter()
    for words in counted.values():
        total.update(words)
    most = ", ".join(f"{word} {count:,}" for word, count in total.most_common(5))
    print(f"{len(counted)} files, {total.total():,} words: {most}; {ticks} ticks meanwhile")
    if counted != {path: count_words(path) for path in paths}:
        print("MISMATCH: counting one after the other gives another result", file=sys.stderr)
        return 1
    print("the same as one after the other")
    return 0


if __name__ == "__main__":
    sys.exit(main())
