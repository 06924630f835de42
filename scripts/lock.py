"""Writes requirements/<group>.txt from requirements/<group>.in.

pip resolves the names; every wheel of the versions it chose is written down
with its digest, so that the same file serves every platform and a changed
package is refused. Run it with the oldest supported Python, whose choice of
versions is the narrowest:

    python3.11 scripts/lock.py core torch

A line `# without: name, prefix*` in the .in file leaves packages out.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

LOCKS = Path(__file__).resolve().parent.parent / "requirements"
# The platforms that are supported, and interpreters older than the floor.
KEEP = re.compile(r"manylinux[^-]*(x86_64|aarch64)|macosx|-any\.whl$")
SKIP = re.compile(r"-pp\d|-graalpy|-cp3(8|9|10)-cp")


def resolve(source: Path) -> dict[str, str]:
    """Name to version of everything that the .in file needs."""
    report = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
         "--report", "-", "-r", str(source)],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    chosen = {
        re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): item["metadata"]["version"]
        for item in json.loads(report)["install"]
    }
    for line in source.read_text(encoding="utf-8").splitlines():
        if line.startswith("# without:"):
            for pattern in line.removeprefix("# without:").split(","):
                for name in fnmatch.filter(list(chosen), pattern.strip()):
                    del chosen[name]
    return chosen


def digests(name: str, version: str) -> list[str]:
    """The sha256 of every usable wheel of one version, from the index.

    The source archive's where there is no wheel, and only then: what has
    wheels is never built here.
    """
    request = urllib.request.Request(
        f"https://pypi.org/simple/{name}/",
        headers={"Accept": "application/vnd.pypi.simple.v1+json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    spelled = re.compile(rf"^[^-]+-{re.escape(version)}-.*\.whl$")
    wheels = [
        file["hashes"]["sha256"]
        for file in files
        if spelled.match(file["filename"])
        and KEEP.search(file["filename"])
        and not SKIP.search(file["filename"])
    ]
    source = re.compile(rf"^.+-{re.escape(version)}\.tar\.gz$")
    return sorted(
        wheels or [file["hashes"]["sha256"] for file in files if source.match(file["filename"])]
    )


def lock(group: str) -> None:
    """Writes one lock file."""
    source = LOCKS / f"{group}.in"
    out = [f"# Made by scripts/lock.py from {source.name}; edit that one.\n"]
    for name, version in sorted(resolve(source).items()):
        found = digests(name, version)
        if not found:
            raise SystemExit(f"error: {name} {version} has no usable file")
        lines = [f"{name}=={version}", *(f"    --hash=sha256:{digest}" for digest in found)]
        out.append(" \\\n".join(lines) + "\n")
    (LOCKS / f"{group}.txt").write_text("".join(out), encoding="utf-8")
    print(f"{group}: {len(out) - 1} packages")


if __name__ == "__main__":
    for argument in sys.argv[1:] or [path.stem for path in sorted(LOCKS.glob("*.in"))]:
        lock(argument)
