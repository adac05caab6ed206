# SPDX-License-Identifier: Apache-2.0
"""Index the standard library of the running Python, with processes, and check the result.

A plain multiprocessing program: it imports nothing but the standard library.
Run it as it is, or with the multiprocessing classes of ipcbuf under it:

    python examples/index_stdlib.py --method spawn
    python -m ipcbuf_mp examples/index_stdlib.py --method spawn

Every Python source file is tokenized, and three things are counted: words (in comments and
strings), names (identifiers) and imports. This is done three times: one file after the other in
this process, through a pipeline of producers and consumers connected by queues, and with
`ProcessPoolExecutor.map`. The three indexes must be equal; the exit status is 1 if they are not.
"""

import argparse
import io
import keyword
import multiprocessing
import os
import queue
import re
import sys
import sysconfig
import time
import token
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

WORD = re.compile(r"[^\W\d_]{2,}")
TEXT_TOKENS = {token.STRING, token.COMMENT, getattr(token, "FSTRING_MIDDLE", token.STRING)}
LAYOUT_TOKENS = {token.INDENT, token.DEDENT, token.COMMENT, token.NL, token.ENCODING}


@dataclass
class Index:
    """What was counted, in one file or in many."""

    files: int = 0
    unreadable: int = 0
    words: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    imports: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Index") -> None:
        """Count everything in *other* too."""
        self.files += other.files
        self.unreadable += other.unreadable
        self.words.update(other.words)
        self.names.update(other.names)
        self.imports.update(other.imports)


def find_sources() -> list[Path]:
    """Return every Python source file of the standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(
        path
        for path in root.rglob("*.py")
        if not {"site-packages", "dist-packages"} & set(path.relative_to(root).parts)
    )


def index_source(source: bytes) -> Index:
    """Return the index of one file; a file that is no valid Python is only counted."""
    index = Index(files=1)
    try:
        line: list[str] = []
        for tok in tokenize.tokenize(io.BytesIO(source).readline):
            if tok.type in TEXT_TOKENS:
                index.words.update(word.lower() for word in WORD.findall(tok.string))
            elif tok.type == token.NAME and not keyword.iskeyword(tok.string):
                index.names[tok.string] += 1

            if tok.type == token.NEWLINE or (tok.type == token.OP and tok.string == ";"):
                index.imports.update(imported_modules(line))
                line = []
            elif tok.type not in LAYOUT_TOKENS:
                line.append(tok.string)
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return Index(files=1, unreadable=1)
    return index


def imported_modules(line: list[str]) -> Iterator[str]:
    """Yield the modules that a logical line, given as its tokens, imports."""
    if line[:1] == ["import"]:
        for clause in " ".join(line[1:]).split(","):
            yield clause.split(" as ")[0].replace(" ", "")
    elif line[:1] == ["from"] and "import" in line:
        yield "".join(line[1 : line.index("import")])


def index_file(path: Path) -> Index:
    """Return the index of the file at *path*."""
    return index_source(path.read_bytes())


def merge(indexes: Iterable[Index]) -> Index:
    """Return the sum of *indexes*."""
    total = Index()
    for index in indexes:
        total.add(index)
    return total


# One after the other.


def index_sequentially(paths: list[Path]) -> Index:
    """Index *paths* in this process."""
    return merge(map(index_file, paths))


# A pipeline: producers read files, consumers index them, this process adds up the results.


def read_files(paths: list[Path], sources: "multiprocessing.Queue[bytes | None]") -> None:
    """Producer: put the contents of every file."""
    for path in paths:
        sources.put(path.read_bytes())


def index_files(
    sources: "multiprocessing.Queue[bytes | None]", results: "multiprocessing.Queue[Index]"
) -> None:
    """Consumer: index whatever comes, until None does."""
    while (source := sources.get()) is not None:
        results.put(index_source(source))


def index_with_queues(paths: list[Path], method: str, workers: int) -> Index:
    """Index *paths* with as many producers and as many consumers as *workers*."""
    context = multiprocessing.get_context(method)
    sources = context.Queue(maxsize=16 * workers)
    results = context.Queue()
    print(f"  the queues are {type(sources).__module__}.{type(sources).__qualname__}")

    producers = [
        context.Process(target=read_files, args=(paths[i::workers], sources), daemon=True)
        for i in range(workers)
    ]
    consumers = [
        context.Process(target=index_files, args=(sources, results), daemon=True)
        for _ in range(workers)
    ]
    for process in producers + consumers:
        process.start()

    total = Index()
    while total.files < len(paths):
        try:
            total.add(results.get(timeout=1))
        except queue.Empty:
            if any(process.exitcode for process in producers + consumers):
                sys.exit("a worker process failed")

    for _ in consumers:
        sources.put(None)
    for process in producers + consumers:
        process.join()
    return total


# A pool of processes.


def index_with_executor(paths: list[Path], method: str, workers: int) -> Index:
    """Index *paths* with a pool of *workers* processes."""
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        print(f"  the executor is {type(executor).__module__}.{type(executor).__qualname__}")
        return merge(executor.map(index_file, paths, chunksize=4))


def timed(title: str, function: Callable[..., Index], *args: object) -> Index:
    """Call *function* and print how long it took."""
    print(title, flush=True)
    start = time.perf_counter()
    index = function(*args)
    print(f"  {time.perf_counter() - start:.2f} s", flush=True)
    return index


def main() -> int:
    """Index the standard library in three ways and compare; return the exit status."""
    parser = argparse.ArgumentParser(description="Index the standard library, with processes.")
    parser.add_argument("--method", choices=multiprocessing.get_all_start_methods())
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--files", type=int, help="index only the first N files")
    options = parser.parse_args()
    method = options.method or multiprocessing.get_start_method()
    workers = options.workers
    paths = find_sources()[: options.files]
    print(f"{len(paths)} files, start method {method}, {workers} workers")

    expected = timed("one after the other", index_sequentially, paths)
    piped = timed("producers and consumers on queues", index_with_queues, paths, method, workers)
    pooled = timed("ProcessPoolExecutor.map", index_with_executor, paths, method, workers)

    for name in ("words", "names", "imports"):
        counts = getattr(expected, name)
        most = ", ".join(f"{key} {count}" for key, count in counts.most_common(4))
        print(f"{counts.total():,} {name}, {len(counts):,} different: {most}")
    if expected.unreadable:
        print(f"{expected.unreadable} files are not valid Python (on purpose, for tests)")

    if not expected == piped == pooled:
        print("MISMATCH: the three indexes differ", file=sys.stderr)
        return 1
    print("the three indexes are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
