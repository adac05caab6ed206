# SPDX-License-Identifier: Apache-2.0
"""The table of release and acquire pairs in docs/ordering.md is that of the sources."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "ipcbuf" / "core"
DOCUMENT = ROOT / "docs" / "ordering.md"

if not DOCUMENT.exists():  # an installed package is tested without its documents
    pytest.skip("no documents here", allow_module_level=True)

SOURCES = {path: path.read_text() for path in [*CORE.rglob("*.hpp"), *CORE.rglob("*.cpp")]}
# | W1 | word | functions that release | functions that acquire | carries |
ROWS = re.findall(
    r"^\| ([A-Z]\d+) \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", DOCUMENT.read_text(), re.MULTILINE
)


def comments(text: str) -> str:
    return "\n".join(re.findall(r"//.*", text))


def declared_pairs() -> set[str]:
    """The names below the word "Pairs" in the head comments."""
    names = set()
    for text in SOURCES.values():
        for block in re.findall(r"^// Pairs.*\n((?://   .*\n)*)", text, re.MULTILINE):
            names |= set(re.findall(r"^//   ([A-Z]\d+)  ", block, re.MULTILINE))
    return names


def test_each_pair_of_a_head_comment_is_in_the_table() -> None:
    listed = [row[0] for row in ROWS]

    assert len(listed) == len(set(listed))
    assert declared_pairs() <= set(listed)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_pair_is_named_where_both_of_its_ends_are(row: tuple[str, ...]) -> None:
    name, _, release, acquire, _ = row
    for end in (release, acquire):
        functions = re.findall(r"`(?:\w+::)?(\w+)`", end)
        assert functions, f"{name}: no function named in {end!r}"
        for function in functions:
            there = [text for text in SOURCES.values() if re.search(rf"\b{function}\b", text)]
            assert there, f"{name}: there is no {function}"
            assert any(re.search(rf"\b{name}\b", comments(text)) for text in there), (
                f"{name} is named in no file that has {function}"
            )
