"""Simulations in a row, for some minutes, watching what must not happen.

    python tests/soak.py --minutes 5 [--seed 7]
    python tests/soak.py --only rounds --rounds 40 --megabytes 8

Jobs of random size and trouble run one after another as processes of their own;
each must end as it should, and leave no process behind. One process runs job
after job; its threads, its open files and its memory must not grow with them.
One job over TLS, with trainers that a command starts, runs for 300 rounds;
neither server nor agents nor trainers may hold more at its end than they did
after a tenth of it. And an upload is cut twenty times; the trainer must not
notice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))
sys.path.insert(0, str(HERE.parent / "benches"))

import large_runs  # noqa: E402
import measure  # noqa: E402

# The trainer adds one to every weight, and has the trouble it is told to have.
CLIENT = """
import os, signal, sys, time
import firesteel.client as flare

kind, site, chance = sys.argv[1], sys.argv[2], int(sys.argv[3])
flare.init()
while flare.is_running():
    model = flare.receive()
    if flare.get_site_name() == site and model.current_round == chance:
        if kind == "raise":
            raise ValueError("trouble as told")
        if kind == "exit":
            sys.exit(3)
        if kind == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "nan":
            model.params = {name: value * float("nan") for name, value in model.params.items()}
    params = {name: value + 1 for name, value in model.params.items()}
    flare.send(flare.FLModel(params=params, metrics={"accuracy": 1.0}))
"""

JOB = """
import json, os, sys
import numpy as np
import firesteel
from firesteel.recipe import FedAvgRecipe, Policy, SimEnv

sites, rounds, size, quorum, kind, site, chance = json.loads(sys.argv[1])
recipe = FedAvgRecipe(
    name="soak", framework="numpy", model={"w": np.zeros(size, dtype=np.float32)},
    train_script="client.py", train_args=f"{kind} {site} {chance}",
    min_clients=quorum, num_rounds=rounds, policy=Policy(on_failure="exclude"),
)
def once():
    try:
        run = recipe.execute(SimEnv(num_clients=sites))
    except firesteel.JobFailed as failure:
        return f"failed: {failure.status}"
    return f"ended: {run.get_status()}"

if len(sys.argv) < 3:
    print(once())
else:
    # Job after job in one process, until the time is up.
    import time
    until = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until:
        said = once()
        rss = next(
            int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")
        )
        print(json.dumps({
            "said": said, "threads": len(os.listdir("/proc/self/task")),
            "files": len(os.listdir("/proc/self/fd")), "rss_kb": rss,
        }), flush=True)
"""
TROUBLES = ("none", "none", "raise", "exit", "segfault", "nan")
# Jobs after which the long-lived process has loaded all that it will.
SETTLED = 5
# KiB per job that the memory may grow by in the mean: below it is the noise of
# an allocator, and a leaked job would be far above.
GROWTH_KB = 64.0


# How much more a role may hold in the last rounds than after a tenth of them.
ROUNDS_GROWTH = 1.05
# Rounds whose largest sample stands for each, as a look may miss a peak.
ROUNDS_EACH = 5
# How often an upload is cut, and by what the trainer may grow: a window.
CUTS = 20
WINDOW = 1 << 20


def environment() -> dict[str, str]:
    """The same as ours: the package is imported from the tree."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent / "python")}


def prepare(folder: Path) -> None:
    """The job's files."""
    (folder / "client.py").write_text(CLIENT, encoding="utf-8")
    (folder / "job.py").write_text(JOB, encoding="utf-8")


def random_job(chance: random.Random) -> tuple[list[Any], str]:
    """A job's numbers, and what it must say at its end."""
    sites = chance.choice((1, 2, 5, 20, 100))
    rounds = chance.choice((1, 3, 10))
    size = chance.choice((1, 1000, 100_000, 2_000_000)) if sites <= 5 else 100
    kind = chance.choice(TROUBLES)
    quorum = sites if kind == "none" or chance.random() < 0.5 else max(1, sites - 1)
    site = f"site-{chance.randint(1, sites)}"
    numbers = [sites, rounds, size, quorum, kind, site, chance.randrange(rounds)]
    fails = kind != "none" and quorum == sites
    return numbers, "failed: " if fails else "ended: "


def soak_processes(until: float, chance: random.Random) -> list[str]:
    """Jobs of random size and trouble; what went wrong."""
    wrong = []
    ran = 0
    while time.monotonic() < until:
        numbers, expect = random_job(chance)
        with tempfile.TemporaryDirectory(prefix="firesteel-soak-") as folder:
            prepare(Path(folder))
            run = measure.run(
                [sys.executable, "job.py", json.dumps(numbers)],
                cwd=Path(folder),
                env=environment(),
                deadline_s=180.0,
                expect=expect,
            )
        ran += 1
        if run.failure or run.orphans:
            trouble = run.failure or f"left {run.orphans} processes behind"
            wrong.append(f"job {numbers}: {trouble}\n{run.output}")
            print(wrong[-1], flush=True)
    print(f"jobs of their own: {ran} ran, {len(wrong)} went wrong", flush=True)
    return wrong


