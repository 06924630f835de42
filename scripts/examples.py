"""Runs every example as its reader would, and says which went wrong.

    python scripts/examples.py --group core

An example is a folder below `examples` with a `job.py`. It belongs to the group
`torch` when one of its files imports it, else to `core`. Each runs in an empty
folder with a deadline, must end with code 0, say something, leave a run, and
leave no process behind.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import measure

TREE = Path(__file__).resolve().parent.parent
# The longest example trains for some seconds; a busy machine takes its time.
DEADLINE_S = 300.0
TORCH = re.compile(r"^\s*(import|from) torch\b", re.MULTILINE)


def group_of(folder: Path) -> str:
    """Which environment an example needs."""
    texts = (path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    return "torch" if any(TORCH.search(text) for text in texts) else "core"


def trouble(folder: Path) -> tuple[str, float]:
    """Runs one example: what is wrong with it, or nothing, and how long it took."""
    with tempfile.TemporaryDirectory(prefix="firesteel-example-") as cwd:
        run = measure.run(
            [sys.executable, str(folder / "job.py")],
            cwd=Path(cwd),
            env=dict(os.environ),
            deadline_s=DEADLINE_S,
            expect="",
        )
        said = Path(cwd, "output.txt").read_text(encoding="utf-8", errors="replace")
        runs = list(Path(cwd).glob("firesteel-runs/*/*"))
    if run.failure:
        return f"{run.failure}\n{said}", run.wall_s
    if not said.strip():
        return "said nothing", run.wall_s
    if not runs:
        return f"left no run in ./firesteel-runs\n{said}", run.wall_s
    if run.orphans:
        return f"left {run.orphans} processes behind\n{said}", run.wall_s
    return "", run.wall_s


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Runs every example of a group")
    parser.add_argument("--group", choices=("core", "torch"), required=True)
    options = parser.parse_args()
    folders = sorted(path.parent for path in (TREE / "examples").rglob("job.py"))
    chosen = [folder for folder in folders if group_of(folder) == options.group]
    if not chosen:
        print(f"error: there is no example of the group {options.group}", file=sys.stderr)
        return 1
    failed = 0
    for folder in chosen:
        wrong, took = trouble(folder)
        name = folder.relative_to(TREE)
        print(f"{'FAIL' if wrong else 'ok':<4}  {name}  {took:.1f} s", flush=True)
        if wrong:
            failed += 1
            print(wrong, flush=True)
    print(f"examples, {options.group}: {len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
