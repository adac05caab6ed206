# SPDX-License-Identifier: Apache-2.0
"""Log records from the workers of an executor to the parent, whose loggers handle them.

A module of its own: importing `logging` would make every worker slower to start.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from . import _worker

if TYPE_CHECKING:
    import ipcbuf

__all__ = ["forward_logging"]


class _Forwarder(logging.Handler):
    """Sends log records to the parent."""

    def __init__(self, results: ipcbuf.Sender) -> None:
        super().__init__()
        self._results = results

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, with its message and its traceback made into text."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        state = dict(record.__dict__, msg=text, args=None, exc_info=None, exc_text=None)
        try:
            self._results.send_object((os.getpid(), _worker.RECORD, state))
        except Exception:
            self.handleError(record)


def forward_logging(results: ipcbuf.Sender, level: int) -> None:
    """Send log records from *level* on to the parent, and to nobody else."""
    root = logging.getLogger()
    for handler in root.handlers[:]:  # those of the parent, inherited by fork
        root.removeHandler(handler)
    root.addHandler(_Forwarder(results))
    root.setLevel(level)
