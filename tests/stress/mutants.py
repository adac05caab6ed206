# SPDX-License-Identifier: Apache-2.0
"""Seeded faults: each rule of the crash protocol is broken once, and the suite has to notice.

    python tests/stress/mutants.py                 # all; a table, and exit status 1 if one lives
    python tests/stress/mutants.py D5 --keep       # those whose rule or file has the text in it
    python tests/stress/mutants.py --part 2/3      # the second third of them
    python tests/stress/mutants.py --missing       # without those that this commit has already
    python tests/stress/mutants.py --table         # docs/proof-core.md, from what was found

A fault is an edit of a copy of the core, which is built and run against the tests named with it.
The tests must pass without the fault, and at least one of them must fail with it, end by a signal
or be ended by its watchdog. A fault whose text is not in the source any more is an error: it has
to follow the code that it breaks. What was found is kept in docs/mutants.json, with the commit.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import kept  # type: ignore[import-not-found]  # beside this file

if TYPE_CHECKING:
    from pathlib import Path

ROOT: Path = kept.ROOT
COPY = ROOT / "build" / "mutants"
KEPT = ROOT / "docs" / "mutants.json"
PAGE = ROOT / "docs" / "proof-core.md"
BEGIN, END = "<!-- begin: written by mutants.py -->", "<!-- end: written by mutants.py -->"
PATIENCE = 400  # seconds for one test program
HANGS = 124  # the exit code of a test's watchdog
MOST_SAID = 110  # characters of what a test complained of

Tests = tuple[str, ...]  # programs, each with a part of the name of the tests in it


@dataclass(frozen=True)
class Mutant:
    """One fault: `old` becomes `new` in one file; `tests` are to notice."""

    rule: str
    what: str
    file: str
    old: str
    new: str
    tests: Tests


def step(scenario: str) -> str:
    return f"test_single_step {scenario}"


MUTANTS = (
    # ---- every step of the reaper ----
    Mutant(
        "reaper 1",
        "locks of channel ends are not taken over",
        "reaper.cpp",
        "    if (side.lock.owner() == dead) recover_end_lock(s, index, end);\n",
        "",
        (step("send, small, shared"),),
    ),
    Mutant(
        "reaper 1",
        "handles in transit of the dead stay",
        "reaper.cpp",
        "    drop_hold(s, holds, HoldKind::kTransit, dead, true);\n",
        "",
        (step("transit"),),
    ),
    Mutant(
        "reaper 1",
        "half-made channels of the dead stay",
        "reaper.cpp",
        "    if (state.token == dead &&\n        A::compare_exchange(",
        "    if (false &&\n        A::compare_exchange(",
        (step("create, then close"),),
    ),
    Mutant(
        "reaper 2",
        "a channel that lost its last holder stays",
        "reaper.cpp",
        "    drop_hold(s, holds, HoldKind::kTransit, dead, true);\n  }\n  settle_channel(s, index);\n",
        "    drop_hold(s, holds, HoldKind::kTransit, dead, true);\n  }\n",
        (step("create, then close"),),
    ),
    Mutant(
        "reaper 3",
        "shares of the dead stay",
        "reaper.cpp",
        "    reap_entries(s, dead);\n",
        "",
        (step("share"), step("fork")),
    ),
    Mutant(
        "reaper 4",
        "blocks of the dead stay",
        "reaper.cpp",
        "    reap_blocks(s, dead, slabs);\n",
        "",
        (step("allocate, slab warm"),),
    ),
    Mutant(
        "reaper 4",
        "what is in flight is not looked for",
        "reaper.cpp",
        "  for (std::uint32_t i = 0; i < high; ++i) reach(s, i, reached);\n",
        "",
        (step("send, in a block"), "test_reaper in_flight"),
    ),
    Mutant(
        "reaper 5",
        "slabs of the dead are not made ownerless",
        "reaper.cpp",
        "      if (owner == dead || owner == 0) orphan_slab(s, head);\n",
        "      (void)owner;\n",
        (step("allocate, slab warm"),),
    ),
    Mutant(
        "reaper 5",
        "runs that the dead had taken stay",
        "reaper.cpp",
        "token == dead) (void)RunHeap(s).free(head);",
        "token == dead) (void)head;",
        (step("allocate, slab cold"),),
    ),
    # ---- order rules ----
    Mutant(
        "D5",
        "blocks are claimed behind the commit",
        "endpoint.cpp",
        "    if (header.blocks != 0)\n"
        "      if (const Status status = take_blocks(m); status != Status::kOk) return status;\n"
        "    reader.pop(header);  // D5, the commit\n"
        "    A::store_relaxed(row_.receiver.bytes",
        "    reader.pop(header);\n    if (header.blocks != 0)\n"
        "      if (const Status status = take_blocks(m); status != Status::kOk) return status;\n"
        "    A::store_relaxed(row_.receiver.bytes",
        (step("receive, 3 blocks"),),
    ),
    Mutant(
        "C1",
        "`next` is stored before the ring is the channel's",
        "endpoint.cpp",
        "  give_ring(s_, spare_ring, id_);\n"
        "  A::store_release(ring_.header->next, spare_ring);  // C1, the commit\n",
        "  A::store_release(ring_.header->next, spare_ring);\n  give_ring(s_, spare_ring, id_);\n",
        (step("send, links a ring"),),
    ),
    Mutant(
        "C2",
        "who unlinks a ring is not noted",
        "endpoint.cpp",
        "  A::store_release(s_.block(head).creator, s_.token());  // C2\n",
        "",
        (step("receive, moves to the next ring"),),
    ),
    Mutant(
        "D1",
        "a sleeper looks, and announces itself then",
        "doorbell.hpp",
        "    if (asymmetric_) platform::barrier_all();\n    return word;\n",
        "    return word;\n",
        ("relacy_doorbell_sound",),
    ),
    Mutant(
        "D2",
        "who was woken wakes nobody else",
        "endpoint.cpp",
        "  if (more) bell.wake();\n",
        "  (void)more;\n",
        ("test_channel eight_blocked_receivers",),
    ),
    Mutant(
        "D6",
        "a wait has no slices",
        "slice.hpp",
        "  return waited_ns < 1'000'000'000 ? kShortSlice : kLongSlice;\n",
        "  return waited_ns < 1'000'000'000 ? 1'000'000 * kShortSlice : 1'000'000 * kLongSlice;\n",
        ("test_channel a_blocked_receiver_learns",),
    ),
    Mutant(
        "D7",
        "the ring is looked at before the other side",
        "endpoint.cpp",
        "  if (gone != Status::kOk) return gone;\n  if (platform::monotonic_ns() >= until_ns) {",
        "  gone = peer_gone(false);\n  if (gone != Status::kOk) return gone;\n"
        "  if (platform::monotonic_ns() >= until_ns) {",
        ("test_interleaving before_the_end",),
    ),
    Mutant(
        "E3",
        "what the dead had taken on loan is freed",
        "reaper.cpp",
        "      (void)hand_back(s, c.offset, c.holder);  // E3\n",
        "      (void)free_if_held(s, c.offset, c.holder);\n",
        ("test_lease the_dead_gives_back",),
    ),
    Mutant(
        "E5",
        "who hands back does not look whether the channel still is",
        "lease.cpp",
        "  A::fetch_add(row->returned, 1);  // E4, E5\n  if (living(s, id) == nullptr) {\n"
        "    free_stray(s, p, id);\n    return Status::kOk;\n  }\n",
        "  A::fetch_add(row->returned, 1);\n",
        ("test_interleaving handed_back",),
    ),
    # ---- locks and memory ----
    Mutant(
        "O3",
        "a lock is taken over without recovery",
        "owner_word.hpp",
        "        recover();\n        return true;\n",
        "        return true;\n",
        ("test_owner_word the_dead_owners_taker",),
    ),
    Mutant(
        "O2",
        "a slow owner counts as dead",
        "owner_word.hpp",
        "      if (mine != me && is_dead(seen & ~kWaiters)) {",
        "      if (mine != me) {",
        ("test_owner_word a_slow_owner",),
    ),
    Mutant(
        "R2",
        "the heap is longer before the new run has its word",
        "run_heap.cpp",
        "  A::store_release(s_.header().committed_pages, old + step);  // R2: the heap is longer now\n",
        "",
        (step("grow"), "test_run_heap"),
    ),
    Mutant(
        "B1",
        "a receiver is not noted in the slab's slot set",
        "block.cpp",
        "  if ((A::load_relaxed(set) & bit) == 0) A::fetch_or(set, bit);\n",
        "  (void)set, (void)bit;\n",
        (step("receive, 3 blocks"),),
    ),
    Mutant(
        "K1",
        "the last block out of a slab without owner leaves it",
        "block.cpp",
        "  if (run.state == RunState::kSlab && run.token == 0 && is_empty(s, p.head))"
        " retire_slab(s, p.head);\n",
        "",
        ("test_interleaving ownerless_slab",),
    ),
    Mutant(
        "P1",
        "a record is published without release",
        "ring.hpp",
        "    A::store_release(ring_.header->write_word, write_.pack());",
        "    A::store_relaxed(ring_.header->write_word, write_.pack());",
        ("relacy_ring_sound",),
    ),
    Mutant(
        "P2",
        "a record is popped without release",
        "ring.hpp",
        "    A::store_release(ring_.header->read_word, read_.pack());",
        "    A::store_relaxed(ring_.header->read_word, read_.pack());",
        ("relacy_ring_sound",),
    ),
    Mutant(
        "S1",
        "a seat comes back with its old name",
        "reaper.cpp",
        "    std::uint32_t generation = (generation_of(dead) + 1) & kGenerationMask;",
        "    std::uint32_t generation = generation_of(dead) & kGenerationMask;",
        ("test_slots another_token",),
    ),
    # ---- processes ----
    Mutant(
        "V1",
        "a ward counts for whoever has the seat",
        "slots.hpp",
        "  return w.generation == state >> kSlotBits ? w : Ward{};  // V1\n",
        "  return state != 0 ? w : Ward{};\n",
        ("test_parcels no_process_to_who_lists",),
    ),
    Mutant(
        "V1",
        "an address that comes too late changes another's ward",
        "parcels.cpp",
        "  if (Ward::unpack(ours).generation == generation_of(parcels))\n  ",
        "",
        ("test_parcels too_late",),
    ),
    Mutant(
        "fork",
        "a child maps the segment through its parent's description",
        "fork.cpp",
        "platform::move_fd(own, s.fd_) == 0) s.remap_window();\n",
        "platform::move_fd(own, s.fd_) == 0) (void)s;\n",
        ("test_fork although_their_child_lives",),
    ),
    Mutant(
        "fork",
        "a raw clone takes what it copied half changed",
        "fork.cpp",
        "[](const auto& known) { return is_held(known.first->mutex_); }",
        "[](const auto&) { return false; }",
        ("test_fork in_the_midst_of_a_change",),
    ),
)


def run(*command: str | Path, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=COPY, capture_output=True, text=True, timeout=seconds, check=False
    )


def commit() -> str:
    seen: str = kept.commit("ipcbuf/core", "tests/core")
    return seen


def prepare() -> None:
    """Copy what is built, and configure it."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for part in ("ipcbuf", "tests", "docs"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / part, COPY / part, ignore=ignore)
    result = run("cmake", "-S", "ipcbuf", "-B", "out", "-G", "Ninja", "-DIPCBUF_SANITIZE=")
    if result.returncode != 0:
        sys.exit(result.stderr)