def grown(lines: list[dict[str, Any]]) -> list[str]:
    """What grew from job to job in the long-lived process."""
    wrong = [
        f"a job in the long-lived process said {line['said']!r}"
        for line in lines
        if not line["said"].startswith("ended: ")
    ]
    if len(lines) < 2 * SETTLED:
        return [*wrong, f"only {len(lines)} jobs ran in the long-lived process"]
    # Halves are compared, so that one sample at a bad moment decides nothing.
    settled = lines[SETTLED:]
    first, second = settled[: len(settled) // 2], settled[len(settled) // 2 :]
    for what in ("threads", "files"):
        before, after = (min(line[what] for line in half) for half in (first, second))
        if after > before:
            wrong.append(f"the long-lived process had {before} {what}, and later {after}")
    before, after = (min(line["rss_kb"] for line in half) for half in (first, second))
    per_job = (after - before) / len(first)
    print(f"one process: {len(lines)} jobs, memory grew by {per_job:.1f} KiB per job", flush=True)
    if per_job > GROWTH_KB:
        wrong.append(f"the long-lived process grew by {per_job:.0f} KiB per job")
    return wrong


def soak_rounds(rounds: int, megabytes: int) -> list[str]:
    """Many rounds of one job over TLS; whose memory grew."""
    setup = large_runs.Setup(sites=4, size=megabytes << 20, rounds=rounds, external=True)
    outcome = large_runs.run_ours(setup)
    large_runs.tell(outcome)
    if outcome.failure:
        return [f"the job of {rounds} rounds: {outcome.failure}"]
    wrong = []
    early = range(max(1, rounds // 10 - ROUNDS_EACH), rounds // 10)
    late = range(rounds - ROUNDS_EACH, rounds)
    for role in ("server", "agent", "trainer"):
        before, after = (outcome.held_in(role, span) for span in (early, late))
        print(
            f"{rounds} rounds: {role} held {before / 1e6:.1f} MB at round {early.stop}"
            f" and {after / 1e6:.1f} MB at round {late.stop}",
            flush=True,
        )
        if not before:
            wrong.append(f"no {role} was seen")
        elif after > before * ROUNDS_GROWTH:
            wrong.append(f"{role} held {before / 1e6:.1f} MB, and later {after / 1e6:.1f}")
    return wrong


class Cutter:
    """Passes connections on, and resets the one that carries each so many bytes up."""

    def __init__(self, every: int, cuts: int) -> None:
        self.every, self.left = every, cuts
        self.carried = 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.upstream = ("", 0)

    def start(self, upstream: str) -> str:
        """Its own address, for that of the server."""
        host, _, port = upstream.rpartition(":")
        self.upstream = (host, int(port))
        threading.Thread(target=self.accept, daemon=True).start()
        return "localhost:{}".format(self.listener.getsockname()[1])

    def accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            try:
                far = socket.create_connection(self.upstream)
            except OSError:
                near.close()
                continue
            for source, target, up in ((near, far, True), (far, near, False)):
                threading.Thread(
                    target=self.carry, args=(source, target, up), daemon=True
                ).start()

    def carry(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(1 << 18):
                target.sendall(data)
                if up and self.is_time(len(data)):
                    break
        except OSError:
            pass
        # Both ends see it at once, whatever the other direction is doing.
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def is_time(self, count: int) -> bool:
        with self.lock:
            self.carried += count
            if self.left and self.carried >= self.every:
                self.carried = 0
                self.left -= 1
                return True
            return False


def soak_cuts(megabytes: int) -> list[str]:
    """An upload that is cut again and again; whether the trainer noticed."""
    # The uploads of two rounds are whole; the cuts are spread over the next three.
    size = megabytes << 20
    cutter = Cutter(every=size // 8, cuts=CUTS)
    cutter.carried = -2 * size - size // 16
    setup = large_runs.Setup(sites=1, size=size, rounds=5, external=True, through=cutter.start)
    outcome = large_runs.run_ours(setup)
    large_runs.tell(outcome)
    wrong = []
    if outcome.failure:
        wrong.append(f"the job whose uploads are cut: {outcome.failure}")
    elif cutter.left:
        wrong.append(f"{cutter.left} of {CUTS} cuts were not made")
    else:
        before, after = (outcome.held_in("trainer", span) for span in (range(2), range(2, 5)))
        print(
            f"{CUTS} cuts: the trainer held {before / 1e6:.1f} MB before,"
            f" {after / 1e6:.1f} MB with them",
            flush=True,
        )
        if after > before + WINDOW:
            wrong.append(f"the trainer held {before / 1e6:.1f} MB, and with cuts {after / 1e6:.1f}")
    return wrong


def soak_simulations(minutes: float, seed: int) -> list[str]:
    """Simulations, half of the time in one process."""
    half = minutes * 60 / 2
    with tempfile.TemporaryDirectory(prefix="firesteel-soak-") as folder:
        prepare(Path(folder))
        numbers = json.dumps([2, 3, 100_000, 2, "none", "site-1", 0])
        done = subprocess.run(
            [sys.executable, "job.py", numbers, str(half)],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=half + 180.0,
            check=False,
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"said"')]
    wrong = grown(lines)
    if done.returncode:
        wrong.append(f"the long-lived process ended with code {done.returncode}")
    return wrong + soak_processes(time.monotonic() + half, random.Random(seed))


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="What must not grow, for some minutes")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--only", choices=("simulations", "rounds", "cuts"), action="append")
    parser.add_argument("--rounds", type=int, default=300, help="of the long job")
    parser.add_argument("--megabytes", type=int, default=64, help="of its model")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    parts = {
        "simulations": lambda: soak_simulations(options.minutes, options.seed),
        "rounds": lambda: soak_rounds(options.rounds, options.megabytes),
        "cuts": lambda: soak_cuts(4 * options.megabytes),
    }
    wrong = [sentence for part in options.only or parts for sentence in parts[part]()]
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    print(f"soak: {len(wrong)} to mend, seed {options.seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
