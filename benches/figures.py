"""What all parts of `make bench` share: environments, tables, the report."""

from __future__ import annotations

import functools
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TREE = HERE.parent
GIB = 1 << 30
MIB = 1 << 20


@dataclass
class Report:
    """What is written at the end."""

    data: dict[str, Any] = field(default_factory=dict)
    pages: list[str] = field(default_factory=list)


def say(text: str) -> None:
    """Talk goes to stderr."""
    print(text, file=sys.stderr, flush=True)


@functools.cache
def python_of(group: str) -> Path:
    """The interpreter of a group's environment, made if need be."""
    script = str(TREE / "scripts" / "env.py")
    made = subprocess.run(
        [sys.executable, script, group], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(made.stdout.strip())


def environment(python: Path) -> dict[str, str]:
    """A plain environment: the same for every system, and nobody phones home."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "FIRESTEEL_BINARY") if name in os.environ}
    return {
        **kept,
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(TREE / "python"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
    }


def product() -> Path:
    """The binary that `make build` placed, or that the package is told to use."""
    named = os.environ.get("FIRESTEEL_BINARY")
    return Path(named) if named else TREE / "python" / "firesteel" / "_bin" / "firesteel"


def native_target() -> Path:
    """Where cargo puts release programs."""
    return Path(os.environ.get("CARGO_TARGET_DIR", TREE / "target")) / "release"


@functools.cache
def native(package: str = "firesteel-bench", example: str = "") -> Path:
    """A release program of the tree, built if need be: ours, or a crate's example."""
    kind = ["--example", example] if example else ["--bin", package]
    subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--locked", "--package", package, *kind],
        cwd=TREE,
        check=True,
    )
    target = native_target()
    return target / "examples" / example if example else target / package


def ratio(theirs: float | None, ours: float | None) -> str:
    """How many times ours fits into theirs."""
    return f"{theirs / ours:.1f}×" if theirs and ours else "–"


def share(part: float | None, whole: float | None) -> str:
    """A part of a whole, in percent."""
    return f"{100 * part / whole:.0f} %" if part is not None and whole else "–"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with so many digits that count, never in exponents."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.6f}".rstrip("0")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def median_of(values: Sequence[float]) -> float:
    """A median that says so when there is nothing."""
    if not values:
        raise SystemExit("error: no run gave a figure")
    return statistics.median(values)


def settled(values: Sequence[float]) -> float:
    """The median of all but the first, which has cold caches and buffers."""
    return median_of(values[1:] or values)


def room(folder: Path, need: int) -> str:
    """Why a run that needs so much disk cannot be made here; empty when it can."""
    free = shutil.disk_usage(folder).free
    if need < free:
        return ""
    return f"it needs {need / 1e9:.0f} GB of disk and {free / 1e9:.0f} GB are free"