def build(tests: Tests) -> str | None:
    """Return what the compiler said if it does not build."""
    programs = sorted({test.split()[0] for test in tests})
    result = run("cmake", "--build", "out", "--target", *programs, seconds=3600)
    return None if result.returncode == 0 else result.stdout[-2000:]


def complaint(test: str) -> str:
    """How a test fails; "" if it passes."""
    program, _, only = test.partition(" ")
    try:
        done = run(COPY / "out" / program, *([only] if only else []))
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return ""
    if done.returncode == HANGS:
        return "hangs, says its watchdog"
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    said = done.stdout + done.stderr
    found = re.search(
        r"^BAD .*\n(?: \(inlined.*\n)*    (.*)|: in \w+: (.*)|^(.*, BROKEN)",
        said,
        re.MULTILINE,
    )
    text = next(filter(None, found.groups()), "") if found else said.strip().rpartition("\n")[2]
    return " ".join(text.split())[:MOST_SAID] or f"exit code {done.returncode}"


def source(mutant: Mutant, tree: Path = COPY) -> Path:
    (found,) = (tree / "ipcbuf" / "core").rglob(mutant.file)
    return found


def has_text_once(mutant: Mutant) -> None:
    """Said before anything is built."""
    times = source(mutant, ROOT).read_text().count(mutant.old)
    if times != 1:
        sys.exit(f"{mutant.rule}, {mutant.what}: {mutant.file} has its text {times} times")


