"""Eight updates folded into one model, beside a C loop over the same warm files.

    benches/aggregate/run.py            a table
    benches/aggregate/run.py --json     one JSON object

Rates are gigabytes of input per second and core. `--megabytes` is the size of
one update; eight of them must fit the disk and, to be warm, the memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--megabytes", type=int, default=256, help="of one update (256)")
    parser.add_argument("--rounds", type=int, default=5, help="the best of so many counts (5)")
    args = parser.parse_args()
    command = ["cargo", "run", "--quiet", "--release", "--package", "firesteel-aggregate"]
    command += ["--example", "fold_bench", "--", str(args.megabytes), str(args.rounds)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    if args.json:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{name:28} {figure}")


if __name__ == "__main__":
    main()
