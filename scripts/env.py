"""Makes the Python environments that tests, demo and benches run in.

An environment is named after its group, the digest of the group's lock file
and the interpreter, and lies in a cache outside the tree
(`FIRESTEEL_CACHE`, by default `~/.cache/firesteel`). It is made once and used
again by every checkout with the same lock file. A half-made one is never used:
the mark of a finished one is written last, and two makers wait for each other.

    python3 scripts/env.py core              make it if need be, print its python
    python3 scripts/env.py --where core      print where it is or would be
    python3 scripts/env.py --list            what is in the cache, and its size
    python3 scripts/env.py --prune           remove what no lock file here names

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
LOCKS = TREE / "requirements"
FLOOR = (3, 11)
# Written last into a finished environment.
MARK = ".complete"
# Bytes from which a download is shown on a line of its own.
WORTH_A_LINE = 1_000_000


class SetUpError(Exception):
    """Something a person has to do first; the text says what."""


def cache() -> Path:
    """The folder of everything that is downloaded or made once."""
    chosen = os.environ.get("FIRESTEEL_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "firesteel"


def groups() -> list[str]:
    """Every group that has a lock file."""
    return sorted(path.stem for path in LOCKS.glob("*.txt"))


def lock_file(group: str) -> Path:
    """The lock file of a group."""
    path = LOCKS / f"{group}.txt"
    if not path.is_file():
        raise SetUpError(f"there is no group `{group}`; the groups are {', '.join(groups())}")
    return path


def place(group: str) -> Path:
    """Where the environment of a group is or will be."""
    key = hashlib.sha256(lock_file(group).read_bytes())
    key.update(sys.implementation.cache_tag.encode())
    key.update(os.uname().machine.encode())
    # The interpreter is part of the key: an environment links to it.
    key.update(os.path.realpath(sys.executable).encode())
    return cache() / "envs" / f"{group}-{key.hexdigest()[:16]}"


def python_of(env: Path) -> Path:
    """The interpreter of an environment."""
    return env / "bin" / "python"


def megabytes(count: int) -> str:
    """A size for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def say(text: str) -> None:
    """Talk goes to stderr; stdout is the answer."""
    print(text, file=sys.stderr, flush=True)


def size_of(url: str) -> int | None:
    """Bytes behind a URL, or None when the index does not tell."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path)).stat().st_size
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def show_sizes(pip: list[str], lock: Path) -> None:
    """Asks pip what it would fetch and prints each file's size, largest first."""
    asked = subprocess.run(
        [*pip, "install", "--quiet", "--dry-run", "--no-deps", "--report", "-", "-r", str(lock)],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise SetUpError(
            f"pip cannot find what {lock.relative_to(TREE)} names:\n{asked.stderr.strip()}"
        )
    files = [
        (f"{item['metadata']['name']} {item['metadata']['version']}", item["download_info"]["url"])
        for item in json.loads(asked.stdout)["install"]
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(size_of, [url for _, url in files]))
    known = sum(size for size in sizes if size)
    unknown = sum(1 for size in sizes if size is None)
    say(
        f"to download: {megabytes(known)} in {len(files)} files"
        + (f" and {unknown} of unknown size" if unknown else "")
        + " (less what pip's own cache holds)"
    )
    rows = sorted(zip(sizes, files, strict=True), key=lambda row: -(row[0] or 0))
    small = [row for row in rows if row[0] is not None and row[0] < WORTH_A_LINE]
    for size, (name, _) in rows:
        if size is None or size >= WORTH_A_LINE:
            say(f"  {megabytes(size) if size else '?':>9}  {name}")
    if small:
        say(f"  {megabytes(sum(row[0] or 0 for row in small)):>9}  {len(small)} smaller ones")


def build(group: str, env: Path) -> None:
    """Makes an environment in its place; the mark comes last."""
    say(f"making the Python environment `{group}` in {env}")
    if env.exists():
        say("  (an earlier attempt was left half-made; it is removed first)")
        shutil.rmtree(env)
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(env)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise SetUpError(
            f"`{sys.executable} -m venv` failed; on Debian and Ubuntu it is in the package"
            f" python3-venv\n{(made.stdout + made.stderr).strip()}"
        )
    pip = [str(python_of(env)), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    lock = lock_file(group)
    show_sizes(pip, lock)
    # The lock file names every package with its digests, so there is nothing
    # to resolve; --no-deps also keeps out what it leaves out on purpose.
    command = [*pip, "install", "--quiet", "--no-deps", "-r", str(lock)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise SetUpError(
            "pip could not install it (its reason stands above); run the same command again to"
            " go on: what was fetched is kept in pip's cache"
        )
    (env / MARK).write_text(f"{group} from {lock.relative_to(TREE)}\n", encoding="utf-8")
    say(f"the environment `{group}` is ready")


def make(group: str) -> Path:
    """The environment of a group, made if it is not there yet."""
    env = place(group)
    if (env / MARK).is_file():
        return env
    env.parent.mkdir(parents=True, exist_ok=True)
    with (env.parent / f".{env.name}.lock").open("w") as turn:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is making {env.name}; waiting for it")
            fcntl.flock(turn, fcntl.LOCK_EX)
        if not (env / MARK).is_file():
            build(group, env)
    return env


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def show_cache() -> None:
    """Prints every environment in the cache."""
    current = {place(group) for group in groups()}
    for env in sorted((cache() / "envs").glob("*-*/")):
        state = "in use" if env in current else "named by no lock file here"
        if not (env / MARK).is_file():
            state = "half-made"
        print(f"{megabytes(folder_size(env)):>9}  {state:<26}  {env}")


def prune() -> None:
    """Removes environments that no lock file of this checkout names."""
    current = {place(group) for group in groups()}
    for env in sorted((cache() / "envs").glob("*-*/")):
        if env not in current:
            say(f"removing {env}")
            shutil.rmtree(env)
            (env.parent / f".{env.name}.lock").unlink(missing_ok=True)


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", nargs="*", help="core, torch, …")
    parser.add_argument("--where", action="store_true", help="only print the place")
    parser.add_argument("--list", action="store_true", help="show what is in the cache")
    parser.add_argument("--prune", action="store_true", help="remove what is not in use")
    options = parser.parse_args()
    try:
        if sys.version_info < FLOOR:
            raise SetUpError(
                f"Python {'.'.join(map(str, FLOOR))} or newer is needed, and {sys.executable} is"
                f" {sys.version.split()[0]}; name another one: make PYTHON=python3.12 …"
            )
        if options.list:
            show_cache()
        if options.prune:
            prune()
        for group in options.group:
            print(place(group) if options.where else python_of(make(group)))
    except SetUpError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; nothing half-made will be used")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