def verdict(mutant: Mutant) -> tuple[str, str]:
    """Apply the fault, and say who noticed it, and how; "" if nobody did."""
    path = source(mutant)
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        if error := build(mutant.tests):
            sys.exit(f"{mutant.rule}, {mutant.what}: does not build\n{error}")
        for test in mutant.tests:
            if how := complaint(test):
                return test, how
        return "", ""
    finally:
        path.write_text(text)


def load() -> dict[tuple[str, str], dict[str, str]]:
    if not KEPT.exists():
        return {}
    return {(old["rule"], old["fault"]): old for old in json.loads(KEPT.read_text())}


def keep(mutant: Mutant, by: str, how: str) -> None:
    """With those of the other parts, in the order of the list."""
    found = load()
    found[mutant.rule, mutant.what] = {
        "rule": mutant.rule,
        "fault": mutant.what,
        "by": by,
        "how": how,
        "commit": commit(),
    }
    ordered = [found[m.rule, m.what] for m in MUTANTS if (m.rule, m.what) in found]
    KEPT.write_text(json.dumps(ordered, indent=1) + "\n")


def write_table() -> int:
    """The page, from what was found; how many are missing or live."""
    found = load()
    missing = [m for m in MUTANTS if (m.rule, m.what) not in found]
    rows = [found[m.rule, m.what] for m in MUTANTS if m not in missing]
    alive = [k for k in rows if not k["by"]]
    lines = [
        f"{len(rows)} faults, {len(rows) - len(alive)} noticed; "
        f"commit {', '.join(sorted({k['commit'] for k in rows}))}.",
        "",
        "| rule | fault | noticed by | how |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {k['rule']} | {k['fault']} | {k['by'] or '**nobody**'} | {k['how'].replace('|', '/')} |"
        for k in rows
    ]
    kept.write_between(BEGIN, END, PAGE, "\n".join(lines))
    return len(missing) + len(alive)


