# SPDX-License-Identifier: Apache-2.0
"""Segments that have to be sound and empty when their test is over, and processes."""

from __future__ import annotations

import gc
import shutil
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ipcbuf
from tests.mp.conftest import start

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["start"]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in memory for this test's names alone."""
    path = Path(tempfile.mkdtemp(prefix="ipcbuf-test-", dir="/dev/shm"))
    monkeypatch.setenv("IPCBUF_DIR", str(path))
    stop_forkserver = forkserver._forkserver._stop  # type: ignore[attr-defined]
    stop_forkserver()  # it has the environment of the time when it was started

    yield path

    stop_forkserver()
    gc.collect()
    shutil.rmtree(path)


@pytest.fixture
def segment() -> Iterator[ipcbuf.Segment]:
    made = ipcbuf.Segment(max_size=256 << 20)

    yield made

    made.reap()
    gc.collect()
    assert made.fsck() == []
