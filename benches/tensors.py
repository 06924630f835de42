"""One very large tensor, very many small ones, and a model that did not change."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import copies
import large_runs
import watch
from figures import GIB, MIB, Report, number, ratio, room, say, settled, table
from large_runs import Setup

MANY = 100_000


@dataclass(frozen=True)
class Shape:
    """A model's tensors."""

    name: str
    tensors: int
    each: int


def role_of(words: list[str]) -> str | None:
    """The two ends of a pull."""
    if "pull-end" not in words:
        return None
    return words[words.index("--side") + 1]


def pulled(shape: Shape, folder: Path, more: tuple[str, ...] = ()) -> tuple[dict[str, Any], watch.Watch]:
    """Pulls a model, watched."""
    looking = watch.Watch(role_of)
    with looking.watching():
        found = copies.pull(folder, tensors=shape.tensors, each=shape.each, more=more)
    return found, looking


def part(report: Report, options: argparse.Namespace) -> None:
    """All of them pulled between two processes, and a whole round of the many."""
    each = max(MIB, int(6 * GIB * options.scale) // MIB * MIB)
    many = max(100, int(MANY * options.scale))
    shapes = [
        Shape(f"one tensor of {each / GIB:.3g} GiB", 1, each),
        Shape(f"one tensor of {many * 4000 / 1e6:.0f} MB", 1, many * 4096),
        Shape(f"{many:,} tensors of 4 KiB", many, 4096),
        Shape(f"{many:,} scalars", many, 4),
    ]
    data: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="firesteel-bench-", dir=options.folder) as name:
        trouble = room(Path(name), 4 * each)
        if trouble:
            raise SystemExit(f"error: {trouble}")
        large_runs.warm_up(3 * each)
        for shape in shapes:
            found, looking = pulled(shape, Path(name))
            wall = settled([one["wall_s"] for one in found["passes"]])
            cpu = settled([one["cpu_s"] for one in found["passes"]])
            held = {role: peak.owned / 1e6 for role, peak in looking.roles.items()}
            data[shape.name] = {**found, "wall_s": wall, "cpu_s": cpu, "owned_mb": held}
            say(f"  {shape.name}: {wall:.3f} s, {cpu:.3f} CPU-s")
            rows.append(
                [shape.name, number(wall), number(cpu), *(number(held.get(end)) for end in ("send", "receive"))]
            )
        again, _ = pulled(Shape("again", 64, each // 384), Path(name), ("--again",))
    first, second = again["travelled"][-1], again["again"]["travelled"]
    data["again"] = again
    one, split = data[shapes[1].name], data[shapes[2].name]
    page = (
        f"## Tensors of all sizes\n\nThe many took **{ratio(split['wall_s'], one['wall_s'])}** the"
        f" time of the one of as many bytes, and {ratio(split['cpu_s'], one['cpu_s'])} the CPU time."
        f" A model of {first / 1e6:.0f} MB that is there already cost {second:,} bytes when it was"
        f" sent again, **{100 * second / first:.3f} %**.\n\n"
    )
    page += table(["pulled", "s", "CPU-s", "sender holds MB", "receiver holds MB"], rows)
    whole = []
    for shape in shapes[1:]:
        setup = Setup(sites=2, size=shape.tensors * shape.each, tensors=shape.tensors)
        outcome = large_runs.run_ours(setup, options.folder)
        large_runs.tell(outcome)
        data[f"round of {shape.name}"] = outcome.record()
        whole.append(
            [shape.name, number(outcome.settled("wall_s")), number(outcome.settled("cpu_s")), outcome.failure]
        )
    page += "\n" + table(["a round of FedAvg, 2 sites", "s", "CPU-s", ""], whole)
    report.data["tensors"] = data
    report.pages.append(page)
