# SPDX-License-Identifier: Apache-2.0
"""Frames of a camera, from the process that makes them to the one that looks at them.

    python examples/frames.py
    python examples/frames.py --frames 2000 --size 1920x1080

The frames are numpy arrays in shared memory. They are moved: no byte is copied on the way. The
consumer draws into what it received, which the producer has let go of, and looks that no frame is
missing, doubled or torn. The live rate is shown on a terminal.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

import ipcbuf
import ipcbuf_mp

AHEAD = 4  # frames that the camera may be ahead; then it waits


def film(queue: Any, frames: int, shape: tuple[int, int, int]) -> None:
    """Make frames: a grey picture whose grey and first pixel say which one it is."""
    for number in range(frames):
        frame = ipcbuf.empty(shape, np.uint8)
        frame[:] = number % 256
        frame[0, 0] = np.frombuffer(number.to_bytes(3, "little"), np.uint8)
        queue.put(ipcbuf.move(frame))
    queue.put(None)


def look(frame: Any, number: int) -> None:
    """Compare a frame with what it should be, and draw a cross into it."""
    height, width, _ = frame.shape
    stamp = int.from_bytes(frame[0, 0].tobytes(), "little")
    grey = number % 256
    if stamp != number or (frame[1:, ::97] != grey).any() or (frame[0, 1:] != grey).any():
        sys.exit(f"frame {number} is not what was sent: stamp {stamp}")
    frame[height // 2, :] = 255
    frame[:, width // 2] = 255


def main() -> int:
    """Show the rate while frames come; the exit status is 0 if all came, each once, in order."""
    parser = argparse.ArgumentParser(description="numpy frames from a producer process")
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--size", default="1280x720", help="width x height")
    parser.add_argument("--method", choices=["fork", "spawn", "forkserver"], default="fork")
    chosen = parser.parse_args()
    width, height = map(int, chosen.size.split("x"))
    shape = (height, width, 3)

    context = ipcbuf_mp.get_context(chosen.method)
    queue = context.Queue(maxsize=AHEAD)
    camera = context.Process(target=film, args=(queue, chosen.frames, shape))
    camera.start()

    count, start, shown, shown_count = 0, 0.0, 0.0, 0
    while (frame := queue.get()) is not None:
        look(frame, count)
        now = time.perf_counter()
        if count == 0:
            start = shown = now  # not what starting a process takes
        count += 1
        if now - shown > 0.5:
            rate = (count - shown_count) / (now - shown)
            if sys.stdout.isatty():
                print(f"\r{count} frames, {rate:,.0f} a second  ", end="", flush=True)
            shown, shown_count = now, count
    seconds = time.perf_counter() - start
    camera.join()

    if count != chosen.frames:
        sys.exit(f"{count} frames of {chosen.frames}")
    megabytes = width * height * 3 / 1e6
    if sys.stdout.isatty():
        print("\r", end="")
    print(
        f"{count} frames of {megabytes:.1f} MB in order, "
        f"{count / seconds:,.0f} a second, {count * megabytes / seconds / 1e3:.2f} GB/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
