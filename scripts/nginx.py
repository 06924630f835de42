"""Finds an nginx for tests, and prints where it is.

One that is installed is taken as it is. Without one, Debian's package is
downloaded and unpacked, never installed, into the cache outside the tree
(`FIRESTEEL_CACHE`, by default `~/.cache/firesteel`); nothing needs root.

    python3 scripts/nginx.py
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "nginx"
# What a test needs of it.
MODULES = ("--with-http_ssl_module", "--with-http_v2_module")


class NoNginx(Exception):
    """There is none; the text says why."""


def cache() -> Path:
    """The folder of everything that is downloaded or made once."""
    chosen = os.environ.get("FIRESTEEL_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "firesteel"


def usable(program: Path) -> bool:
    """Whether it starts here and has the modules."""
    try:
        said = subprocess.run([program, "-V"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return said.returncode == 0 and all(module in said.stderr for module in MODULES)


def installed() -> Path | None:
    """The system's own."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("nginx", path=path)
    return Path(found) if found and usable(Path(found)) else None


def unpacked() -> Path:
    """Debian's, from the cache; it is put there if need be."""
    home = cache() / "nginx"
    program = home / "usr" / "sbin" / "nginx"
    home.parent.mkdir(parents=True, exist_ok=True)
    # Two who make it wait for each other.
    with open(home.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if usable(program):
            return program
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise NoNginx(f"install nginx: there is none, and no {tool} to fetch one")
        with tempfile.TemporaryDirectory(dir=home.parent) as folder:
            fetch(Path(folder))
            shutil.rmtree(home, ignore_errors=True)
            os.replace(Path(folder) / "root", home)
        if not usable(program):
            raise NoNginx(f"install nginx: the one in {home} does not start here")
        return program


def fetch(folder: Path) -> None:
    """Downloads the package and unpacks it into `root`."""
    got = subprocess.run(
        ["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False
    )
    packages = list(folder.glob("*.deb"))
    if got.returncode != 0 or not packages:
        said = got.stderr.strip().splitlines()
        raise NoNginx(f"install nginx: it cannot be downloaded: {said[-1] if said else 'no word'}")
    for package in packages:
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)


def main() -> int:
    try:
        print(installed() or unpacked())
    except (NoNginx, OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
