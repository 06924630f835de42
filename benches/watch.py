"""What a tree of processes holds and spends, looked at again and again.

A process holds its anonymous and its shared pages (`RssAnon` + `RssShmem`).
Clean pages of mapped files are the page cache's, which gives them away when
somebody needs the room; they are reported beside it. A control group counts
everything; its files are taken off. Trees are summed as PSS.

CPU time is a curve: what the tree had spent at each look, so that it can be
told what a part of a run cost that begins and ends within it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
# Between two looks, in seconds; the page tables of a large process take long to
# walk, so that PSS is asked for less often.
EVERY_S = 0.1
PSS_EVERY_S = 1.0

# Says which role a process has by its command line, or None to count it nowhere.
RoleOf = Callable[[list[str]], str | None]


def touch(count: int) -> float:
    """Touches and frees so many bytes of memory; how long that took.

    On a virtual machine the host finds a page on its first touch, which costs
    seconds per GiB: whatever runs first would pay for all that follow.
    """
    started = time.perf_counter()
    piece = 256 << 20
    held = []
    for start in range(0, count, piece):
        size = max(PAGE, min(piece, count - start))
        area = mmap.mmap(-1, size)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(area)), 1, size)
        held.append(area)
    held.clear()
    return time.perf_counter() - started


def available() -> int:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not tell how much memory is available")


@dataclass
class Held:
    """Bytes of one process, or the largest sums of several."""

    owned: int = 0
    files: int = 0

    def record(self) -> dict[str, float]:
        """In megabytes."""
        return {"owned_mb": self.owned / 1e6, "mapped_files_mb": self.files / 1e6}


def held(pid: int) -> Held:
    """What a process holds; nothing when it has ended."""
    found = Held()
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            name, _, rest = line.partition(":")
            if name in ("RssAnon", "RssShmem"):
                found.owned += int(rest.split()[0]) * 1024
            elif name == "RssFile":
                found.files = int(rest.split()[0]) * 1024
    return found


def pss(pid: int) -> int:
    """Its proportional set size; zero when it has ended."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    return 0


@dataclass
class Process:
    """One of the tree, as last seen."""

    role: str | None
    cpu_s: float = 0.0
    peak: Held = field(default_factory=Held)


