# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""Batches for PyTorch, loaded by worker processes whose queues are ours.

    pip install torch
    python examples/data_loader.py
    python examples/data_loader.py --batches 500 --workers 4

One argument of the DataLoader changes: its multiprocessing context. The workers send batches as
numpy arrays, which arrive as views of shared memory, and become tensors without a copy. The same is
measured with the standard library's context, where the tensors go through files that torch shares.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from typing import Any

import numpy as np

import ipcbuf_mp

SHAPE = (3, 96, 96)  # of an image
BATCH = 32


class Images:
    """So many images: every pixel says which one it is."""

    def __init__(self, count: int) -> None:
        """Make none before it is asked for."""
        self.count = count

    def __len__(self) -> int:
        """Return how many there are."""
        return self.count

    def __getitem__(self, number: int) -> Any:
        """Return one."""
        if number >= self.count:
            raise IndexError(number)
        return np.full(SHAPE, number, np.float32)


def load(torch: Any, context: Any, collate: Any, count: int, workers: int) -> tuple[float, float]:
    """Look at all batches; return the sum of their first pixels, and the batches per second."""
    loader = torch.utils.data.DataLoader(
        Images(count * BATCH),
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=context,
    )
    total, start = 0.0, 0.0
    for number, batch in enumerate(loader):
        if number == 0:
            start = time.perf_counter()  # not what starting the workers takes
        tensor = torch.as_tensor(batch)  # shares the array's memory
        total += float(tensor[:, 0, 0, 0].sum())
    return total, (count - 1) / (time.perf_counter() - start)


def main() -> int:
    """Load everything twice; the exit status is 0 if it was the same."""
    parser = argparse.ArgumentParser(description="PyTorch's DataLoader on the queues of ipcbuf")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    try:
        import torch
        import torch.utils.data
    except ImportError as error:
        print(f"nothing to show: {error}; pip install torch")
        return 0

    work = (chosen.batches, chosen.workers)
    theirs = multiprocessing.get_context("fork")
    expected, before = load(torch, theirs, torch.utils.data.default_collate, *work)
    total, rate = load(torch, ipcbuf_mp.get_context("fork"), np.stack, *work)

    if total != expected or total != sum(range(chosen.batches * BATCH)):
        sys.exit(f"the batches differ: {total} and {expected}")
    megabytes = BATCH * np.prod(SHAPE) * 4 / 1e6
    print(f"{chosen.batches} batches of {megabytes:.1f} MB, the same with both contexts")
    print(f"standard library {before:,.0f} batches/s, ipcbuf {rate:,.0f} batches/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
