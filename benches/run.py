"""Whole-path figures, beside FLARE and Flower on the same machine in one run.

    make bench                    everything
    make bench ONLY=hello         one part; `benches/run.py --help` names them
    make bench BENCH_ARGS="--reps 20 --systems firesteel"
    make bench ONLY=fedavg BENCH_ARGS="--scale 0.0625"    models a sixteenth of the size

The peers are installed in environments of their own, in the cache, from
`requirements/flare.txt` and `requirements/flower.txt`. Runs of the systems are
interleaved, so that a busy minute of the machine falls on all of them. Every
run's result is checked; a run that fails is counted and shown, and its figures
are left out. Writes `bench-results/<date>.json` and the same as a table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TREE = HERE.parent
sys.path.insert(0, str(TREE / "scripts"))

import codec  # noqa: E402
import fedavg  # noqa: E402
import measure  # noqa: E402
import memory  # noqa: E402
import receivers  # noqa: E402
import tensors  # noqa: E402
import transfer  # noqa: E402
from drivers import drivers  # noqa: E402
from figures import Report, environment, median_of, python_of, ratio, say, table  # noqa: E402
from wan import wan  # noqa: E402

RESULTS = TREE / "bench-results"


@dataclass(frozen=True)
class System:
    """One of the systems that run the trivial job.

    `flare-polled` is FLARE with every interval that a job can set at 20 ms.
    """

    name: str
    # The group of its environment.
    group: str
    # Its script, and the arguments that make it this system.
    script: str
    arguments: tuple[str, ...] = ()
    # Rounds of the two runs whose difference is the cost of a round.
    few: int = 3
    many: int = 23


OURS = System("firesteel", "core", "trivial/job.py", few=3, many=203)
# Several sites' scripts one after another in a process, as Flower does it.
REUSING = System("firesteel-reusing", "core", "trivial/job.py", ("--reuse",))
PEERS = (
    System("flare", "flare", "peers/flare/job.py", many=9),
    System("flare-polled", "flare", "peers/flare/job.py", ("--poll", "0.02")),
    System("flare-collab", "flare", "peers/flare/collab_job.py", many=103),
    System("flower", "flower", "peers/flower/job.py"),
)
SYSTEMS = {system.name: system for system in (OURS, REUSING, *PEERS)}
# One interval of the wall clock that no honest run needs.
DEADLINE_S = {"hello": 180.0, "round": 300.0, "sites": 900.0}


@dataclass
class Case:
    """All runs of one system at one size."""

    part: str
    system: str
    sites: int
    rounds: int
    runs: list[measure.Measured] = field(default_factory=list)

    def good(self) -> list[measure.Measured]:
        """The runs that did what they should."""
        return [run for run in self.runs if not run.failure]

    def median(self, figure: str) -> float | None:
        """The median of one figure over the good runs."""
        values = [float(getattr(run, figure)) for run in self.good()]
        return statistics.median(values) if values else None

    def record(self) -> dict[str, Any]:
        """Everything, as data."""
        return {
            "part": self.part,
            "system": self.system,
            "sites": self.sites,
            "rounds": self.rounds,
            "failed": len(self.runs) - len(self.good()),
            "runs": [run.record() for run in self.runs],
        }


def once(case: Case, system: System) -> None:
    """One run, added to its case."""
    python = python_of(system.group)
    command = [
        str(python),
        str(HERE / system.script),
        "--sites",
        str(case.sites),
        "--rounds",
        str(case.rounds),
        *system.arguments,
    ]
    with tempfile.TemporaryDirectory(prefix="firesteel-bench-") as folder:
        run = measure.run(
            command,
            cwd=Path(folder),
            env=environment(python),
            deadline_s=DEADLINE_S[case.part],
            # Every site adds one to every weight, every round.
            expect=f"first weight: {float(1 + case.rounds)}",
        )
    case.runs.append(run)
    verdict = run.failure or (
        f"{run.wall_s:.2f} s, {run.cpu_s:.2f} CPU-s, {run.peak_pss_mb:.0f} MB"
        + (f", {run.orphans} orphans" if run.orphans else "")
    )
    say(f"  {case.part}: {system.name}, {case.sites} sites × {case.rounds} rounds: {verdict}")


def interleave(cases: list[tuple[Case, System]], reps: int) -> list[Case]:
    """Runs every case `reps` times, one of each in turn.

    Each system runs once before, uncounted: that run compiles its modules and
    brings them into the page cache.
    """
    for system in {system.name: system for _, system in cases}.values():
        once(Case("hello", system.name, 2, 1), system)
    for _ in range(reps):
        for case, system in cases:
            once(case, system)
    return [case for case, _ in cases]


def spread(case: Case, figure: str) -> str:
    """Median and range."""
    values = sorted(float(getattr(run, figure)) for run in case.good())
    if not values:
        return "–"
    digits = 2 if values[0] < 10 else 1 if values[0] < 100 else 0
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({values[0]:.{digits}f}–{values[-1]:.{digits}f})"


def cases_table(cases: list[Case]) -> str:
    """One row per case, with ratios to ours at the same size."""
    ours = {(c.sites, c.rounds): c for c in cases if c.system == OURS.name}
    rows = []
    for case in cases:
        mine = ours.get((case.sites, case.rounds))
        rows.append(
            [
                case.system,
                f"{case.sites} × {case.rounds}",
                f"{len(case.good())} of {len(case.runs)}",
                spread(case, "wall_s"),
                spread(case, "cpu_s"),
                spread(case, "peak_pss_mb"),
                f"{case.median('peak_processes') or 0:.0f} / {case.median('peak_threads') or 0:.0f}",
                *(
                    [ratio(case.median(figure), mine.median(figure)) for figure in RATIOS]
                    if mine and mine is not case
                    else [""] * len(RATIOS)
                ),
            ]
        )
    head = [
        "system",
        "sites × rounds",
        "good runs",
        "wall s",
        "CPU-s",
        "peak PSS MB",
        "processes / threads",
    ]
    return table([*head, "wall ÷ ours", "CPU ÷ ours", "PSS ÷ ours"], rows)


RATIOS = ("wall_s", "cpu_s", "peak_pss_mb")


def physical(report: Report, _: argparse.Namespace) -> None:
    """What this machine cannot do faster, whoever asks."""
    python = python_of("core")
    figures: dict[str, float] = {}
    for name, code in (("python -c pass", "pass"), ("python -c 'import numpy'", "import numpy")):
        with tempfile.TemporaryDirectory() as folder:
            runs = [
                measure.run(
                    [str(python), "-c", code],
                    cwd=Path(folder),
                    env=environment(python),
                    deadline_s=60,
                    expect="",
                ).wall_s
                for _ in range(10)
            ]
        figures[f"{name}, s"] = median_of(runs)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler:
        with tempfile.TemporaryDirectory() as folder:
            program = str(Path(folder) / "pingpong")
            source = str(HERE / "physical" / "pingpong.c")
            subprocess.run([compiler, "-O2", "-o", program, source], check=True)
            trips = [
                float(subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout)
                for _ in range(5)
            ]
        figures["64 bytes there and back over loopback TCP, s"] = median_of(trips) / 1e6
    report.data["physical"] = figures
    rows = [
        [name.removesuffix(", s"), f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"]
        for name, value in figures.items()
    ]
    report.pages.append("## What the machine allows\n\n" + table(["what", "median"], rows))


def hello(report: Report, options: argparse.Namespace) -> None:
    """From `python job.py` to its exit: two sites, three rounds."""
    cases = interleave(
        [(Case("hello", system.name, 2, 3), system) for system in options.systems if system is not REUSING],
        options.reps or 5,
    )
    report.data["hello"] = [case.record() for case in cases]
    report.pages.append("## Hello, 2 sites × 3 rounds\n\n" + cases_table(cases))


def per_round(report: Report, options: argparse.Namespace) -> None:
    """A round with a trivial trainer: the slope between few and many rounds."""
    cases = interleave(
        [
            (Case("round", system.name, 2, rounds), system)
            for system in options.systems
            if system is not REUSING
            for rounds in (system.few, system.many)
        ],
        options.reps or 3,
    )
    slopes: dict[str, dict[str, float]] = {}
    for few, many in zip(cases[::2], cases[1::2], strict=True):
        difference = many.rounds - few.rounds
        slopes[few.system] = {
            f"{figure}_per_round": (high - low) / difference
            for figure in ("wall_s", "cpu_s", "peak_pss_mb")
            if (high := many.median(figure)) is not None
            and (low := few.median(figure)) is not None
        }
    report.data["round"] = {"slopes": slopes, "cases": [case.record() for case in cases]}
    mine = slopes.get(OURS.name, {})
    rows = [
        [
            system,
            f"{slope.get('wall_s_per_round', float('nan')) * 1e3:.2f}",
            f"{slope.get('cpu_s_per_round', float('nan')) * 1e3:.2f}",
            f"{slope.get('peak_pss_mb_per_round', float('nan')):.3f}",
            ratio(slope.get("wall_s_per_round"), mine.get("wall_s_per_round")),
        ]
        for system, slope in slopes.items()
    ]
    report.pages.append(
        "## A round, 2 sites, trivial trainer\n\n"
        + table(["system", "wall ms", "CPU ms", "PSS MB", "wall ÷ ours"], rows)
        + "\n"
        + cases_table(cases)
    )


def sites(report: Report, options: argparse.Namespace) -> None:
    """A hundred and a thousand sites, three rounds; FLARE cannot (see its issues)."""
    systems = [s for s in options.systems if s.name in (OURS.name, REUSING.name, "flower")]
    sizes = (100, 1000)
    cases = interleave(
        [(Case("sites", system.name, size, 3), system) for system in systems for size in sizes],
        options.reps or 2,
    )
    slopes: dict[str, float] = {}
    for small, large in zip(cases[::2], cases[1::2], strict=True):
        low, high = small.median("peak_pss_mb"), large.median("peak_pss_mb")
        if low is not None and high is not None:
            slopes[small.system] = (high - low) * 1024 / (sizes[1] - sizes[0])
    report.data["sites"] = {"kb_per_site": slopes, "cases": [case.record() for case in cases]}
    report.pages.append(
        "## Many sites\n\n"
        + cases_table(cases)
        + "\n"
        + table(
            ["system", "KB per simulated site"],
            [[name, f"{value:.1f}"] for name, value in slopes.items()],
        )
    )


def aggregate(report: Report, _: argparse.Namespace) -> None:
    """Eight updates of 256 MB, beside a C loop over the same warm files."""
    script = HERE / "aggregate" / "run.py"
    done = subprocess.run(
        [sys.executable, str(script), "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    figures = json.loads(done.stdout)
    report.data["aggregate"] = figures
    rows = [[name, f"{value:.3g}" if isinstance(value, float) else str(value)] for name, value in figures.items()]
    report.pages.append("## Aggregation\n\n" + table(["what", "figure"], rows))


PARTS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "physical": physical,
    "hello": hello,
    "round": per_round,
    "sites": sites,
    "aggregate": aggregate,
    "transfer": transfer.part,
    "fedavg": fedavg.part,
    "memory": memory.part,
    "tensors": tensors.part,
    "receivers": receivers.part,
    "codec": codec.part,
    "wan": wan,
    "drivers": drivers,
}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=TREE,
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit,
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def write(report: Report) -> None:
    """The figures as data and as a page."""
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    path = RESULTS / f"{stamp}.json"
    path.write_text(json.dumps(report.data, indent=1) + "\n", encoding="utf-8")
    head = report.data["machine"]
    page = (
        f"# Bench of {head['date']}\n\n"
        f"{head['cpu']}, {head['cores']} cores, {head['memory_gb']} GB, Linux {head['kernel']}, "
        f"Python {head['python']}, commit {head['commit']}, "
        f"load before it {head['load_average'][0]:.1f}.\n\n" + "\n".join(report.pages)
    )
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    say(f"written: {path.relative_to(TREE)} and the same as .md")


def main() -> None:
    """Reads the command line and runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=list(PARTS), action="append", help="one part")
    parser.add_argument("--reps", type=int, help="runs of each case")
    parser.add_argument(
        "--systems", help=f"comma-separated, of: {', '.join(SYSTEMS)}", default=",".join(SYSTEMS)
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the large models, 0.0625 for a quick look (1)"
    )
    parser.add_argument("--folder", type=Path, help="where large files are made (the temporary one)")
    options = parser.parse_args()
    chosen = options.systems.split(",")
    for name in chosen:
        if name not in SYSTEMS:
            parser.error(f"there is no system {name}; there are {', '.join(SYSTEMS)}")
    options.systems = [SYSTEMS[name] for name in chosen]
    for group in sorted({system.group for system in options.systems}):
        python_of(group)
    report = Report(data={"machine": machine()})
    for name in options.only or PARTS:
        say(f"== {name}")
        PARTS[name](report, options)
    write(report)


if __name__ == "__main__":
    main()
