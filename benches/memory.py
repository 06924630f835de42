"""What server, agent and trainer hold, by the model's size and the number of sites.

A process holds its anonymous and shared pages; beside them the peak of its
control group without the page cache, and trees as PSS. "Over idle" is less what
the server held when it listened and no site was there yet.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import fedavg
import large_runs
import watch
from figures import GIB, MIB, Report, number, ratio, say, table
from large_runs import Outcome, Setup

# FLARE's own published set-ups: bytes of the model and clients.
PUBLISHED = ((5_000_000_000, 4), (3_200_000_000, 6))
# What FLARE needs, in models: at the server, and at each client.
FLARE_SERVER, FLARE_CLIENT = 12.0, 2.2


@dataclass(frozen=True)
class Wanted:
    """A case, and what it is called."""

    name: str
    setup: Setup


def over_idle(outcome: Outcome) -> float | None:
    """Megabytes of the server above its idle."""
    owned = outcome.owned_mb("server")
    return None if owned is None else owned - (outcome.server_idle_mb or 0.0)


def row(name: str, outcome: Outcome, theirs: Outcome | None = None) -> list[str]:
    """One line of the table."""
    size_mb = outcome.setup.size / 1e6
    groups = outcome.memory.get("groups", {})
    trainer = outcome.largest_mb("trainer")
    mapped = outcome.memory.get("largest_process", {}).get("server", {}).get("mapped_files_mb")
    return [
        name,
        outcome.system,
        number(outcome.owned_mb("server")),
        number(over_idle(outcome)) if outcome.system == "firesteel" else "",
        number(mapped),
        number(groups["server"]["owned_mb"]) if groups else "–",
        "" if outcome.setup.stub and not outcome.setup.real else number(outcome.largest_mb("agent")),
        number(trainer - size_mb) if trainer else "",
        number(outcome.memory.get("pss_mb", {}).get("all")),
        ratio(theirs.owned_mb("server"), outcome.owned_mb("server")) if theirs else "",
        outcome.failure,
    ]


def fits(sites: int) -> int:
    """Bytes of the largest model with which FLARE fits into the memory here."""
    usable = 0.85 * watch.available()
    return int(usable / (FLARE_SERVER + sites * FLARE_CLIENT)) // MIB * MIB


def part(report: Report, options: argparse.Namespace) -> None:
    """The published set-ups, side by side as far as the peer fits; then ours by size and sites."""
    outcomes: list[tuple[str, Outcome, Outcome | None]] = []

    def ours(name: str, setup: Setup, theirs: Outcome | None = None) -> None:
        say(f"  {name}")
        outcome = large_runs.run_ours(setup, options.folder)
        large_runs.tell(outcome)
        outcomes.append((name, outcome, theirs))

    def scaled(size: int) -> int:
        return max(4 * MIB, int(size * options.scale) // MIB * MIB)

    for published, sites in PUBLISHED:
        size = scaled(published)
        if fedavg.with_flare(options):
            both = min(size, fits(sites))
            name = f"{both / 1e9:.2g} GB × {sites}"
            say(f"  {name}, FLARE")
            theirs = large_runs.run_flare(Setup(sites=sites, size=both, rounds=2), options.folder)
            large_runs.tell(theirs)
            outcomes.append((name, theirs, None))
            ours(name, Setup(sites=sites, size=both, rounds=2), theirs)
        # One site trains; the others answer with the model's file, as the disk
        # and the memory of one machine are not those of all of them.
        setup = Setup(sites=sites, size=size, rounds=2, spool=2 * size, stub=True, real=1)
        ours(f"published: {size / 1e9:.2g} GB × {sites}", setup)
    for sites in (2, 8, 32):
        size = scaled(GIB)
        setup = Setup(sites=sites, size=size, rounds=2, stub=True)
        ours(f"{size / GIB:.3g} GiB × {sites}, stub sites", setup)
    size = scaled(8 * GIB)
    setup = Setup(sites=2, size=size, rounds=2, stub=True, spool=size // 4)
    ours(f"{size / GIB:.3g} GiB × 2, stub sites, spool {size / 4 / GIB:.3g} GiB", setup)

    report.data["memory"] = [
        {"name": name, **outcome.record()} for name, outcome, _ in outcomes
    ]
    head = [
        "model × sites", "system", "server MB", "over idle", "mapped MB", "server's group MB",
        "agent MB", "trainer less model MB", "all, PSS MB", "FLARE's server ÷ ours", "",
    ]  # fmt: skip
    report.pages.append(
        "## Memory\n\n"
        + table(head, [row(name, outcome, theirs) for name, outcome, theirs in outcomes])
        + "\nAgent and trainer are the largest process of their kind.\n"
    )
