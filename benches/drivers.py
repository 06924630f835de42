"""What the drivers tcp, grpc and http cost, on loopback and over 1 Gbit/s."""

from __future__ import annotations

import argparse
import json
import subprocess

from figures import TREE, Report, native_target, table


def drivers(report: Report, options: argparse.Namespace) -> None:
    """CPU of both ends per gigabyte by each driver; about 5 minutes.

    Needs root, or a kernel that gives this user namespaces and TUN devices.
    """
    build = ["cargo", "build", "--release", "--locked", "-p", "firesteel-net-tests"]
    subprocess.run(build, cwd=TREE, check=True)
    quick = ["--quick"] if options.reps == 1 else []
    done = subprocess.run(
        [str(native_target() / "firesteel-bench-drivers"), *quick],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures = json.loads(done.stdout)
    report.data["drivers"] = figures
    page = ""
    for part, title in (("loopback", "Loopback"), ("gigabit", "1 Gbit/s, 1 ms")):
        page += f"### {title}\n\n"
        page += table(
            ["driver", "direction", "Mbit/s", "site: CPU s per GB", "server: CPU s per GB"],
            [
                [
                    name,
                    direction,
                    f"{case['mbit']:.0f}",
                    f"{case['site_cpu_s_per_gb']:.2f}",
                    f"{case['server_cpu_s_per_gb']:.2f}",
                ]
                for name, directions in figures[part].items()
                for direction, case in directions.items()
            ],
        )
        page += "\n"
    report.pages.append("## Drivers\n\n" + page)