def share(mutants: list[Mutant], part: str) -> list[Mutant]:
    number, _, all_ = part.partition("/")
    return mutants[int(number) - 1 :: int(all_ or 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description="every seeded fault has to be noticed")
    parser.add_argument("only", nargs="?", default="", help="text in the rule or the file")
    parser.add_argument("--part", default="1/1", help="I/N: only every Nth, from the Ith on")
    parser.add_argument("--missing", action="store_true", help="those not noticed at this commit")
    parser.add_argument("--table", action="store_true", help="only write docs/proof-core.md")
    parser.add_argument("--keep", action="store_true", help="keep build/mutants")
    chosen = parser.parse_args()
    if chosen.table:
        return 1 if write_table() else 0
    mutants = [m for m in MUTANTS if chosen.only in m.rule or chosen.only in m.file]
    mutants = share(mutants, chosen.part)
    if chosen.missing:
        now = commit()
        noticed = {key for key, found in load().items() if found["by"] and found["commit"] == now}
        mutants = [m for m in mutants if (m.rule, m.what) not in noticed]
    if not mutants:
        return 0
    for mutant in mutants:
        has_text_once(mutant)
    prepare()
    tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    if error := build(tests):
        sys.exit(error)
    for test in tests:
        if how := complaint(test):
            sys.exit(f"{test} fails without any fault: {how}")
    alive = 0
    print("| rule | fault | noticed by | how | s |\n| --- | --- | --- | --- | ---: |", flush=True)
    for mutant in mutants:
        start = time.monotonic()
        by, how = verdict(mutant)
        took = round(time.monotonic() - start)
        keep(mutant, by, how)
        alive += not by
        print(
            f"| {mutant.rule} | {mutant.what} | {by or '**nobody**'} | {how} | {took} |", flush=True
        )
    print(json.dumps({"faults": len(mutants), "unnoticed": alive}))
    if not chosen.keep:
        shutil.rmtree(COPY)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
