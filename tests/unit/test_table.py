# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest

from ipcbuf.table import print_table

HEAD = ["name", "bytes"]
ROWS = [["a channel", "12"], ["b", "3.5 MiB"]]


@pytest.fixture(params=["rich", "plain"])
def _way_to_draw(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    else:
        pytest.importorskip("rich")


@pytest.mark.usefixtures("_way_to_draw")
def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEAD, ROWS)

    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["name         bytes", "a channel       12", "b          3.5 MiB"]


@pytest.mark.usefixtures("_way_to_draw")
def test_a_table_without_rows_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEAD, [])

    assert capsys.readouterr().out.split() == HEAD


@pytest.mark.usefixtures("_way_to_draw")
def test_brackets_and_long_lines_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["text"], [["[bold] " + "x" * 300]])

    assert "[bold] " + "x" * 300 in capsys.readouterr().out
