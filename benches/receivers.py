"""Many receivers of one model at once, each over a session of its own.

They check what they get and throw it away: the disks of many machines are not
that of one. The model's pages are forgotten before, so that it can be counted
how often the sender reads it from the disk.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import copies
import large_runs
from figures import GIB, MIB, Report, number, room, say, table

COUNTS = (8, 24)


def part(report: Report, options: argparse.Namespace) -> None:
    """Eight and twenty-four."""
    size = max(16 * MIB, int(GIB * options.scale))
    data: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="firesteel-bench-", dir=options.folder) as name:
        trouble = room(Path(name), 2 * size)
        if trouble:
            raise SystemExit(f"error: {trouble}")
        large_runs.warm_up(2 * size)
        for count in COUNTS:
            found = copies.pull(
                Path(name), tensors=64, each=size // 64, passes=1, more=("--receivers", str(count))
            )
            ended = sorted(found["ended_s"])
            cpu = found["passes"][0]["cpu_s"]
            reads = found["read_from_disk"] / found["bytes"]
            data[str(count)] = found
            say(f"  {count}: {ended[0]:.2f} to {ended[-1]:.2f} s, read {reads:.2f} times")
            rows.append(
                [
                    str(count),
                    f"{len(ended)} of {count}",
                    number(ended[0]),
                    number(ended[-1]),
                    f"{ended[-1] / ended[0]:.2f}",
                    number(cpu / (count * found["bytes"] / 1e9)),
                    f"{reads:.2f}",
                ]
            )
    report.data["receivers"] = data
    head = [
        "receivers", "ended", "fastest s", "slowest s", "slowest ÷ fastest",
        "CPU-s per GB, both ends", "model read from disk, times",
    ]  # fmt: skip
    report.pages.append(f"## Receivers of {size / GIB:.3g} GiB at once\n\n" + table(head, rows))
