"""What it costs to bring tensors from one process to another, beside the least it can.

The bound is a bare copy: rustls and aws-lc-rs, TLS 1.3, loopback, two
processes, from a warm mapped file into a warm one, without digests or protocol.
Ours is a pull as roles do it: manifest with digests, checked at arrival, into a
received file. FLARE moves its bytes in its POC's rounds, and ours is shown in
the same, too. All in CPU seconds per gigabyte, both ends together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import copies
import fedavg
import large_runs
import watch
from figures import (
    GIB,
    HERE,
    MIB,
    Report,
    environment,
    number,
    python_of,
    ratio,
    room,
    say,
    settled,
    share,
    table,
)

# A larger model costs FLARE as much per byte, and only takes longer.
FLARE_SIZE = 256 * MIB


def edges(folder: Path, megabytes: int) -> dict[str, float]:
    """CPU seconds per gigabyte of the trainer's ends: tensors to a file and back."""
    python = python_of("core")
    done = subprocess.run(
        [str(python), str(HERE / "large" / "edges.py"), str(megabytes), str(copies.PASSES)],
        cwd=folder,
        env=environment(python),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return {name: settled(figures) for name, figures in json.loads(done.stdout).items()}


def part(report: Report, options: argparse.Namespace) -> None:
    """Bare, its steps, ours, FLARE's."""
    size = max(16 * MIB, int(GIB * options.scale))
    megabytes = size // MIB
    with tempfile.TemporaryDirectory(prefix="firesteel-bench-", dir=options.folder) as name:
        folder = Path(name)
        trouble = room(folder, 4 * size)
        if trouble:
            raise SystemExit(f"error: {trouble}")
        large_runs.warm_up(6 * size)
        copied = copies.bare(folder, megabytes)
        say(f"  bare: {copied['tcp']:.2f} by TCP, {copied['tls']:.2f} by TLS CPU-s per GB")
        steps = copies.parts(folder, megabytes)
        pulled = copies.pull(folder, tensors=64, each=size // 64)
        ends = edges(folder, megabytes)
    ours = settled([one["cpu_s_per_gb"] for one in pulled["passes"]])
    say(f"  ours: {ours:.2f} CPU-s per GB")
    flare_size = min(size, FLARE_SIZE)
    rounds = {
        system: fedavg.moved_per_cpu_s(system, sites=2, size=flare_size, folder=options.folder)
        for system in ("firesteel", "flare")
        if system == "firesteel" or fedavg.with_flare(options)
    }
    flare = rounds.get("flare")
    report.data["transfer"] = {
        "bytes": size,
        "bare": copied,
        "parts": steps,
        "pull": pulled,
        "edges": ends,
        "gb_per_cpu_s_in_rounds": rounds,
        "peak_available_bytes": watch.available(),
    }
    rows = [
        ["a bare copy by TCP", number(copied["tcp"]), share(copied["tcp"], copied["tls"])],
        ["a bare copy by TLS", number(copied["tls"]), "100 %"],
        ["**ours, with digests**", number(ours), share(ours, copied["tls"])],
    ]
    page = (
        f"## From one process to another, {size / GIB:.3g} GiB\n\n"
        f"Ours reaches **{share(copied['tls'], ours)}** of a bare TLS copy in gigabytes per CPU"
        f" second ({1 / ours:.2f} and {1 / copied['tls']:.2f})"
        f", and moves **{ratio(1 / ours, flare)}** what FLARE moves in its rounds"
        f" ({number(flare)}; ours in the same rounds, trainers and sums included:"
        f" {number(rounds['firesteel'])}, {ratio(rounds['firesteel'], flare)}).\n\n"
    )
    page += table(["what", "CPU-s per GB", "of the bare TLS copy"], rows)
    names = {
        "TLS, both ends (bare TLS less bare TCP)": copied["tls"] - copied["tcp"],
        "AES-256-GCM: sealing 16 KiB records": steps["seal"],
        "AES-256-GCM: opening them": steps["open"],
        "BLAKE3, once": steps["hash"],
        "reading a warm file into a window": steps["read"],
        "writing a window over a warm file": steps["write_warm"],
        "writing a window into a fresh allocated file": steps["write_fresh"],
        "memcpy": steps["memcpy"],
        "page faults of a mapped warm file": steps["faults_mapped"],
        "page faults of fresh memory": steps["faults_anonymous"],
        "trainer: arrays into a fresh file": ends["write"],
        "trainer: a file as arrays, each page read": ends["read"],
        "trainer: adding one in place, which makes private pages": ends["private"],
    }
    page += "\n" + table(
        ["steps by themselves", "CPU-s per GB"],
        [[name, number(value)] for name, value in names.items()],
    )
    report.pages.append(page)
