"""FedAvg with a large model and two sites over TLS, beside FLARE's POC.

Server, sites and trainers are processes of their own; a whole round is measured
from the end of the one before, in wall time and in CPU seconds of all processes
together, as the median of the last four of eight rounds.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from pathlib import Path

import copies
import large_runs
from figures import GIB, MIB, Report, number, ratio, share, table
from large_runs import Outcome, Setup

SITES = 2
ROUNDS = 8


def with_flare(options: argparse.Namespace) -> bool:
    """Whether the peer is wanted."""
    return any(system.name == "flare" for system in options.systems)


@functools.cache
def moved_per_cpu_s(system: str, *, sites: int, size: int, folder: Path | None) -> float | None:
    """Gigabytes that a round moves per CPU second; None when the run failed."""
    setup = Setup(sites=sites, size=size)
    run = large_runs.run_flare if system == "flare" else large_runs.run_ours
    outcome = run(setup, folder)
    large_runs.tell(outcome)
    cpu_s = outcome.settled("cpu_s")
    return None if outcome.failure or not cpu_s else setup.moved() / 1e9 / cpu_s


def bound(size: int, folder: Path | None) -> tuple[float, dict[str, float]]:
    """CPU seconds below which no round can be, and what they are made of.

    Every byte is copied over TLS to each site and back, added to by each
    trainer, and read once by the sum.
    """
    with tempfile.TemporaryDirectory(prefix="firesteel-bench-", dir=folder) as name:
        megabytes = min(256, max(16, size // MIB))
        tls = copies.bare(Path(name), megabytes)["tls"]
        memcpy = copies.parts(Path(name), megabytes)["memcpy"]
    gigabytes = SITES * size / 1e9
    made = {
        "TLS copies there and back": 2 * gigabytes * tls,
        "trainers' additions, as memcpy": gigabytes * memcpy,
        "the sum, as memcpy": gigabytes * memcpy,
    }
    return sum(made.values()), made


def row(outcome: Outcome, ours: Outcome | None, least_s: float) -> list[str]:
    """One line of the table."""
    wall, cpu = outcome.settled("wall_s"), outcome.settled("cpu_s")
    other = ours if ours is not outcome else None
    return [
        outcome.system,
        number(wall),
        number(cpu),
        number(outcome.setup.moved() / 1e9 / cpu if cpu else None),
        share(least_s, cpu),
        number(outcome.owned_mb("server")),
        ratio(wall, other.settled("wall_s")) if other else "",
        ratio(cpu, other.settled("cpu_s")) if other else "",
        outcome.failure,
    ]


def part(report: Report, options: argparse.Namespace) -> None:
    """Ours and FLARE's in turn."""
    size = max(16 * MIB, int(GIB * options.scale))
    setup = Setup(sites=SITES, size=size, rounds=ROUNDS)
    least_s, made = bound(size, options.folder)
    outcomes: list[Outcome] = []
    for _ in range(options.reps or 1):
        for run in [large_runs.run_ours, *([large_runs.run_flare] if with_flare(options) else [])]:
            outcome = run(setup, options.folder)
            large_runs.tell(outcome)
            outcomes.append(outcome)
    report.data["fedavg"] = {
        "bound_cpu_s": made,
        "runs": [outcome.record() for outcome in outcomes],
    }
    ours = next((one for one in outcomes if one.system == "firesteel" and not one.failure), None)
    page = f"## FedAvg, {size / GIB:.3g} GiB, {SITES} sites, over TLS: a whole round\n\n"
    page += table(
        ["system", "wall s", "CPU-s", "GB per CPU-s", "bound ÷ CPU", "server MB", "wall ÷ ours", "CPU ÷ ours", ""],
        [row(outcome, ours, least_s) for outcome in outcomes],
    )  # fmt: skip
    page += (
        f"\nThe bound is {number(least_s)} CPU-s, "
        f"{number(least_s / (os.cpu_count() or 1))} s on {os.cpu_count()} cores: "
        + ", ".join(f"{name} {number(value)}" for name, value in made.items())
        + ".\n"
    )
    if ours:
        page += f"The spool held up to {ours.extra.get('spool_peak_mb', 0):.0f} MB of updates.\n"
    report.pages.append(page)
