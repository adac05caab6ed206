# SPDX-License-Identifier: Apache-2.0
"""Tables on a terminal: drawn by rich where it is installed, else in plain columns."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["print_table"]


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their heads; a column of numbers is aligned to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    right = [bool(rows) and all(_is_number(row[i]) for row in texts) for i in range(len(head))]
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _print_plain(head, texts, right)
        return
    table = Table(box=None, show_header=any(head), pad_edge=False, header_style="bold")
    for name, is_right in zip(head, right, strict=True):
        table.add_column(name, justify="right" if is_right else "left", no_wrap=True)
    for row in texts:
        table.add_row(*map(Text, row))
    width = None if sys.stdout.isatty() else 10_000  # for a file or a pipe nothing is cut off
    Console(highlight=False, markup=False, width=width).print(table)


def _is_number(text: str) -> bool:
    """A number, its unit included."""
    return text == "" or text.split(" ")[0].replace(",", "").replace(".", "", 1).isdecimal()


def _print_plain(head: Sequence[str], rows: list[list[str]], right: list[bool]) -> None:
    lines = [list(head), *rows] if any(head) else rows
    if not lines:
        return
    widths = [max(len(row[i]) for row in lines) for i in range(len(head))]
    for row in lines:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())
