# SPDX-License-Identifier: Apache-2.0
"""docs/seed.md: what it says is here is here, and the seed's own example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ipcbuf
from ipcbuf import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "seed.md").read_text()
# `ipcbuf.name`, `Class.name` and `Class`, in back quotes, with or without a call behind it
NAME = re.compile(r"`(?:ipcbuf\.)?((?:Segment|Sender|Receiver|Record)(?:\.\w+)?|(?<=ipcbuf\.)\w+)")
COMMAND = re.compile(r"`ipcbuf (\w+)`")


def here() -> list[str]:
    """Return the second column of the functions, the third of the features."""
    cells = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("|")]
    return [row[2] if row[0].isdigit() else row[1] for row in cells if len(row) >= 2]


@pytest.mark.parametrize("name", sorted(set(NAME.findall("\n".join(here())))))
def test_every_name_exists(name: str) -> None:
    found: object = ipcbuf
    for part in name.split("."):
        found = getattr(found, part)


def test_the_page_names_much() -> None:
    assert len(set(NAME.findall("\n".join(here())))) > 25
    assert re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE) == [str(n) for n in range(1, 26)]


def test_every_command_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    usage = capsys.readouterr().out
    for command in set(COMMAND.findall(PAGE)):
        assert command in usage


@pytest.mark.usefixtures("folder")
def test_the_example_runs() -> None:
    example = ROOT / "examples" / "seed_two_channels.py"
    result = subprocess.run(
        [sys.executable, example, "--records", "5000"], capture_output=True, text=True, timeout=100
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("5,000 records in order") == 2
