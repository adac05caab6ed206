# SPDX-License-Identifier: Apache-2.0
"""What the long proofs keep: the commit that they saw, and their table in a page."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commit(*paths: str) -> str:
    """The last one that changed any of these, and whether they were changed since."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *paths)
    last = git("log", "-1", "--format=%h", "--abbrev=12", "--", *paths)
    return last + (" and changes" if changed else "")


def write_between(begin: str, end: str, page: Path, text: str) -> None:
    """Put the text in place of what stands between two lines of a page."""
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
