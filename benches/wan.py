"""Models over emulated long lines, beside a plain TCP stream."""

from __future__ import annotations

import argparse
import json
import subprocess

from figures import TREE, Report, native_target, table


def wan(report: Report, options: argparse.Namespace) -> None:
    """Models over emulated long lines, beside a plain TCP stream; about 15 minutes.

    Needs root, or a kernel that gives this user namespaces and TUN devices.
    """
    build = ["cargo", "build", "--release", "--locked", "-p", "firesteel-net-tests"]
    subprocess.run(build, cwd=TREE, check=True)
    quick = ["--quick"] if options.reps == 1 else []
    done = subprocess.run(
        [str(native_target() / "firesteel-bench-wan"), *quick],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures = json.loads(done.stdout)
    report.data["wan"] = figures
    kernel = figures["congestion_controls"]
    page = (
        f"The kernel has {kernel['available']}, and uses {kernel['default']} by itself.\n\n"
        "### 100 ms, 0.1 % loss, 200 Mbit/s, beside one plain TCP stream\n\n"
    )
    page += table(
        ["congestion control", "MB", "plain Mbit/s", "ours Mbit/s", "ours ÷ plain"],
        [
            [
                name,
                f"{case['bytes'] / 1e6:.0f}",
                f"{case['plain_mbit']:.1f}",
                f"{case['ours_mbit']:.1f}",
                f"{case['ours_to_plain']:.2f}",
            ]
            for name, case in figures["long"].items()
            if isinstance(case, dict)
        ],
    )
    narrow = figures["narrow"]
    idle, followed = narrow.pop("idle_heartbeat"), narrow.pop("idle_heartbeat_followed")
    page += (
        "\n### 4 Mbit/s, 200 ms, 1 % loss\n\n"
        f"With nothing else on the line, {idle['count']} heartbeats took "
        f"{idle['p50_ms']:.0f} ms (median), {idle['p99_ms']:.0f} ms (99 %); with three small "
        f"packets behind each, {followed['p50_ms']:.0f} and {followed['p99_ms']:.0f} ms.\n\n"
    )
    page += table(
        [
            *("congestion control", "MB", "s", "Mbit/s", "heartbeats"),
            *("p50 ms", "p99 ms", "max ms", "followed p99 ms"),
        ],
        [
            [
                name,
                f"{case['bytes'] / 1e6:.1f}",
                f"{case['seconds']:.0f}",
                f"{case['mbit']:.2f}",
                str(case["heartbeat"]["count"]),
                *(f"{case['heartbeat'][at]:.0f}" for at in ("p50_ms", "p99_ms", "max_ms")),
                f"{case['heartbeat_followed']['p99_ms']:.0f}",
            ]
            for name, case in narrow.items()
            if isinstance(case, dict)
        ],
    )
    cuts = figures["cuts"]
    page += (
        f"\n### Ten cuts in {cuts['bytes'] / 2**20:.0f} MiB at 20 ms\n\n"
        f"{cuts['bytes_over_minimum']:.4f} of the bytes that it takes without a cut, "
        f"{cuts['cuts_10']['seconds']:.1f} s instead of {cuts['cuts_0']['seconds']:.1f} s.\n"
    )
    report.pages.append("## Long lines\n\n" + page)
