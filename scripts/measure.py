"""Runs a command and measures its whole process tree.

Wall time is what a person waits; CPU is user plus system time of every process
of the tree (orphans included: this process adopts them); memory is PSS, which
counts a page shared by several processes once. A sampler reads
`/proc/<pid>/smaps_rollup`; its own cost is not part of the figures.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Between two samples of the tree, in seconds.
SAMPLE_S = 0.05
# From <linux/prctl.h>.
PR_SET_CHILD_SUBREAPER = 36
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Measured:
    """One run of one command."""

    wall_s: float
    cpu_s: float
    peak_pss_mb: float
    peak_processes: int
    peak_threads: int
    # Busy cores of everybody else while it ran: how far to trust `wall_s`.
    foreign_cores: float
    # Processes that were still there when the command had ended.
    orphans: int
    # Empty when the command did what it should.
    failure: str
    output: str

    def record(self) -> dict[str, Any]:
        """The figures, without the output of runs that went well."""
        fields = asdict(self)
        if not self.failure:
            del fields["output"]
        return fields


def adopt_orphans() -> None:
    """Makes this process the parent of every orphan below it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(root: int) -> list[int]:
    """Every process below `root`, itself left out."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # The name in parentheses may hold anything, spaces too.
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def footprint(pid: int) -> tuple[int, int]:
    """KiB of PSS and the number of threads; zeros when it has just ended."""
    pss = threads = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("Pss:"):
                    pss = int(line.split()[1])
                    break
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        pass
    return pss, threads


class Sampler(threading.Thread):
    """Notes the tree's peaks until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.pss_kib = self.processes = self.threads = 0
        self.done = threading.Event()

    def run(self) -> None:
        own = threading.get_native_id()
        # The sampler gives way to what it measures.
        os.setpriority(os.PRIO_PROCESS, own, 5)
        while not self.done.wait(SAMPLE_S):
            pids = descendants(os.getpid())
            sizes = [footprint(pid) for pid in pids]
            self.pss_kib = max(self.pss_kib, sum(pss for pss, _ in sizes))
            self.threads = max(self.threads, sum(threads for _, threads in sizes))
            self.processes = max(self.processes, len(pids))


def busy_s() -> float:
    """CPU seconds that the whole machine has worked since it started."""
    with open("/proc/stat", encoding="ascii") as lines:
        user, nice, system, _idle, _wait, irq, softirq = map(int, lines.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def children_s() -> float:
    """CPU seconds of every child that has been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def own_s() -> float:
    """CPU seconds of this process: the sampler's."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def reap(deadline: float) -> int:
    """Ends and waits for what is left of the tree; how many were left.

    A process that is on its way out is given a moment: only what is still
    there after it counts.
    """
    left = 0
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return left
        if pid == 0:
            time.sleep(0.01)
    remaining = descendants(os.getpid())
    left = len(remaining)
    while remaining:
        for pid in remaining:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass
        remaining = descendants(os.getpid())
    return left


def run(
    command: Sequence[str], *, cwd: Path, env: dict[str, str], deadline_s: float, expect: str
) -> Measured:
    """Runs a command to its end and measures it.

    It fails when it ends with another code than 0, is still running after
    `deadline_s`, or does not print `expect`: a figure of a run that did not do
    its work says nothing.
    """
    adopt_orphans()
    sampler = Sampler()
    sampler.start()
    before, before_own, before_busy = children_s(), own_s(), busy_s()
    log = cwd / "output.txt"
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        failure = ""
        try:
            code = process.wait(timeout=deadline_s)
            if code:
                failure = f"ended with code {code}"
        except subprocess.TimeoutExpired:
            failure = f"still running after {deadline_s:.0f} s"
            process.kill()
            process.wait()
        wall = time.perf_counter() - started
    sampler.done.set()
    sampler.join()
    orphans = reap(time.monotonic() + 2.0)
    cpu = children_s() - before
    foreign = (busy_s() - before_busy - cpu - (own_s() - before_own)) / max(wall, 0.01)
    text = log.read_text(encoding="utf-8", errors="replace")
    if not failure and expect not in text:
        failure = f"did not print {expect!r}"
    return Measured(
        wall_s=wall,
        cpu_s=cpu,
        peak_pss_mb=sampler.pss_kib / 1024,
        peak_processes=sampler.processes,
        peak_threads=sampler.threads,
        foreign_cores=max(0.0, foreign),
        orphans=orphans,
        failure=failure,
        output=text[-4000:],
    )
