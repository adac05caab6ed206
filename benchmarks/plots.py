# SPDX-License-Identifier: Apache-2.0
"""The pictures: throughput over size, round trips and their distribution, scaling, kills.

Written to results/*.svg and *.png with matplotlib; without it, they stay as they are.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from harness import RESULTS

if TYPE_CHECKING:
    from collections.abc import Callable

    Load = Callable[[str], dict[str, Any] | None]

COLOURS = {
    "multiprocessing": "#8c8c8c",
    "ipcbuf_mp": "#0b6fa4",
    "faster-fifo": "#d1812c",
    "pyzmq": "#6a9a3b",
    "iceoryx2": "#8a5aa8",
}
NAMES = {"multiprocessing": "standard library", "ipcbuf_mp": "ipcbuf"}
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
CROWD = re.compile(r"Queue, small int, (\d+) to (\d+)")


def write(load: Load) -> None:
    """Write all pictures whose benchmarks were run."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        print(f"no pictures: {error}; pip install --group bench", file=sys.stderr)
        return
    mpl.rcParams.update(
        {
            "svg.hashsalt": "ipcbuf",  # the same figures make the same file
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
        }
    )
    for name, (benchmark, draw, _) in PICTURES.items():
        result = load(benchmark)
        if result is None:
            continue
        figure, axes = plt.subplots(figsize=(6.4, 3.4))
        draw(axes, result["rows"])
        for suffix in ("svg", "png") if axes.has_data() else ():
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(RESULTS / f"{name}.{suffix}", dpi=150, metadata=metadata)
        plt.close(figure)


def style_of(contender: str) -> dict[str, Any]:
    return {"label": NAMES.get(contender, contender), "color": COLOURS.get(contender)}


def medians(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the figures of each contender that did not fail."""
    return {
        name: found["median"]
        for name, found in row["contenders"].items()
        if found["median"] and not found["failure"]
    }


def sizes(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw bytes per second over the size of a message; arrays dashed."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        kind, _, size = row["name"].partition(" of ")
        number, unit = size.split()
        n_bytes = int(number) * UNITS[unit]
        for name, found in medians(row).items():
            lines.setdefault((name, kind), []).append((n_bytes, n_bytes / found["µs"] * 1e-3))
    for (name, kind), points in lines.items():
        style = style_of(name)
        if kind == "array":
            del style["label"]  # as that of its bytes
        axes.plot(*zip(*points, strict=True), "o--" if kind == "array" else "o-", ms=3, **style)
    axes.set(xscale="log", yscale="log", xlabel="bytes of a message", ylabel="GB/s")
    axes.set_title("Queue: throughput over size (arrays dashed)")
    axes.legend(frameon=False, loc="lower right")


def round_trips(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw the percentiles of the round trips between two cores."""
    shares = ["p50 µs", "p99 µs", "p99.9 µs"]
    ticks: list[str] = []
    seen = set()
    for row in rows:
        if not row["name"].endswith("round trip, on two cores"):
            continue
        for name, found in medians(row).items():
            values = [found[share] for share in shares if share in found]
            style = style_of(name)
            if name in seen:
                del style["label"]
            seen.add(name)
            axes.plot(values, [len(ticks)] * len(values), "-", lw=1, color=style["color"])
            for value, marker in zip(values, "o|>", strict=False):
                axes.plot(value, len(ticks), marker, ms=7, **style)
                style.pop("label", None)
            ticks.append(f"{row['name'].split()[0]}, {NAMES.get(name, name)}")
    axes.set_yticks(range(len(ticks)), ticks)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="µs there and back: median (dot), 99 % (bar), 99.9 % (arrow)")
    axes.set_title("Round trips between two cores")


def distribution(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw which share of the queue's round trips took longer than how long."""
    found = [row for row in rows if row["name"] == "Queue round trip, on two cores"]
    for name, figures in medians(found[0]).items() if found else ():
        points = [
            (1 - float(key.strip("_ %")) / 100, value)
            for key, value in figures.items()
            if key.startswith("_")
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", ms=3, **style_of(name))
    if not axes.has_data():
        return
    axes.set(
        xscale="log", yscale="log", ylabel="µs there and back", xlabel="share that took longer"
    )
    shares = [0.99, 0.5, 0.1, 0.01, 0.001, 0.0001]
    axes.set_xticks(shares, [f"{100 * share:g} %" for share in shares])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set_title("Queue: round trips between two cores")
    axes.legend(frameon=False)


def scaling(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw messages per second over how many processes there are at each end."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        match = CROWD.fullmatch(row["name"])
        if match is None or match[1] != match[2]:
            continue
        for name, found in medians(row).items():
            lines.setdefault(name, []).append((int(match[1]), found["messages/s"] * 1e-6))
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), "o-", **style_of(name))
    counts = sorted({x for points in lines.values() for x, _ in points})
    axes.set(xscale="log", yscale="log", ylabel="million messages/s")
    axes.set(xlabel="processes that put, and as many that get")
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
    axes.set_title("Queue of small ints")
    axes.legend(frameon=False)


def kills(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw in how many rounds the others hang after one process was killed."""
    of_queue = [row for row in rows if row["name"].startswith("Queue")]
    found = medians(of_queue[0]) if of_queue else {}
    names = [NAMES.get(name, name) for name in found]
    hang = [100 - figures["survived %"] for figures in found.values()]
    bars = axes.bar(names, hang, width=0.5, color=[COLOURS.get(name) for name in found])
    axes.bar_label(bars, [f"{value:.3g} %" for value in hang], padding=2)
    axes.set(ylim=(0, 100), ylabel="rounds after which a survivor hangs, %")
    axes.set_title("Two put, two get, one of the four is killed with kill -9")


# For each file: the benchmark, what draws it, and what it shows
PICTURES: dict[str, tuple[str, Callable[[Any, list[dict[str, Any]]], None], str]] = {
    "sizes": ("sizes", sizes, "Throughput over size"),
    "round-trips": ("latency", round_trips, "Round trips"),
    "latency-distribution": ("latency", distribution, "Distribution of round trips"),
    "scaling": ("throughput", scaling, "Throughput over processes"),
    "kills": ("kills", kills, "In how many rounds the others hang"),
}
