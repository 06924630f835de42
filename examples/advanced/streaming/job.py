"""Sends a large model from one site to another in four ways, and compares them."""

import argparse

import numpy as np
from model import WAYS, size

from firesteel.recipe import FedAvgRecipe, SimEnv

MIB = 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=256, help="2048 for 1.3 billion numbers")
    parser.add_argument("--layers", type=int, default=6, help="24 for 1.3 billion numbers")
    args = parser.parse_args()

    recipe = FedAvgRecipe(
        name="streaming",
        # What this job is about travels by streams; the round's own model is tiny.
        model={"round": np.zeros(1, np.float32)},
        train_script="client.py",
        train_args=f"--hidden {args.hidden} --layers {args.layers}",
        min_clients=2,
        num_rounds=1,
        key_metric="plain_seconds",
    )
    run = recipe.execute(SimEnv(num_clients=2, num_workers=2))

    figures = {}
    for site in run.metrics()[0]["sites"]:
        figures.update(site["metrics"])
    count, length = size(args.hidden, args.layers)
    print(f"{run.get_status()}: {run.get_result()}")
    print(f"{count / 1e6:,.0f} million numbers, {length / MIB:,.0f} MiB, from site to site")
    print(f"{'way':<10} {'seconds':>8} {'x plain':>8}   own memory beside the model, MiB")
    print(f"{'':<10} {'':>8} {'':>8} {'sender':>10} {'receiver':>10}")
    for way in WAYS:
        seconds = figures[f"{way}_seconds"]
        print(
            f"{way:<10} {seconds:>8.2f} {seconds / figures['plain_seconds']:>8.2f} "
            f"{figures[f'{way}_sender'] / MIB:>10.1f} {figures[f'{way}_receiver'] / MIB:>10.1f}"
        )


if __name__ == "__main__":
    main()
