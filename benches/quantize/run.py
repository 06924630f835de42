"""Whether quantized messages change where training ends.

    make bench-quantize                       everything
    make bench-quantize BENCH_ARGS="--seeds 2 --tasks digits"

Two small networks are federated with every scheme, with and without error
feedback, from the same seeds: a convolutional one over scikit-learn's digits,
and a causal language model over the characters of Python's manual. In every
round the sites judge the model that they received on data that nobody trains on.
Writes `bench-results/quantize.json`, and the curves and the table of
`docs/quantization.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
sys.path.insert(0, str(HERE))

import drawing  # noqa: E402
from networks import DigitsNet, LanguageModel, digits, text  # noqa: E402

from firesteel.filters import Quantize  # noqa: E402
from firesteel.recipe import FedAvgRecipe, SimEnv  # noqa: E402

SITES = 4
SCHEMES = ("fp16", "int8", "fp4", "nf4")
# Rounds, steps of a site per round, learning rate.
TASKS = {"digits": (20, 15, 0.05), "language": (12, 25, 0.003)}


def variants() -> dict[str, list[Quantize]]:
    """What is compared, fp32 first."""
    found: dict[str, list[Quantize]] = {"fp32": []}
    for scheme in SCHEMES:
        found[scheme] = [Quantize(scheme)]
        found[f"{scheme} + feedback"] = [Quantize(scheme, error_feedback=True)]
    return found


def prepare(task: str, seed: int, folder: Path) -> tuple[dict[str, Any], dict[str, str], Any, str]:
    """The sites' data, the common data, the first model and its arguments."""
    torch.manual_seed(seed)
    characters = ""
    if task == "digits":
        parts, held = digits(SITES, seed)
        model: torch.nn.Module = DigitsNet()
    else:
        parts, held, count = text(SITES)
        model = LanguageModel(count)
        characters = f" --characters {count}"
    np.savez(folder / "held.npz", **held)
    for at, part in enumerate(parts, 1):
        np.savez(folder / f"site-{at}.npz", **part)
    data = {"part": str(folder / "{site}.npz"), "held": str(folder / "held.npz")}
    return data, {"part": "part", "held": "held"}, model, characters


def one(task: str, filters: list[Quantize], seed: int, scratch: Path) -> tuple[list[float], int]:
    """A run's losses by round, and the bytes of its last update."""
    rounds, steps, lr = TASKS[task]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        data, names, model, more = prepare(task, seed, Path(folder))
        recipe = FedAvgRecipe(
            name=f"quantize-{task}",
            model=model,
            train_script=HERE / "client.py",
            train_args=f"{task} --steps {steps} --lr {lr}{more}",
            min_clients=SITES,
            # One more, in which the last model is judged.
            num_rounds=rounds + 1,
            key_metric="loss",
            key_metric_mode="min",
            data=names,
            filters=filters,
        )
        env = SimEnv(
            num_clients=SITES,
            data=data,
            seed=seed,
            workspace_root=folder,
            extra={"console": "off"},
        )
        run = recipe.execute(env)
        losses = [row["metrics"]["loss"] for row in run.metrics()]
        if len(losses) != rounds + 1:
            raise SystemExit(f"{task}: {run.get_status()} after {len(losses)} rounds")
        floats = sum(p.numel() for p in model.parameters())
    return losses, floats