class Group:
    """A control group below this process's own; memory only, version 1 or 2."""

    def __init__(self, name: str) -> None:
        parent, self.two = own_group()
        self.folder = parent / f"firesteel-bench-{os.getpid()}-{name}"
        self.folder.mkdir()
        self.peak = self.peak_files = 0

    def add_self(self) -> None:
        """For a child between fork and exec: what it starts is in the group, too."""
        (self.folder / "cgroup.procs").write_text("0", encoding="ascii")

    def look(self) -> None:
        """Notes the peaks of all but the page cache, and of the page cache."""
        current = "memory.current" if self.two else "memory.usage_in_bytes"
        fields = ("file", "shmem") if self.two else ("total_cache", "total_shmem")
        with contextlib.suppress(OSError, ValueError):
            stat = dict(
                line.split()
                for line in (self.folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
            # Shared memory is counted as cache, from which it cannot be taken away.
            files = int(stat[fields[0]]) - int(stat[fields[1]])
            used = int((self.folder / current).read_text(encoding="ascii"))
            self.peak = max(self.peak, used - files)
            self.peak_files = max(self.peak_files, files)

    def close(self) -> None:
        """Removes it; what is still in it keeps it, and the next boot removes it."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def own_group() -> tuple[Path, bool]:
    """The folder of this process's memory group, and whether it is of version 2."""
    mounts = [
        (left.split(), right.split())
        for left, _, right in (
            line.partition(" - ")
            for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        )
    ]
    groups = [
        line.split(":", 2)
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    ]
    for wanted, kind in (("memory", "cgroup"), ("", "cgroup2")):
        for _, controllers, path in groups:
            if wanted not in controllers.split(",") or (not wanted and controllers):
                continue
            for left, right in mounts:
                if right[0] == kind and (not wanted or wanted in right[-1].split(",")):
                    below = path.removeprefix(left[3].rstrip("/")).lstrip("/")
                    return Path(left[4]) / below, kind == "cgroup2"
    raise OSError("there is no control group for memory")


def try_groups(names: list[str]) -> dict[str, Group]:
    """One group per name, or none at all where this user may make none."""
    made: dict[str, Group] = {}
    try:
        for name in names:
            made[name] = Group(name)
    except OSError:
        for group in made.values():
            group.close()
        return {}
    return made


class Watch(threading.Thread):
    """Looks at every descendant of this process until it is told to stop."""

    def __init__(self, role_of: RoleOf, groups: dict[str, Group] | None = None) -> None:
        super().__init__(daemon=True)
        self.role_of = role_of
        self.groups = groups or {}
        self.done = threading.Event()
        # By pid and start, as a pid may be used again.
        self.processes: dict[tuple[int, str], Process] = {}
        self.roles: dict[str, Held] = {}
        self.single: dict[str, Held] = {}
        self.pss_peak: dict[str, int] = {}
        self.curve: list[tuple[float, float]] = []
        # Everything that a role held, at each look.
        self.owned: dict[str, list[tuple[float, int]]] = {}
        self.children = [os.getpid()]

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        """Runs it for the length of a block."""
        self.start()
        try:
            yield self
        finally:
            self.done.set()
            self.join()

    def run(self) -> None:
        # The sampler gives way to what it measures.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
        next_pss = 0.0
        while True:
            now = time.time()
            with_pss = now >= next_pss
            if with_pss:
                next_pss = now + PSS_EVERY_S
            self.look(now, with_pss)
            if self.done.wait(EVERY_S):
                self.look(time.time(), True)
                return

    def look(self, now: float, with_pss: bool) -> None:
        """One look at everything."""
        sums: dict[str, Held] = {}
        proportional: dict[str, int] = {}
        for pid, start, cpu_s in self.tree():
            key = (pid, start)
            process = self.processes.get(key)
            if process is None:
                process = self.processes[key] = Process(self.role_of(command_of(pid)))
            elif process.cpu_s < 0.1 or process.role is None:
                # A child looks like its parent until it has become itself.
                process.role = self.role_of(command_of(pid))
            process.cpu_s = cpu_s
            if process.role is None:
                continue
            mine = held(pid)
            for peak in (process.peak, self.single.setdefault(process.role, Held())):
                peak.owned = max(peak.owned, mine.owned)
                peak.files = max(peak.files, mine.files)
            total = sums.setdefault(process.role, Held())
            total.owned += mine.owned
            total.files += mine.files
            if with_pss:
                proportional[process.role] = proportional.get(process.role, 0) + pss(pid)
        for role, total in sums.items():
            peak = self.roles.setdefault(role, Held())
            peak.owned = max(peak.owned, total.owned)
            peak.files = max(peak.files, total.files)
            self.owned.setdefault(role, []).append((now, total.owned))
        if with_pss and proportional:
            proportional["all"] = sum(proportional.values())
            for role, count in proportional.items():
                self.pss_peak[role] = max(self.pss_peak.get(role, 0), count)
        for group in self.groups.values():
            group.look()
        self.curve.append((now, sum(process.cpu_s for process in self.processes.values())))

    def tree(self) -> list[tuple[int, str, float]]:
        """Every descendant: its pid, when it started, its CPU seconds."""
        below: dict[int, list[int]] = {}
        seen: dict[int, tuple[str, float]] = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    text = file.read()
            except OSError:
                continue
            # The name in parentheses may hold anything, spaces too.
            words = text.rpartition(")")[2].split()
            pid = int(entry)
            below.setdefault(int(words[1]), []).append(pid)
            seen[pid] = (words[19], (int(words[11]) + int(words[12])) / TICKS)
        found = []
        waiting = [os.getpid()]
        while waiting:
            for pid in below.get(waiting.pop(), []):
                waiting.append(pid)
                found.append((pid, *seen[pid]))
        return found

    def cpu_at(self, when: float) -> float:
        """What the tree had spent at a time of `time.time()`."""
        before = (self.curve[0][0], 0.0)
        for point in self.curve:
            if point[0] >= when:
                span = point[0] - before[0]
                part = (when - before[0]) / span if span > 0 else 0.0
                return before[1] + (point[1] - before[1]) * max(0.0, min(1.0, part))
            before = point
        return before[1]

    def owned_between(self, role: str, start: float, end: float) -> int:
        """The most that a role held between two times."""
        return max((size for at, size in self.owned.get(role, []) if start <= at <= end), default=0)

    def record(self) -> dict[str, Any]:
        """The peaks: per role of all its processes together, and of the largest one."""
        return {
            "roles": {role: peak.record() for role, peak in sorted(self.roles.items())},
            "largest_process": {role: peak.record() for role, peak in sorted(self.single.items())},
            "pss_mb": {role: count / 1e6 for role, count in sorted(self.pss_peak.items())},
            "groups": {
                name: {"owned_mb": group.peak / 1e6, "files_mb": group.peak_files / 1e6}
                for name, group in self.groups.items()
            },
        }


def command_of(pid: int) -> list[str]:
    """Its command line; empty when it has ended."""
    try:
        return [
            word.decode("utf-8", "replace")
            for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if word
        ]
    except OSError:
        return []
