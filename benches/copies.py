"""The programs of `benches/native`: bare copies, their steps, pulls."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from figures import native, settled

# The first has cold caches and is not counted.
PASSES = 4


def run_native(*words: str) -> dict[str, Any]:
    """A program of `benches/native`; what it printed."""
    done = subprocess.run(
        [str(native()), *words], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def pull(folder: Path, *, tensors: int, each: int, passes: int = PASSES, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """A model pulled between two processes."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        return run_native(
            "pull", "--folder", inside, "--tensors", str(tensors), "--each", str(each),
            "--passes", str(passes), *more,
        )  # fmt: skip


def bare(folder: Path, megabytes: int) -> dict[str, float]:
    """CPU seconds per gigabyte of the bare copies, by carrier."""
    found = run_native(
        "bare", "--folder", str(folder), "--megabytes", str(megabytes), "--passes", str(PASSES)
    )
    return {
        carrier: settled([one["cpu_s_per_gb"] for one in passes])
        for carrier, passes in found.items()
    }


def parts(folder: Path, megabytes: int) -> dict[str, float]:
    """CPU seconds per gigabyte of the steps of a copy."""
    found = run_native(
        "parts", "--folder", str(folder), "--megabytes", str(megabytes), "--passes", str(PASSES)
    )
    return {name: settled(figures) for name, figures in found.items()}
