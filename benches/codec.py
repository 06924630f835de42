"""Quantizing on one core, beside a copy of the same bytes and bitsandbytes on the CPU.

bitsandbytes has the kernels that FLARE's quantizers call; FLARE itself needs a
GPU for them. Rates are gigabytes of the float32 model per second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess

from figures import HERE, Report, environment, native, number, python_of, ratio, table

# Their schemes by our names.
THEIRS = {"int8": "blockwise8", "fp4": "fp4", "nf4": "nf4"}


def ours(megabytes: int, rounds: int) -> dict[str, object]:
    """Our kernels and chains, and memcpy."""
    program = native("firesteel-codec", "codec_bench")
    done = subprocess.run(
        [str(program), str(megabytes), str(rounds)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def theirs(megabytes: int, rounds: int) -> dict[str, dict[str, float]]:
    """bitsandbytes, on top of the torch environment."""
    python = python_of("torch")
    overlay = python_of("bitsandbytes").parent.parent / "lib"
    packages = next(overlay.glob("python*/site-packages"))
    done = subprocess.run(
        [str(python), str(HERE / "peers" / "bitsandbytes" / "rates.py"), str(megabytes), str(rounds)],
        env={**environment(python), "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def part(report: Report, options: argparse.Namespace) -> None:
    """Both, one after the other, on one core."""
    megabytes = max(16, int(256 * options.scale))
    rounds = options.reps or 5
    # One core for both: neither may use threads, and neither moves.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        mine = ours(megabytes, rounds)
        peer = theirs(max(16, megabytes // 4), rounds)
    finally:
        os.sched_setaffinity(0, cores)
    report.data["codec"] = {"firesteel": mine, "bitsandbytes": peer}
    memcpy = float(str(mine["memcpy"]))
    rows = []
    for name, figures in mine.items():
        if not isinstance(figures, dict):
            continue
        other = peer.get(THEIRS.get(name, ""), {})
        rows.append(
            [
                name,
                number(figures["encode"]),
                number(figures["decode"]),
                f"{100 * figures['encode'] / memcpy:.0f} %",
                f"{figures['size']:.4f}",
                number(other.get("encode")),
                number(other.get("decode")),
                ratio(figures["encode"], other.get("encode")),
                ratio(figures["decode"], other.get("decode")),
            ]
        )
    head = [
        "scheme", "encode GB/s", "decode GB/s", "encode ÷ memcpy", "size", "bitsandbytes encode",
        "decode", "encode, ours ÷ theirs", "decode, ours ÷ theirs",
    ]  # fmt: skip
    report.pages.append(
        f"## Quantizing, one core\n\nmemcpy of the same bytes: {number(memcpy)} GB/s.\n\n"
        + table(head, rows)
    )
