"""Installs the newest wheel of a folder into a bare environment and runs a job.

    python scripts/try_wheel.py dist

What the wheel must hold is only proven where the tree is out of reach: the
environment has NumPy and nothing else, the example is copied elsewhere, and
neither PYTHONPATH nor the working directory leads back here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
EXAMPLE = TREE / "examples" / "hello-world" / "hello-numpy"
DEADLINE_S = 120.0


def main() -> int:
    """Reads the command line."""
    wheels = sorted(Path(sys.argv[1]).glob("firesteel-*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        print(f"error: there is no wheel in {sys.argv[1]}", file=sys.stderr)
        return 1
    wheel = wheels[-1].resolve()
    if "-cp311-abi3-" not in wheel.name:
        print(f"error: {wheel.name} is not for the stable ABI of Python 3.11", file=sys.stderr)
        return 1
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    needed = {"firesteel/_bin/firesteel", "firesteel/py.typed", "firesteel/_native.pyi"}
    if missing := needed - names:
        print(f"error: {wheel.name} lacks {', '.join(sorted(missing))}", file=sys.stderr)
        return 1
    numpy = next(
        line
        for line in (TREE / "requirements" / "core.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("numpy==")
    ).split()[0]
    with tempfile.TemporaryDirectory(prefix="firesteel-wheel-") as folder:
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/env"], check=True, env=env)
        python = f"{folder}/env/bin/python"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, numpy, str(wheel)], check=True, env=env)
        # Runs that somebody made in the example's folder stay where they are.
        left = shutil.ignore_patterns("firesteel-runs", "__pycache__")
        shutil.copytree(EXAMPLE, f"{folder}/job", ignore=left)
        done = subprocess.run(
            [python, f"{folder}/job/job.py"],
            cwd=f"{folder}/job",
            env=env,
            timeout=DEADLINE_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            print(f"error: the job ended with code {done.returncode}", file=sys.stderr)
            return 1
    print(f"ok    {wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) in a bare environment")
    return 0


if __name__ == "__main__":
    sys.exit(main())