def measure(tasks: list[str], seeds: int) -> dict[str, Any]:
    """All runs. Seeds are the outer loop, so that a busy hour falls on all variants."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-quantize-") as scratch:
        for task in tasks:
            curves: dict[str, list[list[float]]] = {name: [] for name in variants()}
            for seed in range(1, seeds + 1):
                for name, filters in variants().items():
                    before = time.monotonic()
                    losses, parameters = one(task, filters, seed, Path(scratch))
                    curves[name].append(losses)
                    print(
                        f"{task} seed {seed} {name}: {losses[0]:.4f} -> {losses[-1]:.4f} "
                        f"({time.monotonic() - before:.0f} s)",
                        file=sys.stderr,
                        flush=True,
                    )
            found[task] = {"parameters": parameters, "curves": curves}
    return found


def verdict(plain: list[float], other: list[float]) -> dict[str, Any]:
    """Whether final losses differ from those of fp32 by more than seeds do.

    Runs of one seed are pairs: they share data, first model and order. Noise is
    whichever is larger of two standard errors of the paired difference and of
    half a standard deviation of fp32's own losses over seeds.
    """
    differences = [b - a for a, b in zip(plain, other, strict=True)]
    mean = statistics.fmean(differences)
    spread = statistics.stdev(differences) if len(differences) > 1 else math.inf
    noise = max(
        2 * spread / math.sqrt(len(differences)),
        0.5 * (statistics.stdev(plain) if len(plain) > 1 else math.inf),
    )
    return {"difference": mean, "noise": noise, "within": mean <= noise}


def tabulated(found: dict[str, Any]) -> tuple[str, list[str]]:
    """The table of the page, and what is not within noise."""
    lines = [
        "| network | messages | final loss | difference to fp32 | within noise |",
        "|---|---|---|---|---|",
    ]
    outside = []
    for task, result in found.items():
        plain = [losses[-1] for losses in result["curves"]["fp32"]]
        for name, curves in result["curves"].items():
            final = [losses[-1] for losses in curves]
            spread = statistics.stdev(final) if len(final) > 1 else 0.0
            row = f"| {task} | {name} | {statistics.fmean(final):.4f} ± {spread:.4f} |"
            if name == "fp32":
                lines.append(f"{row} | |")
                continue
            judged = verdict(plain, final)
            result.setdefault("verdicts", {})[name] = judged
            word = "yes" if judged["within"] else "**no**"
            lines.append(f"{row} {judged['difference']:+.4f} (noise {judged['noise']:.4f}) | {word} |")
            if not judged["within"]:
                outside.append(f"{name} on {task}")
    return "\n".join(lines), outside


def write(found: dict[str, Any], seeds: int) -> None:
    """Figures, curves and page."""
    results = TREE / "bench-results"
    results.mkdir(exist_ok=True)
    table, outside = tabulated(found)
    (results / "quantize.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assets = TREE / "docs" / "assets"
    assets.mkdir(exist_ok=True)
    pictures = []
    for task, result in found.items():
        means = {
            name: [statistics.fmean(values) for values in zip(*curves, strict=True)]
            for name, curves in result["curves"].items()
        }
        title = f"{task}: loss on data that nobody trains on, mean of {seeds} seeds"
        name = f"quantize-{task}.svg"
        (assets / name).write_text(drawing.curves(title, means), encoding="utf-8")
        pictures.append(f"![Loss by round, {task}](assets/{name})")
    said = (
        f"Not within noise: {', '.join(outside)}."
        if outside
        else "All of them end within the noise of fp32."
    )
    sizes = ", ".join(f"{task}: {r['parameters']:,} parameters" for task, r in found.items())
    page = f"""# Where training ends with quantized messages

Two small networks, federated over {SITES} sites with every scheme in both directions, with and without error feedback, from the same {seeds} seeds ({sizes}).
The loss is the cross-entropy of the model that the sites receive, on data that nobody trains on; the last line of a curve is the model after {", ".join(f"{TASKS[t][0]} rounds ({t})" for t in found)}.
`make bench-quantize` makes this page.

{said}

{table}

Noise is the larger of two standard errors of the paired difference over seeds and of half a standard deviation of fp32's own losses.

{chr(10).join(pictures)}

What the schemes are stands in [the specification](specs/codec.md), how to use them in [the guide](guides/filters.md).
"""
    (TREE / "docs" / "quantization.md").write_text(page, encoding="utf-8")
    print(table)
    print(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    options = parser.parse_args()
    write(measure(options.tasks, options.seeds), options.seeds)


if __name__ == "__main__":
    main()
